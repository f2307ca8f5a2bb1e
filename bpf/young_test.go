// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"runtime"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
)

const (
	connYoung   = uint16(bpf.MapsConnFlagsCONN_YOUNG)
	connSettled = uint16(bpf.MapsConnFlagsCONN_SETTLED)
)

// flagged is the packet with other TCP flags.
func flagged(p packet, f uint8) packet { return p.with(func(p *packet) { p.flags = f }) }

// grow makes the connections in the places so many ticks older, and as many silent.
func (w *world) grow(ticks, silent uint32) {
	w.t.Helper()
	for place, y := range w.young() {
		y.Conn.Began -= ticks
		y.Conn.Seen -= silent
		w.put(bpf.MapsMapYoung, place, y)
	}
	w.moved()
}

// TestYoung: a connection begins among the young and is settled there; the first packet after two ticks takes it into
// the table of all as it is.
func TestYoung(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		p := fromA(pick(v6, podB4, podB6))
		out := func(f uint8) outcome { return w.run("from_pod", flagged(p, f).frame()) }
		back := func(f uint8) (o outcome) {
			w.asB(func() { o = w.run("from_pod", flagged(p, f).reply().frame()) })
			return o
		}
		one := func() (c bpf.Conn) {
			t.Helper()
			young := w.young()
			if len(young) != 1 || len(w.conns(w.maps.Maps[bpf.MapsMapConntrack])) != 0 || len(w.everywhere()) != 1 {
				t.Fatalf("%d young connections, %d in all tables, want 1", len(young), len(w.everywhere()))
			}
			for _, y := range young {
				c = y.Conn
			}
			if c.Flags&connYoung == 0 || c.Began == 0 {
				t.Fatalf("not young: %+v", c)
			}
			return c
		}
		out(syn)
		if c := one(); c.Flags&connSettled != 0 {
			t.Errorf("settled by its SYN: %+v", c)
		}
		w.grow(2, 0)
		back(syn | ack)
		if c := one(); c.Flags&connSettled != 0 {
			t.Errorf("settled by the answer: %+v", c)
		}
		w.grow(^uint32(1), 0) // two ticks younger
		out(ack)
		before := one()
		if before.Flags&connSettled == 0 || before.TcpFlags != [2]uint8{syn | ack, syn | ack} {
			t.Errorf("not settled by the beginner's ACK: %+v", before)
		}
		w.grow(1, 0)
		out(ack | psh)
		one()
		w.grow(1, 0)
		if o := back(ack); o.reason != bpf.MapsReasonFORWARD_TO_POD {
			t.Errorf("a packet after two ticks: %v", o.reason)
		}
		all := w.conns(w.maps.Maps[bpf.MapsMapConntrack])
		if len(all) != 1 || len(w.everywhere()) != 1 {
			t.Fatalf("%d connections in the table of all after two ticks, %d everywhere", len(all), len(w.everywhere()))
		}
		for _, c := range all {
			if c.Flags != before.Flags&^connYoung || c.Began != 0 || c.Side != before.Side || c.Identity != before.Identity || c.TcpFlags[0] != before.TcpFlags[0]|psh {
				t.Errorf("in the table of all: %+v, was %+v", c, before)
			}
		}
		// Where the table of all knows an ended connection of the name, the next is there.
		out(rst)
		out(syn)
		if n := len(w.conns(w.maps.Maps[bpf.MapsMapConntrack])); n != 1 || len(w.everywhere()) != 1 {
			t.Errorf("the next of the name: %d in the table of all, %d everywhere", n, len(w.everywhere()))
		}
	})
}

// TestNotYoung: what may last, has a name in the table of all, or crosses the host's stack does not begin among the young.
func TestNotYoung(t *testing.T) {
	w := newWorld(t, nil)
	for name, send := range map[string]func(){
		"UDP":                 func() { w.run("from_pod", fromA(podB4).with(func(p *packet) { p.proto = protoUDP }).frame()) },
		"in the middle":       func() { w.run("from_pod", flagged(fromA(podB4), ack).frame()) },
		"an answer":           func() { w.run("from_pod", flagged(fromA(podB4), syn|ack).frame()) },
		"masqueraded":         func() { w.run("from_pod", fromA(out4).frame()) },
		"forwarded by others": func() { w.run("to_pod", fromB4ToA().frame(), func(c *context) { c.IngressIfindex = 7 }) },
	} {
		w.reset()
		send()
		if len(w.young()) != 0 || len(w.everywhere()) == 0 {
			t.Errorf("%s: %d young of %d", name, len(w.young()), len(w.everywhere()))
		}
	}
}

// fromB4ToA is a SYN from outside to pod a.
func fromB4ToA() packet {
	return fromA(podA4).with(func(p *packet) { p.src = out4 })
}

// TestYoungPlaceIsTaken: a place stays with its connection until that one was over a tick ago; whoever finds it taken
// begins in the other tables.
func TestYoungPlaceIsTaken(t *testing.T) {
	w := newWorld(t, map[string]any{"young_slots": uint32(1)})
	first, second := fromA(podB4), fromA(podB4).with(func(p *packet) { p.sport++ })
	back := func(f uint8) { w.asB(func() { w.run("from_pod", flagged(first, f).reply().frame()) }) }
	for name, c := range map[string]struct {
		begin    func()
		lifetime uint32
	}{
		"unanswered": {func() {}, uint32(bpf.MapsConnLifetimeLIFETIME_UNANSWERED)},
		"settled":    {func() { back(syn | ack); w.run("from_pod", flagged(first, ack).frame()) }, uint32(bpf.MapsConnLifetimeLIFETIME_TCP)},
		"closing":    {func() { back(rst | ack) }, uint32(bpf.MapsConnLifetimeLIFETIME_CLOSING)},
		"left": {func() {
			back(syn | ack)
			w.run("from_pod", flagged(first, ack).frame())
			w.grow(2, 0)
			back(ack)
		}, 0},
	} {
		for _, silent := range []uint32{0, c.lifetime, c.lifetime + 3} {
			w.reset()
			w.run("from_pod", first.frame())
			c.begin()
			w.grow(0, silent)
			before := w.young()[0]
			w.run("from_pod", second.frame())
			now, taken := w.young()[0], silent > c.lifetime
			if (now.Key != before.Key) != taken || !taken && now != before {
				t.Errorf("%s, %d ticks ago: %+v is %+v", name, silent, before, now)
			}
			if taken && (now.Key.Proto == 0 || now.Conn.Flags&connYoung == 0 || now.Conn.TcpFlags != [2]uint8{syn, 0}) {
				t.Errorf("%s, %d ticks ago: taken by %+v", name, silent, now)
			}
			if inAll := len(w.begun(1)) + len(w.answered()); inAll == 0 || w.run("from_pod", second.frame()).reason != bpf.MapsReasonFORWARD_TO_POD {
				t.Errorf("%s, %d ticks ago: the second is not known", name, silent)
			}
		}
	}
}

// TestYoungOfTheOtherSide: when a closed connection's name is taken by the other side, nothing of the old one, above all
// no verdict, stays for the new one.
func TestYoungOfTheOtherSide(t *testing.T) {
	w := newWorld(t, nil)
	p := fromA(podB4)
	w.run("from_pod", p.frame())
	w.asB(func() { w.run("from_pod", flagged(p, rst|ack).reply().frame()) })
	// From now on b may not speak to a.
	w.enforce(1, ingress, 0)
	w.asB(func() {
		w.run("from_pod", flagged(p, syn).reply().frame()).expect(t, bpf.MapsReasonDROP_POLICY, shot, nil)
		w.run("from_pod", flagged(p, ack).reply().frame()).expect(t, bpf.MapsReasonDROP_POLICY, shot, nil)
	})
	if n := len(w.everywhere()); n != 1 {
		t.Errorf("%d connections of one name", n)
	}
	// Its own side may, as before.
	if o := w.run("from_pod", p.frame()); o.reason != bpf.MapsReasonFORWARD_TO_POD {
		t.Errorf("its own side again: %v", o.reason)
	}
}

// TestYoungNamesOfOnePlace: the addresses are part of the name. What was judged of one connection does not let another
// through that has its ports and its place.
func TestYoungNamesOfOnePlace(t *testing.T) {
	w := newWorld(t, map[string]any{"young_slots": uint32(1)})
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		defer w.unselect()
		w.run("from_pod", fromA(pick(v6, podB4, podB6)).frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
		before := w.young()[0]
		w.enforce(1, egress, 0)
		other := fromA(pick(v6, far4, far6))
		w.run("from_pod", other.frame()).expect(t, bpf.MapsReasonDROP_POLICY, shot, nil)
		w.run("from_pod", flagged(other, ack).frame()).expect(t, bpf.MapsReasonDROP_POLICY, shot, nil)
		if now := w.young()[0]; now != before {
			t.Errorf("in the place: %+v, was %+v", now, before)
		}
		// Nor does the end of the one free the place of the other.
		for k, c := range w.begun(1) {
			if c.Flags&connYoung == 0 {
				c.Seen -= 1000
				w.change(k, c)
			}
		}
		w.run("from_pod", flagged(other, ack).frame())
		if now := w.young()[0]; now.Key != before.Key {
			t.Errorf("in the place after the end of the other: %+v", now)
		}
	})
}

// TestYoungPlaceIsGivenOnce: of two CPUs that begin connections for one place at once, one gets it, and what is in it is
// whole.
func TestYoungPlaceIsGivenOnce(t *testing.T) {
	w := nativeWorld(t, map[string]any{"young_slots": uint32(1)})
	programs := [2]*ebpf.Program{w.program("from_pod").Programs["from_pod"], w.program("from_netdev").Programs["from_netdev"]}
	frames := [2][]byte{fromA(far4).frame(), fromA(podA4).with(func(p *packet) { p.src, p.smac, p.dmac, p.sport = far4, wireMAC, nodeMAC, 40001 }).frame()}
	begins := [2]uint32{idA, idFar}
	for range 300 {
		w.reset()
		var start, done sync.WaitGroup
		start.Add(1)
		for i := range programs {
			done.Go(func() {
				runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
				var one unix.CPUSet
				one.Set(i % runtime.NumCPU())
				if err := unix.SchedSetaffinity(0, &one); err != nil {
					t.Error(err)
				}
				start.Wait()
				if _, err := programs[i].Run(&ebpf.RunOptions{Data: frames[i], Context: &context{Ifindex: loopback}}); err != nil {
					t.Error(err)
				}
			})
		}
		start.Done()
		done.Wait()
		place := w.young()[0]
		of := map[uint16]uint32{be16(40000): begins[0], be16(40001): begins[1]}
		port := place.Key.LoPort + place.Key.HiPort - be16(80)
		if place.Conn.Identity != of[port] {
			t.Fatalf("in the place: %+v", place)
		}
		if n := len(w.everywhere()); n != 2 {
			t.Fatalf("%d connections, want 2", n)
		}
	}
}
