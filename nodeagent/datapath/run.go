// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// settleTime gathers the events of one change into one repair.
	settleTime = 300 * time.Millisecond
	// repairInterval is for what sends no event, such as a sysctl.
	repairInterval = 30 * time.Second
)

// Run repairs devices, attachments, routes, neighbours and sysctls, on netlink events and once in a while, until ctx
// ends. A device that comes or goes, or whose address or MTU changes, is taken up as Configure would.
func (d *Datapath) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	go watch(ctx, changed, func(err error) { d.log.Error(err, "watch devices and routes") })
	ticker := time.NewTicker(repairInterval)
	defer ticker.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-changed:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settleTime):
			}
		}
		err := d.refresh(ctx)
		switch {
		case err == nil:
			said = ""
		case err.Error() != said: // once, not every half minute
			said = err.Error()
			d.log.Error(err, "repair datapath")
		}
	}
}

func (d *Datapath) refresh(ctx context.Context) error {
	d.wiring.Lock()
	defer d.wiring.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.done {
		return nil
	}
	d.health = d.configure(ctx)
	if d.health == nil && len(d.uplinks) == 0 {
		d.health = ErrNoUplink
	}
	return d.health
}

// Health is what the last Configure or repair said; nil when all is as it should be.
func (d *Datapath) Health() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.health
}

// watch tells of changes of links, addresses, routes and neighbours. When the kernel's queue runs over or a socket
// breaks it subscribes anew and tells, for something may have been missed.
func watch(ctx context.Context, changed chan<- struct{}, report func(error)) {
	tell := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	for ctx.Err() == nil {
		err := watchOnce(ctx, tell)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			report(err)
		}
		tell()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func watchOnce(ctx context.Context, tell func()) error {
	done := make(chan struct{})
	defer close(done)
	broken := make(chan error, 4)
	report := func(err error) {
		select {
		case broken <- err:
		default:
		}
	}
	links := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: report}); err != nil {
		return fmt.Errorf("subscribe to devices: %w", err)
	}
	addrs := make(chan netlink.AddrUpdate, 64)
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: report}); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	routes := make(chan netlink.RouteUpdate, 64)
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: report}); err != nil {
		return fmt.Errorf("subscribe to routes: %w", err)
	}
	neighbours := make(chan netlink.NeighUpdate, 64)
	if err := netlink.NeighSubscribeWithOptions(neighbours, done, netlink.NeighSubscribeOptions{ErrorCallback: report}); err != nil {
		return fmt.Errorf("subscribe to neighbours: %w", err)
	}
	qdiscs, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_TC)
	if err != nil {
		return fmt.Errorf("subscribe to filters: %w", err)
	}
	defer qdiscs.Close()
	go watchFilters(qdiscs, tell, report)
	ok := true
	for ok {
		select {
		case <-ctx.Done():
			return nil
		case err := <-broken:
			return err
		case l, open := <-links:
			// A pod's interface that is made is wired by AddPod.
			if ok = open; open && IsPodDevice(l.Attrs().Name) && l.Attrs().Flags&net.FlagUp != 0 {
				continue
			}
		case a, open := <-addrs:
			if ok = open; open && a.LinkAddress.IP.IsLinkLocalUnicast() {
				continue
			}
		case r, open := <-routes:
			// What we add ourselves is no news.
			if ok = open; open && r.Type == unix.RTM_NEWROUTE && r.Protocol == routeProtocol {
				continue
			}
		case n, open := <-neighbours:
			// Of permanent ones only that they go; the others come and go all day.
			if ok = open; open && (n.Type == unix.RTM_NEWNEIGH || n.State&netlink.NUD_PERMANENT == 0) {
				continue
			}
		}
		tell()
	}
	return errors.New("subscription ended")
}

// watchFilters tells when somebody takes a qdisc or a filter off a device: until it is back a pod's packets are
// judged by nobody.
func watchFilters(s *nl.NetlinkSocket, tell func(), report func(error)) {
	for {
		messages, _, err := s.Receive()
		if err != nil {
			report(fmt.Errorf("watch filters: %w", err))
			return
		}
		for _, m := range messages {
			if m.Header.Type == unix.RTM_DELTFILTER || m.Header.Type == unix.RTM_DELQDISC {
				tell()
			}
		}
	}
}
