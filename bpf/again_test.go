// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// way is one that a connection's packets take through a program.
type way struct {
	name    string
	program string
	native  bool
	first   func(v6 bool) packet                   // of the connection, as its beginner sends it
	wrap    func(p packet) []byte                  // into the frame that the program sees; nil: as it is
	answer  func(w *world, p packet)               // the other side's packet, wherever it comes in
	spoil   map[string]func(frame []byte, v6 bool) // makes another packet of it that goes the whole way
}

func ways() []way {
	peer := func(dst4, dst6 netip.Addr) func(bool) packet {
		return func(v6 bool) packet { return fromA(pick(v6, dst4, dst6)) }
	}
	tunnelled := func(vni uint32) func(p packet) []byte {
		return func(p packet) []byte {
			outer, _ := fromFar(podA4)
			return outer.with(func(o *packet) { o.tos = p.tos }).vxlan(vni, p.with(func(p *packet) { p.smac, p.dmac = mac{2}, mac{2} }).frame())
		}
	}
	far := func(v6 bool) packet {
		_, inner := fromFar(pick(v6, podA4, podA6))
		return inner.with(func(p *packet) { p.smac, p.dmac = wireMAC, nodeMAC })
	}
	fromPod := func(w *world, p packet) {
		w.run("from_pod", p.with(func(p *packet) { p.smac, p.dmac = podMAC, hostMAC }).frame())
	}
	return []way{
		{name: "to a pod", program: "from_pod", first: peer(podB4, podB6),
			answer: func(w *world, p packet) { w.asB(func() { w.run("from_pod", p.frame()) }) }},
		{name: "into the tunnel", program: "from_pod", first: peer(far4, far6),
			answer: func(w *world, p packet) { w.run("from_netdev", tunnelled(idFar)(p)) }},
		{name: "out of the tunnel", program: "from_netdev", first: far, wrap: tunnelled(idFar), answer: fromPod,
			spoil: map[string]func([]byte, bool){
				"of another identity":        func(f []byte, _ bool) { binary.BigEndian.PutUint32(f[14+28+4:], idPending<<8) },
				"of nobody's identity":       func(f []byte, _ bool) { binary.BigEndian.PutUint32(f[14+28+4:], idWorld<<8) },
				"from another node":          func(f []byte, _ bool) { f[14+15] = 77 },
				"to another node":            func(f []byte, _ bool) { f[14+19] = 77 },
				"to another port":            func(f []byte, _ bool) { f[14+23]++ },
				"with congestion on its way": func(f []byte, _ bool) { f[14+1] |= 3 },
				"without VNI":                func(f []byte, _ bool) { f[14+28] = 0 },
				"with a cut outer packet":    func(f []byte, _ bool) { f[14+6] |= 0x20 },
				"longer outside than it is":  func(f []byte, _ bool) { f[14+2] = 0x7f },
			}},
		{name: "natively out", program: "from_pod", native: true, first: peer(far4, far6),
			answer: func(w *world, p packet) { w.run("from_netdev", p.frame()) }},
		{name: "natively in", program: "from_netdev", native: true, first: far, answer: fromPod},
	}
}

// nativeWorld has no tunnel.
func nativeWorld(t testing.TB, change ...map[string]any) *world {
	consts := map[string]any{"tunnel_port": uint16(0), "overlay_ifindex": uint32(0), "encap_in_bpf": false}
	for _, c := range change {
		maps.Copy(consts, c)
	}
	w := newWorld(t, consts)
	for _, a := range []netip.Addr{far4, far6} {
		w.put(bpf.MapsMapPeers, bpf.AddrFrom(a), bpf.Peer{Node: bpf.AddrFrom(peer4), Identity: idFar,
			Flags: uint32(bpf.MapsPeerFlagsPEER_CLUSTER | bpf.MapsPeerFlagsPEER_NATIVE)})
	}
	return w
}

// remembered tells how often the packet's way was found remembered: then nothing of the connection is asked or changed,
// and its entry, taken away for the packet, is not made again.
func (w *world) remembered(program string, frame []byte, change ...func(*context)) (outcome, bool) {
	w.t.Helper()
	table := w.maps.Maps[bpf.MapsMapConntrack]
	conns, young := w.conns(table), w.young()
	for k := range conns {
		if err := table.Delete(k); err != nil {
			w.t.Fatal(err)
		}
	}
	for place := range young {
		w.put(bpf.MapsMapYoung, place, bpf.YoungConn{})
	}
	o := w.run(program, frame, change...)
	made := len(w.young())
	for _, m := range w.tables() {
		for k := range w.conns(m) {
			made++
			if err := m.Delete(k); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	for place := range w.young() {
		w.put(bpf.MapsMapYoung, place, bpf.YoungConn{})
	}
	for place, y := range young {
		w.put(bpf.MapsMapYoung, place, y)
	}
	for k, c := range conns {
		if err := table.Put(k, c); err != nil {
			w.t.Fatal(err)
		}
	}
	return o, made == 0 && o.ret == redirect
}

// tick repeats f when a tick ended while it ran: what is remembered ends with it.
func tick(f func() (ok bool)) bool {
	for range 3 {
		if f() {
			return true
		}
	}
	return false
}

// TestAgain: on each way, the packets of a settled connection are sent as the first was, byte for byte, and no longer than
// what they went by holds.
func TestAgain(t *testing.T) {
	worlds := map[bool]*world{false: newWorld(t, nil), true: nativeWorld(t)}
	for _, c := range ways() {
		for _, proto := range []uint8{protoTCP, protoUDP} {
			both(t, func(t *testing.T, v6 bool) {
				t.Run(fmt.Sprintf("%s, protocol %d", c.name, proto), func(t *testing.T) {
					w := worlds[c.native]
					w.t = t
					testAgain(t, w, c, proto, v6)
				})
			})
		}
	}
}

func testAgain(t *testing.T, w *world, c way, proto uint8, v6 bool) {
	p := c.first(v6).with(func(p *packet) { p.proto, p.flags, p.payload, p.tos = proto, ack, []byte("something to say"), 0xb8 })
	wrap := c.wrap
	if wrap == nil {
		wrap = packet.frame
	}
	flags := func(f uint8) packet { return p.with(func(p *packet) { p.flags = f }) }
	begin := func() {
		w.t.Helper()
		w.reset()
		w.put(bpf.MapsMapLiveSettings, uint32(0), bpf.Settings{Generation: 1, ReportInterval: 5})
		w.run(c.program, wrap(flags(syn)))
		c.answer(w, flags(syn|ack).reply())
		w.run(c.program, wrap(p))
	}
	data := wrap(p)
	var whole, again outcome
	if !tick(func() (ok bool) {
		begin()
		whole = w.run(c.program, data)
		again, ok = w.remembered(c.program, data)
		return ok
	}) {
		t.Fatal("not remembered")
	}
	if whole.reason != again.reason || whole.ret != again.ret || whole.mark != again.mark || whole.target != again.target ||
		!bytes.Equal(whole.out, again.out) {
		t.Errorf("first\n%+v\nthen\n%+v", whole, again)
	}

	at := len(data) - len(p.network()) // of the inner IP header
	l4 := at + 20
	if v6 {
		l4 = at + 40
	}
	spoil := map[string]func([]byte, bool){
		"from another port":  func(f []byte, _ bool) { f[l4]++ },
		"to another port":    func(f []byte, _ bool) { f[l4+3]++ },
		"its last hop":       func(f []byte, v6 bool) { f[at+map[bool]int{false: 8, true: 7}[v6]] = 1 },
		"cut short":          func(f []byte, v6 bool) { f[at+map[bool]int{false: 2, true: 4}[v6]] = 0x7f },
		"of another address": func(f []byte, v6 bool) { f[l4-5]++ },
		"to another address": func(f []byte, v6 bool) { f[l4-1]++ },
	}
	if proto == protoTCP {
		for name, f := range map[string]uint8{"SYN": syn, "FIN": fin | ack, "RST": rst, "a flag that is new": ack | ece} {
			spoil[name] = func(b []byte, _ bool) { b[l4+13] = f }
		}
		spoil["a header too short"] = func(b []byte, _ bool) { b[l4+12] = 0x40 }
	}
	if !v6 {
		spoil["a fragment"] = func(f []byte, _ bool) { f[at+6] |= 0x20 }
		spoil["a later fragment"] = func(f []byte, _ bool) { f[at+7] = 5 }
	}
	for name, f := range c.spoil {
		spoil[name] = f
	}
	begin()
	for name, f := range spoil {
		w.run(c.program, data)
		other := bytes.Clone(data)
		f(other, v6)
		if _, ok := w.remembered(c.program, other); ok {
			t.Errorf("%s: sent as the others", name)
		}
	}

	pushed := bytes.Clone(data)
	if proto == protoTCP {
		pushed[l4+13] |= psh
	}
	if !tick(func() bool {
		w.run(c.program, data)
		_, ok := w.remembered(c.program, pushed)
		return ok
	}) {
		t.Error("not remembered after all these")
	}

	// What ends it.
	reset := func(s bpf.Settings) func() {
		return func() {
			s.Addresses = w.addresses
			if err := w.maps.Maps[bpf.MapsMapLiveSettings].Put(uint32(0), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, end := range map[string]func(){
		"another generation":       reset(bpf.Settings{Generation: 2, ReportInterval: 5}),
		"another interval":         reset(bpf.Settings{Generation: 1, ReportInterval: 6}),
		"every packet is reported": reset(bpf.Settings{Generation: 1, ReportInterval: uint32(bpf.MapsReportIntervalREPORT_EVERY_PACKET)}),
		"addresses moved":          func() { w.moved() },
		"another tick":             func() { w.age(c.program) },
	} {
		begin()
		w.run(c.program, data)
		end()
		if _, ok := w.remembered(c.program, data); ok {
			t.Errorf("%s: sent as before", name)
		}
	}
}

// age makes what a program remembers a tick older.
func (w *world) age(program string) {
	w.t.Helper()
	const slot, now = 128, 48 // the size of struct again, and an offset in it
	memory, size := w.desks(program)
	for _, part := range w.spec(program).Maps["desks"].Value.(*btf.Struct).Members {
		if part.Name != "again" {
			continue
		}
		begin, slots := int64(part.Offset.Bytes()), int64(part.Type.(*btf.Array).Nelems)
		var word [4]byte
		for desk := int64(0); desk < int64(memory.Size()); desk += size {
			for at := desk + begin; at < desk+begin+slots*slot; at += slot {
				if _, err := memory.ReadAt(word[:], at+now); err != nil {
					w.t.Fatal(err)
				}
				if n := binary.NativeEndian.Uint32(word[:]); n != 0 {
					binary.NativeEndian.PutUint32(word[:], n-1)
					if _, err := memory.WriteAt(word[:], at+now); err != nil {
						w.t.Fatal(err)
					}
				}
			}
		}
	}
}

// TestAgainNever: what changes something of its connection, or is asked for each time, is not remembered.
func TestAgainNever(t *testing.T) {
	w := newWorld(t, nil)
	tcp := fromA(podB4).with(func(p *packet) { p.flags = ack })
	back := func(p packet, f uint8) {
		w.asB(func() { w.run("from_pod", p.reply().with(func(p *packet) { p.flags = f }).frame()) })
	}
	for _, c := range []struct {
		name  string
		begin func()
		p     packet
	}{
		{"not answered", func() { w.run("from_pod", fromA(podB4).frame()) }, tcp},
		{"closed", func() {
			w.run("from_pod", fromA(podB4).frame())
			back(tcp, syn|ack)
			w.run("from_pod", tcp.frame())
			back(tcp, rst)
		}, tcp},
		{"masqueraded", func() {
			p := fromA(out4)
			w.run("from_pod", p.frame())
			w.run("from_netdev", answer(p.with(func(p *packet) { p.src = node4 })).frame())
			w.run("from_pod", p.with(func(p *packet) { p.flags = ack }).frame())
		}, fromA(out4).with(func(p *packet) { p.flags = ack })},
		{"to the host", func() {
			p := fromA(node4)
			w.run("from_pod", p.frame())
			w.run("to_pod", p.reply().with(func(p *packet) { p.flags = syn | ack }).frame())
			w.run("from_pod", p.with(func(p *packet) { p.flags = ack }).frame())
		}, fromA(node4).with(func(p *packet) { p.flags = ack })},
		{"IP options", func() {
			w.run("from_pod", fromA(podB4).frame())
			back(tcp, syn|ack)
			w.run("from_pod", tcp.frame())
		}, tcp.with(func(p *packet) { p.options = make([]byte, 4) })},
	} {
		w.reset()
		c.begin()
		w.run("from_pod", c.p.frame())
		if _, ok := w.remembered("from_pod", c.p.frame()); ok {
			t.Errorf("%s: sent as the one before", c.name)
		}
	}
}

// TestAgainFromTheHandshakeOn: of TCP, SYN ACK and the ACK for it are the last of their directions that go the whole way.
func TestAgainFromTheHandshakeOn(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		out := func(f uint8) []byte {
			return fromA(pick(v6, podB4, podB6)).with(func(p *packet) { p.flags = f }).frame()
		}
		back := func(f uint8) []byte {
			return fromA(pick(v6, podB4, podB6)).reply().with(func(p *packet) { p.flags = f }).frame()
		}
		answered := func() {
			w.reset()
			w.put(bpf.MapsMapLiveSettings, uint32(0), bpf.Settings{Generation: 1, ReportInterval: 5})
			w.run("from_pod", out(syn))
			w.asB(func() { w.run("from_pod", back(syn|ack)) })
		}
		if !tick(func() (ok bool) {
			answered()
			w.asB(func() {
				w.run("from_pod", back(syn|ack)) // once more: until here addresses moved on
				_, ok = w.remembered("from_pod", back(ack|psh))
			})
			return ok
		}) {
			t.Error("after SYN ACK: not remembered")
		}
		answered()
		if _, ok := w.remembered("from_pod", out(ack)); ok {
			t.Error("the beginner's ACK, which settles the connection, was not seen")
		}
		if !tick(func() (ok bool) {
			answered()
			w.run("from_pod", out(ack))
			_, ok = w.remembered("from_pod", out(ack|psh))
			return ok
		}) {
			t.Error("after the beginner's ACK: not remembered")
		}
		for k, c := range w.shared() {
			if bpf.MapsConnFlags(c.Flags)&bpf.MapsConnFlagsCONN_SETTLED == 0 {
				t.Errorf("%+v is not settled: %#x", k, c.Flags)
			}
		}
	})
}

// TestAgainTooBig: what does not fit the way is told so, whatever was remembered of it.
func TestAgainTooBig(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		p := fromA(pick(v6, far4, far6)).with(func(p *packet) { p.flags = ack })
		size := func(n int) []byte {
			return p.with(func(p *packet) { p.payload = make([]byte, n-len(p.network())) }).frame()
		}
		w.run("from_pod", fromA(p.dst).frame())
		outer, _ := fromFar(podA4)
		w.run("from_netdev", outer.vxlan(idFar, p.reply().with(func(p *packet) { p.smac, p.dmac, p.flags = mac{2}, mac{2}, syn|ack }).frame()))
		w.run("from_pod", p.frame())
		for _, first := range []int{100, 1400, 1450} {
			w.run("from_pod", size(first))
			for n, want := range map[int]bpf.Reason{1210: bpf.MapsReasonFORWARD_TO_TUNNEL, 1211: bpf.MapsReasonFORWARD_TO_TUNNEL,
				1450: bpf.MapsReasonFORWARD_TO_TUNNEL, 1451: bpf.MapsReasonFORWARD_ANSWERED} {
				if got := w.run("from_pod", size(n)).reason; got != want {
					t.Errorf("%d bytes after %d: %v, want %v", n, first, got, want)
				}
			}
		}
	})
}

// TestAgainNameTakenOver: what somebody outside began is reset, and within the same tick the pod begins a connection of
// that name. It leaves by its own way from the first packet on.
func TestAgainNameTakenOver(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		outer := packet{smac: wireMAC, dmac: nodeMAC, src: peer4, dst: node4, sport: 50000, dport: vxlanPort}
		for _, c := range []struct {
			name  string
			begin func(packet) []byte // into what comes in
			from  netip.Addr
		}{
			{"natively", packet.frame, pick(v6, out4, out6)},
			{"through the tunnel", func(p packet) []byte { return outer.vxlan(idNode, p.frame()) }, pick(v6, peer4, peer6)},
		} {
			in := packet{smac: wireMAC, dmac: nodeMAC, src: c.from, dst: pick(v6, podA4, podA6), proto: protoTCP, sport: 50000, dport: 40000}
			flags := func(p packet, f uint8) packet { return p.with(func(p *packet) { p.flags = f }) }
			out := in.reply().with(func(p *packet) { p.smac, p.dmac = podMAC, hostMAC })
			w.reset()
			w.run("from_netdev", c.begin(flags(in, syn)))
			w.run("from_pod", flags(out, syn|ack).frame())
			w.run("from_netdev", c.begin(flags(in, ack)))
			before := w.run("from_pod", flags(out, ack).frame())
			w.run("from_netdev", c.begin(flags(in, rst)))
			first := w.run("from_pod", flags(out, syn).frame())
			w.run("from_netdev", flags(in, syn|ack).with(func(p *packet) { p.dst = pick(v6, node4, node6) }).frame())
			second := w.run("from_pod", flags(out, ack).frame())
			source := func(o outcome) netip.Addr {
				at := 14 + 12
				if v6 {
					at = 14 + 8
				}
				a, _ := netip.AddrFromSlice(o.out[at : at+out.src.BitLen()/8])
				return a
			}
			if bytes.Equal(first.out, before.out) || source(first) != pick(v6, node4, node6) || first.reason != second.reason || source(second) != source(first) {
				t.Errorf("%s: left as %v %v, then as %v %v", c.name, first.reason, source(first), second.reason, source(second))
			}
		}
	})
}
