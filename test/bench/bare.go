// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	vns "github.com/vishvananda/netns"
)

// The bare shapes are what the kernel's redirects cost by themselves: the same devices as ours, and programs that know
// one packet's way by heart and look at nothing. What is between them and ours, and only that, is ours to spend. Beside
// each is the same with connection tracking at its smallest: every packet looks for its connection in the kernel's LRU
// table and counts itself there, the first puts it in. No policy is asked and nothing is told.

const (
	etherIPv4 = 0x0800
	tcNext    = -1
	inet      = 2 // AF_INET
)

// unlessIPv4 leaves all but IPv4 to the stack; conns is where connections are remembered, or nil.
func unlessIPv4(conns *ebpf.Map, then asm.Instructions) asm.Instructions {
	head := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R1, 16, asm.Word), // skb->protocol, network order
		asm.JNE.Imm(asm.R2, int32(binary.NativeEndian.Uint16([]byte{etherIPv4 >> 8, etherIPv4 & 0xff})), "next"),
	}
	tail := asm.Instructions{
		asm.Mov.Imm(asm.R0, tcNext).WithSymbol("next"),
		asm.Return(),
	}
	return slices.Concat(head, remembering(conns), then, tail)
}

// remembering has an IPv4 packet without options find its connection in conns, or begin it.
func remembering(conns *ebpf.Map) asm.Instructions {
	if conns == nil {
		return nil
	}
	const ip, key, value = 14, -64, -48
	b := asm.Instructions{
		asm.LoadMem(asm.R1, asm.R6, 76, asm.Word), asm.LoadMem(asm.R2, asm.R6, 80, asm.Word), // data, data_end
		asm.Mov.Reg(asm.R3, asm.R1), asm.Add.Imm(asm.R3, ip+24), asm.JGT.Reg(asm.R3, asm.R2, "next"),
		asm.LoadMem(asm.R3, asm.R1, ip+12, asm.Word), asm.LoadMem(asm.R4, asm.R1, ip+16, asm.Word), // addresses
		asm.LoadMem(asm.R5, asm.R1, ip+20, asm.Word), // ports
		// Both directions have one name: the ends in order.
		asm.JLE.Reg(asm.R3, asm.R4, "ordered"),
		asm.Mov.Reg(asm.R2, asm.R3), asm.Mov.Reg(asm.R3, asm.R4), asm.Mov.Reg(asm.R4, asm.R2),
		asm.Mov.Reg(asm.R2, asm.R5), asm.LSh.Imm(asm.R2, 16), asm.RSh.Imm(asm.R5, 16), asm.Or.Reg(asm.R5, asm.R2),
		asm.StoreMem(asm.RFP, key, asm.R3, asm.Word).WithSymbol("ordered"),
		asm.StoreMem(asm.RFP, key+4, asm.R4, asm.Word), asm.StoreMem(asm.RFP, key+8, asm.R5, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, ip+8, asm.Word), asm.And.Imm(asm.R3, int32(binary.NativeEndian.Uint32([]byte{0, 0xff, 0, 0}))), // protocol
		asm.StoreMem(asm.RFP, key+12, asm.R3, asm.Word),
		asm.LoadMapPtr(asm.R1, conns.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key), asm.FnMapLookupElem.Call(),
		asm.JNE.Imm(asm.R0, 0, "known"),
		asm.Mov.Imm(asm.R1, 0),
	}
	for at := value; at < 0; at += 8 {
		b = append(b, asm.StoreMem(asm.RFP, int16(at), asm.R1, asm.DWord))
	}
	return append(b,
		asm.LoadMapPtr(asm.R1, conns.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, value), asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call(),
		asm.Ja.Label("remembered"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord).WithSymbol("known"), asm.Add.Imm(asm.R1, 1), asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("remembered"))
}

// connections is a node's table for remembering, as large as ours is by default.
func (g *ground) connections() (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 48, MaxEntries: 262144})
	if err != nil {
		return nil, fmt.Errorf("make a connection table: %w", err)
	}
	g.links = append(g.links, m)
	return m, nil
}

// bareDeliver puts the packet into the pod behind ifindex.
func bareDeliver(conns *ebpf.Map, to, from net.HardwareAddr, ifindex int) asm.Instructions {
	macs := append(append([]byte{}, to...), from...)
	var b asm.Instructions
	for i := 0; i < len(macs); i += 4 {
		b = append(b, asm.StoreImm(asm.RFP, int16(i-len(macs)), int64(int32(binary.NativeEndian.Uint32(macs[i:]))), asm.Word))
	}
	return unlessIPv4(conns, append(b,
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 0), asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, int32(-len(macs))),
		asm.Mov.Imm(asm.R4, int32(len(macs))), asm.Mov.Imm(asm.R5, 0), asm.FnSkbStoreBytes.Call(),
		asm.Mov.Imm(asm.R1, int32(ifindex)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirectPeer.Call(), asm.Return()))
}

// bareSend puts the packet on the wire, towards the neighbour next.
func bareSend(conns *ebpf.Map, next netip.Addr, ifindex int) asm.Instructions {
	const size = 20 // struct bpf_redir_neigh
	ip := next.As4()
	b := asm.Instructions{asm.StoreImm(asm.RFP, -size, inet, asm.Word)}
	for i, word := range []uint32{binary.NativeEndian.Uint32(ip[:]), 0, 0, 0} {
		b = append(b, asm.StoreImm(asm.RFP, int16(4+4*i-size), int64(int32(word)), asm.Word))
	}
	return unlessIPv4(conns, append(b,
		asm.Mov.Imm(asm.R1, int32(ifindex)), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -size),
		asm.Mov.Imm(asm.R3, size), asm.Mov.Imm(asm.R4, 0), asm.FnRedirectNeigh.Call(), asm.Return()))
}

// attachIngress attaches a program to what comes in by a device of the namespace.
func (g *ground) attachIngress(space, dev string, program func() (asm.Instructions, error)) error {
	return g.inside(space, func() error {
		insns, err := program()
		if err != nil {
			return err
		}
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: insns, License: "Dual BSD/GPL"})
		if err != nil {
			return fmt.Errorf("load the bare program: %w", err)
		}
		defer prog.Close()
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: i.Index, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return fmt.Errorf("attach the bare program to %s: %w", dev, err)
		}
		g.links = append(g.links, l)
		return nil
	})
}

// inside runs f on a thread of its own in the namespace.
func (g *ground) inside(space string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h, err := vns.GetFromName(g.run + space)
		if err == nil {
			err = errors.Join(vns.Set(h), h.Close())
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// barePod makes a pod of the namespace host, which is there, and its interface as ours are.
func (g *ground) barePod(host, pod, ip string, mtu int) (place, error) {
	p, err := g.space(pod)
	if err != nil {
		return p, err
	}
	in, mac := "ip -n "+g.run+pod+" ", ""
	if err := all(fmt.Sprintf("ip -n %s%s link add %s type veth peer name eth0 netns %s%s", g.run, host, pod, g.run, pod),
		fmt.Sprintf("ip -n %s%s link set %s up", g.run, host, pod)); err != nil {
		return p, err
	}
	if err := g.inside(host, func() error {
		i, err := net.InterfaceByName(pod)
		if err == nil {
			mac = i.HardwareAddr.String()
		}
		return err
	}); err != nil {
		return p, err
	}
	return p, all(in+"addr add "+ip+"/32 dev eth0", in+"link set eth0 up", in+"neigh add 169.254.1.1 lladdr "+mac+" dev eth0 nud permanent",
		in+"route add 169.254.1.1 dev eth0", fmt.Sprintf("%sroute add default via 169.254.1.1 dev eth0 mtu %d", in, mtu))
}

// deliverTo is the program that puts what it sees into the pod.
func (g *ground) deliverTo(conns *ebpf.Map, host, pod string) func() (asm.Instructions, error) {
	return func() (asm.Instructions, error) {
		outer, err := net.InterfaceByName(pod)
		if err != nil {
			return nil, err
		}
		var mac net.HardwareAddr
		if err := g.inside(pod, func() error {
			i, err := net.InterfaceByName("eth0")
			if err == nil {
				mac = i.HardwareAddr
			}
			return err
		}); err != nil {
			return nil, err
		}
		return bareDeliver(conns, mac, outer.HardwareAddr, outer.Index), nil
	}
}

// bare builds a bare shape twice, without connection tracking and with it. Names are given once in a ground.
func (g *ground) bare(build func(h *ground, conntrack bool) (shape, error)) ([]shape, error) {
	h := &ground{run: g.run + "t-", dir: g.dir + "-conntrack", cni: g.cni, like: g.like}
	g.also = append(g.also, h)
	without, err := build(g, false)
	if err != nil {
		return nil, err
	}
	with, err := build(h, true)
	return []shape{without, with}, err
}

// bareSameNode is two pods of a node, and a redirect_peer in each direction; with conntrack, connections are remembered.
func (g *ground) bareSameNode(mtu int, conntrack bool) (shape, error) {
	s := shape{name: "bare redirect", dst: "10.76.0.2"}
	var conns *ebpf.Map
	_, err := g.space("bh")
	if err == nil && conntrack {
		s.name += bareConntrack
		conns, err = g.connections()
	}
	if err == nil {
		s.client, err = g.barePod("bh", "ba", "10.76.0.1", mtu)
	}
	if err == nil {
		s.server, err = g.barePod("bh", "bb", s.dst, mtu)
	}
	if err == nil {
		err = g.attachIngress("bh", "ba", g.deliverTo(conns, "bh", "bb"))
	}
	if err == nil {
		err = g.attachIngress("bh", "bb", g.deliverTo(conns, "bh", "ba"))
	}
	return s, err
}

// bareConntrack is what the names of the bare shapes end with where connections are remembered.
const bareConntrack = ", conntrack"

// bareNative is two nodes with a pod each: redirect_neigh with the next hop given, a wire, redirect_peer; with conntrack,
// each node remembers connections.
func (g *ground) bareNative(mtu int, conntrack bool) (shape, error) {
	s := shape{name: "bare native", dst: "10.76.2.2"}
	if conntrack {
		s.name += bareConntrack
	}
	var err error
	for _, side := range []string{"1", "2"} {
		if _, e := g.space("w" + side); e != nil {
			return s, e
		}
	}
	if _, err = sh(fmt.Sprintf("ip link add wire netns %sw1 type veth peer name wire netns %sw2", g.run, g.run)); err != nil {
		return s, err
	}
	for side, other := range map[string]string{"1": "2", "2": "1"} {
		node, pod, next := "w"+side, "x"+side, netip.MustParseAddr("172.29.72."+other)
		if err := all(fmt.Sprintf("ip -n %s%s addr add 172.29.72.%s/24 dev wire", g.run, node, side), fmt.Sprintf("ip -n %s%s link set wire up", g.run, node)); err != nil {
			return s, err
		}
		p, err := g.barePod(node, pod, "10.76.2."+side, mtu)
		if err != nil {
			return s, err
		}
		var conns *ebpf.Map
		if conntrack {
			if conns, err = g.connections(); err != nil {
				return s, err
			}
		}
		if err := errors.Join(g.attachIngress(node, "wire", g.deliverTo(conns, node, pod)), g.attachIngress(node, pod, func() (asm.Instructions, error) {
			i, err := net.InterfaceByName("wire")
			if err != nil {
				return nil, err
			}
			return bareSend(conns, next, i.Index), nil
		})); err != nil {
			return s, err
		}
		if side == "1" {
			s.client = p
		} else {
			s.server = p
		}
	}
	return s, nil
}
