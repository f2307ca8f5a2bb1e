// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks routes as ours.
const routeProtocol netlink.RouteProtocol = 201

// route is a route of ours as it is compared.
type route struct {
	prefix  netip.Prefix
	via     netip.Addr // invalid: on the link
	src     netip.Addr // invalid: the kernel's choice
	ifindex int
	mtu     int // 0: the device's
}

func (r route) netlink() *netlink.Route {
	out := &netlink.Route{
		Dst: ipNet(r.prefix), LinkIndex: r.ifindex, Protocol: routeProtocol,
		Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Family: netlink.FAMILY_V4,
		Scope: netlink.SCOPE_LINK, MTU: r.mtu,
	}
	if r.prefix.Addr().Is6() {
		out.Family, out.Scope = netlink.FAMILY_V6, netlink.SCOPE_UNIVERSE // IPv6 knows no scopes
	}
	if r.via.IsValid() {
		out.Gw, out.Scope = r.via.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if r.src.IsValid() {
		out.Src = r.src.AsSlice()
	}
	return out
}

// ourRoutes are the routes of our protocol, prefix -> routes: a prefix can have several in IPv6.
func ourRoutes() (map[netip.Prefix][]netlink.Route, error) {
	all, err := routeList(&netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	out := map[netip.Prefix][]netlink.Route{}
	for _, r := range all {
		p := prefixOf(r.Dst)
		out[p] = append(out[p], r)
	}
	return out, nil
}

// matches compares what we set. Where the way is a gateway the kernel chose the device.
func (r route) matches(k netlink.Route) bool {
	if addrOf(k.Gw) != r.via || r.src.IsValid() && addrOf(k.Src) != r.src || k.MTU != r.mtu {
		return false
	}
	return r.ifindex == 0 || k.LinkIndex == r.ifindex
}

// repairRoutes writes the routes that are missing or differ, and deletes those of ours that are not wanted and for
// which mayDelete says yes. One that cannot be written does not keep the others from being written. Devices that
// mayVanish may go at any time.
func repairRoutes(wanted []route, mayDelete func(netip.Prefix, netlink.Route) bool, mayVanish func(ifindex int) bool) error {
	present, err := ourRoutes()
	if err != nil {
		return err
	}
	var errs []error
	keep := map[netip.Prefix]route{}
	for _, r := range wanted {
		keep[r.prefix] = r
		if n := present[r.prefix]; len(n) == 1 && r.matches(n[0]) {
			continue
		}
		if err := writeRoute(r, len(present[r.prefix]) > 0); err != nil && !(vanished(err) && mayVanish(r.ifindex)) {
			errs = append(errs, err)
		}
	}
	for prefix, routes := range present {
		for _, k := range routes {
			if r, ok := keep[prefix]; ok && r.matches(k) || !mayDelete(prefix, k) {
				continue
			}
			if _, ok := keep[prefix]; ok && len(routes) == 1 {
				continue // replaced in place
			}
			if err := netlink.RouteDel(&k); err != nil && !vanished(err) {
				errs = append(errs, fmt.Errorf("delete route to %s: %w", prefix, err))
			}
		}
	}
	return errors.Join(errs...)
}

// writeRoute replaces a route of ours, and never one of somebody else's.
func writeRoute(r route, replace bool) error {
	write := netlink.RouteAdd
	if replace {
		write = netlink.RouteReplace
	}
	err := write(r.netlink())
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("route to %s: %w (somebody else has made one: ip route show %s)", r.prefix, err, r.prefix)
	case r.via.IsValid() && (errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)):
		return fmt.Errorf("route to %s via %s: %w (routing.directNodeRoutes needs nodes on one network)", r.prefix, r.via, err)
	}
	return fmt.Errorf("route to %s: %w", r.prefix, err)
}

// neighbour of a pod, permanent: the stack never asks, so nobody can answer for the pod.
type neighbour struct {
	ip      netip.Addr
	ifindex int
	mac     net.HardwareAddr
}

func (n neighbour) netlink() *netlink.Neigh {
	family := netlink.FAMILY_V4
	if n.ip.Is6() {
		family = netlink.FAMILY_V6
	}
	return &netlink.Neigh{
		LinkIndex: n.ifindex, Family: family, State: netlink.NUD_PERMANENT,
		IP: n.ip.AsSlice(), HardwareAddr: n.mac,
	}
}

// repairNeighbours of pods writes the entries that are missing or differ. Those of a device go with the device, so deletion
// is only for a pod that changes its address.
func repairNeighbours(wanted []neighbour) error {
	type key struct {
		ip      netip.Addr
		ifindex int
	}
	present := map[key]netlink.Neigh{}
	if len(wanted) > 1 { // one is written without looking
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := again(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, family) })
			if err != nil {
				return fmt.Errorf("list neighbours: %w", err)
			}
			for _, n := range list {
				present[key{addrOf(n.IP), n.LinkIndex}] = n
			}
		}
	}
	var errs []error
	for _, n := range wanted {
		k, ok := present[key{n.ip, n.ifindex}]
		if ok && k.State == netlink.NUD_PERMANENT && bytes.Equal(k.HardwareAddr, n.mac) {
			continue
		}
		if err := netlink.NeighSet(n.netlink()); err != nil && !vanished(err) {
			errs = append(errs, fmt.Errorf("neighbour %s: %w", n.ip, err))
		}
	}
	return errors.Join(errs...)
}
