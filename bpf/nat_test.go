// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	stdcontext "context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// kinds are the protocols that can be masqueraded, as a pod's packet to the world.
func kinds(v6 bool) map[string]func(*packet) {
	icmp, request := uint8(protoICMP), uint8(8)
	if v6 {
		icmp, request = protoICMPv6, 128
	}
	return map[string]func(*packet){
		"tcp":  func(p *packet) { p.proto = protoTCP },
		"udp":  func(p *packet) { p.proto = protoUDP; p.payload = []byte("what is the time?") },
		"echo": func(p *packet) { p.proto, p.typ, p.id = icmp, request, 40000 },
	}
}

// setSource gives a packet another source address and port, or identifier.
func setSource(p *packet, src netip.Addr, port uint16) {
	p.src = src
	if p.proto == protoICMP || p.proto == protoICMPv6 {
		p.id = port
	} else {
		p.sport = port
	}
}

// answer is what the world sends back.
func answer(p packet) packet {
	p = p.reply().with(func(p *packet) { p.smac, p.dmac, p.ttl = wireMAC, nodeMAC, 50 })
	switch p.typ {
	case 8:
		p.typ = 0
	case 128:
		p.typ = 129
	}
	if p.proto == protoTCP {
		p.flags = syn | ack
	}
	return p
}

// seenPort is the port, or identifier, under which a frame leaves.
func seenPort(frame []byte, v6 bool) uint16 {
	off, proto := 14+20, frame[14+9]
	if v6 {
		off, proto = 14+40, frame[14+6]
	}
	if proto == protoICMP || proto == protoICMPv6 {
		off += 4
	}
	return binary.BigEndian.Uint16(frame[off:])
}

// A connection to another node was told of as one to the world, but for its first packet.
func TestMasqueradedIsToldOfAsTheNode(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		for name, kind := range kinds(v6) {
			w.t = t
			w.reset()
			in := fromA(pick(v6, peer4, peer6)).with(kind)
			setSource(&in, in.src, 40000)
			out := in.with(func(p *packet) { setSource(p, pick(v6, node4, node6), 40000) })
			w.run("from_pod", in.frame())
			w.run("from_netdev", answer(out).frame())
			in.flags = fin | ack
			w.run("from_pod", in.frame())
			ev := w.events()
			if want := map[bool]int{true: 3, false: 2}[name == "tcp"]; len(ev) != want {
				t.Fatalf("%s: %d events, want %d", name, len(ev), want)
			}
			for _, e := range ev {
				pod, node := e.SrcIdentity, e.DstIdentity
				if bpf.MapsEventFlags(e.Flags)&bpf.MapsEventFlagsEVENT_REPLY != 0 {
					pod, node = node, pod
					if e.XlateAddr != bpf.AddrFrom(in.src) || e.XlatePort != be16(40000) {
						t.Errorf("%s: an answer for %v %d", name, e.XlateAddr, e.XlatePort)
					}
				}
				if pod != idA || node != idNode {
					t.Errorf("%s: told of between %d and %d: %+v", name, e.SrcIdentity, e.DstIdentity, e)
				}
			}
		}
	})
}

// TestMasquerade sends a pod's packets to the world and the answers back.
func TestMasquerade(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		node := pick(v6, node4, node6)
		for name, kind := range kinds(v6) {
			for _, port := range []uint16{40000, 1234} { // kept; outside the range
				t.Run(fmt.Sprintf("%s from port %d", name, port), func(t *testing.T) {
					w.t = t
					w.reset()
					in := fromA(pick(v6, out4, out6)).with(kind)
					setSource(&in, in.src, port)
					o := w.run("from_pod", in.frame())
					if o.reason != bpf.MapsReasonFORWARD_TO_NETWORK {
						t.Fatalf("reason %v", o.reason)
					}
					seen := seenPort(o.out, v6)
					if port == 40000 && seen != port || seen < 32768 {
						t.Errorf("port %d became %d", port, seen)
					}
					sent := in.with(func(p *packet) { setSource(p, node, seen); p.ttl = 63 })
					o.expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect, sent.frame())

					back := w.run("from_netdev", answer(sent).frame())
					want := answer(in).with(func(p *packet) { p.smac, p.dmac, p.ttl = hostMAC, podMAC, 49 })
					back.expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, want.frame())
					if back.target != loopback {
						t.Errorf("delivered to %d", back.target)
					}

					// The next packet has the same name, and both entries are settled now.
					in.flags, sent.flags = ack, ack
					again := w.run("from_pod", in.frame())
					again.expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect, sent.frame())
					all := w.answered()
					if len(all) != 2 || len(w.begun(0))+len(w.begun(1)) != 0 {
						t.Errorf("%d settled, %d and %d not", len(all), len(w.begun(0)), len(w.begun(1)))
					}

					var x bpf.Event
					for _, e := range w.events() {
						x = e
						if e.Flags&uint8(bpf.MapsEventFlagsEVENT_TRANSLATED) == 0 {
							t.Errorf("event without translation: %+v", e)
						}
					}
					_ = x
				})
			}
		}
	})
}

// What a network card had summed up of it was wrong once the port was another.
func TestUDPWithoutChecksumKeepsNone(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		for _, port := range []uint16{40000, 1234} { // kept; outside the range
			w.t = t
			w.reset()
			in := fromA(pick(v6, out4, out6)).with(func(p *packet) { p.proto, p.noChecksum, p.sport = protoUDP, true, port })
			o := w.run("from_pod", in.frame())
			sent := in.with(func(p *packet) { p.src, p.sport, p.ttl = pick(v6, node4, node6), seenPort(o.out, v6), 63 })
			o.expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect, sent.frame())
			w.run("from_netdev", answer(sent).frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect,
				answer(in).with(func(p *packet) { p.smac, p.dmac, p.ttl = hostMAC, podMAC, 49 }).frame())
		}
	})
}

// TestPortTaken: two pods from one port to one server get two ports.
func TestPortTaken(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		for name, kind := range kinds(v6) {
			t.Run(name, func(t *testing.T) {
				w.t = t
				w.reset()
				in := fromA(pick(v6, out4, out6)).with(kind)
				a := seenPort(w.run("from_pod", in.frame()).out, v6)
				var b uint16
				w.asB(func() {
					b = seenPort(w.run("from_pod", in.with(func(p *packet) { p.src = pick(v6, podB4, podB6) }).frame()).out, v6)
				})
				if a != 40000 || b == a || b < 32768 {
					t.Errorf("ports %d and %d", a, b)
				}
			})
		}
	})
}

// TestHostSocketsPort: a port on which the host listens is not given to a pod.
func TestHostSocketsPort(t *testing.T) {
	w := newWorld(t, nil)
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	tcp, err := lc.Listen(stdcontext.Background(), "tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	both(t, func(t *testing.T, v6 bool) {
		for name, port := range map[string]int{"tcp": tcp.Addr().(*net.TCPAddr).Port, "udp": udp.LocalAddr().(*net.UDPAddr).Port} {
			t.Run(name, func(t *testing.T) {
				if port < 32768 {
					t.Skipf("the kernel gave port %d, which is not in the range", port)
				}
				w.t = t
				w.reset()
				in := fromA(pick(v6, out4, out6)).with(kinds(v6)[name]).with(func(p *packet) { p.sport = uint16(port) })
				if seen := seenPort(w.run("from_pod", in.frame()).out, v6); int(seen) == port || seen < 32768 {
					t.Errorf("the host's port %d became %d", port, seen)
				}
			})
		}
	})
}

// TestPortsExhausted: no port left is a drop with its own reason, never a packet under the pod's name.
func TestPortsExhausted(t *testing.T) {
	w := newWorld(t, map[string]any{"nat_port_min": uint16(50000), "nat_port_max": uint16(50000)})
	in := fromA(out4)
	w.run("from_pod", in.frame()).expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect,
		in.with(func(p *packet) { p.src, p.sport, p.ttl = node4, 50000, 63 }).frame())
	other := in.with(func(p *packet) { p.sport = 40001 })
	for range 2 { // the second time there is an entry without a port
		w.run("from_pod", other.frame()).expect(t, bpf.MapsReasonDROP_NO_MAPPING, shot, nil)
	}
}

// TestNoAddress: an uplink without an address of the family cannot masquerade.
func TestNoAddress(t *testing.T) {
	w := newWorld(t, nil)
	w.put(bpf.MapsMapDevices, uint32(loopback), bpf.Device{Ipv4: bpf.AddrFrom(node4)})
	w.run("from_pod", fromA(out6).frame()).expect(t, bpf.MapsReasonDROP_NO_MAPPING, shot, nil)
}

// TestCannotMasquerade: what has no ports stays inside.
func TestCannotMasquerade(t *testing.T) {
	w := newWorld(t, nil)
	w.run("from_pod", fromA(out4).with(func(p *packet) { p.proto = protoGRE }).frame()).
		expect(t, bpf.MapsReasonDROP_UNKNOWN_L4, shot, nil)
	w.run("from_pod", fromA(out4).with(func(p *packet) { p.proto, p.typ = protoICMP, 13 }).frame()).
		expect(t, bpf.MapsReasonDROP_UNKNOWN_L4, shot, nil)
	w.run("from_pod", fromA(podB4).with(func(p *packet) { p.proto = protoGRE }).frame()).
		expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
}

// errorAbout is an ICMP error of a router about a packet on its way.
func errorAbout(p packet, from, to netip.Addr, typ, code uint8, info uint32) packet {
	e := packet{smac: wireMAC, dmac: nodeMAC, src: from, dst: to, ttl: 50, proto: protoICMP, typ: typ, code: code,
		info: info, payload: p.network()}
	if from.Is6() {
		e.proto = protoICMPv6
	}
	return e
}

// quotedAs makes the quoted transport checksum that of the packet that went out: it is not mended, for it is cut.
func quotedAs(e packet, sent packet, v6 bool) packet {
	head, off := 20, map[uint8]int{protoTCP: 16, protoUDP: 6, protoICMP: 2, protoICMPv6: 2}[sent.proto]
	if v6 {
		head = 40
	}
	payload := append([]byte{}, e.payload...)
	if head+off+2 <= len(payload) {
		copy(payload[head+off:head+off+2], sent.network()[head+off:])
	}
	e.payload = payload
	return e
}

// TestErrorsInMasquerade: errors about masqueraded packets reach the pod in its own terms, and the pod's own errors
// leave in the node's.
func TestErrorsInMasquerade(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		router := pick(v6, netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:f::1"))
		node, out := pick(v6, node4, node6), pick(v6, out4, out6)
		unreachable := uint8(3)
		if v6 {
			unreachable = 1
		}
		for name, kind := range kinds(v6) {
			t.Run(name, func(t *testing.T) {
				w.t = t
				w.reset()
				in := fromA(out).with(kind)
				setSource(&in, in.src, 1234)
				o := w.run("from_pod", in.frame())
				seen := seenPort(o.out, v6)
				sent := in.with(func(p *packet) { setSource(p, node, seen); p.ttl = 63 })
				o.expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect, sent.frame())

				e := errorAbout(sent, router, node, unreachable, 1, 0)
				o = w.run("from_netdev", e.frame())
				want := errorAbout(in.with(func(p *packet) { p.ttl = 63 }), router, in.src, unreachable, 1, 0).
					with(func(p *packet) { p.smac, p.dmac, p.ttl = hostMAC, podMAC, 49 })
				o.expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
				sameButQuotedChecksum(t, o.out, quotedAs(want, sent, v6), v6)
				if n := len(w.answered()); n != 0 {
					t.Errorf("an error answered %d connections", n)
				}
				if name == "echo" {
					return
				}

				// The world answers, and the pod says that nobody listens any more.
				w.run("from_netdev", answer(sent).frame())
				got := answer(in).with(func(p *packet) { p.ttl = 49 })
				complaint := errorAbout(got, in.src, out, unreachable, 1, 0).
					with(func(p *packet) { p.smac, p.dmac, p.ttl = podMAC, hostMAC, 64 })
				o = w.run("from_pod", complaint.frame())
				o.expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect, nil)
				back := answer(sent).with(func(p *packet) { p.ttl = 49 })
				said := errorAbout(back, node, out, unreachable, 1, 0).
					with(func(p *packet) { p.smac, p.dmac, p.ttl = podMAC, hostMAC, 63 })
				sameButQuotedChecksum(t, o.out, quotedAs(said, got, v6), v6)
			})
		}
		t.Run("about nobody's connection", func(t *testing.T) {
			w.t = t
			w.reset()
			w.run("from_netdev", errorAbout(fromA(out).with(func(p *packet) { p.src = node }), router, node, unreachable, 1, 0).frame()).
				expect(t, bpf.MapsReasonFORWARD_NOT_OURS, next, nil)
			// A pod's error about what it never got does not leave under the node's name.
			w.run("from_pod", errorAbout(fromA(out).reply(), pick(v6, podA4, podA6), out, unreachable, 1, 0).
				with(func(p *packet) { p.smac, p.dmac = podMAC, hostMAC }).frame()).
				expect(t, bpf.MapsReasonDROP_UNKNOWN_L4, shot, nil)
		})
	})
}

// sameButQuotedChecksum compares frames and verifies the ICMP checksum of the outcome itself.
func sameButQuotedChecksum(t *testing.T, got []byte, want packet, v6 bool) {
	t.Helper()
	outcome{ret: redirect, out: got}.expect(t, 0, redirect, want.frame())
}

// TestReplyAfterEviction: an answer whose connection is gone is dropped and says so; it does not reach the host.
func TestReplyAfterEviction(t *testing.T) {
	w := newWorld(t, nil)
	in := fromA(out4)
	w.run("from_pod", in.frame())
	sent := in.with(func(p *packet) { p.src = node4 })
	for k := range w.begun(1) {
		w.forget(k)
	}
	w.run("from_netdev", answer(sent).frame()).expect(t, bpf.MapsReasonDROP_STALE, shot, nil)
	// The pod's next packet mends it, with the same port.
	w.run("from_pod", in.frame()).expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect,
		in.with(func(p *packet) { p.src, p.ttl = node4, 63 }).frame())
	w.run("from_netdev", answer(sent).frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
}

// TestPointerEvicted: the pod's next packet puts the way back there again.
func TestPointerEvicted(t *testing.T) {
	w := newWorld(t, nil)
	in := fromA(out4)
	w.run("from_pod", in.frame())
	for k := range w.begun(0) {
		w.forget(k)
	}
	w.run("from_pod", in.frame())
	w.run("from_netdev", answer(in.with(func(p *packet) { p.src = node4 })).frame()).
		expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
}

// TestHostSharesPorts: the host's own packet whose name a pod has gets another port, and its answer comes back to it.
func TestHostSharesPorts(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		node := pick(v6, node4, node6)
		for name, kind := range kinds(v6) {
			t.Run(name, func(t *testing.T) {
				w.t = t
				w.reset()
				in := fromA(pick(v6, out4, out6)).with(kind)
				if seen := seenPort(w.run("from_pod", in.frame()).out, v6); seen != 40000 {
					t.Fatalf("the pod has port %d", seen)
				}
				host := in.with(func(p *packet) { p.src, p.smac, p.dmac = node, nodeMAC, wireMAC })
				o := w.run("to_netdev", host.frame())
				seen := seenPort(o.out, v6)
				if seen == 40000 {
					t.Fatal("host and pod have one name")
				}
				sent := host.with(func(p *packet) { setSource(p, node, seen) })
				o.expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, next, sent.frame())
				for range 2 {
					back := w.run("from_netdev", answer(sent).frame())
					back.expect(t, bpf.MapsReasonFORWARD_TO_STACK, next, answer(host).frame())
				}
				w.run("to_netdev", host.frame()).expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, next, sent.frame())
				w.run("from_netdev", answer(in.with(func(p *packet) { p.src = node })).frame()).
					expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
			})
			t.Run(name+", the host first", func(t *testing.T) {
				w.t = t
				w.reset()
				in := fromA(pick(v6, out4, out6)).with(kind)
				host := in.with(func(p *packet) { p.src, p.smac, p.dmac = node, nodeMAC, wireMAC })
				w.run("to_netdev", host.frame()).expect(t, bpf.MapsReasonFORWARD_NOT_OURS, next, host.frame())
				w.run("from_netdev", answer(host).frame()).expect(t, bpf.MapsReasonFORWARD_NOT_OURS, next, answer(host).frame())
				if seen := seenPort(w.run("from_pod", in.frame()).out, v6); seen == 40000 {
					t.Error("a pod got the host's name")
				}
			})
		}
	})
}

// TestFromOutside: who came from outside to a pod's address gets its answers from that address.
func TestFromOutside(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		in := packet{smac: wireMAC, dmac: nodeMAC, src: pick(v6, out4, out6), dst: pick(v6, podA4, podA6), ttl: 9,
			proto: protoTCP, sport: 5555, dport: 80, flags: syn}
		w.run("from_netdev", in.frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect,
			in.with(func(p *packet) { p.smac, p.dmac, p.ttl = hostMAC, podMAC, 8 }).frame())
		back := in.reply().with(func(p *packet) { p.smac, p.dmac, p.ttl, p.flags = podMAC, hostMAC, 64, syn|ack })
		w.run("from_pod", back.frame()).expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect,
			back.with(func(p *packet) { p.ttl = 63 }).frame())
	})
}

// While the agent changes over to another connection table a masqueraded connection may be in the old one alone. Its
// answers went to the host, which reset them; and the reset made the host the owner of the connection's name.
func TestAnswerToAConnectionOfTheTableBefore(t *testing.T) {
	before, after := newWorld(t, nil), newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		before.t, after.t = t, t
		before.reset()
		after.reset()
		in := fromA(pick(v6, out4, out6)).with(kinds(v6)["tcp"])
		setSource(&in, in.src, 40000)
		if o := before.run("from_pod", in.frame()); o.reason != bpf.MapsReasonFORWARD_TO_NETWORK {
			t.Fatalf("reason %v", o.reason)
		}
		sent := in.with(func(p *packet) { setSource(p, pick(v6, node4, node6), 40000); p.ttl = 63 })
		alone := func() {
			if o := after.run("from_netdev", answer(sent).frame()); o.reason != bpf.MapsReasonFORWARD_NOT_OURS {
				t.Errorf("without the program of before: reason %v", o.reason)
			}
		}
		alone()
		slot := uint32(bpf.MapsHookSLOT_BEFORE)
		after.put(bpf.MapsMapHooks, slot, uint32(before.program("from_netdev").Programs["from_netdev"].FD()))
		want := answer(in).with(func(p *packet) { p.smac, p.dmac, p.ttl = hostMAC, podMAC, 49 })
		answered := func() {
			frame := answer(sent).frame()
			opts := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+512), Context: &context{Ifindex: loopback}}
			ret, err := after.program("from_netdev").Programs["from_netdev"].Run(opts) // counted in the other world
			if err != nil {
				t.Fatal(err)
			}
			if ret != redirect || !bytes.Equal(opts.DataOut, want.frame()) {
				t.Errorf("got %d, % x\nwant % x", ret, opts.DataOut, want.frame())
			}
		}
		answered()
		// The pointers of unanswered connections are in a table that both have.
		for k, c := range before.conns(before.inner[0]) {
			if err := after.inner[0].Put(k, c); err != nil {
				t.Fatal(err)
			}
		}
		answered()
		after.reset()
		if err := after.maps.Maps[bpf.MapsMapHooks].Delete(slot); err != nil {
			t.Error(err)
		}
		alone()
	})
}
