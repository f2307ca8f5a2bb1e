// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

const (
	// RouteProtocol marks the routes that are ours.
	RouteProtocol = 201
	// namePrefix begins the name of every host end.
	namePrefix = "kc"
	// addrGenModeNone: the kernel makes no link-local address (IN6_ADDR_GEN_MODE_NONE).
	addrGenModeNone = 1
)

// Gateways are the next hops of every pod. No interface has them: the pod holds a permanent neighbour entry, and the
// datapath answers who asks all the same.
var (
	gatewayIPv4 = netip.MustParseAddr("169.254.1.1")
	gatewayIPv6 = netip.MustParseAddr("fe80::1")
)

// Gateway is the next hop of every pod's default route of a family.
func Gateway(f ipam.Family) netip.Addr {
	if f == ipam.IPv4 {
		return gatewayIPv4
	}
	return gatewayIPv6
}

var hostEnd = regexp.MustCompile(`^` + namePrefix + `[0-9a-f]{12}$`)

// InterfaceName is the name of the host's end for an attachment, the same whenever it is asked.
func InterfaceName(a cni.Attachment) string {
	id := a.ContainerID
	if a.IfName != "eth0" {
		id += "/" + a.IfName // a container may have several interfaces of ours
	}
	sum := sha256.Sum256([]byte(id))
	return namePrefix + hex.EncodeToString(sum[:6])
}

// newMAC is random, locally administered and unicast.
func newMAC() MAC {
	var m MAC
	_, _ = rand.Read(m[:]) // never fails (crypto/rand)
	m[0] = m[0]&^1 | 2
	return m
}

// inNetns runs fn on a thread that has entered the namespace. Sockets opened in fn stay in it. Needs CAP_SYS_ADMIN.
func inNetns(netns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // a thread that cannot come back is never unlocked, and ends with the goroutine
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- fmt.Errorf("our network namespace: %w", err)
			return
		}
		defer own.Close() //nolint:errcheck // only read
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the pod's network namespace: %w (needs CAP_SYS_ADMIN)", err)
			return
		}
		err = fn()
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// makeVeth makes the pair, both ends down: the host's here, the pod's straight in its namespace.
func makeVeth(e *Endpoint, netns *os.File) (ifindex int, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = e.Interface, e.DeviceMTU, net.HardwareAddr(e.HostMAC[:])
	if e.big() {
		v4, v6 := uint32(e.segment.IPv4), uint32(e.segment.IPv6)
		attrs.GSOMaxSize, attrs.GROMaxSize, attrs.GSOIPv4MaxSize, attrs.GROIPv4MaxSize = v6, v6, v4, v4
	}
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: e.IfName, PeerMTU: uint32(e.DeviceMTU), PeerTxQLen: -1,
		PeerHardwareAddr: net.HardwareAddr(e.MAC[:]), PeerNamespace: netlink.NsFd(netns.Fd()),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return 0, fmt.Errorf("make veth %s: %w", e.Interface, err)
	}
	if err := netlink.LinkSetIP6AddrGenMode(veth, addrGenModeNone); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return 0, fmt.Errorf("addrgenmode of %s: %w", e.Interface, err)
	}
	return veth.Index, nil
}

// podEnd is the pod's end as it should be. Functions on it run inside the namespace.
type podEnd struct {
	e          *Endpoint
	procSysNet string
	h          *netlink.Handle
}

// podEndDo runs fn with a netlink socket inside the namespace.
func podEndDo(e *Endpoint, procSysNet string, netns *os.File, fn func(*podEnd) error) error {
	return inNetns(netns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink in the pod's namespace: %w", err)
		}
		defer h.Close()
		return fn(&podEnd{e: e, procSysNet: procSysNet, h: h})
	})
}

// sysctls of the pod's end, path below net/ -> value. Set while it is down.
func (p *podEnd) sysctls() [][2]string {
	conf := "ipv6/conf/" + p.e.IfName + "/"
	if !p.e.IPv6.IsValid() {
		// Without an address nothing is to leave by IPv6, nor are the kernel's own solicitations.
		return [][2]string{{conf + "disable_ipv6", "1"}}
	}
	return [][2]string{
		{conf + "disable_ipv6", "0"},
		{conf + "accept_ra", "0"}, // no router of ours speaks; another pod might
		{conf + "accept_dad", "0"},
	}
}

func (p *podEnd) configure() error {
	link, err := p.h.LinkByName(p.e.IfName)
	if err != nil {
		return fmt.Errorf("%s in the pod: %w", p.e.IfName, err)
	}
	for _, s := range p.sysctls() {
		if err := writeSysctl(p.procSysNet, s[0], s[1]); err != nil {
			return err
		}
	}
	if p.e.big() {
		if err := datapath.SetSegmentSize(link.Attrs().Index, p.e.segment); err != nil {
			return fmt.Errorf("%s in the pod: %w", p.e.IfName, err)
		}
	}
	for _, ip := range p.e.Addresses() {
		if err := p.h.AddrAdd(link, addrOf(ip)); err != nil {
			return fmt.Errorf("address %s in the pod: %w", ip, err)
		}
	}
	if err := p.h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s in the pod: %w", p.e.IfName, err)
	}
	for _, gw := range p.gateways() {
		if err := p.h.NeighSet(neighbour(link, gw, p.e.HostMAC)); err != nil {
			return fmt.Errorf("neighbour %s in the pod: %w", gw, err)
		}
		if err := p.h.RouteReplace(defaultRoute(link, gw, p.e.MTU)); err != nil {
			return fmt.Errorf("default route via %s in the pod: %w", gw, err)
		}
	}
	return nil
}

func (p *podEnd) gateways() []netip.Addr {
	var out []netip.Addr
	if p.e.IPv4.IsValid() {
		out = append(out, gatewayIPv4)
	}
	if p.e.IPv6.IsValid() {
		out = append(out, gatewayIPv6)
	}
	return out
}

// check returns what is not as configure left it.
func (p *podEnd) check() (wrong []string) {
	link, err := p.h.LinkByName(p.e.IfName)
	if err != nil {
		return []string{fmt.Sprintf("interface %s is not in the pod: %v", p.e.IfName, err)}
	}
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	checkLink(link, p.e.MAC, p.e.DeviceMTU, "the pod's end", complain)
	for _, ip := range p.e.Addresses() {
		addrs, err := whole(func() ([]netlink.Addr, error) { return p.h.AddrList(link, familyOf(ip)) })
		if err != nil || !hasAddress(addrs, ip) {
			complain("address %s is not on %s", ip, p.e.IfName)
		}
	}
	for _, gw := range p.gateways() {
		if !hasNeighbour(p.h, link, gw, p.e.HostMAC) {
			complain("neighbour %s in the pod is not %s", gw, p.e.HostMAC)
		}
		routes, err := whole(func() ([]netlink.Route, error) {
			return p.h.RouteListFiltered(familyOf(gw), &netlink.Route{LinkIndex: link.Attrs().Index}, netlink.RT_FILTER_OIF)
		})
		found := false
		for _, r := range routes {
			if (r.Dst == nil || isDefault(r.Dst)) && r.Gw.Equal(net.IP(gw.AsSlice())) {
				found = true
				if r.MTU != p.e.MTU {
					complain("MTU of the default route via %s is %d, not %d", gw, r.MTU, p.e.MTU)
				}
			}
		}
		if err != nil || !found {
			complain("default route via %s is not in the pod", gw)
		}
	}
	for _, s := range p.sysctls() {
		if got := readSysctl(p.procSysNet, s[0]); got != "" && got != s[1] {
			complain("net/%s is %q in the pod, not %s", s[0], got, s[1])
		}
	}
	return wrong
}

// checkHostEnd returns what is not as the datapath left it.
func checkHostEnd(e *Endpoint) (wrong []string) {
	link, err := netlink.LinkByName(e.Interface)
	if err != nil {
		return []string{fmt.Sprintf("interface %s is not on the node: %v", e.Interface, err)}
	}
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if link.Attrs().Index != e.Ifindex {
		complain("%s is another interface now: index %d, was %d", e.Interface, link.Attrs().Index, e.Ifindex)
	}
	checkLink(link, e.HostMAC, e.DeviceMTU, "the host's end", complain)
	for _, ip := range e.Addresses() {
		routes, err := whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(familyOf(ip), hostRoute(link, ip), netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST)
		})
		if err != nil || len(routes) == 0 {
			complain("the node has no route to %s by %s", ip, e.Interface)
		}
		if !hasNeighbour(&netlink.Handle{}, link, ip, e.MAC) {
			complain("neighbour %s on the node is not %s", ip, e.MAC)
		}
	}
	return wrong
}

// removeLink takes the pair away, both ends, and with it routes and neighbours. One that is gone is no error.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil && !isGone(err) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// hostEnds are the names of all interfaces of this node that look like ours.
func hostEnds() ([]string, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("interfaces of the node: %w", err)
	}
	var out []string
	for _, l := range links {
		if l.Type() == "veth" && hostEnd.MatchString(l.Attrs().Name) {
			out = append(out, l.Attrs().Name)
		}
	}
	return out, nil
}

func checkLink(link netlink.Link, mac MAC, mtu int, which string, complain func(string, ...any)) {
	a := link.Attrs()
	if link.Type() != "veth" {
		complain("%s is a %s", which, link.Type())
	}
	if !bytes.Equal(a.HardwareAddr, mac[:]) {
		complain("MAC of %s is %s, not %s", which, a.HardwareAddr, mac)
	}
	if a.MTU != mtu {
		complain("MTU of %s is %d, not %d", which, a.MTU, mtu)
	}
	if a.Flags&net.FlagUp == 0 {
		complain("%s is down", which)
	}
}

// whole repeats a dump that changes of the same table interrupted: half a list would look like missing entries.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	for range 10 {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return list()
}

func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
}

func familyOf(ip netip.Addr) int {
	if ip.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func single(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
}

func isDefault(n *net.IPNet) bool {
	ones, _ := n.Mask.Size()
	return ones == 0
}

func addrOf(ip netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: single(ip)}
	if ip.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func hasAddress(addrs []netlink.Addr, ip netip.Addr) bool {
	for _, a := range addrs {
		if got, ok := netip.AddrFromSlice(a.IP); ok && got.Unmap() == ip {
			ones, _ := a.Mask.Size()
			return ones == ip.BitLen()
		}
	}
	return false
}

func neighbour(link netlink.Link, ip netip.Addr, mac MAC) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: familyOf(ip), State: netlink.NUD_PERMANENT,
		IP: ip.AsSlice(), HardwareAddr: net.HardwareAddr(mac[:]),
	}
}

func hasNeighbour(h *netlink.Handle, link netlink.Link, ip netip.Addr, mac MAC) bool {
	list, err := whole(func() ([]netlink.Neigh, error) { return h.NeighList(link.Attrs().Index, familyOf(ip)) })
	if err != nil {
		return false
	}
	for _, n := range list {
		if got, ok := netip.AddrFromSlice(n.IP); ok && got.Unmap() == ip {
			return n.State == netlink.NUD_PERMANENT && bytes.Equal(n.HardwareAddr, mac[:])
		}
	}
	return false
}

func defaultRoute(link netlink.Link, gw netip.Addr, mtu int) *netlink.Route {
	var all *net.IPNet
	if gw.Is4() {
		all = &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	} else {
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: all, Gw: gw.AsSlice(), MTU: mtu, Flags: int(netlink.FLAG_ONLINK), Protocol: RouteProtocol,
	}
}

func hostRoute(link netlink.Link, ip netip.Addr) *netlink.Route {
	return &netlink.Route{LinkIndex: link.Attrs().Index, Dst: single(ip), Scope: netlink.SCOPE_LINK, Protocol: RouteProtocol}
}

// writeSysctl sets a value below the host's /proc/sys/net in the namespace of the calling thread. What this kernel
// does not have needs no setting.
func writeSysctl(procSysNet, path, value string) error {
	if readSysctl(procSysNet, path) == value {
		return nil
	}
	err := os.WriteFile(filepath.Join(procSysNet, path), []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set net/%s: %w", path, err)
	}
	return nil
}

func readSysctl(procSysNet, path string) string {
	v, err := os.ReadFile(filepath.Join(procSysNet, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(v))
}
