// SPDX-License-Identifier: Apache-2.0

package netspace

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a veth pair: a device in a namespace with its addresses.
type End struct {
	Space     string
	Device    string
	Addresses []netip.Prefix
	// Bridge is the device that this end is a port of, if any.
	Bridge string
}

// Pair makes a veth pair straight in its two namespaces, both ends up. The
// devices never show in the namespace of the caller.
func Pair(a, b End) error {
	fdA, err := os.Open(Path(a.Space))
	if err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	defer fdA.Close()
	fdB, err := os.Open(Path(b.Space))
	if err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	defer fdB.Close()
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: a.Device, Namespace: netlink.NsFd(fdA.Fd())},
		PeerName:      b.Device,
		PeerNamespace: netlink.NsFd(fdB.Fd()),
	}
	if err := Do(a.Space, func() error { return netlink.LinkAdd(veth) }); err != nil {
		return fmt.Errorf("veth %s in %s: %w", a.Device, a.Space, err)
	}
	for _, end := range []End{a, b} {
		if err := Do(end.Space, end.bringUp); err != nil {
			return fmt.Errorf("%s in %s: %w", end.Device, end.Space, err)
		}
	}
	return nil
}

func (e End) bringUp() error {
	link, err := netlink.LinkByName(e.Device)
	if err != nil {
		return err
	}
	if e.Bridge != "" {
		bridge, err := netlink.LinkByName(e.Bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, bridge); err != nil {
			return err
		}
		// A bridge takes what its ports can, from the first on.
		if err := takeSegments(bridge, bigSegment); err != nil {
			return err
		}
	}
	if err := takeSegments(link, bigSegment); err != nil {
		return err
	}
	if err := setAddresses(link, e.Addresses); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

const (
	ordinarySegment = 65536
	bigSegment      = 196608
)

// takeSegments says how large a segment a device takes whole, of either
// family. All devices of the underlay take what BIG TCP sends: one that did
// not would have the kernel cut it.
func takeSegments(link netlink.Link, size int) error {
	for _, set := range []func(netlink.Link, int) error{
		netlink.LinkSetGSOMaxSize, netlink.LinkSetGSOIPv4MaxSize, netlink.LinkSetGROMaxSize, netlink.LinkSetGROIPv4MaxSize,
	} {
		if err := set(link, size); err != nil {
			return fmt.Errorf("segments of %d bytes: %w", size, err)
		}
	}
	return nil
}

// Bridge makes a bridge with addresses in the namespace.
func Bridge(space, device string, addresses []netip.Prefix) error {
	// Without snooping, neighbour solicitations reach every port at once.
	snooping := false
	err := Do(space, func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: device}, MulticastSnooping: &snooping}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		if err := setAddresses(bridge, addresses); err != nil {
			return err
		}
		return netlink.LinkSetUp(bridge)
	})
	if err != nil {
		return fmt.Errorf("bridge %s in %s: %w", device, space, err)
	}
	return nil
}

// setAddresses adds addresses without duplicate address detection: a tentative
// address refuses to be bound for a second.
func setAddresses(link netlink.Link, addresses []netip.Prefix) error {
	for _, p := range addresses {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return nil
}

// Route is one route inside a namespace.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr
	Metric int
	Table  int
}

// AddRoutes adds routes in the namespace.
func AddRoutes(space string, routes ...Route) error {
	return Do(space, func() error {
		for _, r := range routes {
			route := &netlink.Route{Dst: ipNet(r.To), Gw: r.Via.AsSlice(), Priority: r.Metric, Table: r.Table}
			if err := netlink.RouteAdd(route); err != nil {
				return fmt.Errorf("route to %s via %s in %s: %w", r.To, r.Via, space, err)
			}
		}
		return nil
	})
}

// FromRule makes packets from a source look routes up in a table of their own.
func FromRule(space string, from netip.Prefix, table int) error {
	return Do(space, func() error {
		rule := netlink.NewRule()
		rule.Src, rule.Table = ipNet(from), table
		rule.Family = unix.AF_INET
		if from.Addr().Is6() {
			rule.Family = unix.AF_INET6
		}
		if err := netlink.RuleAdd(rule); err != nil {
			return fmt.Errorf("rule from %s in %s: %w", from, space, err)
		}
		return nil
	})
}

// Default is the default route's destination in the family of addr.
func Default(addr netip.Addr) netip.Prefix {
	if addr.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// CutSegments turns off what lets a segment larger than the MTU cross a
// device, so that each packet is cut before the wire. Whether received ones
// are aggregated is up to the caller.
func CutSegments(space, device string, aggregate bool) error {
	gro := "off"
	if aggregate {
		gro = "on"
	}
	return Do(space, func() error {
		out, err := exec.Command("ethtool", "-K", device, "tso", "off", "gso", "off", "tx-udp-segmentation", "off",
			"tx-udp_tnl-segmentation", "off", "tx-udp_tnl-csum-segmentation", "off", "gro", gro).CombinedOutput()
		if err != nil {
			return fmt.Errorf("cut segments at %s in %s: %w: %s", device, space, err, out)
		}
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return takeSegments(link, ordinarySegment)
	})
}

// routeProtocol marks the routes that Guard adds to the machine's own
// namespace ("ip route show proto 107"); no routing daemon has this number.
const routeProtocol = 107

// Guard makes prefixes unreachable from the namespace that the program was
// started in, so that a stray packet cannot follow a default route out.
func Guard(prefixes []netip.Prefix) error {
	for _, p := range prefixes {
		err := netlink.RouteReplace(guardRoute(p))
		if err != nil {
			return fmt.Errorf("unreachable route to %s: %w", p, err)
		}
	}
	return nil
}

// Unguard removes what Guard added. What is not there is fine.
func Unguard(prefixes []netip.Prefix) error {
	var failed []error
	for _, p := range prefixes {
		err := netlink.RouteDel(guardRoute(p))
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
			failed = append(failed, fmt.Errorf("unreachable route to %s: %w", p, err))
		}
	}
	return errors.Join(failed...)
}

// Guarded lists the prefixes of every Guard still in force.
func Guarded() ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL,
		&netlink.Route{Protocol: routeProtocol, Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return prefixesOf(routes), nil
}

// Used lists the networks that the machine's own namespace has routes to,
// default routes and link-local aside: those a cluster must not take.
func Used() ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return prefixesOf(routes), nil
}

func prefixesOf(routes []netlink.Route) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		if ok && ones > 0 && !addr.IsLinkLocalUnicast() && !addr.IsMulticast() {
			out = append(out, netip.PrefixFrom(addr, ones))
		}
	}
	return out
}

func guardRoute(p netip.Prefix) *netlink.Route {
	family := netlink.FAMILY_V4
	if p.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	return &netlink.Route{Family: family, Dst: ipNet(p), Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN, Priority: 1}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
