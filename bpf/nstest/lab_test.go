// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netns"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// The process's first thread never ends: a goroutine that took it into another namespace would keep that for good.
func init() { runtime.LockOSThread() }

// needRoot skips where namespaces cannot be made; under KUBE_CILIUM_TEST_ROOT it fails instead.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("KUBE_CILIUM_TEST_ROOT") != "" {
			t.Fatal("needs root to make network namespaces")
		}
		t.Skip("needs root to make network namespaces")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
}

// run runs a command and fails the test with its output when it fails.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// space is a network namespace of this test.
type space struct {
	t    testing.TB
	role string
	// name is the host's for it: other tests, of this process and of others, have theirs at the same time.
	name string
}

func newSpace(t testing.TB, name string) *space {
	s := &space{t: t, role: name, name: fmt.Sprintf("kct%d-%s-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"), name)}
	run(t, "ip", "netns", "add", s.name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", s.name).Run() })
	s.ip("link set lo up")
	return s
}

// ip runs an ip command in the namespace.
func (s *space) ip(args string) {
	s.t.Helper()
	run(s.t, "ip", append([]string{"-n", s.name}, strings.Fields(args)...)...)
}

// sysctl sets a value below /proc/sys/net in the namespace.
func (s *space) sysctl(name, value string) {
	s.t.Helper()
	s.do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
}

// do runs f on a thread that is in the namespace.
func (s *space) do(f func() error) {
	s.t.Helper()
	if err := s.try(f); err != nil {
		s.t.Fatalf("in %s: %v", s.name, err)
	}
}

func (s *space) try(f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		h, err := netns.GetFromName(s.name)
		if err == nil {
			defer h.Close()
			err = netns.Set(h)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func (s *space) ifindex(dev string) int {
	s.t.Helper()
	var n int
	s.do(func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			n = i.Index
		}
		return err
	})
	return n
}

func (s *space) mac(dev string) (mac [6]byte) {
	s.t.Helper()
	s.do(func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			copy(mac[:], i.HardwareAddr)
		}
		return err
	})
	return mac
}

// options say how the nodes of a lab work.
type options struct {
	native         bool // no tunnel
	device         bool // the VXLAN device builds the header
	underlay6      bool // tunnel over IPv6
	noRedirectPeer bool
	noNeigh        bool // the stack forwards
	severalUplinks bool // uplink_ifindex 0: ask the routes
	noMasquerade   bool
	onLink         bool // the programs know the wire's prefixes
	bigTCP         bool // after the rest, segments of more than 64 KiB
	podMTU         int  // 0: what fits
	deviceMTU      int  // of the pods' devices, where it is not podMTU
}

// lab is two nodes with pods, and one host outside.
type lab struct {
	t       testing.TB
	opts    options
	wire    *space
	nodes   []*node
	outside *space
}

type node struct {
	*space
	lab      *lab
	n        int
	v4, v6   netip.Addr
	maps     *ebpf.Collection
	pods     []*pod
	uplink   int
	overlay  int
	underlay netip.Addr
	progs    map[string]*ebpf.Program
}

type pod struct {
	*space
	node     *node
	id       uint16
	identity uint32
	v4, v6   netip.Addr
	host     string // name of the host's end
}

var (
	outside4 = netip.MustParseAddr("172.31.0.9")
	outside6 = netip.MustParseAddr("fd31::9")
)

const mtu = 1500

func addr(format string, args ...any) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(format, args...))
}

// plug connects a namespace to the wire.
func (l *lab) plug(s *space, n int) {
	port := fmt.Sprintf("port%d", n)
	l.wire.ip(fmt.Sprintf("link add %s type veth peer name eth0 netns %s", port, s.name))
	l.wire.ip("link set " + port + " master br0 up")
	s.ip("link set eth0 up")
	s.sysctl("ipv6/conf/all/accept_dad", "0")
	s.sysctl("ipv6/conf/eth0/accept_dad", "0")
	s.ip(fmt.Sprintf("addr add 172.31.0.%d/24 dev eth0", n))
	s.ip(fmt.Sprintf("-6 addr add fd31::%d/64 dev eth0 nodad", n))
}

func newLab(t testing.TB, opts options) *lab {
	t.Helper()
	needRoot(t)
	l := &lab{t: t, opts: opts}
	l.wire = newSpace(t, "wire")
	l.wire.ip("link add br0 type bridge")
	l.wire.ip("link set br0 up")
	l.outside = newSpace(t, "out")
	l.plug(l.outside, 9)

	for n := 1; n <= 2; n++ {
		nd := &node{space: newSpace(t, fmt.Sprintf("n%d", n)), lab: l, n: n,
			v4: addr("172.31.0.%d", n), v6: addr("fd31::%d", n)}
		nd.underlay = nd.v4
		if opts.underlay6 {
			nd.underlay = nd.v6
		}
		l.plug(nd.space, n)
		nd.sysctl("ipv4/ip_forward", "1")
		nd.sysctl("ipv6/conf/all/forwarding", "1")
		nd.sysctl("ipv4/conf/all/rp_filter", "0")
		nd.sysctl("ipv4/conf/default/rp_filter", "1")
		nd.uplink = nd.ifindex("eth0")
		if !opts.native {
			nd.ip("link add kc_vxlan type vxlan external dstport 8472 nolearning")
			nd.ip(fmt.Sprintf("link set kc_vxlan mtu %d up arp off", mtu))
			nd.overlay = nd.ifindex("kc_vxlan")
		}
		l.nodes = append(l.nodes, nd)
		l.outside.ip(fmt.Sprintf("route add 10.231.%d.0/24 via 172.31.0.%d", n, n))
		l.outside.ip(fmt.Sprintf("-6 route add fd32:%d::/64 via fd31::%d", n, n))
	}
	for _, nd := range l.nodes {
		nd.makeMaps()
	}
	for i, nd := range l.nodes {
		nd.addPod("a", 1)
		if i == 0 {
			nd.addPod("b", 2)
		}
	}
	for _, nd := range l.nodes {
		nd.fillPeers()
		nd.load()
	}
	return l
}

func (n *node) makeMaps() {
	spec, err := bpf.LoadMaps()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
		if m.MaxEntries > 65536 && m.Type != ebpf.RingBuf {
			m.MaxEntries = 65536
		}
	}
	n.maps, err = ebpf.NewCollection(spec)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(n.maps.Close)
	for id := range 8 {
		n.unanswered(spec.Maps[bpf.MapsMapUnanswered].InnerMap.Copy(), id)
	}
	n.put(bpf.MapsMapLiveSettings, uint32(0), bpf.Settings{Generation: 1, ReportInterval: 5})
	for _, a := range []netip.Addr{n.v4, n.v6} {
		n.put(bpf.MapsMapEndpoints, bpf.AddrFrom(a), bpf.Endpoint{
			Identity: uint32(bpf.MapsIdentityIDENTITY_HOST), Flags: uint16(bpf.MapsEndpointFlagsENDPOINT_HOST)})
	}
	n.put(bpf.MapsMapDevices, uint32(n.uplink), bpf.Device{
		Ipv4: bpf.AddrFrom(n.v4), Ipv6: bpf.AddrFrom(n.v6), Mac: n.mac("eth0"), Mtu: mtu})
}

func (n *node) unanswered(spec *ebpf.MapSpec, id int) {
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		n.t.Fatal(err)
	}
	defer inner.Close()
	n.put(bpf.MapsMapUnanswered, uint32(id), uint32(inner.FD()))
}

func (n *node) put(name string, key, value any) {
	n.t.Helper()
	if err := n.maps.Maps[name].Put(key, value); err != nil {
		n.t.Fatalf("map %s: %v", name, err)
	}
	switch name {
	case bpf.MapsMapEndpoints, bpf.MapsMapPodInterfaces, bpf.MapsMapPeers, bpf.MapsMapPrefixes:
		var s bpf.Settings
		if err := n.maps.Maps[bpf.MapsMapLiveSettings].Lookup(uint32(0), &s); err != nil {
			n.t.Fatal(err)
		}
		s.Addresses++
		n.put(bpf.MapsMapLiveSettings, uint32(0), s)
	}
}

// podMTU is what fits through the tunnel.
func (l *lab) podMTU() int {
	switch {
	case l.opts.podMTU != 0:
		return l.opts.podMTU
	case l.opts.native:
		return mtu
	case l.opts.underlay6:
		return mtu - 70
	}
	return mtu - 50
}

// deviceMTU is that of the pods' devices.
func (l *lab) deviceMTU() int {
	if l.opts.deviceMTU != 0 {
		return l.opts.deviceMTU
	}
	return l.podMTU()
}

// addPod makes a pod as the agent would.
func (n *node) addPod(name string, id uint16) {
	p := &pod{space: newSpace(n.t, fmt.Sprintf("p%d%s", n.n, name)), node: n, id: id, host: "kc" + name,
		identity: uint32(1000 + 10*n.n + int(id)),
		v4:       addr("10.231.%d.%d", n.n, id+1), v6: addr("fd32:%d::%d", n.n, id+1)}
	n.pods = append(n.pods, p)
	n.ip(fmt.Sprintf("link add %s type veth peer name eth0 netns %s", p.host, p.name))
	device := n.lab.deviceMTU()
	n.ip(fmt.Sprintf("link set %s mtu %d up", p.host, device))
	p.ip(fmt.Sprintf("link set eth0 mtu %d up", device))
	p.sysctl("ipv6/conf/eth0/accept_dad", "0")
	p.ip(fmt.Sprintf("addr add %s/32 dev eth0", p.v4))
	p.ip(fmt.Sprintf("-6 addr add %s/128 dev eth0 nodad", p.v6))
	mac, hostMAC := p.mac("eth0"), n.mac(p.host)
	// The gateway's MAC is asked for, not set: the programs answer.
	p.ip("route add 169.254.1.1 dev eth0")
	p.ip("route add default via 169.254.1.1 dev eth0")
	p.ip("-6 route add default via fe80::1 dev eth0")
	n.ip(fmt.Sprintf("route add %s/32 dev %s", p.v4, p.host))
	n.ip(fmt.Sprintf("-6 route add %s/128 dev %s", p.v6, p.host))
	n.ip(fmt.Sprintf("neigh add %s lladdr %s dev %s nud permanent", p.v4, net.HardwareAddr(mac[:]), p.host))
	n.ip(fmt.Sprintf("neigh add %s lladdr %s dev %s nud permanent", p.v6, net.HardwareAddr(mac[:]), p.host))

	ifindex := uint32(n.ifindex(p.host))
	for _, a := range []netip.Addr{p.v4, p.v6} {
		open := bpf.PolicySide{Flags: uint16(bpf.MapsPolicyFlagsPOLICY_NONE)}
		n.put(bpf.MapsMapPolicies, uint32(p.id), bpf.Policy{Side: [2]bpf.PolicySide{open, open}})
		n.put(bpf.MapsMapEndpoints, bpf.AddrFrom(a), bpf.Endpoint{Ifindex: ifindex, Identity: p.identity,
			Id: id, Mac: mac, HostMac: hostMAC})
	}
	n.put(bpf.MapsMapPodInterfaces, ifindex, bpf.PodInterface{Ipv4: bpf.AddrFrom(p.v4), Ipv6: bpf.AddrFrom(p.v6),
		Identity: p.identity, Id: id, Mac: mac, HostMac: hostMAC})
}

// hop is where packets for a pod of the node o go: its underlay address through the tunnel, that of the family natively.
func (n *node) hop(o *node, family netip.Addr) netip.Addr {
	if n.lab.opts.native {
		return family
	}
	return o.underlay
}

func (n *node) fillPeers() {
	cluster := bpf.MapsPeerFlagsPEER_CLUSTER
	way := bpf.MapsPeerFlagsPEER_TUNNEL
	if n.lab.opts.native {
		way = bpf.MapsPeerFlagsPEER_NATIVE | bpf.MapsPeerFlagsPEER_DIRECT
	}
	pending := uint32(bpf.MapsIdentityIDENTITY_PENDING)
	prefix := func(s string, p bpf.Peer) {
		n.put(bpf.MapsMapPrefixes, bpf.PrefixKeyFrom(netip.MustParsePrefix(s)), p)
	}
	for _, o := range n.lab.nodes {
		v4, v6 := fmt.Sprintf("10.231.%d.0/24", o.n), fmt.Sprintf("fd32:%d::/64", o.n)
		if o == n {
			local := bpf.Peer{Identity: pending, Flags: uint32(cluster | bpf.MapsPeerFlagsPEER_LOCAL)}
			prefix(v4, local)
			prefix(v6, local)
			continue
		}
		prefix(v4, bpf.Peer{Node: bpf.AddrFrom(n.hop(o, o.v4)), Identity: pending, Flags: uint32(cluster | way)})
		prefix(v6, bpf.Peer{Node: bpf.AddrFrom(n.hop(o, o.v6)), Identity: pending, Flags: uint32(cluster | way)})
		n.put(bpf.MapsMapNodes, bpf.AddrFrom(o.underlay), bpf.Node{})
		for _, a := range []netip.Addr{o.v4, o.v6} {
			n.put(bpf.MapsMapPeers, bpf.AddrFrom(a), bpf.Peer{Node: bpf.AddrFrom(o.underlay),
				Identity: uint32(bpf.MapsIdentityIDENTITY_REMOTE_NODE), Flags: uint32(bpf.MapsPeerFlagsPEER_NODE)})
		}
		for _, p := range o.pods {
			n.put(bpf.MapsMapPeers, bpf.AddrFrom(p.v4), bpf.Peer{Node: bpf.AddrFrom(n.hop(o, o.v4)), Identity: p.identity, Flags: uint32(cluster | way)})
			n.put(bpf.MapsMapPeers, bpf.AddrFrom(p.v6), bpf.Peer{Node: bpf.AddrFrom(n.hop(o, o.v6)), Identity: p.identity, Flags: uint32(cluster | way)})
		}
		if n.lab.opts.native {
			n.ip(fmt.Sprintf("route add %s via %s", v4, o.v4))
			n.ip(fmt.Sprintf("-6 route add %s via %s", v6, o.v6))
		} else {
			n.ip(fmt.Sprintf("route add %s dev kc_vxlan src %s mtu %d", v4, n.v4, n.lab.podMTU()))
			n.ip(fmt.Sprintf("-6 route add %s dev kc_vxlan src %s mtu %d", v6, n.v6, n.lab.podMTU()))
		}
	}
}

func (n *node) load() {
	o := n.lab.opts
	constants := map[string]any{
		"node_ipv4":       bpf.AddrFrom(n.v4),
		"node_ipv6":       bpf.AddrFrom(n.v6),
		"uplink_ifindex":  uint32(n.uplink),
		"overlay_ifindex": uint32(n.overlay),
		"tunnel_port":     uint16(8472),
		"encap_in_bpf":    !o.device && !o.native,

		"have_redirect_peer":  !o.noRedirectPeer,
		"have_redirect_neigh": !o.noNeigh,
		"have_coarse_clock":   true,
		"masquerade_ipv4":     !o.noMasquerade,
		"masquerade_ipv6":     !o.noMasquerade,
		"pod_mtu":             uint32(n.lab.podMTU()),
		"device_mtu":          uint32(n.lab.deviceMTU()),
	}
	if o.native {
		constants["tunnel_port"] = uint16(0)
	}
	if o.severalUplinks {
		constants["uplink_ifindex"] = uint32(0)
	}
	if o.onLink {
		constants["on_link_ipv4"], constants["on_link_ipv4_mask"] = bpf.PrefixAndMask(netip.MustParsePrefix("172.31.0.0/24"))
		constants["on_link_ipv6"], constants["on_link_ipv6_mask"] = bpf.PrefixAndMask(netip.MustParsePrefix("fd31::/64"))
	}
	n.progs = map[string]*ebpf.Program{}
	for _, p := range bpf.DevicePrograms() {
		spec, err := p.Load()
		if err != nil {
			n.t.Fatal(err)
		}
		for name, v := range constants {
			if c := spec.Variables[name]; c != nil {
				if err := c.Set(v); err != nil {
					n.t.Fatalf("set %s: %v", name, err)
				}
			}
		}
		replace := map[string]*ebpf.Map{}
		for name, m := range n.maps.Maps {
			if s := spec.Maps[name]; s != nil {
				s.MaxEntries = m.MaxEntries()
				replace[name] = m
			}
		}
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
		if err != nil {
			n.t.Fatalf("load %s: %v", p.Name, err)
		}
		n.t.Cleanup(c.Close)
		n.progs[p.Name] = c.Programs[p.Name]
		if err := n.maps.Maps[bpf.MapsMapHooks].Put(uint32(p.Hook), c.Programs[p.Name]); err != nil {
			n.t.Fatal(err)
		}
	}
	for _, p := range n.pods {
		n.attach(p.host, ebpf.AttachTCXIngress, bpf.MapsHookHOOK_FROM_POD)
		n.attach(p.host, ebpf.AttachTCXEgress, bpf.MapsHookHOOK_TO_POD)
	}
	n.attach("eth0", ebpf.AttachTCXIngress, bpf.MapsHookHOOK_FROM_NETDEV)
	n.attach("eth0", ebpf.AttachTCXEgress, bpf.MapsHookHOOK_TO_NETDEV)
	if n.overlay != 0 {
		n.attach("kc_vxlan", ebpf.AttachTCXIngress, bpf.MapsHookHOOK_FROM_OVERLAY)
		n.attach("kc_vxlan", ebpf.AttachTCXEgress, bpf.MapsHookHOOK_TO_OVERLAY)
	}
}

// attach puts a stub on a device: it calls the program in its slot.
func (n *node) attach(dev string, where ebpf.AttachType, hook bpf.Hook) {
	spec, err := bpf.LoadStub()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := spec.Variables["hook"].Set(uint32(hook)); err != nil {
		n.t.Fatal(err)
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		bpf.MapsMapHooks: n.maps.Maps[bpf.MapsMapHooks], bpf.MapsMapMetrics: n.maps.Maps[bpf.MapsMapMetrics]}})
	if err != nil {
		n.t.Fatal(err)
	}
	defer c.Close()
	ifindex := n.ifindex(dev)
	n.do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: c.Programs["stub"], Attach: where})
		if err == nil {
			n.t.Cleanup(func() { l.Close() })
		}
		return err
	})
}

// count gives the packets of one hook and reason.
func (n *node) count(hook bpf.Hook, reason bpf.Reason) uint64 {
	return n.counters()[fmt.Sprintf("%v/%v", hook, reason)]
}

// counters gives packets by hook and reason, all but zero.
func (n *node) counters() map[string]uint64 {
	out := map[string]uint64{}
	var key uint32
	var per []bpf.Counter
	it := n.maps.Maps[bpf.MapsMapMetrics].Iterate()
	for it.Next(&key, &per) {
		var sum uint64
		for _, c := range per {
			sum += c.Packets
		}
		if sum > 0 {
			hook, reason := bpf.Hook(key/256), bpf.Reason(key%256)
			out[fmt.Sprintf("%v/%v", hook, reason)] = sum
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		n.t.Fatal(err)
	}
	return out
}

// dump shows what the nodes counted, for a failed test.
func (l *lab) dump() {
	for _, n := range l.nodes {
		for k, v := range n.counters() {
			l.t.Logf("n%d %s = %d", n.n, k, v)
		}
	}
}
