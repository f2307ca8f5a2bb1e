// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
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
	seen := &events{changed: make(chan struct{}, 1), devices: map[int]bool{}, linked: d.attach.linked}
	var moving sync.WaitGroup
	moving.Go(func() { d.movePods(ctx) })
	defer moving.Wait()
	go watch(ctx, seen, func(err error) { d.log.Error(err, "watch devices and routes") })
	ticker := time.NewTicker(repairInterval)
	defer ticker.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-seen.changed:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settleTime):
			}
			if !d.concerned(seen.take()) {
				continue
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

// everything stands for all devices.
const everything = 0

// noDevice is told where an event is of no single device.
const noDevice = -1

// events are the devices of which something was heard, and the routes of others.
type events struct {
	changed chan struct{}
	mu      sync.Mutex
	devices map[int]bool
	routes  []netip.Prefix
	// linked is true of a pod's interface that has no filter for what the pod sends.
	linked func(ifindex int) bool
}

// manyRoutes is where single routes are not told apart any longer.
const manyRoutes = 256

// tellRoute tells of somebody else's route: it may cut into what we hold for the uplink's own link.
func (e *events) tellRoute(ifindex int, p netip.Prefix) {
	e.mu.Lock()
	if len(e.routes) < manyRoutes {
		e.routes = append(e.routes, p)
	} else {
		ifindex = everything
	}
	e.mu.Unlock()
	e.tell(cmp.Or(ifindex, noDevice))
}

func (e *events) tell(ifindex int) {
	e.mu.Lock()
	e.devices[ifindex] = true
	e.mu.Unlock()
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

func (e *events) take() (devices map[int]bool, routes []netip.Prefix) {
	e.mu.Lock()
	defer e.mu.Unlock()
	devices, routes = e.devices, e.routes
	e.devices, e.routes = map[int]bool{}, nil
	return devices, routes
}

// concerned is false when all that was heard is of pods that have gone since: their interfaces' filters and routes go
// with them.
func (d *Datapath) concerned(devices map[int]bool, routes []netip.Prefix) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if devices[everything] {
		return true
	}
	for _, r := range routes {
		if d.onLink4.Overlaps(r) || d.onLink6.Overlaps(r) {
			return true
		}
	}
	for _, p := range d.pods {
		if devices[p.Ifindex] {
			return true
		}
	}
	for _, u := range d.uplinks {
		if devices[u.index] {
			return true
		}
	}
	return devices[d.overlay.index]
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
		d.health = noUplink(*d.cfg)
	}
	return d.health
}

// Health is what the last Configure or repair said, or that the configured MTU does not fit; nil when all is as it
// should be.
func (d *Datapath) Health() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.health, d.beyondUplinks())
}

// beyondUplinks names the uplinks that take less than the configured MTU: what pods send by that is lost there unseen.
func (d *Datapath) beyondUplinks() error {
	var small []string
	for _, u := range d.uplinks {
		if d.cfg.MTU > u.mtu {
			small = append(small, fmt.Sprintf("%s takes %d", u.name, u.mtu))
		}
	}
	if len(small) == 0 {
		return nil
	}
	return fmt.Errorf("the CiliumConfig's mtu is %d, and %s: larger packets are lost there (set spec.mtu to at most %d, or to 0)",
		d.cfg.MTU, strings.Join(small, ", "), underlayMTU(Config{}, d.uplinks))
}

// watch tells of changes of links, addresses, routes, neighbours and filters. When the kernel's queue runs over or a
// socket breaks it subscribes anew. Each time that it begins to listen it tells, for something may have been missed.
func watch(ctx context.Context, seen *events, report func(error)) {
	for ctx.Err() == nil {
		err := watchOnce(ctx, seen)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			report(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func watchOnce(ctx context.Context, seen *events) error {
	done := make(chan struct{})
	defer close(done)
	broken := make(chan error, 5)
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
	filters, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_TC)
	if err != nil {
		return fmt.Errorf("subscribe to filters: %w", err)
	}
	defer filters.Close()
	go watchFilters(filters, seen, report)
	seen.tell(everything) // what changed before we listened
	ok := true
	for ok {
		select {
		case <-ctx.Done():
			return nil
		case err := <-broken:
			return err
		case l, open := <-links:
			// A pod's interface comes by AddPod and goes by itself.
			if ok = open; open && !IsPodDevice(l.Attrs().Name) {
				seen.tell(everything)
			}
		case a, open := <-addrs:
			if ok = open; open && !a.LinkAddress.IP.IsLinkLocalUnicast() {
				seen.tell(everything)
			}
		case r, open := <-routes:
			ok = open
			switch {
			case !open, r.Protocol == routeProtocol && r.Type == unix.RTM_NEWROUTE: // what we add ourselves is no news
			case r.Protocol == routeProtocol:
				seen.tell(r.LinkIndex)
			case prefixOf(r.Dst).Bits() <= 0: // a default route: perhaps another uplink
				seen.tell(everything)
			case r.Table == unix.RT_TABLE_MAIN:
				seen.tellRoute(r.LinkIndex, prefixOf(r.Dst))
			}
		case n, open := <-neighbours:
			// Of permanent ones only that they go; the others come and go all day.
			if ok = open; open && n.Type == unix.RTM_DELNEIGH && n.State&netlink.NUD_PERMANENT != 0 {
				seen.tell(n.LinkIndex)
			}
		}
	}
	return errors.New("subscription ended")
}

// watchFilters tells when somebody takes a qdisc or a filter off a device: until it is back a pod's packets are
// judged by nobody.
func watchFilters(s *nl.NetlinkSocket, seen *events, report func(error)) {
	for {
		messages, _, err := s.Receive()
		if err != nil {
			report(fmt.Errorf("watch filters: %w", err))
			return
		}
		for _, m := range messages {
			if len(m.Data) < nl.SizeofTcMsg {
				continue
			}
			what := nl.DeserializeTcMsg(m.Data)
			switch index := int(what.Ifindex); {
			case m.Header.Type == unix.RTM_DELQDISC:
				seen.tell(index)
			case m.Header.Type == unix.RTM_DELTFILTER && what.Parent == netlink.HANDLE_MIN_INGRESS && seen.linked(index):
				// It was ours to take, when the pod moved over.
			case m.Header.Type == unix.RTM_DELTFILTER:
				seen.tell(index)
			}
		}
	}
}
