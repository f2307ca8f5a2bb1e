// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
)

func TestAddPodBeforeConfigureIsRefused(t *testing.T) {
	f := newFixture(t)
	d := f.open()
	if err := d.AddPod(f.pod(1)); !errors.Is(err, ErrNotConfigured) {
		t.Fatalf("want ErrNotConfigured, got %v", err)
	}
}

func TestPodsThatMakeNoSenseChangeNothing(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	good := f.addPod(d, 4)
	bad := map[string]func(*Pod){
		"id 0":         func(p *Pod) { p.ID = 0 },
		"id too large": func(p *Pod) { p.ID = 4096 },
		"no interface": func(p *Pod) { p.Interface = "" },
		"no MAC":       func(p *Pod) { p.MAC = nil },
		"no address":   func(p *Pod) { p.IPv4, p.IPv6 = netip.Addr{}, netip.Addr{} },
		"gone":         func(p *Pod) { p.ID, p.Ifindex, p.Interface = 9, 9999, "kc00000000000f" },
	}
	before := contents[bpf.Addr, bpf.Endpoint](t, d, bpf.MapsMapEndpoints)
	for name, spoil := range bad {
		p := good
		spoil(&p)
		if err := d.AddPod(p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := d.SetPods([]Pod{good, good}); err == nil {
		t.Error("the same id twice: accepted")
	}
	if after := contents[bpf.Addr, bpf.Endpoint](t, d, bpf.MapsMapEndpoints); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("endpoints %v, before %v", after, before)
	}
}

// 100 pods up and down leave no entry, route, neighbour, pin or table behind.
func TestAHundredPodsUpAndDown(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	pins := f.pins()
	var pods []Pod
	for id := range uint16(100) {
		pods = append(pods, f.addPod(d, id+1))
	}
	if n := len(contents[bpf.Addr, bpf.Endpoint](t, d, bpf.MapsMapEndpoints)); n != 202 {
		t.Errorf("%d endpoints, want 200 of pods and 2 of the host", n)
	}
	total := int64(0)
	for _, m := range d.Maps() {
		t.Logf("%-15s %8d of %8d entries, %9d bytes", m.Name, m.Entries, m.MaxEntries, m.Bytes)
		total += m.Bytes
	}
	t.Logf("%d bytes in all", total)
	for i, p := range pods {
		if i%2 == 0 { // half of them lose their interface first
			l, err := netlink.LinkByName(p.Interface)
			must(t, err)
			must(t, netlink.LinkDel(l))
		}
		must(t, d.RemovePod(p.ID))
		must(t, d.RemovePod(p.ID)) // again is no error
	}
	if n := len(contents[bpf.Addr, bpf.Endpoint](t, d, bpf.MapsMapEndpoints)); n != 2 {
		t.Errorf("%d endpoints left", n)
	}
	if n := len(contents[uint32, bpf.PodInterface](t, d, bpf.MapsMapPodInterfaces)); n != 0 {
		t.Errorf("%d interfaces left", n)
	}
	must(t, d.SetPods(nil))
	for _, id := range d.unansweredIDs() {
		if id != 0 && !d.spare.holds(id) {
			t.Errorf("table of unanswered flows of %d is left", id)
		}
	}
	if ids := d.unansweredIDs(); len(ids) > 1+spareTables {
		t.Errorf("tables of unanswered flows left: %v", ids)
	}
	if got := ourRoutesText(t); len(got) != 0 {
		t.Errorf("routes left: %v", got)
	}
	if after := f.pins(); !slices.Equal(after, pins) {
		t.Errorf("pins %v, before %v", after, pins)
	}
	neighbours, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	must(t, err)
	for _, n := range neighbours {
		if n.State == netlink.NUD_PERMANENT && strings.HasPrefix(n.IP.String(), "10.77.") {
			t.Errorf("neighbour %s left", n.IP)
		}
	}
}

// An adopted pod that the whole table does not have goes; until the table is given it stays.
func TestSweepOnlyAfterTheWholeTable(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	stays, goes := f.addPod(d, 21), f.addPod(d, 22)
	must(t, d.Close())
	d = f.start(f.config())
	if n := len(contents[bpf.Addr, bpf.Endpoint](t, d, bpf.MapsMapEndpoints)); n != 6 {
		t.Errorf("%d endpoints before the table was given", n)
	}
	third := f.addPod(d, 23)
	if n := len(contents[bpf.Addr, bpf.Endpoint](t, d, bpf.MapsMapEndpoints)); n != 8 {
		t.Errorf("%d endpoints after an addition", n)
	}
	letPass(t, d, stays, third)
	must(t, d.SetPods([]Pod{stays, third}))
	if n := len(contents[bpf.Addr, bpf.Endpoint](t, d, bpf.MapsMapEndpoints)); n != 6 {
		t.Errorf("%d endpoints after the table", n)
	}
	if got := ways(t, map[bpf.Hook]device{bpf.MapsHookHOOK_FROM_POD: goes.device()}); got[0] != "from_pod " {
		t.Errorf("on the interface of a pod that is gone: %s", got)
	}
	if got := ways(t, map[bpf.Hook]device{bpf.MapsHookHOOK_FROM_POD: stays.device()}); got[0] != "from_pod clsact" {
		t.Errorf("on the interface of a pod that stays: %s", got)
	}
}

// A pod that comes back under its id with another interface and address.
func TestReplacedPod(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	old := f.addPod(d, 31)
	next := f.pod(32)
	next.ID = 31
	must(t, d.AddPod(next))
	endpoints := contents[bpf.Addr, bpf.Endpoint](t, d, bpf.MapsMapEndpoints)
	if _, ok := endpoints[bpf.AddrFrom(old.IPv4)]; ok {
		t.Error("the old address is still an endpoint")
	}
	if e := endpoints[bpf.AddrFrom(next.IPv6)]; e.Ifindex != uint32(next.Ifindex) || e.Id != 31 {
		t.Errorf("endpoint %+v", e)
	}
	letPass(t, d, next)
	must(t, d.SetPods([]Pod{next}))
	if got := ourRoutesText(t); len(got) != 2 {
		t.Errorf("routes %v", got)
	}
}

// A pod that has only got another identity has its entries written; its interface is left alone.
func TestRenumberedPod(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p := f.addPod(d, 33)
	up := func() bool {
		l, err := netlink.LinkByIndex(p.Ifindex)
		must(t, err)
		return l.Attrs().Flags&net.FlagUp != 0
	}
	must(t, netlink.LinkSetDown(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: p.Ifindex}}))
	p.Identity++
	must(t, d.AddPod(p))
	endpoints := contents[bpf.Addr, bpf.Endpoint](t, d, bpf.MapsMapEndpoints)
	for _, a := range p.addrs() {
		if e := endpoints[bpf.AddrFrom(a)]; e != p.endpoint() {
			t.Errorf("endpoint %s: %+v", a, e)
		}
	}
	if e := contents[uint32, bpf.PodInterface](t, d, bpf.MapsMapPodInterfaces)[uint32(p.Ifindex)]; e != p.entry() {
		t.Errorf("interface %+v", e)
	}
	if up() {
		t.Error("the interface was worked on")
	}
	must(t, d.AddPod(p)) // nothing is new: all of it is made sure of
	if !up() {
		t.Error("the interface is down")
	}
}

// The collector takes the tables of pods that are gone away, which takes it a grace period each: a new pod waits for the
// one of its own id, and for none of the others.
func TestNewPodWaitsForItsOwnTableAlone(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	gone, stays := f.addPod(d, 34), f.addPod(d, 35)
	must(t, d.SetPods([]Pod{stays}))
	d.spare.mu.Lock()
	d.spare.used = false // else both ids were held ready for the next pods
	d.spare.mu.Unlock()
	if d.leave(stays.ID) {
		t.Fatal("the table of a pod that is there may go")
	}
	done := d.stir()
	if d.leave(gone.ID) {
		t.Fatal("a table may go while a pod is on its way")
	}
	done()
	if !d.leave(gone.ID) {
		t.Fatal("the table of a pod that is gone may not go")
	}
	f.addPod(d, 36)
	again := make(chan error, 1)
	go func() { again <- d.AddPod(gone) }()
	for d.churn.still() {
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-again:
		t.Fatalf("it did not wait for its table: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	must(t, dropUnanswered(d.maps.open[bpf.MapsMapUnanswered], gone.ID))
	d.leaving.end(gone.ID)
	must(t, <-again)
	if table, err := d.unansweredTable(gone.ID); err != nil || table == nil {
		t.Errorf("a pod without a table: %v", err)
	} else {
		must(t, table.Close())
	}
}

// What somebody changed by hand is put back.
func TestTamperingIsRepaired_CVE_2020_8558_CVE_2020_10749(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p := f.addPod(d, 41)
	letPass(t, d, p)
	must(t, d.SetPods([]Pod{p}))
	sysctls := map[string]string{}
	for _, s := range append(podSettings(p.Interface, true), overlaySettings(true)...) {
		sysctls[s.path] = s.value
	}
	check := func() {
		t.Helper()
		for path, want := range sysctls {
			b, err := os.ReadFile(filepath.Join("/proc/sys/net", path))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			must(t, err)
			if got := strings.TrimSpace(string(b)); got != want {
				t.Errorf("%s is %s, want %s", path, got, want)
			}
		}
		for _, dev := range []string{"all", "default", p.Interface, OverlayDevice, "up0"} {
			b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + dev + "/route_localnet")
			must(t, err)
			if strings.TrimSpace(string(b)) != "0" {
				t.Errorf("route_localnet of %s is set", dev)
			}
		}
	}
	check()
	must(t, netlink.NeighDel(podNeighbours(p)[0].netlink()))
	wrong := podNeighbours(p)[1]
	wrong.mac = net.HardwareAddr{2, 9, 9, 9, 9, 9}
	must(t, netlink.NeighSet(wrong.netlink()))
	l, err := netlink.LinkByName(p.Interface)
	must(t, err)
	must(t, netlink.LinkSetDown(l)) // its routes go with it
	for path, value := range sysctls {
		other := "1"
		if value == "1" {
			other = "0"
		}
		_ = os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(other), 0) // some cannot be changed back while others stand
	}
	must(t, d.refresh(t.Context()))
	check()
	if got := ourRoutesText(t); len(got) != 2 {
		t.Errorf("routes %v", got)
	}
	for _, ip := range p.addrs() {
		f.echo(f.pods[41], netip.AddrPortFrom(ip, 7000))
		f.reach(-1, netip.AddrPortFrom(ip, 7000))
	}
}

func TestMapGrowthKeepsEntries(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	d := f.start(cfg)
	p, q := f.addPod(d, 51), f.addPod(d, 52)
	letPass(t, d, p, q)
	must(t, d.SetPods([]Pod{p, q}))
	now, err := tick()
	must(t, err)
	entries := map[bpf.FlowKey]bpf.Conn{}
	for i := range uint16(1000) {
		k := bpf.FlowKey{Lo: bpf.AddrFrom(p.IPv4), Hi: bpf.AddrFrom(outside4), LoPort: i, HiPort: 80, Proto: unix.IPPROTO_TCP}
		entries[k] = bpf.Conn{Seen: now, Flags: uint16(bpf.MapsConnFlagsCONN_ANSWERED | bpf.MapsConnFlagsCONN_SETTLED), Identity: uint32(i)}
		must(t, d.maps.open[bpf.MapsMapConntrack].Put(k, entries[k]))
	}
	inner, err := innerMap(d.maps.open[bpf.MapsMapUnanswered], 51)
	must(t, err)
	one := bpf.FlowKey{Lo: bpf.AddrFrom(p.IPv4), Hi: bpf.AddrFrom(outside4), LoPort: 1, HiPort: 1, Proto: unix.IPPROTO_UDP}
	must(t, inner.Put(one, bpf.Conn{Seen: now}))
	inner.Close()
	running := f.flows(p, q)
	for _, size := range []uint32{8192, 65536, 4096} {
		cfg.ConntrackMax, cfg.UnansweredPerEndpoint = size, size/16
		must(t, d.Configure(t.Context(), cfg))
		letPass(t, d, p, q)
		must(t, d.SetPods([]Pod{p, q}))
		m := d.maps.open[bpf.MapsMapConntrack]
		if m.MaxEntries() != size {
			t.Errorf("conntrack has room for %d, want %d", m.MaxEntries(), size)
		}
		lost := 0
		for k, want := range entries {
			var got bpf.Conn
			if err := m.Lookup(k, &got); err != nil || got.Identity != want.Identity {
				lost++
			}
		}
		if lost != 0 {
			t.Errorf("growth to %d lost %d of %d connections", size, lost, len(entries))
		}
		inner, err := innerMap(d.maps.open[bpf.MapsMapUnanswered], 51)
		must(t, err)
		if inner.MaxEntries() != size/16 {
			t.Errorf("table of unanswered flows has room for %d, want %d", inner.MaxEntries(), size/16)
		}
		var c bpf.Conn
		if err := inner.Lookup(one, &c); err != nil {
			t.Errorf("unanswered flow is lost: %v", err)
		}
		inner.Close()
		// The programs use the new one: its number is what they were loaded with.
		if !usesMap(t, d, bpf.MapsHookHOOK_FROM_POD, m) {
			t.Error("from_pod was loaded with another connection table")
		}
	}
	running.end(t, 0)
}

// An upgrade that changes the connection table's layout, and the way back: connections go on, nothing of the other
// layout is left, and what a release unknown to us pinned is not touched.
func TestLayoutThereAndBack(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	a, b := f.addPod(d, 81), f.addPod(d, 82)
	letPass(t, d, a, b)
	must(t, d.SetPods([]Pod{a, b}))
	unknown, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(t, err)
	must(t, unknown.Pin(filepath.Join(f.opts.folder(), PinName("peers", 9))))
	unknown.Close()
	running := f.flows(a, b)
	now, err := tick()
	must(t, err)
	idle := bpf.FlowKey{Lo: bpf.AddrFrom(a.IPv4), Hi: bpf.AddrFrom(outside4), LoPort: 1, HiPort: 80, Proto: unix.IPPROTO_TCP}
	must(t, d.maps.open[bpf.MapsMapConntrack].Put(idle, bpf.Conn{Seen: now, Flags: uint16(bpf.MapsConnFlagsCONN_ANSWERED | bpf.MapsConnFlagsCONN_SETTLED), Identity: 7}))
	for _, step := range []struct{ version, reads int }{{2, 1}, {1, 2}, {2, 1}} {
		must(t, d.Close())
		other := slices.Clone(layouts())
		for i, l := range other {
			if l.name == bpf.MapsMapConntrack {
				other[i].version, other[i].reads = step.version, map[int]convert{step.reads: asItIs}
			}
		}
		d = f.openWith(other)
		// What begins between the copy and the new programs must be where both look.
		if left := advance(t, d, a.ID); left != uint32(bpf.MapsAdvanceSizeADVANCE_HELD) {
			t.Errorf("layout %d: copied with an advance of %d", step.version, left)
		}
		must(t, d.SetHostAddresses([]netip.Addr{node4, node6}))
		letPass(t, d, a, b)
		must(t, d.SetPods([]Pod{a, b}))
		must(t, d.Configure(t.Context(), f.config()))
		if left := advance(t, d, 99); left != advanceSize(f.config().ConntrackMax) {
			t.Errorf("layout %d: an advance of %d afterwards", step.version, left)
		}
		var c bpf.Conn
		if err := d.maps.open[bpf.MapsMapConntrack].Lookup(idle, &c); err != nil || c.Identity != 7 {
			t.Errorf("layout %d: the idle connection is %+v: %v", step.version, c, err)
		}
		pins := f.pins()
		if !slices.Contains(pins, PinName("conntrack", step.version)) || slices.Contains(pins, PinName("conntrack", step.reads)) {
			t.Errorf("layout %d: pins %v", step.version, pins)
		}
		if !slices.Contains(pins, "peers_v9") {
			t.Errorf("layout %d: a newer release's map was touched", step.version)
		}
	}
	running.end(t, 0)
}

func advance(t *testing.T, d *Datapath, id uint16) uint32 {
	t.Helper()
	var a bpf.Advance
	must(t, d.maps.open[bpf.MapsMapAdvances].Lookup(uint32(id), &a))
	return a.Left
}

// An agent that dies after it made the new map and before it put it in force leaves both; the next one goes on.
func TestDeathWhileALayoutChanges(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	key := bpf.FlowKey{Lo: bpf.AddrFrom(node4), Hi: bpf.AddrFrom(outside4), LoPort: 1, HiPort: 80, Proto: unix.IPPROTO_TCP}
	now, err := tick()
	must(t, err)
	must(t, d.Close())
	other := slices.Clone(layouts())
	for i, l := range other {
		if l.name == bpf.MapsMapConntrack {
			other[i].version, other[i].reads = 2, map[int]convert{1: asItIs}
		}
	}
	must(t, f.openWith(other).Close()) // both are pinned now, and the programs use the old one
	old, err := ebpf.LoadPinnedMap(filepath.Join(f.opts.folder(), PinName("conntrack", 1)), nil)
	must(t, err)
	must(t, old.Put(key, bpf.Conn{Seen: now, Flags: uint16(bpf.MapsConnFlagsCONN_ANSWERED | bpf.MapsConnFlagsCONN_SETTLED)}))
	old.Close()
	d = f.openWith(other)
	must(t, d.Configure(t.Context(), f.config()))
	var c bpf.Conn
	must(t, d.maps.open[bpf.MapsMapConntrack].Lookup(key, &c))
	if slices.Contains(f.pins(), PinName("conntrack", 1)) {
		t.Errorf("pins %v", f.pins())
	}
}

func usesMap(t testing.TB, d *Datapath, hook bpf.Hook, m *ebpf.Map) bool {
	t.Helper()
	var id uint32
	must(t, d.maps.open[bpf.MapsMapHooks].Lookup(uint32(hook), &id))
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	must(t, err)
	defer prog.Close()
	info, err := prog.Info()
	must(t, err)
	ids, _ := info.MapIDs()
	mi, err := m.Info()
	must(t, err)
	want, _ := mi.ID()
	return slices.Contains(ids, want)
}

func conn(flags bpf.MapsConnFlags, seen uint32) bpf.Conn {
	return bpf.Conn{Flags: uint16(flags), Seen: seen}
}

func TestOver(t *testing.T) {
	const answered, closing = bpf.MapsConnFlagsCONN_ANSWERED | bpf.MapsConnFlagsCONN_SETTLED, bpf.MapsConnFlagsCONN_CLOSING
	for _, tc := range []struct {
		name  string
		conn  bpf.Conn
		proto uint8
		now   uint32
		over  bool
	}{
		{"a SYN just now", conn(0, 1000), unix.IPPROTO_TCP, 1000, false},
		{"a SYN nobody answered", conn(0, 1000), unix.IPPROTO_TCP, 1061, true},
		{"an established connection idle for an hour", conn(answered, 1000), unix.IPPROTO_TCP, 4600, false},
		{"and for a day", conn(answered, 1000), unix.IPPROTO_TCP, 87400, true},
		{"closed", conn(answered|closing, 1000), unix.IPPROTO_TCP, 1011, true},
		{"a datagram nobody answered", conn(0, 1000), unix.IPPROTO_UDP, 1059, false},
		{"a dialogue of datagrams", conn(answered, 1000), unix.IPPROTO_UDP, 1119, false},
		{"that ended", conn(answered, 1000), unix.IPPROTO_UDP, 1121, true},
		{"seen a tick after the clock was read", conn(0, 1001), unix.IPPROTO_UDP, 1000, false},
		{"the clock went round", conn(0, 0xfffffff0), unix.IPPROTO_UDP, 10, false},
	} {
		if got := tc.conn.Over(tc.proto, tc.now); got != tc.over {
			t.Errorf("%s: over is %v", tc.name, got)
		}
	}
}

func TestRenamedIsItsOwnInverse(t *testing.T) {
	pod, nat, world := bpf.AddrFrom(netip.MustParseAddr("10.77.0.9")), bpf.AddrFrom(node4), bpf.AddrFrom(netip.MustParseAddr("100.64.0.1"))
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP} {
		k := bpf.FlowKey{Lo: pod, LoPort: networkOrder(4000), Hi: world, HiPort: networkOrder(53), Proto: proto}
		if isEcho(proto) {
			k.HiPort, k.Class = k.LoPort, uint8(bpf.MapsFlowClassFLOW_ECHO_FROM_LO)
		}
		p := pointerOf(k, bpf.Conn{Addr: nat, Port: networkOrder(33000)})
		if p.Lo != world || p.Hi != nat || p.HiPort != networkOrder(33000) {
			t.Errorf("protocol %d: pointer %+v", proto, p)
		}
		if isEcho(proto) && (p.LoPort != p.HiPort || p.Class != uint8(bpf.MapsFlowClassFLOW_ECHO_FROM_HI)) {
			t.Errorf("echo: pointer %+v", p)
		}
		if back := renamed(p, true, flowSide{pod, networkOrder(4000)}); back != k {
			t.Errorf("protocol %d: %+v, want %+v", proto, back, k)
		}
	}
}

func TestCollectorTakesWhatIsOver(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p, leaves := f.addPod(d, 61), f.addPod(d, 62)
	now, err := tick()
	must(t, err)
	const answered, masq, pointer = bpf.MapsConnFlagsCONN_ANSWERED | bpf.MapsConnFlagsCONN_SETTLED, bpf.MapsConnFlagsCONN_MASQUERADED, bpf.MapsConnFlagsCONN_POINTER
	world := netip.MustParseAddr("203.0.113.9")
	key := func(a netip.Addr, port uint16) bpf.FlowKey {
		return bpf.FlowKey{Lo: bpf.AddrFrom(a), LoPort: networkOrder(port), Hi: bpf.AddrFrom(world), HiPort: networkOrder(443), Proto: unix.IPPROTO_TCP}
	}
	ct := d.maps.open[bpf.MapsMapConntrack]
	alive, dead, departed := key(p.IPv4, 1), key(p.IPv4, 2), key(leaves.IPv4, 3)
	deadConn := conn(answered|masq, now-100000)
	deadConn.Addr, deadConn.Port = bpf.AddrFrom(node4), networkOrder(40000)
	departedConn := conn(answered|masq, now)
	departedConn.Addr, departedConn.Port = bpf.AddrFrom(node4), networkOrder(40001)
	must(t, ct.Put(alive, conn(answered, now)))
	must(t, ct.Put(dead, deadConn))
	must(t, ct.Put(departed, departedConn))
	leads := func(k bpf.FlowKey, c bpf.Conn) bpf.Conn {
		p := conn(answered|pointer, now)
		p.Addr, p.Port = originOf(k, c).addr, originOf(k, c).port
		return p
	}
	must(t, ct.Put(pointerOf(dead, deadConn), leads(dead, deadConn)))
	must(t, ct.Put(pointerOf(departed, departedConn), leads(departed, departedConn)))
	// A pointer that has taken the port since leads to another pod's connection, and stays.
	reused := conn(answered|masq, now-100000)
	reused.Addr, reused.Port = bpf.AddrFrom(node4), networkOrder(40003)
	reusedKey := key(p.IPv4, 4)
	must(t, ct.Put(reusedKey, reused))
	taken := pointerOf(reusedKey, reused)
	must(t, ct.Put(taken, leads(alive, conn(answered, now))))
	// A connection of the host that has taken the name since is no pointer.
	other := deadConn
	other.Port = networkOrder(40002)
	host := pointerOf(dead, other)
	must(t, ct.Put(host, conn(answered, now)))
	inner, err := innerMap(d.maps.open[bpf.MapsMapUnanswered], 61)
	must(t, err)
	defer inner.Close()
	must(t, inner.Put(key(p.IPv4, 9), conn(0, now-61)))
	must(t, inner.Put(key(p.IPv4, 10), conn(0, now)))
	young := d.maps.open[bpf.MapsMapYoung]
	const youngFlag = bpf.MapsConnFlagsCONN_YOUNG
	must(t, young.Put(uint32(1), bpf.YoungConn{Key: key(p.IPv4, 11), Conn: conn(answered|youngFlag, now)}))
	must(t, young.Put(uint32(2), bpf.YoungConn{Key: key(leaves.IPv4, 12), Conn: conn(answered|youngFlag, now)}))
	must(t, young.Put(uint32(3), bpf.YoungConn{Key: key(p.IPv4, 13), Conn: conn(youngFlag, now-100)}))
	must(t, d.RemovePod(62))
	removed, err := d.collect(t.Context())
	must(t, err)
	for place, want := range map[uint32]uint8{1: unix.IPPROTO_TCP, 2: 0, 3: unix.IPPROTO_TCP} {
		var y bpf.YoungConn
		must(t, young.Lookup(place, &y))
		if y.Key.Proto != want || want == 0 && (y.Conn.Flags != 0 || y.Conn.Seen < now) {
			t.Errorf("young place %d after the round: %+v", place, y)
		}
	}
	left := contents[bpf.FlowKey, bpf.Conn](t, d, bpf.MapsMapConntrack)
	for k := range left {
		if k != alive && k != host && k != taken {
			t.Errorf("left: %+v", k)
		}
	}
	if len(left) != 3 || removed < 4 {
		t.Errorf("%d left, %d removed", len(left), removed)
	}
	var c bpf.Conn
	if err := inner.Lookup(key(p.IPv4, 9), &c); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("an old unanswered flow is left: %v", err)
	}
	must(t, inner.Lookup(key(p.IPv4, 10), &c))
	for _, m := range d.Maps() {
		if m.Name == bpf.MapsMapConntrack && m.Entries < 2 {
			t.Errorf("conntrack's fill is %d", m.Entries)
		}
		if m.Name == bpf.MapsMapYoung && m.Entries != 1 {
			t.Errorf("the fill of young is %d, want the one that is neither over nor of a pod that is gone", m.Entries)
		}
		if m.Bytes == 0 && m.Entries != 0 { // an empty trie takes nothing
			t.Errorf("map %s has no size", m.Name)
		}
	}
}

func TestProbes(t *testing.T) {
	f := newFixture(t)
	d := f.open()
	for _, p := range d.Features() {
		t.Logf("%-22s %-12s %s (%v)", p.Name, p.Outcome, p.Using, p.Err)
		if p.Outcome == Unknown {
			t.Errorf("%s: the probe could not tell: %v", p.Name, p.Err)
		}
		if p.Outcome == Unsupported && kernelAtLeast(t, 6, 6) {
			t.Errorf("%s: a kernel of 6.6 has it: %v", p.Name, p.Err)
		}
	}
	cfg := f.config()
	cfg.BigTCP = v1alpha1.BigTCPAuto // Off counts as forbidden
	cfg.Forbidden = []v1alpha1.KernelFeature{v1alpha1.FeatureRedirectPeer, v1alpha1.FeatureSocketLoadBalancing, v1alpha1.FeatureAdjustRoomEncap}
	must(t, d.Configure(t.Context(), cfg))
	for _, p := range d.Features() {
		forbidden := slices.Contains(cfg.Forbidden, v1alpha1.KernelFeature(p.Name))
		if forbidden != (p.Outcome == Forbidden) || forbidden != errors.Is(p.Err, ErrForbidden) {
			t.Errorf("%s: %s %v", p.Name, p.Outcome, p.Err)
		}
	}
	for _, info := range d.Programs() {
		if info.Attach == "cgroup" {
			t.Errorf("%s is attached although it is forbidden", info.Name)
		}
	}
	cfg.Encapsulation = v1alpha1.EncapsulationBPF
	if err := d.Configure(t.Context(), cfg); !errors.Is(err, ErrNotSupported) {
		t.Errorf("want ErrNotSupported, got %v", err)
	}
	cfg = f.config()
	must(t, d.Configure(t.Context(), cfg))
	sockets := 0
	for _, info := range d.Programs() {
		if info.Attach == "cgroup" {
			sockets++
		}
	}
	if sockets != len(bpf.SocketPrograms()) {
		t.Errorf("%d socket programs, want %d", sockets, len(bpf.SocketPrograms()))
	}
}

func kernelAtLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	must(t, unix.Uname(&u))
	var a, b int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b)
	must(t, err)
	return a > major || a == major && b >= minor
}

// What could not be told is asked again; yes and no are not.
func TestUnknownIsNotRemembered(t *testing.T) {
	k := &kernel{known: map[v1alpha1.KernelFeature]error{}}
	asked := 0
	answer := errors.New("interrupted")
	p := probe{name: "X", run: func() error { asked++; return answer }}
	for range 2 {
		if err := k.ask(p); !errors.Is(err, answer) {
			t.Fatal(err)
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times, want 2", asked)
	}
	answer = ErrNotSupported
	for range 2 {
		if err := k.ask(p); !errors.Is(err, ErrNotSupported) {
			t.Fatal(err)
		}
	}
	if asked != 3 {
		t.Errorf("asked %d times, want 3", asked)
	}
}

func TestClearRefusals(t *testing.T) {
	f := newFixture(t)
	opts := f.opts
	opts.BPFFS = t.TempDir()
	if _, err := Open(opts); !errors.Is(err, ErrNoBPFFS) {
		t.Errorf("want ErrNoBPFFS, got %v", err)
	}
	opts = f.opts
	opts.CgroupRoot = t.TempDir()
	if _, err := Open(opts); !errors.Is(err, ErrNoCgroup2) {
		t.Errorf("want ErrNoCgroup2, got %v", err)
	}
}

// The stack's way: without redirects the host forwards, with one rule where a firewall would stop it.
func TestStackPath(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	cfg.Forbidden = []v1alpha1.KernelFeature{v1alpha1.FeatureRedirectNeigh, v1alpha1.FeatureRedirectPeer}
	read := func(path string) string {
		b, err := os.ReadFile("/proc/sys/net/" + path)
		must(t, err)
		return strings.TrimSpace(string(b))
	}
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0))
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0))
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/up0/accept_ra", []byte("1"), 0))
	d := f.start(f.config())
	if read("ipv4/ip_forward") != "0" {
		t.Error("forwarding was switched on without need")
	}
	must(t, d.Configure(t.Context(), cfg))
	if read("ipv4/ip_forward") != "1" || read("ipv6/conf/all/forwarding") != "1" {
		t.Error("the stack does not forward")
	}
	if got := read("ipv6/conf/up0/accept_ra"); got != "2" {
		t.Errorf("accept_ra of the uplink is %s: the host would lose its default route", got)
	}
	note := ""
	for _, p := range d.Features() {
		if p.Name == "ForwardRule" {
			note = p.Using
		}
	}
	if note == "" {
		t.Error("nothing is said of the FORWARD rule")
	}
	t.Log(note)
	must(t, d.Configure(t.Context(), f.config()))
}

// A firewall that drops by policy what the host forwards, as Docker's does: with iptables' chain and with one of
// nftables. The image of the agent holds no tool for either.
func TestStackPathThroughAFirewall(t *testing.T) {
	f := newFixture(t)
	firewall := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	firewall("iptables-nft", "-P", "FORWARD", "DROP")
	firewall("ip6tables-nft", "-P", "FORWARD", "DROP")
	firewall("nft", "add table inet theirs; add chain inet theirs forward { type filter hook forward priority 0; policy drop; }")
	ours := func() int { return strings.Count(firewall("nft", "list", "ruleset"), `comment "kube-cilium"`) }
	cfg := f.config()
	cfg.Forbidden = []v1alpha1.KernelFeature{v1alpha1.FeatureRedirectNeigh, v1alpha1.FeatureRedirectPeer}
	d := f.start(cfg)
	a, b := f.addPod(d, 73), f.addPod(d, 74)
	letPass(t, d, a, b)
	must(t, d.SetPods([]Pod{a, b}))
	running := f.flows(a, b)
	running.end(t, 0)
	must(t, d.refresh(t.Context()))
	if n := ours(); n != 6 {
		t.Errorf("%d rules, want two in each of three chains:\n%s", n, firewall("nft", "list", "ruleset"))
	}
	// What iptables cannot read it would refuse to touch.
	if out := firewall("iptables-nft", "-S", "FORWARD"); !strings.Contains(out, "-i kc+") || !strings.Contains(out, "-P FORWARD DROP") {
		t.Errorf("iptables shows\n%s", out)
	}
	firewall("iptables-nft", "-F", "FORWARD")
	must(t, d.refresh(t.Context()))
	if n := ours(); n != 6 {
		t.Errorf("%d rules after somebody flushed a chain", n)
	}
	must(t, d.Configure(t.Context(), f.config()))
	if n := ours(); n != 0 {
		t.Errorf("%d rules without the stack's path:\n%s", n, firewall("nft", "list", "ruleset"))
	}
	must(t, d.Configure(t.Context(), cfg))
	must(t, d.Close())
	must(t, Uninstall(f.opts))
	if n := ours(); n != 0 {
		t.Errorf("%d rules after uninstall", n)
	}
}

// Each fallback carries every kind of traffic, in each routing mode.
func TestEveryFallbackCarriesTraffic(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	a, b := f.addPod(d, 71), f.addPod(d, 72)
	letPass(t, d, a, b)
	must(t, d.SetPods([]Pod{a, b}))
	for _, forbidden := range [][]v1alpha1.KernelFeature{
		nil,
		{v1alpha1.FeatureTCX},
		{v1alpha1.FeatureRedirectPeer},
		{v1alpha1.FeatureRedirectNeigh},
		{v1alpha1.FeatureAdjustRoomEncap},
		{v1alpha1.FeatureTCX, v1alpha1.FeatureRedirectPeer, v1alpha1.FeatureRedirectNeigh, v1alpha1.FeatureAdjustRoomEncap, v1alpha1.FeatureBatchOperations},
	} {
		for _, mode := range []v1alpha1.RoutingMode{v1alpha1.RoutingVXLAN, v1alpha1.RoutingNative} {
			cfg := f.config()
			cfg.Mode, cfg.Forbidden = mode, forbidden
			must(t, d.Configure(t.Context(), cfg))
			t.Run(fmt.Sprintf("%s without %v", mode, forbidden), func(t *testing.T) {
				g := *f
				g.t = t
				running := g.flows(a, b)
				running.end(t, 0)
			})
		}
	}
}
