// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// TestEncap: the whole frame that leaves for another node's pod.
func TestEncap(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		for _, tos := range []uint8{0, 0xb8, 0x03} { // none, EF, congestion experienced
			t.Run(fmt.Sprintf("tos %#x", tos), func(t *testing.T) {
				w.t = t
				w.reset()
				in := fromA(pick(v6, far4, far6)).with(func(p *packet) { p.tos = tos })
				o := w.run("from_pod", in.frame())
				if o.reason != bpf.MapsReasonFORWARD_TO_TUNNEL || o.ret != redirect || o.target != loopback {
					t.Fatalf("%+v", o)
				}
				sport := binary.BigEndian.Uint16(o.out[34:])
				if sport < 0x8000 {
					t.Errorf("source port %d", sport)
				}
				inner := in.with(func(p *packet) { p.smac, p.dmac, p.ttl = mac{2}, mac{2}, 63 }).frame()
				outer := packet{smac: podMAC, dmac: hostMAC, src: node4, dst: peer4, tos: tos, sport: sport, dport: vxlanPort}
				want := outer.vxlan(idA, inner)
				binary.BigEndian.PutUint16(want[14+6:], 0x4000) // don't fragment
				binary.BigEndian.PutUint16(want[14+10:], 0)
				binary.BigEndian.PutUint16(want[14+10:], fold(sum16(want[14:34], 0)))
				o.expect(t, bpf.MapsReasonFORWARD_TO_TUNNEL, redirect, want)
			})
		}
	})
}

// TestPendingOnTheWire: an identity that is not confirmed travels as pending.
func TestPendingOnTheWire(t *testing.T) {
	w := newWorld(t, nil)
	w.speaker(bpf.Endpoint{Identity: idPending, Id: 1, Mac: podMAC, HostMac: hostMAC}, podA4, podA6)
	o := w.run("from_pod", fromA(far4).frame())
	if vni := binary.BigEndian.Uint32(o.out[14+20+8+4:]) >> 8; vni != idPending {
		t.Errorf("VNI %d", vni)
	}
}

// fromFar is a packet of the far pod as its node puts it into the tunnel.
func fromFar(dst netip.Addr) (outer, inner packet) {
	src := far4
	if dst.Is6() {
		src = far6
	}
	outer = packet{smac: wireMAC, dmac: nodeMAC, src: peer4, dst: node4, sport: 50000, dport: vxlanPort}
	inner = packet{smac: mac{2}, dmac: mac{2}, src: src, dst: dst, proto: protoTCP, sport: 5555, dport: 80, flags: syn}
	return outer, inner
}

// TestDecap: acceptance, row by row, and what the pod gets.
func TestDecap(t *testing.T) {
	w := newWorld(t, nil)
	w.prefix("10.0.3.0/24", bpf.Peer{Node: bpf.AddrFrom(netip.MustParseAddr("192.0.2.3")), Identity: idPending,
		Flags: uint32(bpf.MapsPeerFlagsPEER_CLUSTER | bpf.MapsPeerFlagsPEER_TUNNEL)})
	w.prefix("fd00:3::/64", bpf.Peer{Node: bpf.AddrFrom(netip.MustParseAddr("192.0.2.3")), Identity: idPending,
		Flags: uint32(bpf.MapsPeerFlagsPEER_CLUSTER | bpf.MapsPeerFlagsPEER_TUNNEL)})
	both(t, func(t *testing.T, v6 bool) {
		sibling := pick(v6, netip.MustParseAddr("10.0.2.77"), netip.MustParseAddr("fd00:2::77"))
		third := pick(v6, netip.MustParseAddr("10.0.3.3"), netip.MustParseAddr("fd00:3::3"))
		const sender = bpf.MapsReasonDROP_UNKNOWN_SENDER
		const identity = bpf.MapsReasonDROP_INVALID_IDENTITY
		const pod = bpf.MapsReasonFORWARD_TO_POD
		for _, c := range []struct {
			name   string
			vni    uint32
			change func(outer, inner *packet)
			reason bpf.Reason
		}{
			{"known pod", idFar, func(o, i *packet) {}, pod},
			{"known pod, pending", idPending, func(o, i *packet) {}, pod},
			{"pod not known yet, in the node's prefix", 4242, func(o, i *packet) { i.src = sibling }, pod},
			{"the node's host", idNode, func(o, i *packet) { i.src = pick(v6, peer4, peer6) }, pod},
			{"identity 0", 0, func(o, i *packet) {}, identity},
			{"identity host", idHost, func(o, i *packet) {}, identity},
			{"identity world", idWorld, func(o, i *packet) {}, identity},
			{"identity 255", 255, func(o, i *packet) {}, identity},
			{"pod as a host", idNode, func(o, i *packet) {}, identity},
			{"host as a pod", idFar, func(o, i *packet) { i.src = pick(v6, peer4, peer6) }, identity},
			{"from a stranger", idFar, func(o, i *packet) { o.src = out4 }, sender},
			{"from this node's own address", idFar, func(o, i *packet) { o.src = node4 }, sender},
			{"source on a third node", 4242, func(o, i *packet) { i.src = third }, sender},
			{"source in the world", 4242, func(o, i *packet) { i.src = pick(v6, out4, out6) }, sender},
			{"source in the pools, nobody's", 4242, func(o, i *packet) { i.src = pick(v6, gone4, gone6) }, sender},
			{"source of this node", idA, func(o, i *packet) { i.src = pick(v6, podB4, podB6) }, sender},
			{"host of this node", idNode, func(o, i *packet) { i.src = pick(v6, node4, node6) }, sender},
			{"no such pod", idFar, func(o, i *packet) { i.dst = pick(v6, nopod4, nopod6) }, bpf.MapsReasonDROP_UNKNOWN_TARGET},
			{"onward to the world", idFar, func(o, i *packet) { i.dst = pick(v6, out4, out6) }, bpf.MapsReasonDROP_UNKNOWN_TARGET},
			{"for this host", idFar, func(o, i *packet) { i.dst = pick(v6, node4, node6) }, bpf.MapsReasonFORWARD_TO_STACK},
			{"in fragments", idFar, func(o, i *packet) { o.fragment, o.more, o.fragID = true, true, 3 }, bpf.MapsReasonFORWARD_NOT_OURS},
			{"with IP options", idFar, func(o, i *packet) { o.options = make([]byte, 4) }, bpf.MapsReasonFORWARD_TO_STACK},
		} {
			t.Run(c.name, func(t *testing.T) {
				w.t = t
				w.reset()
				outer, inner := fromFar(pick(v6, podA4, podA6))
				c.change(&outer, &inner)
				in := outer.vxlan(c.vni, inner.frame())
				o := w.run("from_netdev", in)
				switch {
				case c.reason == pod:
					o.expect(t, pod, redirect, inner.with(func(p *packet) { p.smac, p.dmac = hostMAC, podMAC }).frame())
					if o.target != loopback {
						t.Errorf("to %d", o.target)
					}
					for _, conn := range w.begun(1) {
						if conn.Identity != c.vni || bpf.MapsConnFlags(conn.Flags)&bpf.MapsConnFlagsCONN_TUNNEL == 0 {
							t.Errorf("recorded as %+v", conn)
						}
					}
				case c.reason >= 128:
					o.expect(t, c.reason, shot, nil)
				default:
					o.expect(t, c.reason, next, in)
				}
			})
		}
	})
}

// TestVXLANHeader: a header with other bits is refused.
func TestVXLANHeader(t *testing.T) {
	w := newWorld(t, nil)
	outer, inner := fromFar(podA4)
	in := outer.vxlan(idFar, inner.frame())
	in[14+20+8] = 0
	w.run("from_netdev", in).expect(t, bpf.MapsReasonDROP_INVALID_PACKET, shot, nil)
	in[14+20+8] = 0x08
	binary.BigEndian.PutUint16(in[14+50-2:], 0x0806)
	w.run("from_netdev", in).expect(t, bpf.MapsReasonDROP_NOT_SUPPORTED_L3, shot, nil)
}

// TestECN is the table of RFC 6040, 4.2.
func TestECN(t *testing.T) {
	w := newWorld(t, nil)
	const none, ect1, ect0, ce, drop = 0, 1, 2, 3, 255
	table := map[[2]uint8]uint8{ // inner, outer
		{none, none}: none, {none, ect0}: none, {none, ect1}: none, {none, ce}: drop,
		{ect0, none}: ect0, {ect0, ect0}: ect0, {ect0, ect1}: ect1, {ect0, ce}: ce,
		{ect1, none}: ect1, {ect1, ect0}: ect1, {ect1, ect1}: ect1, {ect1, ce}: ce,
		{ce, none}: ce, {ce, ect0}: ce, {ce, ect1}: ce, {ce, ce}: ce,
	}
	both(t, func(t *testing.T, v6 bool) {
		for k, want := range table {
			w.t = t
			w.reset()
			const dscp = 0xb8
			outer, inner := fromFar(pick(v6, podA4, podA6))
			inner.tos, outer.tos = dscp|k[0], 0x20|k[1]
			o := w.run("from_netdev", outer.vxlan(idFar, inner.frame()))
			if want == drop {
				o.expect(t, bpf.MapsReasonDROP_INVALID_PACKET, shot, nil)
				continue
			}
			o.expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, inner.with(func(p *packet) {
				p.smac, p.dmac, p.tos = hostMAC, podMAC, dscp|want
			}).frame())
		}
	})
}

// TestHostThroughTunnel: the other node's host came by the tunnel, so its answer goes there; what a pod itself says to
// that host is masqueraded and goes natively.
func TestHostThroughTunnel(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		peer := pick(v6, peer4, peer6)
		outer, inner := fromFar(pick(v6, podA4, podA6))
		inner.src = peer
		w.run("from_netdev", outer.vxlan(idNode, inner.frame())).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
		back := inner.reply().with(func(p *packet) { p.smac, p.dmac, p.flags = podMAC, hostMAC, syn|ack })
		w.run("from_pod", back.frame()).expect(t, bpf.MapsReasonFORWARD_TO_TUNNEL, redirect, nil)
		w.run("from_pod", fromA(peer).frame()).expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect, nil)
	})
}

// TestIdentityChanges: a sender whose identity on the wire changes is judged again.
func TestIdentityChanges(t *testing.T) {
	w := newWorld(t, nil)
	outer, inner := fromFar(podA4)
	for _, vni := range []uint32{idPending, idFar} {
		w.run("from_netdev", outer.vxlan(vni, inner.frame()))
		for k, c := range w.begun(1) {
			if c.Identity != vni || c.Side[1].Verdict != 1 {
				t.Errorf("with VNI %d: %+v", vni, c)
			}
			c.Side[1].Generation = 1
			w.change(k, c)
		}
	}
}

// TestDeviceMode: the program leaves the tunnel to the device, both ways.
func TestDeviceMode(t *testing.T) {
	w := newWorld(t, map[string]any{"encap_in_bpf": false})
	in := fromA(far4)
	w.run("from_pod", in.frame()).expect(t, bpf.MapsReasonFORWARD_TO_TUNNEL, redirect,
		in.with(func(p *packet) { p.ttl = 63 }).frame())
	outer, inner := fromFar(podA4)
	frame := outer.vxlan(idFar, inner.frame())
	w.run("from_netdev", frame).expect(t, bpf.MapsReasonFORWARD_TO_STACK, next, frame)
	// Without a tunnel's metadata a frame on the device is nobody's.
	w.run("from_overlay", inner.frame()).expect(t, bpf.MapsReasonDROP_INVALID_TC_BUFFER, shot, nil)
}

// TestToOverlay: what the stack routes into the tunnel gets the node and the sender's name.
func TestToOverlay(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		in := fromA(pick(v6, far4, far6)).with(func(p *packet) { p.src = pick(v6, node4, node6) })
		w.run("to_overlay", in.frame()).expect(t, bpf.MapsReasonFORWARD_TO_TUNNEL, next, in.frame())
		if e := w.events(); len(e) != 0 {
			t.Errorf("events %+v", e)
		}
		in.dst = pick(v6, out4, out6)
		w.run("to_overlay", in.frame()).expect(t, bpf.MapsReasonDROP_NO_TUNNEL_ENDPOINT, shot, nil)
		in.dst = pick(v6, gone4, gone6)
		w.run("to_overlay", in.frame()).expect(t, bpf.MapsReasonDROP_NO_TUNNEL_ENDPOINT, shot, nil)
		o := w.run("to_overlay", in.frame(), func(c *context) { c.Mark = uint32(bpf.MapsMarkMARK_DELIVERED) })
		o.expect(t, bpf.MapsReasonFORWARD_TO_TUNNEL, next, in.frame())
	})
	ns := discovery(135, gateway6, netip.MustParseAddr("ff02::1:ff00:2"), podA6)
	w.run("to_overlay", ns.frame()).expect(t, bpf.MapsReasonFORWARD_NOT_OURS, next, nil)
}

// TestNoTunnelSenders: with a tunnel, a pod's address does not come without it.
func TestNoTunnelSenders(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		dst := pick(v6, podA4, podA6)
		for name, c := range map[string]struct {
			src    netip.Addr
			reason bpf.Reason
		}{
			"pod":            {pick(v6, far4, far6), bpf.MapsReasonDROP_UNKNOWN_SENDER},
			"pools":          {pick(v6, gone4, gone6), bpf.MapsReasonDROP_UNKNOWN_SENDER},
			"own pod":        {pick(v6, podB4, podB6), bpf.MapsReasonDROP_OWN_SOURCE},
			"own host":       {pick(v6, node4, node6), bpf.MapsReasonDROP_OWN_SOURCE},
			"own prefix":     {pick(v6, nopod4, nopod6), bpf.MapsReasonDROP_UNKNOWN_SENDER},
			"loopback":       {pick(v6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()), bpf.MapsReasonDROP_MARTIAN},
			"another's host": {pick(v6, peer4, peer6), bpf.MapsReasonFORWARD_TO_POD},
			"world":          {pick(v6, out4, out6), bpf.MapsReasonFORWARD_TO_POD},
		} {
			t.Run(name, func(t *testing.T) {
				w.t = t
				in := packet{smac: wireMAC, dmac: nodeMAC, src: c.src, dst: dst, proto: protoTCP, sport: 5, dport: 80, flags: syn}
				if o := w.run("from_netdev", in.frame()); o.reason != c.reason {
					t.Errorf("reason %v, want %v", o.reason, c.reason)
				}
			})
		}
	})
}

// TestNative: without a tunnel pods are known by address.
func TestNative(t *testing.T) {
	w := newWorld(t, map[string]any{"tunnel_port": uint16(0), "overlay_ifindex": uint32(0), "encap_in_bpf": false})
	native := uint32(bpf.MapsPeerFlagsPEER_CLUSTER | bpf.MapsPeerFlagsPEER_NATIVE)
	for _, s := range []string{"10.0.2.0/24", "fd00:2::/64"} {
		w.prefix(s, bpf.Peer{Node: bpf.AddrFrom(peer4), Identity: idPending, Flags: native})
	}
	for _, a := range []netip.Addr{far4, far6} {
		w.put(bpf.MapsMapPeers, bpf.AddrFrom(a), bpf.Peer{Node: bpf.AddrFrom(peer4), Identity: idFar, Flags: native})
	}
	both(t, func(t *testing.T, v6 bool) {
		late := pick(v6, netip.MustParseAddr("10.0.2.50"), netip.MustParseAddr("fd00:2::50"))
		for src, identity := range map[netip.Addr]uint32{pick(v6, far4, far6): idFar, late: idPending} {
			w.t = t
			w.reset()
			out := fromA(src)
			w.run("from_pod", out.frame()).expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect,
				out.with(func(p *packet) { p.ttl = 63 }).frame())
			w.reset()
			in := packet{smac: wireMAC, dmac: nodeMAC, src: src, dst: pick(v6, podA4, podA6), ttl: 2, proto: protoTCP,
				sport: 5, dport: 80, flags: syn}
			w.run("from_netdev", in.frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect,
				in.with(func(p *packet) { p.smac, p.dmac, p.ttl = hostMAC, podMAC, 1 }).frame())
			for _, c := range w.begun(1) {
				if c.Identity != identity {
					t.Errorf("%v is %d, want %d", src, c.Identity, identity)
				}
			}
			in.ttl, in.sport = 1, 6
			w.run("from_netdev", in.frame()).expect(t, bpf.MapsReasonDROP_TTL_EXCEEDED, shot, nil)
		}
	})
}
