// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// modelKey is a connection's name in the model: ends in order, and who asked where that matters.
type modelKey struct {
	lo, hi netip.AddrPort
	proto  uint8
	asker  netip.AddrPort // of an echo
}

type modelConn struct {
	began             netip.AddrPort
	answered, settled bool
	syn               bool // of the side that began
	fin               [2]bool
	closing           bool
}

// model is conntrack as one would write it in a few lines.
type model map[modelKey]*modelConn

func less(a, b netip.AddrPort) bool {
	x, y := a.Addr().As16(), b.Addr().As16()
	if c := bytes.Compare(x[:], y[:]); c != 0 {
		return c < 0
	}
	return a.Port() < b.Port()
}

func (m model) packet(p packet) modelKey {
	sport, dport := p.sport, p.dport
	var k modelKey
	if p.proto == protoICMP || p.proto == protoICMPv6 {
		sport, dport = p.id, p.id
	}
	src, dst := netip.AddrPortFrom(p.src, sport), netip.AddrPortFrom(p.dst, dport)
	switch {
	case p.typ == 8 && p.proto == protoICMP, p.typ == 128:
		k.asker = src
	case p.typ == 0 && p.proto == protoICMP, p.typ == 129:
		k.asker = dst
	}
	k.lo, k.hi, k.proto = src, dst, p.proto
	if less(dst, src) {
		k.lo, k.hi = dst, src
	}
	c := m[k]
	if c != nil && p.proto == protoTCP && p.flags&(syn|ack) == syn && (c.closing || c.began != src && !c.syn) {
		c = nil
	}
	if c == nil {
		c = &modelConn{began: src}
		m[k] = c
	}
	dir := 0
	if c.began != src {
		dir = 1
		c.answered = true
		c.settled = c.settled || p.proto != protoTCP
	} else if c.answered && p.flags&rst == 0 && p.flags&(syn|ack) != syn {
		c.settled = true
	}
	if p.proto == protoTCP {
		c.syn = c.syn || dir == 0 && p.flags&syn != 0
		if p.flags&fin != 0 {
			c.fin[dir] = true
		}
		if p.flags&rst != 0 || c.fin[0] && c.fin[1] {
			c.closing = true
		}
	}
	return k
}

// TestConntrackModel sends random packets between two pods, from both sides, and compares the tables with the model
// after each. GHSA-c66w-hq56-4q97: an echo request of the other side is its own connection.
func TestConntrackModel(t *testing.T) {
	for _, advance := range []uint32{0, 2, 256} {
		for _, places := range []uint32{0, 1, youngSlots} {
			t.Run(fmt.Sprintf("advance %d, %d places of the young", advance, places), func(t *testing.T) { conntrackModel(t, advance, places) })
		}
	}
}

func conntrackModel(t *testing.T, advance, places uint32) {
	w := newWorld(t, map[string]any{"advance_size": advance, "young_slots": places})
	both(t, func(t *testing.T, v6 bool) {
		for seed := range uint64(12) {
			w.t = t
			w.reset()
			r := rand.New(rand.NewPCG(seed, 1))
			m := model{}
			a, b := pick(v6, podA4, podA6), pick(v6, podB4, podB6)
			for step := range 60 {
				p := packet{smac: podMAC, dmac: hostMAC, src: a, dst: b}
				ports := []uint16{80, 40000, 40001}
				p.sport, p.dport = ports[r.IntN(3)], ports[r.IntN(3)]
				switch r.IntN(3) {
				case 0:
					p.proto, p.flags = protoTCP, []uint8{syn, syn | ack, ack, fin | ack, rst}[r.IntN(5)]
				case 1:
					p.proto = protoUDP
				case 2:
					p.proto, p.id = protoICMP, uint16(r.IntN(2)+1)
					p.typ = []uint8{8, 0}[r.IntN(2)]
					if v6 {
						p.proto, p.typ = protoICMPv6, []uint8{128, 129}[r.IntN(2)]
					}
				}
				fromB := r.IntN(2) == 0
				send := func() { w.run("from_pod", p.frame()) }
				if fromB {
					p.src, p.dst = p.dst, p.src
					w.asB(send)
				} else {
					send()
				}
				key := m.packet(p)
				if err := w.agrees(m); err != nil {
					t.Fatalf("seed %d step %d after %+v: %v", seed, step, key, err)
				}
			}
		}
	})
}

// agrees compares all tables with the model.
func (w *world) agrees(m model) error {
	got := map[bpf.FlowKey]bpf.Conn{}
	inAll := map[bpf.FlowKey]bool{}
	for k, c := range w.conns(w.maps.Maps[bpf.MapsMapConntrack]) {
		got[k], inAll[k] = c, true
		if c.Flags&uint16(bpf.MapsConnFlagsCONN_YOUNG) != 0 {
			return fmt.Errorf("%+v is young, in the table of all", k)
		}
	}
	for _, y := range w.young() {
		if y.Key.Proto == 0 {
			continue
		}
		if _, twice := got[y.Key]; twice {
			return fmt.Errorf("%+v is in two tables", y.Key)
		}
		if y.Conn.Flags&uint16(bpf.MapsConnFlagsCONN_YOUNG|bpf.MapsConnFlagsCONN_ADVANCED) != uint16(bpf.MapsConnFlagsCONN_YOUNG) {
			return fmt.Errorf("%+v is in the table of the young with flags %#x", y.Key, y.Conn.Flags)
		}
		got[y.Key] = y.Conn
	}
	for id, table := range w.inner {
		for k, c := range w.conns(table) {
			if _, twice := got[k]; twice {
				return fmt.Errorf("%+v is in two tables", k)
			}
			if uint32(c.Endpoint) != id {
				return fmt.Errorf("%+v of endpoint %d is in table %d", k, c.Endpoint, id)
			}
			got[k] = c
		}
	}
	if len(got) != len(m) {
		return fmt.Errorf("%d connections, want %d", len(got), len(m))
	}
	for mk, mc := range m {
		k := bpf.FlowKey{Lo: bpf.AddrFrom(mk.lo.Addr()), Hi: bpf.AddrFrom(mk.hi.Addr()),
			LoPort: be16(mk.lo.Port()), HiPort: be16(mk.hi.Port()), Proto: mk.proto}
		if mk.asker.IsValid() {
			k.Class = uint8(bpf.MapsFlowClassFLOW_ECHO_FROM_LO)
			if mk.asker == mk.hi {
				k.Class = uint8(bpf.MapsFlowClassFLOW_ECHO_FROM_HI)
			}
		}
		c, ok := got[k]
		if !ok {
			return fmt.Errorf("no %+v", k)
		}
		flags := bpf.MapsConnFlags(c.Flags)
		for _, f := range []struct {
			flag bpf.MapsConnFlags
			want bool
		}{
			{bpf.MapsConnFlagsCONN_FROM_HI, mc.began == mk.hi},
			{bpf.MapsConnFlagsCONN_ANSWERED, mc.answered},
			{bpf.MapsConnFlagsCONN_SETTLED, mc.settled},
			{bpf.MapsConnFlagsCONN_CLOSING, mc.closing},
		} {
			if (flags&f.flag != 0) != f.want {
				return fmt.Errorf("%+v: flags %#x, flag %#x should be %v", k, flags, f.flag, f.want)
			}
		}
		advanced := flags&bpf.MapsConnFlagsCONN_ADVANCED != 0
		young := flags&bpf.MapsConnFlagsCONN_YOUNG != 0
		if mc.settled && advanced || (mc.settled || advanced) != (inAll[k] || young && mc.settled) {
			return fmt.Errorf("%+v: settled %v, advanced %v, in the table of all %v", k, mc.settled, advanced, inAll[k])
		}
		want := uint32(idA)
		if mc.began.Addr() == podB4 || mc.began.Addr() == podB6 {
			want = idB
		}
		if c.Identity != want {
			return fmt.Errorf("%+v: began with identity %d, want %d", k, c.Identity, want)
		}
		for side, j := range c.Side {
			if j.Verdict != 1 || j.Generation != 1 {
				return fmt.Errorf("%+v: side %d judged %+v", k, side, j)
			}
		}
	}
	return nil
}

// TestLifetimes: what was silent too long is another connection.
func TestLifetimes(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		name     string
		packets  []packet
		lifetime uint32
	}{
		{"unanswered", []packet{fromA(podB4)}, uint32(bpf.MapsConnLifetimeLIFETIME_UNANSWERED)},
		{"half open", []packet{fromA(podB4), fromA(podB4).reply().with(func(p *packet) { p.flags = syn | ack })},
			uint32(bpf.MapsConnLifetimeLIFETIME_UNANSWERED)},
		{"half open, asked again", []packet{fromA(podB4), fromA(podB4).reply().with(func(p *packet) { p.flags = syn | ack }), fromA(podB4)},
			uint32(bpf.MapsConnLifetimeLIFETIME_UNANSWERED)},
		{"TCP", []packet{fromA(podB4), fromA(podB4).reply().with(func(p *packet) { p.flags = syn | ack }), fromA(podB4).with(func(p *packet) { p.flags = ack })},
			uint32(bpf.MapsConnLifetimeLIFETIME_TCP)},
		{"closing", []packet{fromA(podB4), fromA(podB4).reply().with(func(p *packet) { p.flags = rst })},
			uint32(bpf.MapsConnLifetimeLIFETIME_CLOSING)},
		{"UDP", []packet{fromA(podB4).with(func(p *packet) { p.proto = protoUDP }),
			fromA(podB4).with(func(p *packet) { p.proto = protoUDP }).reply()}, uint32(bpf.MapsConnLifetimeLIFETIME_OTHER)},
	} {
		for _, over := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s over %v", c.name, over), func(t *testing.T) {
				w.t = t
				w.reset()
				send := func(p packet) {
					if p.src == podB4 {
						w.asB(func() { w.run("from_pod", p.frame()) })
					} else {
						w.run("from_pod", p.frame())
					}
				}
				for _, p := range c.packets {
					send(p)
				}
				for k, conn := range w.everywhere() {
					conn.Seen -= c.lifetime
					if over {
						conn.Seen -= 2
					}
					w.change(k, conn)
				}
				// The other side speaks: a reply, or a new beginning.
				again := c.packets[0].reply().with(func(p *packet) { p.flags = ack })
				send(again)
				all := w.everywhere()
				if len(all) != 1 {
					t.Fatalf("%d connections", len(all))
				}
				for _, conn := range all {
					if (conn.Identity == idB) != over {
						t.Errorf("connection is of %d", conn.Identity)
					}
				}
			})
		}
	}
}

// TestReports: the first packet, SYN, FIN and RST in each direction, and one an interval; nothing else.
func TestReports(t *testing.T) {
	w := newWorld(t, nil)
	p := fromA(podB4)
	flags := func(f uint8) packet { return p.with(func(p *packet) { p.flags = f }) }
	steps := []struct {
		name   string
		p      packet
		events int
		reply  bool
	}{
		{"SYN", flags(syn), 1, false},
		{"SYN again", flags(syn), 0, false},
		{"SYN-ACK", flags(syn | ack).reply(), 1, true},
		{"ACK", flags(ack), 0, false},
		{"data", flags(ack), 0, false},
		{"data back", flags(ack).reply(), 0, true},
		{"FIN", flags(fin | ack), 1, false},
		{"FIN back", flags(fin | ack).reply(), 1, true},
		{"last ACK", flags(ack), 0, false},
	}
	for _, s := range steps {
		if s.p.src == podB4 {
			w.asB(func() { w.run("from_pod", s.p.frame()) })
		} else {
			w.run("from_pod", s.p.frame())
		}
		ev := w.events()
		if len(ev) != s.events {
			t.Errorf("%s: %d events, want %d", s.name, len(ev), s.events)
		}
		for _, e := range ev {
			if got := e.Flags&uint8(bpf.MapsEventFlagsEVENT_REPLY) != 0; got != s.reply || e.Type != uint8(bpf.MapsEventTypeEVENT_TRACE) {
				t.Errorf("%s: event %+v", s.name, e)
			}
		}
	}
}

// TestReportsWithoutFlags: of what has no flags the first packet, the first answer, and one an interval whoever sends it.
func TestReportsWithoutFlags(t *testing.T) {
	w := newWorld(t, nil)
	for _, asked := range []packet{
		fromA(podB4).with(func(p *packet) { p.proto = protoUDP }),
		fromA(podB6).with(func(p *packet) { p.proto = protoUDP }),
		fromA(podB4).with(func(p *packet) { p.proto, p.typ, p.id = protoICMP, 8, 7 }),
		fromA(podB6).with(func(p *packet) { p.proto, p.typ, p.id = protoICMPv6, 128, 7 }),
	} {
		w.reset()
		answer := asked.reply().with(func(p *packet) {
			switch p.proto {
			case protoICMP:
				p.typ = 0
			case protoICMPv6:
				p.typ = 129
			}
		})
		for i, step := range []struct {
			answer, late bool
			events       int
		}{
			{answer: false, events: 1}, {answer: false}, {answer: true, events: 1}, {answer: true}, {answer: false},
			{answer: false, late: true, events: 1}, {answer: true}, {answer: true, late: true, events: 1}, {answer: false},
		} {
			if step.late {
				for k, c := range w.answered() {
					c.Reported -= 5 // the interval of this world
					w.change(k, c)
				}
			}
			if step.answer {
				w.asB(func() { w.run("from_pod", answer.frame()) })
			} else {
				w.run("from_pod", asked.frame())
			}
			ev := w.events()
			if len(ev) != step.events {
				t.Errorf("protocol %d, step %d: %d events, want %d", asked.proto, i, len(ev), step.events)
			}
			for _, e := range ev {
				flags := bpf.MapsEventFlags(e.Flags)
				if got := flags&bpf.MapsEventFlagsEVENT_REPLY != 0; got != step.answer || e.Type != uint8(bpf.MapsEventTypeEVENT_TRACE) {
					t.Errorf("protocol %d, step %d: %+v", asked.proto, i, e)
				}
				if first := flags&bpf.MapsEventFlagsEVENT_FIRST != 0; first != (i == 0) {
					t.Errorf("protocol %d, step %d: first: %t", asked.proto, i, first)
				}
			}
		}
	}
}

// TestReporting: which packets are reported can be changed while programs run. Off: none that passes; every packet: each of
// a connection, also the error about it, and nothing of the host's own; drops always.
func TestReporting(t *testing.T) {
	w := newWorld(t, nil)
	const off, every = uint32(bpf.MapsReportIntervalREPORT_NOTHING), uint32(bpf.MapsReportIntervalREPORT_EVERY_PACKET)
	reporting := func(interval uint32) {
		w.put(bpf.MapsMapLiveSettings, uint32(0), bpf.Settings{Generation: 1, ReportInterval: interval})
	}
	there := func(f uint8) func() outcome {
		return func() outcome { return w.run("from_pod", fromA(podB4).with(func(p *packet) { p.flags = f }).frame()) }
	}
	back := func(f uint8) func() (o outcome) {
		return func() (o outcome) {
			w.asB(func() {
				o = w.run("from_pod", fromA(podB4).reply().with(func(p *packet) { p.flags = f }).frame())
			})
			return o
		}
	}
	unreachable := func() (o outcome) {
		quoted := fromA(podB4)
		e := packet{smac: podMAC, dmac: hostMAC, src: podB4, dst: podA4, proto: protoICMP, ttl: 64, typ: 3, code: 3, payload: quoted.network()}
		w.asB(func() { o = w.run("from_pod", e.frame()) })
		return o
	}
	host := func() outcome {
		return w.run("to_netdev", packet{smac: hostMAC, dmac: podMAC, src: node4, dst: out4, proto: protoTCP, ttl: 64, sport: 5000, dport: 22, flags: syn}.frame())
	}
	dropped := func() outcome { return w.run("from_pod", fromA(gone4).frame()) }
	steps := []struct {
		name                string
		run                 func() outcome
		off, ordinary, each int
	}{
		{"SYN", there(syn), 0, 1, 1},
		{"SYN-ACK", back(syn | ack), 0, 1, 1},
		{"ACK", there(ack), 0, 0, 1},
		{"data", there(ack), 0, 0, 1},
		{"data back", back(ack), 0, 0, 1},
		{"an error about it", unreachable, 0, 0, 1},
		{"the host's own", host, 0, 0, 0},
		{"a drop", dropped, 1, 1, 1},
		{"FIN", there(fin | ack), 0, 1, 1},
	}
	for _, mode := range []struct {
		name     string
		interval uint32
		want     func(i int) int
	}{
		{"off", off, func(i int) int { return steps[i].off }},
		{"default", 5, func(i int) int { return steps[i].ordinary }},
		{"every packet", every, func(i int) int { return steps[i].each }},
	} {
		w.reset()
		reporting(mode.interval)
		for i, s := range steps {
			o := s.run()
			if drop := s.name == "a drop"; (o.ret == shot) != drop {
				t.Fatalf("%s, %s: %+v", mode.name, s.name, o)
			}
			ev := w.events()
			if len(ev) != mode.want(i) {
				t.Errorf("%s, %s: %d events, want %d: %+v", mode.name, s.name, len(ev), mode.want(i), ev)
			}
			for _, e := range ev {
				if first := bpf.MapsEventFlags(e.Flags)&bpf.MapsEventFlagsEVENT_FIRST != 0; first != (s.name == "SYN") {
					t.Errorf("%s, %s: first: %t", mode.name, s.name, first)
				}
			}
		}
	}

	// What is remembered does not depend on who looks: a connection that began unseen is judged and ends like any other.
	w.reset()
	reporting(off)
	there(syn)()
	reporting(5)
	w.events()
	if ev := func() []bpf.Event { back(syn | ack)(); return w.events() }(); len(ev) != 1 || bpf.MapsEventFlags(ev[0].Flags)&bpf.MapsEventFlagsEVENT_REPLY == 0 {
		t.Errorf("the answer to what began unseen: %+v", ev)
	}
}

// TestReaderIsWokenInSteps: while the reader sleeps it is woken when a quarter of the ring is full and with each 16th more,
// not for each record.
func TestReaderIsWokenInSteps(t *testing.T) {
	w := newWorld(t, nil)
	w.put(bpf.MapsMapLiveSettings, uint32(0), bpf.Settings{Generation: 1, ReportInterval: uint32(bpf.MapsReportIntervalREPORT_EVERY_PACKET)})
	ring := w.maps.Maps[bpf.MapsMapEvents]
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(poll) //nolint:errcheck // nothing was written
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, ring.FD(), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}); err != nil {
		t.Fatal(err)
	}
	woken := func() bool {
		n, err := unix.EpollWait(poll, make([]unix.EpollEvent, 1), 0)
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
	const header = 8 // of each record in the ring
	record, size := binary.Size(bpf.Event{})+header, int(ring.MaxEntries())
	frame := fromA(podB4).frame()
	inQuarter, times := 0, 0
	for n := range size / record {
		w.run("from_pod", frame)
		if !woken() {
			continue
		}
		if times++; (n+1)*record < size/4 {
			inQuarter++
		}
	}
	// Edge-triggered, so each wake is seen, but two between two looks are one. Twelve steps are above the quarter.
	if inQuarter != 0 || times < 12 || times > 2*13 {
		t.Errorf("woken %d times, %d of them before a quarter was full", times, inQuarter)
	}
}

// TestDropReports: drops are counted exactly and reported up to a rate.
func TestDropReports(t *testing.T) {
	w := newWorld(t, nil)
	const n = 200
	bad := fromA(gone4).frame()
	for range n {
		w.run("from_pod", bad).expect(t, bpf.MapsReasonDROP_NO_TUNNEL_ENDPOINT, shot, nil)
	}
	ev := len(w.events())
	if ev < 64 || ev >= n {
		t.Errorf("%d events of %d drops", ev, n)
	}
	c := w.counters(bpf.MapsHookHOOK_FROM_POD)
	if c[bpf.MapsReasonDROP_NO_TUNNEL_ENDPOINT] != n {
		t.Errorf("%d drops counted", c[bpf.MapsReasonDROP_NO_TUNNEL_ENDPOINT])
	}
	if limited := c[bpf.Reason(bpf.MapsMetricSlotMETRIC_EVENTS_LIMITED)]; limited+uint64(ev) != n {
		t.Errorf("%d limited and %d sent of %d", limited, ev, n)
	}
}

// TestFlood: a pod that opens many connections evicts its own unanswered ones only (issue: SYN flood).
func TestFlood(t *testing.T) {
	for _, places := range []uint32{0, youngSlots} {
		t.Run(fmt.Sprintf("%d places of the young", places), func(t *testing.T) { flood(t, places) })
	}
}

func flood(t *testing.T, places uint32) {
	w := newWorld(t, map[string]any{"young_slots": places})
	// b has an established and an unanswered connection.
	idle := fromA(podB4).reply().with(func(p *packet) { p.sport, p.dport = 41000, 90 })
	w.asB(func() { w.run("from_pod", idle.frame()) })
	w.run("from_pod", idle.reply().with(func(p *packet) { p.flags = syn | ack }).frame())
	w.asB(func() { w.run("from_pod", idle.with(func(p *packet) { p.flags = ack }).frame()) })
	asking := idle.with(func(p *packet) { p.sport = 41001 })
	w.asB(func() { w.run("from_pod", asking.frame()) })

	abroad := fromA(out4).with(func(p *packet) { p.smac, p.dmac, p.src, p.sport = podBMAC, hostB, podB4, 60000 })
	hostTable := int(w.inner[0].MaxEntries())
	frame := fromA(out4).frame()
	ctx := context{Ifindex: loopback}
	for i := range 5000 {
		binary.BigEndian.PutUint16(frame[14+20:], uint16(1024+i))
		if _, err := w.program("from_pod").Programs["from_pod"].Run(&ebpf.RunOptions{Data: frame, Context: &ctx}); err != nil {
			t.Fatal(err)
		}
	}
	// Refused or half accepted, it is a flood all the same: nobody acknowledges.
	for i := range 100 {
		syns := fromA(podB4).with(func(p *packet) { p.sport = uint16(20000 + i) })
		w.run("from_pod", syns.frame())
		w.asB(func() {
			w.run("from_pod", syns.reply().with(func(p *packet) { p.flags = []uint8{rst | ack, syn | ack}[i%2] }).frame())
		})
	}
	if n := len(w.answered()); n != 1 {
		t.Errorf("%d settled connections, want the idle one", n)
	}
	if n := len(w.begun(2)); n != 1 {
		t.Errorf("%d unanswered connections of the neighbour, want 1", n)
	}
	if n := len(w.conns(w.inner[1])); n == 0 || n > int(w.inner[1].MaxEntries()) {
		t.Errorf("%d unanswered connections of the flooder in its own table", n)
	}
	advance := int(defaults()["advance_size"].(uint32))
	young := 0
	for _, c := range w.begun(1) {
		if c.Flags&uint16(bpf.MapsConnFlagsCONN_YOUNG) != 0 {
			young++
		}
	}
	if (young > 0) != (places > 0) {
		t.Errorf("%d young connections of the flooder", young)
	}
	if n := len(w.begun(1)) - len(w.conns(w.inner[1])) - young; n != advance {
		t.Errorf("%d unanswered connections of the flooder in the table of all, want its advance", n)
	}
	if n := len(w.begun(0)) - len(w.conns(w.inner[0])); n == 0 || n > advance {
		t.Errorf("%d pointers of the flooder in the table of all, want one for each of its advance at most", n)
	}
	// The neighbour begins as ever, to the world too, where the flooder's pointers fill the table of those without advance.
	w.reset()
	for i := range 2 * hostTable {
		binary.BigEndian.PutUint16(frame[14+20:], uint16(32768+i))
		if _, err := w.program("from_pod").Programs["from_pod"].Run(&ebpf.RunOptions{Data: frame, Context: &ctx}); err != nil {
			t.Fatal(err)
		}
		if i == hostTable/2 {
			w.asB(func() { w.run("from_pod", abroad.frame()) })
		}
	}
	back := w.run("from_netdev", answer(abroad.with(func(p *packet) { p.src = node4 })).frame())
	if back.reason != bpf.MapsReasonFORWARD_TO_POD {
		t.Errorf("the answer to the neighbour: %v", back.reason)
	}
}

// TestResetsOfOneName: a connection that takes the name of one that was reset takes its place too, in whichever tick.
func TestResetsOfOneName(t *testing.T) {
	for _, places := range []uint32{0, youngSlots} {
		t.Run(fmt.Sprintf("%d places of the young", places), func(t *testing.T) { resetsOfOneName(t, places) })
	}
}

func resetsOfOneName(t *testing.T, places uint32) {
	w := nativeWorld(t, map[string]any{"young_slots": places})
	size := defaults()["advance_size"].(uint32)
	out := func(f uint8) { w.run("from_pod", fromA(far4).with(func(p *packet) { p.flags = f }).frame()) }
	back := func(f uint8) {
		w.run("from_netdev", fromA(far4).reply().with(func(p *packet) { p.flags = f }).frame())
	}
	for name, connection := range map[string]func(){
		"given up":            func() { out(syn); out(rst) },
		"refused":             func() { out(syn); back(rst | ack) },
		"answered":            func() { out(syn); back(syn | ack); out(rst) },
		"answered a SYN more": func() { out(syn); back(syn | ack); out(syn); out(rst) },
		"settled":             func() { out(syn); back(syn | ack); out(ack); out(rst | ack) },
	} {
		w.reset()
		w.put(bpf.MapsMapLiveSettings, uint32(0), bpf.Settings{Generation: 1, ReportInterval: 5})
		for range 20 {
			connection()
		}
		var a bpf.Advance
		if err := w.maps.Maps[bpf.MapsMapAdvances].Lookup(uint32(1), &a); err != nil {
			t.Fatal(err)
		}
		if apart := len(w.conns(w.inner[1])); a.Left < size-1 || a.Left > size || apart != 0 {
			t.Errorf("%s: %d of %d left, %d apart", name, a.Left, size, apart)
		}
	}
	w.reset()
	out(syn)
	back(syn | ack)
	out(syn)
	if n := len(w.answered()); n != 0 {
		t.Error("a SYN that was sent again acknowledged its answer")
	}
}

// TestAdvance: what is settled gives its place back, and what is not waits for the next minute.
func TestAdvance(t *testing.T) {
	const size = 4
	w := newWorld(t, map[string]any{"advance_size": uint32(size)})
	udp := func(i int) packet {
		return fromA(podB4).with(func(p *packet) { p.proto, p.sport = protoUDP, uint16(2000+i) })
	}
	inAll := func() int { return len(w.begun(1)) - len(w.conns(w.inner[1])) }
	for i := range 3 * size {
		w.run("from_pod", udp(i).frame())
		w.asB(func() { w.run("from_pod", udp(i).reply().frame()) })
	}
	if settled, apart := len(w.answered()), len(w.conns(w.inner[1])); settled != 3*size || inAll() != 0 || apart != 0 {
		t.Errorf("answered at once: %d settled, %d of the advance, %d apart", settled, inAll(), apart)
	}
	w.reset()
	for i := range 3 * size {
		w.run("from_pod", udp(i).frame())
	}
	if apart := len(w.conns(w.inner[1])); inAll() != size || apart != 2*size {
		t.Errorf("not answered: %d of the advance, %d apart", inAll(), apart)
	}
	// Each is found where it is.
	for i := range 3 * size {
		w.asB(func() { w.run("from_pod", udp(i).reply().frame()) })
	}
	if settled, apart := len(w.answered()), len(w.conns(w.inner[1])); settled != 3*size || inAll() != 0 || apart != 0 {
		t.Errorf("answered late: %d settled, %d of the advance, %d apart", settled, inAll(), apart)
	}
	w.reset()
	for i := range 2 * size {
		w.run("from_pod", udp(i).frame())
	}
	var a bpf.Advance
	if err := w.maps.Maps[bpf.MapsMapAdvances].Lookup(uint32(1), &a); err != nil {
		t.Fatal(err)
	}
	a.Window -= uint32(bpf.MapsConnLifetimeLIFETIME_UNANSWERED)
	w.put(bpf.MapsMapAdvances, uint32(1), a)
	for i := range 2 * size {
		w.run("from_pod", udp(100+i).frame())
	}
	if apart := len(w.conns(w.inner[1])); inAll() != 2*size || apart != 2*size {
		t.Errorf("in the next window: %d of the advance, %d apart", inAll(), apart)
	}
	// While the table of all changes, what begins is found whichever is asked: it is in the small tables.
	w.reset()
	w.unselect()
	w.enforce(1, ingress, 0)
	w.put(bpf.MapsMapAdvances, uint32(1), bpf.Advance{Window: a.Window + 60, Left: uint32(bpf.MapsAdvanceSizeADVANCE_HELD), Apart: a.Window + 60})
	begun := []packet{udp(0), fromA(podB4)}
	for _, p := range begun {
		w.run("from_pod", p.frame())
	}
	if n := len(w.conns(w.maps.Maps[bpf.MapsMapConntrack])); n != 0 {
		t.Errorf("held: %d connections in the table of all", n)
	}
	for _, p := range begun {
		back := p.reply()
		if p.proto == protoTCP {
			back.flags = syn | ack
		}
		w.asB(func() {
			if got := w.run("from_pod", back.frame()).reason; got != bpf.MapsReasonFORWARD_TO_POD {
				t.Errorf("held: the answer to %+v: %v", p, got)
			}
		})
	}
	w.put(bpf.MapsMapAdvances, uint32(1), bpf.Advance{})
	w.put(bpf.MapsMapPolicies, uint32(1), bpf.Policy{Side: [2]bpf.PolicySide{unselected, unselected}})
	// A program that knows of no advance filled the small table: a new map looks there.
	w.reset()
	p := udp(0)
	w.run("from_pod", p.frame())
	for k, c := range w.begun(1) {
		w.forget(k)
		c.Flags &^= uint16(bpf.MapsConnFlagsCONN_ADVANCED)
		if err := w.inner[1].Put(k, c); err != nil {
			t.Fatal(err)
		}
	}
	w.put(bpf.MapsMapAdvances, uint32(1), bpf.Advance{})
	w.asB(func() { w.run("from_pod", p.reply().frame()) })
	if settled := len(w.answered()); settled != 1 {
		t.Errorf("a connection of the program before: %d settled, want it", settled)
	}
}

// TestGeneration: when the tables' generation moves on, the next packet is judged again.
func TestGeneration(t *testing.T) {
	w := newWorld(t, nil)
	w.run("from_pod", fromA(podB4).frame())
	w.put(bpf.MapsMapLiveSettings, uint32(0), bpf.Settings{Generation: 9, ReportInterval: 5})
	w.run("from_pod", fromA(podB4).frame())
	for _, c := range w.begun(1) {
		if c.Side[0].Generation != 9 || c.Side[1].Generation != 9 {
			t.Errorf("judged in generation %d and %d", c.Side[0].Generation, c.Side[1].Generation)
		}
	}
}

// TestDenied: a verdict in the entry is what holds, on both sides and for the replies.
func TestDenied(t *testing.T) {
	w := newWorld(t, nil)
	for side := range 2 {
		for verdict, reason := range map[bpf.MapsVerdict]bpf.Reason{
			bpf.MapsVerdictVERDICT_DENIED:         bpf.MapsReasonDROP_POLICY_DENY,
			bpf.MapsVerdictVERDICT_DEFAULT_DENIED: bpf.MapsReasonDROP_POLICY,
			bpf.MapsVerdictVERDICT_PENDING_DENIED: bpf.MapsReasonDROP_PENDING_DENY,
		} {
			t.Run(fmt.Sprintf("side %d verdict %d", side, verdict), func(t *testing.T) {
				const rule = 7
				w.t = t
				w.reset()
				w.run("from_pod", fromA(podB4).frame())
				for k, c := range w.begun(1) {
					c.Side[side].Verdict, c.Side[side].Rule = uint8(verdict), rule
					w.change(k, c)
				}
				w.run("from_pod", fromA(podB4).frame()).expect(t, reason, shot, nil)
				w.asB(func() {
					w.run("from_pod", fromA(podB4).reply().with(func(p *packet) { p.flags = syn | ack }).frame()).
						expect(t, reason, shot, nil)
				})
				if n := len(w.answered()); n != 0 {
					t.Errorf("a refused reply answered the connection")
				}
				var last bpf.Event
				for _, e := range w.events() {
					last = e
				}
				if last.Rules[side] != rule || last.Type != uint8(bpf.MapsEventTypeEVENT_DROP) {
					t.Errorf("event %+v", last)
				}
			})
		}
	}
}

// TestNoTable: without a table for its unanswered flows a pod's connection cannot begin.
func TestNoTable(t *testing.T) {
	w := newWorld(t, map[string]any{"advance_size": uint32(0), "young_slots": uint32(0)})
	if err := w.maps.Maps[bpf.MapsMapUnanswered].Delete(uint32(1)); err != nil {
		t.Fatal(err)
	}
	w.run("from_pod", fromA(podB4).frame()).expect(t, bpf.MapsReasonDROP_CONNTRACK_FULL, shot, nil)
}

// TestEchoRequestIsNoReply_GHSA_c66w_hq56_4q97: an echo request of the side that was asked is a question of its own,
// judged for its own direction; it neither matches nor answers the other's.
func TestEchoRequestIsNoReply_GHSA_c66w_hq56_4q97(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		echo := func(p packet, request bool) packet {
			p.proto, p.id, p.typ = protoICMP, 7, 0
			if request {
				p.typ = 8
			}
			if v6 {
				p.proto, p.typ = protoICMPv6, 129
				if request {
					p.typ = 128
				}
			}
			return p
		}
		ask := echo(fromA(pick(v6, podB4, podB6)), true)
		w.run("from_pod", ask.frame())
		w.asB(func() { w.run("from_pod", echo(ask.reply(), true).frame()) })
		if a, b, n := len(w.begun(1)), len(w.begun(2)), len(w.answered()); a != 1 || b != 1 || n != 0 {
			t.Fatalf("%d of a, %d of b, %d answered; want 1, 1, 0", a, b, n)
		}
		w.asB(func() { w.run("from_pod", echo(ask.reply(), false).frame()) })
		if a, b, n := len(w.begun(1)), len(w.begun(2)), len(w.answered()); a != 0 || b != 1 || n != 1 {
			t.Fatalf("after the reply %d of a, %d of b, %d answered; want 0, 1, 1", a, b, n)
		}
	})
}
