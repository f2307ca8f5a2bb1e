// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
)

// reportTicks is the ticks between two reports of a live flow.
const reportTicks = 5

// Ports that masquerade gives out. They are also the host's; programs ask the socket table before they take one.
const (
	natPortMin = 32768
	natPortMax = 65535
)

var (
	podHooks     = []bpf.Hook{bpf.MapsHookHOOK_FROM_POD, bpf.MapsHookHOOK_TO_POD}
	netdevHooks  = []bpf.Hook{bpf.MapsHookHOOK_FROM_NETDEV, bpf.MapsHookHOOK_TO_NETDEV}
	overlayHooks = []bpf.Hook{bpf.MapsHookHOOK_FROM_OVERLAY, bpf.MapsHookHOOK_TO_OVERLAY}
)

// Configure brings devices, sysctls, the tunnel device and programs to cfg. It is idempotent and adopts what is
// pinned. On an error whatever was in force before stays in force; ErrNoUplink comes after everything else was done.
func (d *Datapath) Configure(ctx context.Context, cfg Config) error {
	defer d.stir()()
	d.wiring.Lock()
	defer d.wiring.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	cfg.Devices = slices.Clone(cfg.Devices)
	cfg.Forbidden = slices.Clone(cfg.Forbidden)
	if d.cfg != nil && d.cfg.Mode != cfg.Mode {
		// Peers' routes of the other mode lead nowhere in this one. Those in the kernel stay until SetRoutes says better.
		d.routes, d.routesKnown = nil, false
	}
	d.cfg = &cfg
	if d.health = d.configure(ctx); d.health != nil {
		return d.health
	}
	if len(d.uplinks) == 0 {
		d.health = noUplink(cfg)
	}
	last := uint16(0)
	for id := range d.pods {
		last = max(last, id)
	}
	d.spareAfter(last)
	return d.health
}

// configure is also what Run does when devices change.
func (d *Datapath) configure(ctx context.Context) error {
	cfg := *d.cfg
	d.maps.batch = d.has(v1alpha1.FeatureBatchOperations)
	d.attach.tcx = d.has(v1alpha1.FeatureTCX)
	d.stack = !d.has(v1alpha1.FeatureRedirectNeigh)
	if err := d.sizeMaps(cfg); err != nil {
		return err
	}
	uplinks, err := findUplinks(cfg)
	if err != nil {
		return fmt.Errorf("find uplinks: %w", err)
	}
	d.uplinks = uplinks
	if d.onLink4, d.onLink6, err = findOnLink(cfg, uplinks); err != nil {
		return fmt.Errorf("find the uplink's own prefixes: %w", err)
	}
	mtu := underlayMTU(cfg, uplinks)
	d.overlay = device{}
	if cfg.Mode == v1alpha1.RoutingVXLAN {
		if d.overlay, err = ensureOverlay(cfg, mtu); err != nil {
			return err
		}
	}
	d.podMTU, d.deviceMTU = podMTU(cfg, mtu), mtu
	interval := reportInterval(cfg.FlowReporting)
	if err := d.maps.writeSettings(func(s *bpf.Settings) { s.ReportInterval = interval }); err != nil {
		return err
	}
	segment, err := d.sizeUplinks(cfg, uplinks)
	if err != nil {
		return err
	}
	if err := d.setDevices(uplinks); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.putInForce(cfg); err != nil {
		return err
	}
	d.raiseUplinks(uplinks, segment)
	if err := errors.Join(d.maps.finish(advanceSize(cfg.ConntrackMax)), d.progs.forgetBefore()); err != nil {
		return err
	}
	if cfg.Mode == v1alpha1.RoutingNative {
		if err := removeOverlay(); err != nil {
			return err
		}
	}
	// A route or a sysctl that fails is an error, but no reason to refuse pods.
	d.done = true
	return d.repair()
}

// putInForce loads programs, flips the slots and attaches. References come before referrers: maps are full, then the
// slots, then the stubs that call into them.
func (d *Datapath) putInForce(cfg Config) error {
	consts, err := d.constants(cfg)
	if err != nil {
		return err
	}
	if err := d.progs.loadStubs(); err != nil {
		return err
	}
	if err := d.progs.flip(consts); err != nil {
		return err
	}
	if err := d.attachDevices(); err != nil {
		return err
	}
	return d.attachSockets(consts)
}

func (d *Datapath) attachDevices() error {
	ups := make([]device, len(d.uplinks))
	for i, u := range d.uplinks {
		ups[i] = u.device
	}
	var over []device
	if d.overlay.index != 0 {
		over = append(over, d.overlay)
	}
	for _, group := range []struct {
		hooks []bpf.Hook
		devs  []device
	}{{netdevHooks, ups}, {overlayHooks, over}} {
		for _, hook := range group.hooks {
			if err := d.attach.adoptRenamed(hook, group.devs); err != nil {
				return err
			}
			for _, dev := range group.devs {
				if err := d.attach.attach(hook, dev); err != nil {
					return err
				}
			}
		}
		if err := d.attach.keepOnly(group.devs, group.hooks...); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datapath) attachSockets(consts constants) error {
	if !d.has(v1alpha1.FeatureSocketLoadBalancing) {
		return d.attach.detachSockets()
	}
	if err := d.progs.loadSocket(consts); err != nil {
		return err
	}
	if err := d.attach.attachSockets(d.opts.CgroupRoot); err != nil {
		return err
	}
	return d.progs.unpinOldSocket()
}

// sizeMaps makes the maps whose size is configured anew where it differs, filled from the old ones.
func (d *Datapath) sizeMaps(cfg Config) error {
	for _, l := range d.maps.layouts {
		if l.name != bpf.MapsMapConntrack {
			continue
		}
		if err := d.maps.resize(l, cfg.ConntrackMax); err != nil {
			return err
		}
	}
	if len(d.maps.stale) > 0 {
		d.progs.forget()
	}
	return d.ensureUnanswered(0)
}

func podMTU(cfg Config, underlay int) int {
	switch {
	case cfg.Mode != v1alpha1.RoutingVXLAN:
		return underlay
	case cfg.NodeIPv4.IsValid():
		return underlay - overhead4
	default:
		return underlay - overhead6
	}
}

// constants are those of bpf/lib/config.h. The header is built in eBPF where the kernel can, and on an IPv6 underlay
// only when asked to: there the outer checksum is the device's to make.
func (d *Datapath) constants(cfg Config) (constants, error) {
	can := d.has(v1alpha1.FeatureAdjustRoomEncap) && d.has(v1alpha1.FeatureRedirectNeigh)
	encap := false
	if cfg.Mode == v1alpha1.RoutingVXLAN {
		switch cfg.Encapsulation {
		case v1alpha1.EncapsulationBPF:
			if !can {
				return nil, fmt.Errorf("build the VXLAN header in eBPF: %w (set routing.encapsulation to Auto)", ErrNotSupported)
			}
			encap = true
		case v1alpha1.EncapsulationDevice:
		default:
			encap = can && cfg.NodeIPv4.IsValid()
		}
	}
	d.encap = encap
	only := uint32(0)
	if len(d.uplinks) == 1 {
		only = uint32(d.uplinks[0].index)
	}
	port := uint16(0)
	if cfg.Mode == v1alpha1.RoutingVXLAN {
		port = cfg.TunnelPort
	}
	prefix4, mask4 := bpf.PrefixAndMask(d.onLink4)
	prefix6, mask6 := bpf.PrefixAndMask(d.onLink6)
	return constants{
		"on_link_ipv4":        prefix4,
		"on_link_ipv4_mask":   mask4,
		"on_link_ipv6":        prefix6,
		"on_link_ipv6_mask":   mask6,
		"node_ipv4":           bpf.AddrFrom(cfg.NodeIPv4),
		"node_ipv6":           bpf.AddrFrom(cfg.NodeIPv6),
		"uplink_ifindex":      only,
		"overlay_ifindex":     uint32(d.overlay.index),
		"tunnel_port":         port,
		"encap_in_bpf":        encap,
		"have_redirect_peer":  d.has(v1alpha1.FeatureRedirectPeer),
		"have_redirect_neigh": d.has(v1alpha1.FeatureRedirectNeigh),
		"masquerade_ipv4":     cfg.MasqueradeIPv4,
		"masquerade_ipv6":     cfg.MasqueradeIPv6,
		"pod_mtu":             uint32(d.podMTU),
		"device_mtu":          uint32(d.deviceMTU),
		"nat_port_min":        uint16(natPortMin),
		"nat_port_max":        uint16(natPortMax),
		"have_coarse_clock":   d.has(featureClock),
		"advance_size":        advanceSize(cfg.ConntrackMax),
		"young_slots":         uint32(bpf.MapsYoungSizeYOUNG_SLOTS),
		"have_set_retval":     d.has(featureSetRetval),
	}, nil
}

func (d *Datapath) setDevices(uplinks []uplink) error {
	wanted := map[uint32]bpf.Device{}
	for _, u := range uplinks {
		wanted[uint32(u.index)] = u.entry()
	}
	if err := d.devices.Set(wanted); err != nil {
		return fmt.Errorf("set devices: %w", err)
	}
	return nil
}

// reportInterval is a way of reporting as the programs know it.
func reportInterval(r v1alpha1.FlowReporting) uint32 {
	switch r {
	case v1alpha1.FlowReportingOff:
		return uint32(bpf.MapsReportIntervalREPORT_NOTHING)
	case v1alpha1.FlowReportingEveryPacket:
		return uint32(bpf.MapsReportIntervalREPORT_EVERY_PACKET)
	}
	return reportTicks
}

// repair makes sysctls, pods' attachments, routes and neighbours what they should be. All is tried; errors are joined.
func (d *Datapath) repair() error {
	ipv4, ipv6 := d.families()
	var settings []setting
	if d.overlay.index != 0 {
		settings = append(settings, overlaySettings(ipv6)...)
	}
	var errs []error
	switch {
	case d.stack:
		settings = append(settings, forwardSettings(d.sysctl, d.uplinks, ipv4, ipv6)...)
		var err error
		d.forwardNote, err = ensureForwardRule(ipv4, ipv6)
		errs, d.forwardAway = append(errs, err), false
	case !d.forwardAway: // an agent before us may have made it
		err := removeForwardRule()
		errs, d.forwardAway, d.forwardNote = append(errs, err), err == nil, ""
	}
	errs = append(errs, d.sysctl.apply(settings))
	errs = append(errs, d.repairPods()...)
	errs = append(errs, d.repairRoutes(true))
	return errors.Join(errs...)
}

// families are those that the node has, by its addresses and its pods.
func (d *Datapath) families() (ipv4, ipv6 bool) {
	ipv4, ipv6 = d.cfg.NodeIPv4.IsValid(), d.cfg.NodeIPv6.IsValid()
	for _, p := range d.pods {
		ipv4 = ipv4 || p.IPv4.IsValid()
		ipv6 = ipv6 || p.IPv6.IsValid()
	}
	for _, r := range d.routes {
		ipv6 = ipv6 || r.Prefix.Addr().Is6()
	}
	return ipv4, ipv6
}
