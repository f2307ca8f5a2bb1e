// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// routerError is what the pod must get from us about its own packet.
func routerError(in packet, typ, code uint8, info uint32, length int) []byte {
	quote := in.network()
	if len(quote) > length {
		quote = quote[:length]
	}
	e := packet{smac: hostMAC, dmac: podMAC, src: node4, dst: in.src, proto: protoICMP, typ: typ, code: code, info: info, payload: quote}
	if in.v6() {
		e.src, e.proto = node6, protoICMPv6
	}
	return e.frame()
}

const quoteLen = 128

func TestTooBig(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		typ, code := uint8(3), uint8(4)
		if v6 {
			typ, code = 2, 0
		}
		sized := func(dst netip.Addr, n int) packet { // n bytes without Ethernet
			p := fromA(dst).with(func(p *packet) { p.proto = protoUDP })
			p.payload = make([]byte, n-len(p.network()))
			for i := range p.payload {
				p.payload[i] = byte(i * 7)
			}
			return p
		}
		for name, dst := range map[string]netip.Addr{"tunnel": pick(v6, far4, far6), "world": pick(v6, out4, out6)} {
			t.Run(name, func(t *testing.T) {
				w.t = t
				w.reset()
				if o := w.run("from_pod", sized(dst, 1450).frame()); o.ret != redirect || o.reason == bpf.MapsReasonFORWARD_ANSWERED {
					t.Errorf("what fits: %v", o.reason)
				}
				big := sized(dst, 1451)
				o := w.run("from_pod", big.frame())
				o.expect(t, bpf.MapsReasonFORWARD_ANSWERED, redirect, routerError(big, typ, code, 1450, quoteLen))
				if o.target != loopback {
					t.Errorf("told %d", o.target)
				}
				// A segment that will be cut: each piece counts, not the whole.
				tcp := fromA(dst).with(func(p *packet) { p.payload = make([]byte, 3000) })
				gso := func(size uint32) func(*context) {
					return func(c *context) { c.GSOSize, c.GSOSegs = size, 3 }
				}
				head := len(tcp.network()) - 3000
				if name == "world" { // the tunnel's adjust_room refuses the test's segments
					if o := w.run("from_pod", tcp.frame(), gso(uint32(1450-head))); o.reason == bpf.MapsReasonFORWARD_ANSWERED {
						t.Error("segments that fit were refused")
					}
				}
				o = w.run("from_pod", tcp.frame(), gso(uint32(1451-head)))
				o.expect(t, bpf.MapsReasonFORWARD_ANSWERED, redirect, routerError(tcp, typ, code, 1450, quoteLen))
			})
		}
		t.Run("same node", func(t *testing.T) {
			w.t = t
			w.reset()
			w.run("from_pod", sized(pick(v6, podB4, podB6), 1500).frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
		})
		t.Run("error itself", func(t *testing.T) {
			w.t = t
			w.reset()
			p := errorAbout(sized(pick(v6, podA4, podA6), 1460).with(func(p *packet) { p.src = pick(v6, far4, far6) }),
				pick(v6, podA4, podA6), pick(v6, far4, far6), 1, 1, 0).with(func(p *packet) {
				p.smac, p.dmac = podMAC, hostMAC
				if !v6 {
					p.typ = 3
				}
			})
			w.run("from_pod", p.frame()).expect(t, bpf.MapsReasonDROP_TOO_BIG, shot, nil)
		})
	})
}

// TestPathMTU: an error about our tunnel packet lowers the node's MTU, which pods are told, until it expires.
func TestPathMTU(t *testing.T) {
	w := newWorld(t, nil)
	router := netip.MustParseAddr("192.0.2.254")
	tunnel := packet{src: node4, dst: peer4, proto: protoUDP, sport: 50000, dport: vxlanPort, payload: make([]byte, 8)}
	lower := func(mtu uint32, change ...func(*packet)) {
		e := errorAbout(tunnel, router, node4, 3, 4, mtu)
		for _, f := range change {
			f(&e)
		}
		w.run("from_netdev", e.frame()).expect(t, bpf.MapsReasonFORWARD_NOT_OURS, next, nil)
	}
	mtu := func() uint32 {
		var n bpf.Node
		if err := w.maps.Maps[bpf.MapsMapNodes].Lookup(bpf.AddrFrom(peer4), &n); err != nil {
			t.Fatal(err)
		}
		return n.Mtu
	}
	lower(1300, func(p *packet) { p.code = 1 })
	if mtu() != 0 {
		t.Error("another error lowered the MTU")
	}
	for _, senseless := range []uint32{100, 576, 1279} {
		lower(senseless)
		if mtu() != 0 {
			t.Errorf("an MTU of %d was believed", senseless)
		}
	}
	lower(1300)
	if mtu() != 1300 {
		t.Fatalf("MTU %d, want 1300", mtu())
	}
	lower(1400)
	if mtu() != 1300 {
		t.Errorf("a larger MTU raised it to %d", mtu())
	}
	big := fromA(far4).with(func(p *packet) { p.proto, p.payload = protoUDP, make([]byte, 1300) })
	w.run("from_pod", big.frame()).expect(t, bpf.MapsReasonFORWARD_ANSWERED, redirect, routerError(big, 3, 4, 1250, quoteLen))
	big6 := fromA(far6).with(func(p *packet) { p.proto, p.payload = protoUDP, make([]byte, 1300) })
	w.run("from_pod", big6.frame()).expect(t, bpf.MapsReasonFORWARD_ANSWERED, redirect, routerError(big6, 2, 0, 1280, quoteLen))

	var n bpf.Node
	_ = w.maps.Maps[bpf.MapsMapNodes].Lookup(bpf.AddrFrom(peer4), &n)
	n.MtuExpires -= 100000
	w.put(bpf.MapsMapNodes, bpf.AddrFrom(peer4), n)
	w.run("from_pod", big.frame()).expect(t, bpf.MapsReasonFORWARD_TO_TUNNEL, redirect, nil)
	tunnel.dst = netip.MustParseAddr("192.0.2.3")
	lower(1200) // not a node: no entry appears
}

func TestHopLimit(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		typ := uint8(11)
		if v6 {
			typ = 3
		}
		for name, dst := range map[string]netip.Addr{"pod": pick(v6, podB4, podB6), "tunnel": pick(v6, far4, far6), "world": pick(v6, out4, out6)} {
			t.Run(name, func(t *testing.T) {
				w.t = t
				w.reset()
				last := fromA(dst).with(func(p *packet) { p.ttl = 1 })
				w.run("from_pod", last.frame()).expect(t, bpf.MapsReasonFORWARD_ANSWERED, redirect, routerError(last, typ, 0, 0, quoteLen))
				if o := w.run("from_pod", fromA(dst).with(func(p *packet) { p.ttl = 2 }).frame()); o.reason == bpf.MapsReasonFORWARD_ANSWERED {
					t.Error("one hop left, and refused")
				}
				later := fromA(dst).with(func(p *packet) { p.ttl, p.fragment, p.more, p.fragID = 1, true, true, 5 })
				w.run("from_pod", later.frame())
				later.fragOffset, later.payload = 64, make([]byte, 40)
				w.run("from_pod", later.frame()).expect(t, bpf.MapsReasonDROP_TTL_EXCEEDED, shot, nil)
			})
		}
		t.Run("own host", func(t *testing.T) {
			w.t = t
			w.reset()
			last := fromA(pick(v6, node4, node6)).with(func(p *packet) { p.ttl = 1 })
			w.run("from_pod", last.frame()).expect(t, bpf.MapsReasonFORWARD_TO_STACK, next, last.frame())
		})
	})
}

// TestLengthLeftOut: only TCP beyond 64 KiB that is to be cut may leave its length out; what is shorter, or something
// else, is malformed. The longer ones are in nstest: a test run takes no frame that large.
func TestLengthLeftOut(t *testing.T) {
	w := newWorld(t, nil)
	gso := func(c *context) { c.GSOSize, c.GSOSegs = 1400, 3 }
	length := func(f []byte, v6 bool) []byte {
		if v6 {
			f[14+4], f[14+5] = 0, 0
		} else {
			f[14+2], f[14+3] = 0, 0
		}
		return f
	}
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		p := fromA(pick(v6, podB4, podB6)).with(func(p *packet) { p.payload = make([]byte, 3000) })
		udp := p.with(func(p *packet) { p.proto = protoUDP })
		rows := map[string]packet{"tcp": p, "udp": udp}
		if v6 {
			jumbo := func(p *packet) {
				p.next, p.ext = 0, []byte{p.proto, 0, 0xc2, 4, 0, 0, 0, 0}
				binary.BigEndian.PutUint32(p.ext[4:], uint32(len(p.network())-40))
			}
			rows["tcp after the option"], rows["udp after the option"] = p.with(jumbo), udp.with(jumbo)
		}
		for name, p := range rows {
			w.reset()
			w.run("from_pod", length(p.frame(), v6)).expect(t, bpf.MapsReasonDROP_INVALID_PACKET, shot, nil)
			w.run("from_pod", length(p.frame(), v6), gso).expect(t, bpf.MapsReasonDROP_INVALID_PACKET, shot, nil)
			w.run("from_netdev", length(p.frame(), v6), gso).expect(t, bpf.MapsReasonDROP_INVALID_PACKET, shot, nil)
			if t.Failed() {
				t.Fatal(name)
			}
		}
	})
}
