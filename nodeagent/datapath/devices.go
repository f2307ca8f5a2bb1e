// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
)

const (
	// OverlayDevice is the VXLAN device's name.
	OverlayDevice = "kc_vxlan"
	// podDevicePrefix begins the name of the host's end of each pod's interface.
	podDevicePrefix = "kc"
)

// overlayMAC is a node's own: the kernel takes a frame whose inner source is the receiving device's MAC for an echo of
// what it sent, and drops it without a word (vxlan_set_mac). The device asks nobody for addresses (NOARP), so the
// stack writes its own MAC as the destination too, and from_overlay takes what is for another MAC all the same.
func overlayMAC(cfg Config) net.HardwareAddr {
	ip := cfg.NodeIPv4
	if !ip.IsValid() {
		ip = cfg.NodeIPv6
	}
	sum := sha256.Sum256(ip.AsSlice())
	return append(net.HardwareAddr{0x02, 0x6b}, sum[:4]...)
}

// uplink is a device that carries traffic off the node.
type uplink struct {
	device
	mac net.HardwareAddr
	mtu int
	segments
	// raised: it was, or is to be, made to take larger segments by us.
	raised bool
	// ipv4 and ipv6 are the sources of masqueraded packets; invalid: none of the family.
	ipv4, ipv6 netip.Addr
}

// findUplinks gives the devices of the patterns or, without patterns, those of the default routes and of the node's
// addresses; a bond, team or bridge in the place of its ports. Sorted by name.
func findUplinks(cfg Config) ([]uplink, error) {
	links, err := linkList()
	if err != nil {
		return nil, err
	}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	var found map[int]bool
	if len(cfg.Devices) > 0 {
		found = matchDevices(links, cfg.Devices)
	} else if found, err = routedDevices(links, cfg); err != nil {
		return nil, err
	}
	tops := map[int]netlink.Link{}
	for index := range found {
		if l, ok := byIndex[index]; ok {
			top := masterOf(l, byIndex)
			tops[top.Attrs().Index] = top
		}
	}
	var out []uplink
	for _, l := range tops {
		u, err := describe(l, cfg)
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b uplink) int { return cmp.Compare(a.name, b.name) })
	return out, nil
}

// noUplink says why there is none.
func noUplink(cfg Config) error {
	if len(cfg.Devices) > 0 {
		return fmt.Errorf("%w: the CiliumConfig's devices are %s, and this node has no such device", ErrNoUplink, strings.Join(cfg.Devices, ", "))
	}
	return fmt.Errorf("%w: neither a default route nor the node's address (name it in the CiliumConfig's devices)", ErrNoUplink)
}

func matchDevices(links []netlink.Link, patterns []string) map[int]bool {
	found := map[int]bool{}
	for _, l := range links {
		name := l.Attrs().Name
		for _, p := range patterns {
			prefix, isPrefix := strings.CutSuffix(p, "*")
			if name == p || isPrefix && strings.HasPrefix(name, prefix) && !ours(l) {
				found[l.Attrs().Index] = true
			}
		}
	}
	return found
}

// ours is true for the devices that we or our pods made, and for the loopback: no traffic leaves the node by them.
func ours(l netlink.Link) bool {
	name := l.Attrs().Name
	return l.Attrs().Flags&net.FlagLoopback != 0 || name == OverlayDevice || IsPodDevice(name)
}

// IsPodDevice is true for the name of a pod's host end: kc and twelve hexadecimal digits.
func IsPodDevice(name string) bool {
	digits, ok := strings.CutPrefix(name, podDevicePrefix)
	return ok && len(digits) == 12 && strings.Trim(digits, "0123456789abcdef") == ""
}

func routedDevices(links []netlink.Link, cfg Config) (map[int]bool, error) {
	found := map[int]bool{}
	routes, err := routeList(&netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if p := prefixOf(r.Dst); r.Type != unix.RTN_UNICAST || p.IsValid() && p.Bits() != 0 {
			continue
		}
		found[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			found[hop.LinkIndex] = true
		}
	}
	delete(found, 0)
	for _, l := range links {
		if ours(l) {
			delete(found, l.Attrs().Index)
			continue
		}
		addrs, err := addrList(l)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if ip := addrOf(a.IP); ip == cfg.NodeIPv4 || ip == cfg.NodeIPv6 {
				found[l.Attrs().Index] = true
			}
		}
	}
	return found, nil
}

// masterOf is the device that owns the traffic of l: the top of its masters. A VRF takes only routing over, not traffic.
func masterOf(l netlink.Link, byIndex map[int]netlink.Link) netlink.Link {
	for range 8 {
		m, ok := byIndex[l.Attrs().MasterIndex]
		if !ok || m.Type() == "vrf" {
			break
		}
		l = m
	}
	return l
}

// describe picks the sources of masqueraded packets: the node's address where the device has it, else the device's
// first global address, else the node's address.
func describe(l netlink.Link, cfg Config) (uplink, error) {
	u := uplink{
		device: device{l.Attrs().Name, l.Attrs().Index},
		mac:    l.Attrs().HardwareAddr,
		mtu:    l.Attrs().MTU,

		segments: segmentsOf(l),
	}
	addrs, err := addrList(l)
	if err != nil {
		return u, err
	}
	for _, a := range addrs {
		ip := addrOf(a.IP)
		if a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			continue
		}
		if ip.Is4() && (!u.ipv4.IsValid() || ip == cfg.NodeIPv4) {
			u.ipv4 = ip
		}
		if ip.Is6() && (!u.ipv6.IsValid() || ip == cfg.NodeIPv6) {
			u.ipv6 = ip
		}
	}
	if !u.ipv4.IsValid() {
		u.ipv4 = cfg.NodeIPv4
	}
	if !u.ipv6.IsValid() {
		u.ipv6 = cfg.NodeIPv6
	}
	return u, nil
}

func (u uplink) entry() bpf.Device {
	e := bpf.Device{Ipv4: bpf.AddrFrom(u.ipv4), Ipv6: bpf.AddrFrom(u.ipv6), Mtu: uint32(u.mtu)}
	copy(e.Mac[:], u.mac)
	if u.raised {
		e.Flags = uint16(bpf.MapsDeviceFlagsDEVICE_BIG_TCP)
	}
	return e
}

// underlayMTU is the configured one or the smallest of the uplinks; 1500 where there is none.
func underlayMTU(cfg Config, uplinks []uplink) int {
	if cfg.MTU > 0 {
		return cfg.MTU
	}
	mtu := 0
	for _, u := range uplinks {
		if mtu == 0 || u.mtu < mtu {
			mtu = u.mtu
		}
	}
	if mtu == 0 {
		return 1500
	}
	return mtu
}

// Bytes in front of a pod's packet in the tunnel: inner Ethernet, VXLAN, UDP and the outer header.
const (
	overhead4 = 14 + 8 + 8 + 20
	overhead6 = 14 + 8 + 8 + 40
)

// ensureOverlay makes the VXLAN device be there: collect_md, no ARP, no learning, up. It is made anew only when its
// port or its kind is another, for which the kernel has no change.
func ensureOverlay(cfg Config, mtu int) (device, error) {
	links, err := linkList()
	if err != nil {
		return device{}, err
	}
	var found netlink.Link
	for _, l := range links {
		if l.Attrs().Name == OverlayDevice {
			found = l
			continue
		}
		if v, ok := l.(*netlink.Vxlan); ok && v.Port == int(cfg.TunnelPort) {
			return device{}, fmt.Errorf("%w: device %s has UDP port %d", ErrTunnelPortTaken, v.Name, cfg.TunnelPort)
		}
	}
	if found != nil && !overlayFits(found, cfg) {
		if err := netlink.LinkDel(found); err != nil {
			return device{}, fmt.Errorf("remove %s with other attributes: %w", OverlayDevice, err)
		}
		found = nil
	}
	if found == nil {
		if found, err = makeOverlay(cfg, mtu); err != nil {
			return device{}, err
		}
	}
	return device{OverlayDevice, found.Attrs().Index}, overlayAttributes(found, cfg, mtu)
}

func overlayFits(l netlink.Link, cfg Config) bool {
	v, ok := l.(*netlink.Vxlan)
	return ok && v.FlowBased && v.Port == int(cfg.TunnelPort)
}

func makeOverlay(cfg Config, mtu int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = OverlayDevice, mtu, overlayMAC(cfg)
	v := &netlink.Vxlan{
		LinkAttrs: attrs, FlowBased: true, Learning: false, Port: int(cfg.TunnelPort),
	}
	if err := netlink.LinkAdd(v); err != nil {
		return nil, fmt.Errorf("make %s: %w", OverlayDevice, err)
	}
	l, err := netlink.LinkByName(OverlayDevice)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", OverlayDevice, err)
	}
	return l, nil
}

func overlayAttributes(l netlink.Link, cfg Config, mtu int) error {
	if l.Attrs().RawFlags&unix.IFF_NOARP == 0 {
		if err := netlink.LinkSetARPOff(l); err != nil {
			return fmt.Errorf("switch ARP off on %s: %w", OverlayDevice, err)
		}
	}
	if l.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU of %s: %w", OverlayDevice, err)
		}
	}
	if mac := overlayMAC(cfg); !bytes.Equal(l.Attrs().HardwareAddr, mac) {
		if err := netlink.LinkSetHardwareAddr(l, mac); err != nil {
			return fmt.Errorf("set MAC of %s: %w", OverlayDevice, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := netlink.LinkSetUp(l); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w: UDP port %d: %w", ErrTunnelPortTaken, cfg.TunnelPort, err)
		}
		return fmt.Errorf("set %s up: %w", OverlayDevice, err)
	}
	return nil
}

// removeOverlay is for native routing and for uninstall.
func removeOverlay() error {
	l, err := netlink.LinkByName(OverlayDevice)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", OverlayDevice, err)
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", OverlayDevice, err)
	}
	return nil
}
