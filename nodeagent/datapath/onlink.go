// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// findOnLink gives for each family the prefix whose addresses the programs may send straight to by the only uplink,
// without asking the routes for each packet. Invalid: none that is certain.
func findOnLink(cfg Config, uplinks []uplink) (ipv4, ipv6 netip.Prefix, err error) {
	if len(uplinks) != 1 {
		return ipv4, ipv6, nil
	}
	routes, err := routeList(&netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return ipv4, ipv6, err
	}
	rules4, err := listRules(netlink.FAMILY_V4)
	if err != nil {
		return ipv4, ipv6, err
	}
	if plainRules(rules4) {
		ipv4 = onLink(routes, uplinks[0].index, cfg.NodeIPv4, netip.Addr.Is4)
	}
	rules6, err := listRules(netlink.FAMILY_V6)
	if err != nil {
		return ipv4, ipv6, err
	}
	if plainRules(rules6) {
		ipv6 = onLink(routes, uplinks[0].index, cfg.NodeIPv6, netip.Addr.Is6)
	}
	return ipv4, ipv6, nil
}

func listRules(family int) ([]netlink.Rule, error) {
	rules, err := again(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	if lacksFamily(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list routing rules: %w", err)
	}
	return rules, nil
}

// plainRules is true when the main table says all: nobody has added a rule to those that every kernel begins with.
func plainRules(rules []netlink.Rule) bool {
	for _, r := range rules {
		switch {
		case r.Table == unix.RT_TABLE_LOCAL && r.Priority == 0:
		case r.Table == unix.RT_TABLE_MAIN && r.Priority == 32766:
		case r.Table == unix.RT_TABLE_DEFAULT && r.Priority == 32767:
		default:
			return false
		}
	}
	return len(rules) > 0
}

// onLink picks from the main table the widest prefix of a family that is on the uplink's own link, before all one that
// holds the node's address. A prefix into which another route cuts, by a gateway or another device, is not certain.
func onLink(routes []netlink.Route, uplink int, own netip.Addr, family func(netip.Addr) bool) netip.Prefix {
	var straight, others []netip.Prefix
	for _, r := range routes {
		p := prefixOf(r.Dst)
		if !p.IsValid() || p.Bits() == 0 || !family(p.Addr()) || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
			continue
		}
		p = p.Masked()
		if goesStraight(r, uplink) {
			straight = append(straight, p)
		} else {
			others = append(others, p)
		}
	}
	straight = slices.DeleteFunc(straight, func(p netip.Prefix) bool {
		return slices.ContainsFunc(others, func(o netip.Prefix) bool { return o.Bits() >= p.Bits() && p.Contains(o.Addr()) })
	})
	if len(straight) == 0 {
		return netip.Prefix{}
	}
	return slices.MinFunc(straight, func(a, b netip.Prefix) int {
		if ina, inb := a.Contains(own), b.Contains(own); ina != inb {
			if ina {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
	})
}

// goesStraight is true of a route to neighbours on the uplink's link, and nothing else.
func goesStraight(r netlink.Route, uplink int) bool {
	return r.Type == unix.RTN_UNICAST && r.LinkIndex == uplink && len(r.Gw) == 0 && r.Via == nil && len(r.MultiPath) == 0 &&
		r.Encap == nil && r.NewDst == nil && r.MPLSDst == nil && r.Flags&(unix.RTNH_F_DEAD|unix.RTNH_F_LINKDOWN) == 0
}
