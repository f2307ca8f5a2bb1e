// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// again repeats a dump that another process's change cut short; the last try's error stands.
func again[T any](dump func() ([]T, error)) ([]T, error) {
	var out []T
	var err error
	for range 5 {
		if out, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

func linkList() ([]netlink.Link, error) {
	links, err := again(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return links, nil
}

func addrList(l netlink.Link) ([]netlink.Addr, error) {
	addrs, err := again(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return addrs, nil
}

// routeList lists the routes that match in every table of the filter, both families.
func routeList(filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	var out []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := again(func() ([]netlink.Route, error) { return netlink.RouteListFiltered(family, filter, mask) })
		if lacksFamily(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		out = append(out, routes...)
	}
	return out, nil
}

// lacksFamily is true of what a kernel without IPv6 answers.
func lacksFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// vanished is true of what the kernel answers about a pod's device that goes, or has gone, while it is worked on. Its
// routes and neighbours go with it. Where it was only set down, the next repair finds it up: it does that first.
func vanished(err error) bool {
	for _, gone := range []error{unix.ENODEV, unix.ENXIO, unix.ENETDOWN, unix.ESRCH} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

func ipNet(p netip.Prefix) *net.IPNet {
	a := p.Masked().Addr()
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(p.Bits(), a.BitLen())}
}

// prefixOf is the zero prefix for a default route.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	if a = a.Unmap(); a.Is4() && bits > 32 {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
