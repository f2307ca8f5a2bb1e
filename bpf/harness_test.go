// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// What programs return to the kernel.
const (
	next     = 0xffffffff
	shot     = 2
	redirect = 7
)

// The world of the packet tests: this node with two pods, another node with one, and somebody outside. The only
// device that surely exists is the loopback, so it plays the pod's interface, the uplink and the VXLAN device.
var (
	podA4, podA6 = netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("fd00:1::2")
	podB4, podB6 = netip.MustParseAddr("10.0.1.3"), netip.MustParseAddr("fd00:1::3")
	far4, far6   = netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00:2::2")
	node4, node6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	peer4, peer6 = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	out4, out6   = netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:f::7")
	svc4, svc6   = netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::10")
	gone4, gone6 = netip.MustParseAddr("10.0.7.7"), netip.MustParseAddr("fd00:7::7") // in the pools, nobody's
	nopod4       = netip.MustParseAddr("10.0.1.99")                                  // this node's prefix, no pod
	nopod6       = netip.MustParseAddr("fd00:1::99")
	gateway4     = netip.MustParseAddr("169.254.1.1")
	gateway6     = netip.MustParseAddr("fe80::1")

	podMAC  = mac{2, 0, 0, 0, 0, 0xa}
	hostMAC = mac{2, 0, 0, 0, 1, 0xa}
	podBMAC = mac{2, 0, 0, 0, 0, 0xb}
	hostB   = mac{2, 0, 0, 0, 1, 0xb}
	wireMAC = mac{2, 0, 0, 0, 0, 1}
	nodeMAC = mac{2, 0, 0, 0, 0, 2}
)

const (
	loopback  = 1
	podBIf    = 77 // nobody looks whether it exists
	idA       = 1000
	idB       = 1001
	idFar     = 2000
	vxlanPort = 8472

	idHost    = uint32(bpf.MapsIdentityIDENTITY_HOST)
	idWorld   = uint32(bpf.MapsIdentityIDENTITY_WORLD)
	idNode    = uint32(bpf.MapsIdentityIDENTITY_REMOTE_NODE)
	idPending = uint32(bpf.MapsIdentityIDENTITY_PENDING)
)

// youngSlots is few, for reading them all is part of most tests.
const youngSlots = 256

// unselected is a direction in which no policy selects the pod.
var unselected = bpf.PolicySide{Flags: uint16(bpf.MapsPolicyFlagsPOLICY_NONE)}

// world is one node's maps and programs, private to a test.
type world struct {
	t     testing.TB
	maps  *ebpf.Collection
	inner map[uint32]*ebpf.Map
	// loaded are the programs that were asked for: the verifier takes its time over each.
	loaded map[string]*ebpf.Collection
	consts map[string]any
	// addresses is settings.addresses, which never comes back.
	addresses uint32
}

// constants of a node with everything on.
func defaults() map[string]any {
	return map[string]any{
		"node_ipv4": bpf.AddrFrom(node4), "node_ipv6": bpf.AddrFrom(node6),
		"uplink_ifindex": uint32(loopback), "overlay_ifindex": uint32(loopback), "tunnel_port": uint16(vxlanPort),
		"encap_in_bpf": true, "have_redirect_peer": true, "have_redirect_neigh": true,
		"masquerade_ipv4": true, "masquerade_ipv6": true, "have_coarse_clock": true, "pod_mtu": uint32(1450),
		"advance_size": uint32(256), "young_slots": uint32(youngSlots),
	}
}

func newWorld(t testing.TB, change map[string]any) *world {
	t.Helper()
	needRoot(t)
	consts := defaults()
	maps.Copy(consts, change)
	spec, err := bpf.LoadMaps()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
		if m.MaxEntries > 4096 && m.Type != ebpf.RingBuf && m.Name != bpf.MapsMapVerdicts {
			m.MaxEntries = 4096
		}
	}
	spec.Maps[bpf.MapsMapYoung].MaxEntries = youngSlots
	w := &world{t: t, loaded: map[string]*ebpf.Collection{}, consts: consts, inner: map[uint32]*ebpf.Map{}}
	if w.maps, err = ebpf.NewCollection(spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.maps.Close)
	for id := range uint32(4) {
		m, err := ebpf.NewMap(spec.Maps[bpf.MapsMapUnanswered].InnerMap.Copy())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		w.inner[id] = m
		w.put(bpf.MapsMapUnanswered, id, uint32(m.FD()))
	}
	t.Cleanup(func() {
		for _, c := range w.loaded {
			c.Close()
		}
	})
	w.fill()
	return w
}

func (w *world) spec(name string) *ebpf.CollectionSpec {
	w.t.Helper()
	programs := bpf.DevicePrograms()
	spec, err := programs[slices.IndexFunc(programs, func(p bpf.Program) bool { return p.Name == name })].Load()
	if err != nil {
		w.t.Fatal(err)
	}
	return spec
}

// program is one of the programs, loaded on this world's maps.
func (w *world) program(name string) *ebpf.Collection {
	w.t.Helper()
	if c := w.loaded[name]; c != nil {
		return c
	}
	spec := w.spec(name)
	for name, v := range w.consts {
		setConstant(w.t, spec, name, v)
	}
	replace := map[string]*ebpf.Map{}
	for name, m := range w.maps.Maps {
		if s := spec.Maps[name]; s != nil {
			s.MaxEntries = m.MaxEntries()
			replace[name] = m
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		w.t.Fatalf("load %s: %v", name, err)
	}
	w.loaded[name] = c
	return c
}

func (w *world) put(name string, key, value any) {
	w.t.Helper()
	if err := w.maps.Maps[name].Put(key, value); err != nil {
		w.t.Fatalf("map %s: %v", name, err)
	}
	switch name {
	case bpf.MapsMapEndpoints, bpf.MapsMapPodInterfaces, bpf.MapsMapPeers, bpf.MapsMapPrefixes, bpf.MapsMapLiveSettings:
		w.moved()
	}
}

// moved ends a change of who has which address.
func (w *world) moved() {
	w.t.Helper()
	var s bpf.Settings
	if err := w.maps.Maps[bpf.MapsMapLiveSettings].Lookup(uint32(0), &s); err != nil {
		w.t.Fatal(err)
	}
	w.addresses++
	s.Addresses = w.addresses
	if err := w.maps.Maps[bpf.MapsMapLiveSettings].Put(uint32(0), s); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) prefix(s string, p bpf.Peer) {
	w.t.Helper()
	w.put(bpf.MapsMapPrefixes, bpf.PrefixKeyFrom(netip.MustParsePrefix(s)), p)
}

func (w *world) fill() {
	w.put(bpf.MapsMapLiveSettings, uint32(0), bpf.Settings{Generation: 1, ReportInterval: 5})
	hostEP := bpf.Endpoint{Identity: idHost, Flags: uint16(bpf.MapsEndpointFlagsENDPOINT_HOST)}
	a := bpf.Endpoint{Ifindex: loopback, Identity: idA, Id: 1, Mac: podMAC, HostMac: hostMAC}
	b := bpf.Endpoint{Ifindex: podBIf, Identity: idB, Id: 2, Mac: podBMAC, HostMac: hostB}
	for addr, e := range map[netip.Addr]bpf.Endpoint{node4: hostEP, node6: hostEP, podA4: a, podA6: a, podB4: b, podB6: b} {
		w.put(bpf.MapsMapEndpoints, bpf.AddrFrom(addr), e)
	}
	w.speaker(a, podA4, podA6)
	for id := range uint32(4) {
		w.put(bpf.MapsMapPolicies, id, bpf.Policy{Side: [2]bpf.PolicySide{unselected, unselected}})
	}
	w.put(bpf.MapsMapDevices, uint32(loopback), bpf.Device{Ipv4: bpf.AddrFrom(node4), Ipv6: bpf.AddrFrom(node6), Mtu: 1500})

	const cluster, tunnel = uint32(bpf.MapsPeerFlagsPEER_CLUSTER), uint32(bpf.MapsPeerFlagsPEER_TUNNEL)
	farNode := bpf.AddrFrom(peer4)
	for _, s := range []string{"10.0.0.0/16", "fd00::/16"} {
		w.prefix(s, bpf.Peer{Identity: idPending, Flags: cluster})
	}
	for _, s := range []string{"10.0.1.0/24", "fd00:1::/64"} {
		w.prefix(s, bpf.Peer{Identity: idPending, Flags: cluster | uint32(bpf.MapsPeerFlagsPEER_LOCAL)})
	}
	for _, s := range []string{"10.0.2.0/24", "fd00:2::/64"} {
		w.prefix(s, bpf.Peer{Node: farNode, Identity: idPending, Flags: cluster | tunnel})
	}
	for _, s := range []string{"203.0.113.0/24", "2001:db8:e::/48"} {
		w.prefix(s, bpf.Peer{Identity: idWorld, Flags: uint32(bpf.MapsPeerFlagsPEER_NO_MASQUERADE)})
	}
	for _, addr := range []netip.Addr{far4, far6} {
		w.put(bpf.MapsMapPeers, bpf.AddrFrom(addr), bpf.Peer{Node: farNode, Identity: idFar, Flags: cluster | tunnel})
	}
	for _, addr := range []netip.Addr{peer4, peer6} {
		w.put(bpf.MapsMapPeers, bpf.AddrFrom(addr), bpf.Peer{Node: farNode, Identity: idNode, Flags: uint32(bpf.MapsPeerFlagsPEER_NODE)})
	}
	w.put(bpf.MapsMapNodes, farNode, bpf.Node{})
	for _, addr := range []netip.Addr{svc4, svc6} {
		w.put(bpf.MapsMapServices, bpf.ServiceKey{Addr: bpf.AddrFrom(addr)}, bpf.Service{Id: 1})
		w.put(bpf.MapsMapServices, bpf.ServiceKey{Addr: bpf.AddrFrom(addr), Port: be16(80), Proto: protoTCP}, bpf.Service{Id: 2, Backends: 1})
	}
}

// speaker says which pod is behind the loopback.
func (w *world) speaker(e bpf.Endpoint, v4, v6 netip.Addr) {
	w.put(bpf.MapsMapPodInterfaces, uint32(loopback), bpf.PodInterface{Ipv4: bpf.AddrFrom(v4), Ipv6: bpf.AddrFrom(v6),
		Identity: e.Identity, Id: e.Id, Mac: e.Mac, HostMac: e.HostMac})
}

// asB runs f while pod b is the one behind the loopback, where packets of from_pod come from.
func (w *world) asB(f func()) {
	var a, b bpf.Endpoint
	for addr, e := range map[netip.Addr]*bpf.Endpoint{podA4: &a, podB4: &b} {
		if err := w.maps.Maps[bpf.MapsMapEndpoints].Lookup(bpf.AddrFrom(addr), e); err != nil {
			w.t.Fatal(err)
		}
	}
	w.speaker(b, podB4, podB6)
	defer w.speaker(a, podA4, podA6)
	f()
}

// reset forgets every connection, fragment, count and event. Loading takes half a second, so rows share a world.
func (w *world) reset() {
	w.t.Helper()
	clear := func(m *ebpf.Map) {
		keys := [][]byte{}
		k, v := []byte{}, []byte{}
		it := m.Iterate()
		for it.Next(&k, &v) {
			keys = append(keys, bytes.Clone(k))
		}
		for _, k := range keys {
			_ = m.Delete(k)
		}
	}
	clear(w.maps.Maps[bpf.MapsMapConntrack])
	for place := range w.young() {
		w.put(bpf.MapsMapYoung, place, bpf.YoungConn{})
	}
	for id := range uint32(4) {
		w.put(bpf.MapsMapAdvances, id, bpf.Advance{})
	}
	clear(w.maps.Maps[bpf.MapsMapFragments])
	for _, m := range w.inner {
		clear(m)
	}
	budgets := make([]bpf.DropBudget, ebpf.MustPossibleCPU())
	for reason := range uint32(256) {
		w.put(bpf.MapsMapDropBudgets, reason, budgets)
	}
	w.put(bpf.MapsMapNodes, bpf.AddrFrom(peer4), bpf.Node{})
	w.moved() // and what programs remember of them
	w.events()
}

func be16(n uint16) uint16 { return binary.NativeEndian.Uint16([]byte{byte(n >> 8), byte(n)}) }

// context is what the kernel lets a test set of struct __sk_buff.
type context struct {
	_              [2]uint32
	Mark           uint32
	_              [6]uint32
	IngressIfindex uint32
	Ifindex        uint32
	_              [30]uint32
	GSOSegs        uint32
	_              [2]uint32
	GSOSize        uint32
	_              uint32
	_              uint64
}

// outcome is what became of one packet.
type outcome struct {
	ret    uint32
	reason bpf.Reason
	out    []byte
	mark   uint32
	target uint32 // ifindex it was redirected to
}

// checksumComplete is BPF_F_TEST_SKB_CHECKSUM_COMPLETE: the packet comes as from a network card that summed it up from
// the IP header on, and the run fails with EBADMSG when it no longer has that sum. Kernels before 6.11 refuse it.
const checksumComplete = 1 << 2

// run gives a frame to a program, always on the same CPU.
func (w *world) run(prog string, frame []byte, change ...func(*context)) outcome {
	w.t.Helper()
	ctx := context{Ifindex: loopback}
	for _, f := range change {
		f(&ctx)
	}
	var hook bpf.Hook
	for _, p := range bpf.DevicePrograms() {
		if p.Name == prog {
			hook = p.Hook
		}
	}
	before := w.counters(hook)
	w.resetTarget(prog)
	ctxOut := context{}
	opts := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+512), Context: &ctx, ContextOut: &ctxOut}
	if prog == "from_netdev" {
		opts.Flags = checksumComplete
	}
	var ret uint32
	var err error
	onOneCPU(w.t, func() {
		ret, err = w.program(prog).Programs[prog].Run(opts)
	})
	switch {
	case errors.Is(err, unix.EBADMSG):
		w.t.Fatalf("%s changed the packet and not what the network card summed up", prog)
	case errors.Is(err, unix.EINVAL) && opts.Flags != 0:
		w.t.Fatalf("run %s: %v (needs Linux 6.11: older kernels cannot give a program a packet that a network card summed up)", prog, err)
	case err != nil:
		w.t.Fatalf("run %s: %v", prog, err)
	}
	o := outcome{ret: ret, out: opts.DataOut, mark: ctxOut.Mark, target: w.target(prog), reason: 255}
	n := 0
	for reason, c := range w.counters(hook) {
		if d := c - before[reason]; d != 0 && reason < bpf.MapsReasonREASON_MAX {
			o.reason = reason
			n += int(d)
		}
	}
	if n != 1 {
		w.t.Errorf("%s counted %d packets, want 1", prog, n)
	}
	if dropped := o.reason >= 128; dropped != (ret == shot) {
		w.t.Errorf("%s returned %d with reason %v", prog, int32(ret), o.reason)
	}
	return o
}

func (w *world) counters(hook bpf.Hook) map[bpf.Reason]uint64 {
	out := map[bpf.Reason]uint64{}
	var per []bpf.Counter
	for reason := range uint32(256) {
		if err := w.maps.Maps[bpf.MapsMapMetrics].Lookup(uint32(hook)*256+reason, &per); err != nil {
			w.t.Fatal(err)
		}
		for _, c := range per {
			out[bpf.Reason(reason)] += c.Packets
		}
	}
	return out
}

// desks is the memory of a program's desks (lib/desk.h), one for each processor, and how long one is.
func (w *world) desks(prog string) (*ebpf.Memory, int64) {
	m := w.program(prog).Maps["desks"]
	memory, err := m.Memory()
	if err != nil {
		w.t.Fatal(err)
	}
	return memory, int64(m.ValueSize())
}

// The redirect's target is the first word of a desk.
func (w *world) resetTarget(prog string) {
	memory, size := w.desks(prog)
	for at := int64(0); at < int64(memory.Size()); at += size {
		if _, err := memory.WriteAt(make([]byte, 4), at); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) target(prog string) uint32 {
	memory, size := w.desks(prog)
	var word [4]byte
	for at := int64(0); at < int64(memory.Size()); at += size {
		if _, err := memory.ReadAt(word[:], at); err != nil {
			w.t.Fatal(err)
		}
		if n := binary.NativeEndian.Uint32(word[:]); n != 0 {
			return n
		}
	}
	return 0
}

// events drains the ring.
func (w *world) events() []bpf.Event {
	w.t.Helper()
	r, err := ringbuf.NewReader(w.maps.Maps[bpf.MapsMapEvents])
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	var out []bpf.Event
	for {
		r.SetDeadline(time.Now())
		rec, err := r.Read()
		if err != nil {
			return out
		}
		var e bpf.Event
		if err := binary.Read(bytes.NewReader(rec.RawSample), binary.NativeEndian, &e); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, e)
	}
}

// conns gives all connections of a table.
func (w *world) conns(m *ebpf.Map) map[bpf.FlowKey]bpf.Conn {
	out := map[bpf.FlowKey]bpf.Conn{}
	var k bpf.FlowKey
	var c bpf.Conn
	it := m.Iterate()
	for it.Next(&k, &c) {
		out[k] = c
	}
	if err := it.Err(); err != nil {
		w.t.Fatal(err)
	}
	return out
}

// young gives the places of the young connections that are not empty.
func (w *world) young() map[uint32]bpf.YoungConn {
	out := map[uint32]bpf.YoungConn{}
	places, conns := make([]uint32, youngSlots), make([]bpf.YoungConn, youngSlots)
	var cursor ebpf.MapBatchCursor
	n, err := w.maps.Maps[bpf.MapsMapYoung].BatchLookup(&cursor, places, conns, nil)
	if n != youngSlots || err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		w.t.Fatalf("%d young places were read: %v", n, err)
	}
	for i, y := range conns {
		if y != (bpf.YoungConn{}) {
			out[places[i]] = y
		}
	}
	return out
}

// shared gives the connections of the table of all, and the young ones.
func (w *world) shared() map[bpf.FlowKey]bpf.Conn {
	out := w.conns(w.maps.Maps[bpf.MapsMapConntrack])
	for _, y := range w.young() {
		if y.Key.Proto != 0 {
			out[y.Key] = y.Conn
		}
	}
	return out
}

// everywhere gives the connections of all tables.
func (w *world) everywhere() map[bpf.FlowKey]bpf.Conn {
	out := w.shared()
	for _, m := range w.inner {
		maps.Copy(out, w.conns(m))
	}
	return out
}

// answered gives the settled connections.
func (w *world) answered() map[bpf.FlowKey]bpf.Conn {
	out := w.shared()
	for k, c := range out {
		if c.Flags&uint16(bpf.MapsConnFlagsCONN_SETTLED) == 0 {
			delete(out, k)
		}
	}
	return out
}

// begun gives the others, of one endpoint: young, in its own table, or in that of all at its cost. 0 has the pointers.
func (w *world) begun(endpoint uint32) map[bpf.FlowKey]bpf.Conn {
	out := w.conns(w.inner[endpoint])
	for k, c := range w.shared() {
		of := uint32(c.Endpoint)
		if c.Flags&uint16(bpf.MapsConnFlagsCONN_POINTER) != 0 {
			of = 0
		}
		if c.Flags&uint16(bpf.MapsConnFlagsCONN_SETTLED) == 0 && of == endpoint {
			out[k] = c
		}
	}
	return out
}

// change writes a connection where it is.
func (w *world) change(k bpf.FlowKey, c bpf.Conn) {
	w.t.Helper()
	for place, y := range w.young() {
		if y.Key == k {
			y.Conn = c
			w.put(bpf.MapsMapYoung, place, y)
			w.moved()
			return
		}
	}
	for _, m := range w.tables() {
		if err := m.Update(k, c, ebpf.UpdateExist); err == nil {
			w.moved()
			return
		}
	}
	w.t.Fatalf("no connection %+v", k)
}

// forget removes a connection, wherever it is.
func (w *world) forget(k bpf.FlowKey) {
	for place, y := range w.young() {
		if y.Key == k {
			w.put(bpf.MapsMapYoung, place, bpf.YoungConn{})
		}
	}
	for _, m := range w.tables() {
		_ = m.Delete(k)
	}
	w.moved()
}

// tables are all in which connections are but the young.
func (w *world) tables() []*ebpf.Map {
	return append(slices.Collect(maps.Values(w.inner)), w.maps.Maps[bpf.MapsMapConntrack])
}

// onOneCPU does f on the first CPU there is: what programs remember, and their budgets, are each CPU's own.
func onOneCPU(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !all.IsSet(cpu) {
		cpu++
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.SchedSetaffinity(0, &all); err != nil {
			t.Error(err)
		}
	}()
	f()
}

// expect checks an outcome: a drop needs no packet, everything else its exact bytes.
func (o outcome) expect(t testing.TB, reason bpf.Reason, ret uint32, want []byte) {
	t.Helper()
	if o.reason != reason {
		t.Errorf("reason %v, want %v", o.reason, reason)
		return
	}
	if o.ret != ret {
		t.Errorf("returned %d, want %d", int32(o.ret), int32(ret))
	}
	if want != nil && !bytes.Equal(o.out, want) {
		t.Errorf("packet\n%s\nwant\n%s", hex.Dump(o.out), hex.Dump(want))
	}
}

// fromA is a packet of pod a to somebody, as the pod's stack sends it.
func fromA(dst netip.Addr) packet {
	p := packet{smac: podMAC, dmac: hostMAC, src: podA4, dst: dst, proto: protoTCP, sport: 40000, dport: 80, flags: syn}
	if dst.Is6() {
		p.src = podA6
	}
	return p
}

// both runs f once for each family.
func both(t *testing.T, f func(t *testing.T, v6 bool)) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "v4", true: "v6"}[v6], func(t *testing.T) { f(t, v6) })
	}
}

func pick(v6 bool, a4, a6 netip.Addr) netip.Addr {
	if v6 {
		return a6
	}
	return a4
}
