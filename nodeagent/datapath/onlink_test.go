// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestOnLink: only a prefix of which the routes leave no doubt.
func TestOnLink(t *testing.T) {
	const up, other = 2, 3
	via := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	to := func(s string, ifindex int, gw []byte) netlink.Route {
		r := netlink.Route{LinkIndex: ifindex, Gw: gw, Type: unix.RTN_UNICAST}
		if s != "" {
			r.Dst = ipNet(netip.MustParsePrefix(s))
		}
		return r
	}
	lan, gateway := to("192.0.2.0/24", up, nil), to("", up, via("192.0.2.254"))
	for _, c := range []struct {
		name   string
		routes []netlink.Route
		want   string
	}{
		{"nothing", nil, ""},
		{"a network and a default route", []netlink.Route{gateway, lan}, "192.0.2.0/24"},
		{"a default route without a gateway", []netlink.Route{to("", up, nil)}, ""},
		{"another device's network", []netlink.Route{to("192.0.2.0/24", other, nil)}, ""},
		{"the gateway alone is on the link", []netlink.Route{gateway, to("192.0.2.254/32", up, nil)}, "192.0.2.254/32"},
		{"one neighbour is behind a gateway", []netlink.Route{lan, to("192.0.2.7/32", up, via("192.0.2.254"))}, ""},
		{"one neighbour is on another device", []netlink.Route{lan, to("192.0.2.7/32", other, nil)}, ""},
		{"one neighbour is unreachable", []netlink.Route{lan, {Dst: ipNet(netip.MustParsePrefix("192.0.2.7/32")), Type: unix.RTN_UNREACHABLE}}, ""},
		{"one neighbour has a route of its own", []netlink.Route{lan, to("192.0.2.7/32", up, nil)}, "192.0.2.0/24"},
		{"two ways to the same network", []netlink.Route{lan, to("192.0.2.0/24", other, nil)}, ""},
		{"pods behind a neighbour", []netlink.Route{lan, to("10.0.2.0/24", up, via("192.0.2.7"))}, "192.0.2.0/24"},
		{"two networks: the node's own", []netlink.Route{to("10.9.0.0/16", up, nil), lan}, "192.0.2.0/24"},
		{"two of others: the wider", []netlink.Route{to("203.0.113.0/25", up, nil), to("10.9.0.0/16", up, nil)}, "10.9.0.0/16"},
		{"several next hops", []netlink.Route{{Dst: ipNet(netip.MustParsePrefix("192.0.2.0/24")), Type: unix.RTN_UNICAST, MultiPath: []*netlink.NexthopInfo{{LinkIndex: up}}}}, ""},
		{"a dead link", []netlink.Route{{Dst: ipNet(netip.MustParsePrefix("192.0.2.0/24")), LinkIndex: up, Type: unix.RTN_UNICAST, Flags: unix.RTNH_F_LINKDOWN}}, ""},
		{"another family's", []netlink.Route{to("2001:db8::/64", up, nil), to("fe80::/64", up, nil)}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ""
			if p := onLink(c.routes, up, netip.MustParseAddr("192.0.2.1"), netip.Addr.Is4); p.IsValid() {
				got = p.String()
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestOnLinkFollowsTheRoutes: what the programs were loaded with changes with the routes, and with the rules.
func TestOnLinkFollowsTheRoutes(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	defer func() {
		cancel()
		must(t, <-done)
	}()
	lan4, lan6 := netip.PrefixFrom(node4, 24).Masked(), netip.PrefixFrom(node6, 64).Masked()
	inForce := func() (netip.Prefix, netip.Prefix) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.onLink4, d.onLink6
	}
	eventually := func(what string, want4, want6 netip.Prefix) {
		t.Helper()
		for range 100 {
			if got4, got6 := inForce(); got4 == want4 && got6 == want6 {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		got4, got6 := inForce()
		t.Fatalf("%s: %v and %v, want %v and %v", what, got4, got6, want4, want6)
	}
	none := netip.Prefix{}
	eventually("start", lan4, lan6)
	detour := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("198.18.0.128/25")), Gw: outside4.AsSlice()}
	must(t, netlink.RouteAdd(detour))
	eventually("a part of the network is behind a gateway", none, lan6)
	must(t, netlink.RouteDel(detour))
	eventually("no longer", lan4, lan6)
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table, rule.Mark = netlink.FAMILY_V6, 100, 77, 5
	must(t, netlink.RuleAdd(rule))
	defer func() { _ = netlink.RuleDel(rule) }()
	must(t, d.refresh(t.Context())) // of rules nobody tells; the next repair sees them
	eventually("somebody routes by rules", lan4, none)
}
