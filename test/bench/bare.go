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
	"golang.org/x/sys/unix"
)

// The bare shapes are what the kernel's redirects cost by themselves: the same devices as ours, and programs that know
// one packet's way by heart and look at nothing. What is between them and ours, and only that, is ours to spend. Beside
// each is the same with connection tracking at its smallest: every packet looks for its connection in the kernel's LRU
// table and counts itself there, the first puts it in. No policy is asked and nothing is told.

const (
	etherIPv4 = 0x0800
	tcNext    = -1
	inet      = 2 // AF_INET

	// Bytes, and where headers lie in a frame.
	ethernet  = 14
	wrap      = 20 + 8 + 8 + ethernet // what VXLAN over IPv4 puts before a packet
	vxlanPort = 8472
)

// network is a number of two bytes as it is on the wire.
func network(n uint16) int32 {
	return int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n)))
}

// unlessIPv4 leaves all but IPv4 to the stack.
func unlessIPv4(then asm.Instructions) asm.Instructions {
	head := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R1, 16, asm.Word), // skb->protocol, network order
		asm.JNE.Imm(asm.R2, network(etherIPv4), "next"),
	}
	tail := asm.Instructions{
		asm.Mov.Imm(asm.R0, tcNext).WithSymbol("next"),
		asm.Return(),
	}
	return slices.Concat(head, then, tail)
}

// remembering has the packet whose IPv4 header, without options, is at ip find its connection in conns, or begin it.
func remembering(conns *ebpf.Map, ip int16) asm.Instructions {
	if conns == nil {
		return nil
	}
	const key, value = -64, -48
	b := asm.Instructions{
		asm.LoadMem(asm.R1, asm.R6, 76, asm.Word), asm.LoadMem(asm.R2, asm.R6, 80, asm.Word), // data, data_end
		asm.Mov.Reg(asm.R3, asm.R1), asm.Add.Imm(asm.R3, int32(ip)+24), asm.JGT.Reg(asm.R3, asm.R2, "next"),
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

// onStack writes bytes, whole words, to where at says below the frame pointer.
func onStack(at int16, bytes []byte) (b asm.Instructions) {
	for i := 0; i < len(bytes); i += 4 {
		b = append(b, asm.StoreImm(asm.RFP, at+int16(i), int64(int32(binary.NativeEndian.Uint32(bytes[i:]))), asm.Word))
	}
	return b
}

// intoFrame copies size bytes of the stack to an offset of the frame.
func intoFrame(offset int32, at, size int16) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, offset), asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, int32(at)),
		asm.Mov.Imm(asm.R4, int32(size)), asm.Mov.Imm(asm.R5, 0), asm.FnSkbStoreBytes.Call(),
	}
}

// inward is a program's body for what is meant for the pod behind ifindex, whose MAC is to; from is that of its gateway.
type inward func(conns *ebpf.Map, to, from net.HardwareAddr, ifindex int) asm.Instructions

// bareDeliver puts the packet into the pod.
func bareDeliver(conns *ebpf.Map, to, from net.HardwareAddr, ifindex int) asm.Instructions {
	return append(remembering(conns, ethernet), intoPod(to, from, ifindex)...)
}

func intoPod(to, from net.HardwareAddr, ifindex int) asm.Instructions {
	const at = -12
	return slices.Concat(onStack(at, slices.Concat(to, from)), intoFrame(0, at, -at), asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(ifindex)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirectPeer.Call(), asm.Return(),
	})
}

// bareUnwrap takes the tunnel's header off and puts the packet into the pod; anything else is the stack's.
func bareUnwrap(conns *ebpf.Map, to, from net.HardwareAddr, ifindex int) asm.Instructions {
	const udp = ethernet + 20
	return slices.Concat(asm.Instructions{
		asm.LoadMem(asm.R1, asm.R6, 76, asm.Word), asm.LoadMem(asm.R2, asm.R6, 80, asm.Word), // data, data_end
		asm.Mov.Reg(asm.R3, asm.R1), asm.Add.Imm(asm.R3, udp+8), asm.JGT.Reg(asm.R3, asm.R2, "next"),
		asm.LoadMem(asm.R3, asm.R1, udp+2, asm.Half), asm.JNE.Imm(asm.R3, network(vxlanPort), "next"),
	}, remembering(conns, ethernet+wrap), asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, -wrap), asm.Mov.Imm(asm.R3, unix.BPF_ADJ_ROOM_MAC),
		asm.Mov.Imm(asm.R4, unix.BPF_F_ADJ_ROOM_FIXED_GSO), asm.FnSkbAdjustRoom.Call(),
		asm.JNE.Imm(asm.R0, 0, "next"),
	}, intoPod(to, from, ifindex))
}

// outward is a program's body for what a pod sends to the node next, by the device ifindex of the node own.
type outward func(conns *ebpf.Map, own, next netip.Addr, ifindex int) asm.Instructions

// bareSend puts the packet on the wire.
func bareSend(conns *ebpf.Map, _, next netip.Addr, ifindex int) asm.Instructions {
	return append(remembering(conns, ethernet), ontoWire(next, ifindex)...)
}

func ontoWire(next netip.Addr, ifindex int) asm.Instructions {
	const size = 20 // struct bpf_redir_neigh
	to := make([]byte, size)
	binary.NativeEndian.PutUint32(to, inet)
	copy(to[4:], next.AsSlice())
	return append(onStack(-size, to),
		asm.Mov.Imm(asm.R1, int32(ifindex)), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -size),
		asm.Mov.Imm(asm.R3, size), asm.Mov.Imm(asm.R4, 0), asm.FnRedirectNeigh.Call(), asm.Return())
}

// bareWrap puts a tunnel's header before the packet, of which only lengths and checksum are not known by heart, and the
// whole on the wire.
func bareWrap(conns *ebpf.Map, own, next netip.Addr, ifindex int) asm.Instructions {
	const at, udp, vxlan = -52, 20, 28 // on the stack, in whole words; in the header
	const room = unix.BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | unix.BPF_F_ADJ_ROOM_ENCAP_L4_UDP | unix.BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
		ethernet<<56 | unix.BPF_F_ADJ_ROOM_FIXED_GSO
	h := make([]byte, -at)
	h[0], h[6], h[8], h[9] = 0x45, 0x40, 64, 17 // IPv4 without options, not to be cut, hops, UDP
	copy(h[12:], own.AsSlice())
	copy(h[16:], next.AsSlice())
	sum := uint32(0)
	for i := 0; i < udp; i += 2 {
		sum += uint32(binary.NativeEndian.Uint16(h[i:]))
	}
	binary.BigEndian.PutUint16(h[udp:], 0x8000)
	binary.BigEndian.PutUint16(h[udp+2:], vxlanPort)
	h[vxlan], h[vxlan+6] = 8, 1 // there is a VNI: 1
	h[vxlan+8], h[vxlan+14] = 2, 2
	binary.BigEndian.PutUint16(h[vxlan+20:], etherIPv4)
	return slices.Concat(remembering(conns, ethernet), asm.Instructions{
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word), asm.Add.Imm(asm.R7, wrap-ethernet), // length of the outer packet
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, wrap), asm.Mov.Imm(asm.R3, unix.BPF_ADJ_ROOM_MAC),
		asm.LoadImm(asm.R4, room, asm.DWord), asm.FnSkbAdjustRoom.Call(),
		asm.JNE.Imm(asm.R0, 0, "next"),
	}, onStack(at, h), asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R7), asm.HostTo(asm.BE, asm.R1, asm.Half), asm.StoreMem(asm.RFP, at+2, asm.R1, asm.Half),
		asm.Add.Imm(asm.R1, int32(sum)),
		asm.Mov.Reg(asm.R2, asm.R1), asm.RSh.Imm(asm.R2, 16), asm.And.Imm(asm.R1, 0xffff), asm.Add.Reg(asm.R1, asm.R2),
		asm.Mov.Reg(asm.R2, asm.R1), asm.RSh.Imm(asm.R2, 16), asm.Add.Reg(asm.R1, asm.R2),
		asm.Xor.Imm(asm.R1, -1), asm.StoreMem(asm.RFP, at+10, asm.R1, asm.Half),
		asm.Sub.Imm(asm.R7, udp), asm.HostTo(asm.BE, asm.R7, asm.Half), asm.StoreMem(asm.RFP, at+udp+4, asm.R7, asm.Half),
	}, intoFrame(ethernet, at, wrap), ontoWire(next, ifindex))
}

// attachIngress attaches a program to the IPv4 packets that come in by a device of the namespace.
func (g *ground) attachIngress(space, dev string, program func() (asm.Instructions, error)) error {
	return g.inside(space, func() error {
		insns, err := program()
		if err != nil {
			return err
		}
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: unlessIPv4(insns), License: "Dual BSD/GPL"})
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

// towards is the program that takes what it sees the way in, to the pod.
func (g *ground) towards(host, pod string, conns *ebpf.Map, way inward) func() (asm.Instructions, error) {
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
		return way(conns, mac, outer.HardwareAddr, outer.Index), nil
	}
}

// bare builds a bare shape twice, without connection tracking and with it. Names are given once in a ground.
func (g *ground) bare(build func(h *ground, conntrack bool) (shape, error)) ([]shape, error) {
	h := g.another("conntrack")
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
		err = g.attachIngress("bh", "ba", g.towards("bh", "bb", conns, bareDeliver))
	}
	if err == nil {
		err = g.attachIngress("bh", "bb", g.towards("bh", "ba", conns, bareDeliver))
	}
	return s, err
}

// bareConntrack is what the names of the bare shapes end with where connections are remembered.
const bareConntrack = ", conntrack"

// bareNodes is two nodes with a pod each, joined by a wire; with conntrack, each node remembers connections. prefix begins
// the names of the namespaces.
func (g *ground) bareNodes(name, prefix string, mtu int, conntrack bool, out outward, in inward) (shape, error) {
	s := shape{name: name, dst: "10.76.2.2"}
	if conntrack {
		s.name += bareConntrack
	}
	var err error
	for _, side := range []string{"1", "2"} {
		if _, e := g.space(prefix + "n" + side); e != nil {
			return s, e
		}
	}
	if _, err = sh(fmt.Sprintf("ip link add wire netns %[1]s1 type veth peer name wire netns %[1]s2", g.run+prefix+"n")); err != nil {
		return s, err
	}
	for side, other := range map[string]string{"1": "2", "2": "1"} {
		node, pod := prefix+"n"+side, prefix+"p"+side
		own, next := netip.MustParseAddr("172.29.72."+side), netip.MustParseAddr("172.29.72."+other)
		if err := all(fmt.Sprintf("ip -n %s%s addr add %s/24 dev wire", g.run, node, own), fmt.Sprintf("ip -n %s%s link set wire up", g.run, node)); err != nil {
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
		if err := errors.Join(g.attachIngress(node, "wire", g.towards(node, pod, conns, in)), g.attachIngress(node, pod, func() (asm.Instructions, error) {
			i, err := net.InterfaceByName("wire")
			if err != nil {
				return nil, err
			}
			return out(conns, own, next, i.Index), nil
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

// bareNative: redirect_neigh with the next hop given, redirect_peer.
func (g *ground) bareNative(mtu int, conntrack bool) (shape, error) {
	return g.bareNodes("bare native", "w", mtu, conntrack, bareSend, bareDeliver)
}

// bareVXLAN: the tunnel's header put on and taken off besides. No VXLAN device is there, and nothing is checked.
func (g *ground) bareVXLAN(mtu int, conntrack bool) (shape, error) {
	return g.bareNodes("bare VXLAN", "u", mtu, conntrack, bareWrap, bareUnwrap)
}
