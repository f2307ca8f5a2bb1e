// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/kube-cilium/kube-cilium/bpf"
)

const (
	ordinarySegment = 65536
	bigSegment      = 196608
)

// segments has every device of a namespace take segments of these sizes. It needs Linux 6.3.
func (s *space) segments(v4, v6 int) {
	s.t.Helper()
	s.do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Type() != "veth" && l.Type() != "bridge" {
				continue
			}
			err := errors.Join(netlink.LinkSetGSOMaxSize(l, v6), netlink.LinkSetGROMaxSize(l, v6),
				netlink.LinkSetGSOIPv4MaxSize(l, v4), netlink.LinkSetGROIPv4MaxSize(l, v4))
			if err != nil {
				return fmt.Errorf("%s: %w", l.Attrs().Name, err)
			}
		}
		return nil
	})
}

func (l *lab) segments(v4, v6 int) {
	l.t.Helper()
	all := []*space{l.wire, l.outside}
	for _, n := range l.nodes {
		all = append(all, n.space)
		for _, p := range n.pods {
			all = append(all, p.space)
		}
	}
	for _, s := range all {
		s.segments(v4, v6)
	}
}

// largest attaches to what comes in by eth0 of a namespace and gives a function that tells the size of the largest
// frame since it was last asked.
func (s *space) largest() func() uint32 {
	s.t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { m.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 0, asm.Word), // skb->len
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4), asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "next"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
		asm.JGE.Reg(asm.R1, asm.R6, "next"),
		asm.StoreMem(asm.R0, 0, asm.R6, asm.Word),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("next"), asm.Return(),
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	defer prog.Close()
	ifindex := s.ifindex("eth0")
	s.do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			s.t.Cleanup(func() { l.Close() })
		}
		return err
	})
	return func() (n uint32) {
		if err := m.Lookup(uint32(0), &n); err != nil {
			s.t.Fatal(err)
		}
		if err := m.Put(uint32(0), uint32(0)); err != nil {
			s.t.Fatal(err)
		}
		return n
	}
}

// bigTCP: where every device takes them, segments of more than 64 KiB cross whole, on every way that is not the
// tunnel's, and are judged and counted as others are. Through the tunnel the kernel cuts them first.
func (l *lab) bigTCP(t *testing.T) {
	v6 := bigSegment
	if l.opts.noNeigh { // the stack forwards none with the option: it counts that into each piece
		v6 = ordinarySegment
	}
	l.segments(bigSegment, v6)
	a, b, far := l.nodes[0].pods[0], l.nodes[0].pods[1], l.nodes[1].pods[0]
	for _, row := range []struct {
		from, to *space
		v4, v6   netip.Addr
		tunnel   bool
	}{
		{a.space, b.space, b.v4, b.v6, false},
		{a.space, far.space, far.v4, far.v6, !l.opts.native},
		{a.space, l.outside, outside4, outside6, false},
		{l.outside, a.space, a.v4, a.v6, false},
		{l.nodes[0].space, b.space, b.v4, b.v6, false},
	} {
		largest := row.to.largest()
		for _, to := range []netip.Addr{row.v4, row.v6} {
			if _, err := row.from.tcp(to, 4<<20); err != nil {
				t.Errorf("%s to %v: %v", row.from.role, to, err)
			}
			want := !row.tunnel && (to.Is4() || v6 == bigSegment)
			if got := largest(); (got > ordinarySegment+100) != want {
				t.Errorf("%s to %v: the largest segment has %d bytes", row.from.role, to, got)
			}
		}
	}
	// Switched off under way.
	done := make(chan error)
	for _, to := range []netip.Addr{far.v4, far.v6} {
		go func() {
			_, err := a.tcp(to, 48<<20)
			done <- err
		}()
	}
	time.Sleep(10 * time.Millisecond)
	l.segments(ordinarySegment, ordinarySegment)
	for range 2 {
		if err := <-done; err != nil {
			t.Errorf("while it is switched off: %v", err)
		}
	}
	for _, n := range l.nodes {
		for _, hook := range []bpf.Hook{bpf.MapsHookHOOK_FROM_POD, bpf.MapsHookHOOK_TO_POD, bpf.MapsHookHOOK_FROM_NETDEV, bpf.MapsHookHOOK_TO_NETDEV} {
			if c := n.count(hook, bpf.MapsReasonDROP_INVALID_PACKET); c != 0 {
				t.Errorf("n%d %v calls %d packets malformed", n.n, hook, c)
			}
		}
	}
}
