// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// markOf is the mark that carries an identity through the stack.
func markOf(magic bpf.MapsMark, identity uint32) uint32 {
	return uint32(magic) | (identity&0xffff)<<16 | identity>>16&0xff
}

// TestToPod: who sent it, by every way that a packet takes from the stack to a pod.
func TestToPod(t *testing.T) {
	w := newWorld(t, nil)
	const big = 0x123456
	forwarded := func(c *context) { c.IngressIfindex = loopback }
	marked := func(magic bpf.MapsMark, id uint32) func(*context) {
		return func(c *context) { c.IngressIfindex, c.Mark = loopback, markOf(magic, id) }
	}
	both(t, func(t *testing.T, v6 bool) {
		pod := pick(v6, podA4, podA6)
		for _, c := range []struct {
			name     string
			src, dst netip.Addr
			ctx      func(*context)
			reason   bpf.Reason
			identity uint32
			stack    bool
		}{
			{"a socket of this host", pick(v6, node4, node6), pod, func(*context) {}, bpf.MapsReasonFORWARD_TO_POD, idHost, false},
			{"marked on the way", pick(v6, podB4, podB6), pod, marked(bpf.MapsMarkMARK_IDENTITY, big), bpf.MapsReasonFORWARD_TO_POD, big, true},
			{"accepted from the tunnel", pick(v6, far4, far6), pod, marked(bpf.MapsMarkMARK_ACCEPTED, idFar), bpf.MapsReasonFORWARD_TO_POD, idFar, true},
			{"forwarded from the world", pick(v6, out4, out6), pod, forwarded, bpf.MapsReasonFORWARD_TO_POD, idWorld, true},
			{"forwarded from a pod", pick(v6, podB4, podB6), pod, forwarded, bpf.MapsReasonFORWARD_TO_POD, idB, true},
			{"forwarded with the host's address: not the host (CVE-2023-27594)", pick(v6, node4, node6), pod, forwarded, bpf.MapsReasonFORWARD_TO_POD, idPending, true},
			{"forwarded with the address of a pod that speaks through the tunnel", pick(v6, far4, far6), pod, forwarded, bpf.MapsReasonFORWARD_TO_POD, idPending, true},
			{"not this pod's address", pick(v6, node4, node6), pick(v6, podB4, podB6), func(*context) {}, bpf.MapsReasonDROP_UNKNOWN_TARGET, 0, false},
			{"nobody's address", pick(v6, out4, out6), pick(v6, nopod4, nopod6), forwarded, bpf.MapsReasonDROP_UNKNOWN_TARGET, 0, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				w.t = t
				w.reset()
				in := packet{smac: hostMAC, dmac: podMAC, src: c.src, dst: c.dst, proto: protoTCP, sport: 5, dport: 80, flags: syn}
				o := w.run("to_pod", in.frame(), c.ctx)
				if c.reason >= 128 {
					o.expect(t, c.reason, shot, nil)
					return
				}
				o.expect(t, c.reason, next, in.frame())
				conns := w.begun(1)
				if len(conns) != 1 {
					t.Fatalf("%d connections", len(conns))
				}
				for _, conn := range conns {
					flags := bpf.MapsConnFlags(conn.Flags)
					if conn.Identity != c.identity || (flags&bpf.MapsConnFlagsCONN_STACK != 0) != c.stack {
						t.Errorf("recorded as %+v", conn)
					}
				}
				// The answer goes where the question came from.
				back := in.reply().with(func(p *packet) { p.smac, p.dmac, p.flags = podMAC, hostMAC, syn|ack })
				if c.stack || c.identity == idHost {
					o := w.run("from_pod", back.frame())
					o.expect(t, bpf.MapsReasonFORWARD_TO_STACK, next, back.frame())
					if o.mark != markOf(bpf.MapsMarkMARK_IDENTITY, idA) {
						t.Errorf("mark %#x", o.mark)
					}
				}
			})
		}
	})
	t.Run("what we delivered", func(t *testing.T) {
		w.t = t
		in := fromA(podB4)
		o := w.run("to_pod", in.frame(), func(c *context) { c.Mark = uint32(bpf.MapsMarkMARK_DELIVERED) })
		o.expect(t, bpf.MapsReasonFORWARD_TO_POD, next, in.frame())
		if o.mark != 0 {
			t.Errorf("mark %#x is left", o.mark)
		}
	})
	t.Run("ARP and discovery of the host", func(t *testing.T) {
		w.t = t
		w.run("to_pod", arp(podMAC, hostMAC, 1, hostMAC, node4, mac{}, podA4)).expect(t, bpf.MapsReasonFORWARD_NOT_OURS, next, nil)
		w.run("to_pod", discovery(135, gateway6, podLinkLocal, podA6).frame()).expect(t, bpf.MapsReasonFORWARD_NOT_OURS, next, nil)
	})
}

// TestRedirectFallback: without redirect_peer the packet crosses the veth pair, with a mark that to_pod knows.
func TestRedirectFallback(t *testing.T) {
	w := newWorld(t, map[string]any{"have_redirect_peer": false})
	o := w.run("from_pod", fromA(podB4).frame())
	o.expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
	if o.target != podBIf || o.mark != uint32(bpf.MapsMarkMARK_DELIVERED) {
		t.Errorf("to %d with mark %#x", o.target, o.mark)
	}
}

// TestNeighFallback: without redirect_neigh the stack forwards, to_netdev masquerades, and the answer takes the stack.
func TestNeighFallback(t *testing.T) {
	w := newWorld(t, map[string]any{"have_redirect_neigh": false})
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		in := fromA(pick(v6, out4, out6))
		w.run("from_pod", in.frame()).expect(t, bpf.MapsReasonFORWARD_TO_STACK, next, in.frame())
		routed := in.with(func(p *packet) { p.ttl = 63 })
		sent := routed.with(func(p *packet) { p.src = pick(v6, node4, node6) })
		forwarded := func(c *context) { c.IngressIfindex, c.Mark = loopback, markOf(bpf.MapsMarkMARK_IDENTITY, idA) }
		for range 2 {
			w.run("to_netdev", routed.frame(), forwarded).expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, next, sent.frame())
		}
		back := answer(sent)
		o := w.run("from_netdev", back.frame())
		o.expect(t, bpf.MapsReasonFORWARD_TO_STACK, next, answer(routed).frame())
		if o.mark != markOf(bpf.MapsMarkMARK_ACCEPTED, idWorld) {
			t.Errorf("mark %#x", o.mark)
		}
	})
}

// TestForgedTunnelFrames: only our own programs speak to a tunnel. A socket of the host, or a pod's packet that became
// the host's, would be believed to come from any pod of this node; and a node hears only at its underlay address.
func TestForgedTunnelFrames(t *testing.T) {
	w := newWorld(t, nil)
	frame := packet{src: node4, dst: peer4, proto: protoUDP, sport: 50000, dport: vxlanPort}.frame()
	w.run("to_netdev", frame).expect(t, bpf.MapsReasonDROP_ENCAP_PROHIBITED, shot, nil)
	w.run("to_netdev", frame, func(c *context) { c.Mark = markOf(bpf.MapsMarkMARK_DELIVERED, 0) }).expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, next, frame)

	second := netip.MustParseAddr("192.0.2.77")
	w.put(bpf.MapsMapEndpoints, bpf.AddrFrom(second), bpf.Endpoint{Identity: 1, Flags: uint16(bpf.MapsEndpointFlagsENDPOINT_HOST)})
	outer, inner := fromFar(podA4)
	outer.dst = second
	w.run("from_netdev", outer.vxlan(idFar, inner.frame())).expect(t, bpf.MapsReasonDROP_ENCAP_PROHIBITED, shot, nil)
}

// TestNotOurs: what is not ours passes untouched.
func TestNotOurs(t *testing.T) {
	w := newWorld(t, nil)
	host := packet{smac: wireMAC, dmac: nodeMAC, src: out4, dst: node4, proto: protoTCP, sport: 50000, dport: 22, flags: syn}
	ping6 := packet{smac: wireMAC, dmac: nodeMAC, src: out6, dst: node6, proto: protoICMPv6, typ: 128, id: 3}
	for name, c := range map[string]struct {
		prog  string
		frame []byte
	}{
		"SSH to the host":          {"from_netdev", host.frame()},
		"its answer":               {"to_netdev", host.reply().frame()},
		"ping to the host":         {"from_netdev", ping6.frame()},
		"ARP":                      {"from_netdev", arp(nodeMAC, wireMAC, 1, wireMAC, out4, mac{}, node4)},
		"discovery":                {"from_netdev", discovery(135, out6, node6, node6).frame()},
		"forwarded by somebody":    {"from_netdev", host.with(func(p *packet) { p.dst = netip.MustParseAddr("198.51.100.9") }).frame()},
		"another program's packet": {"to_netdev", host.with(func(p *packet) { p.src = netip.MustParseAddr("198.51.100.9") }).frame()},
	} {
		t.Run(name, func(t *testing.T) {
			w.t = t
			w.reset()
			w.run(c.prog, c.frame).expect(t, bpf.MapsReasonFORWARD_NOT_OURS, next, c.frame)
		})
	}
	t.Run("our own packet on its way out", func(t *testing.T) {
		w.t = t
		o := w.run("to_netdev", host.reply().frame(), func(c *context) { c.Mark = uint32(bpf.MapsMarkMARK_DELIVERED) })
		o.expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, next, nil)
		if o.mark != 0 {
			t.Errorf("mark %#x leaves the node", o.mark)
		}
	})
	t.Run("no such pod", func(t *testing.T) {
		w.t = t
		w.run("from_netdev", host.with(func(p *packet) { p.dst = nopod4 }).frame()).expect(t, bpf.MapsReasonDROP_UNKNOWN_TARGET, shot, nil)
	})
}

// TestStub: a slot that is filled is called; one that is not shuts pods off and lets all else pass.
func TestStub(t *testing.T) {
	w := newWorld(t, nil)
	for hook := range bpf.MapsHookHOOK_CONNECT {
		spec, err := bpf.LoadStub()
		if err != nil {
			t.Fatal(err)
		}
		setConstant(t, spec, "hook", uint32(hook))
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
			bpf.MapsMapHooks: w.maps.Maps[bpf.MapsMapHooks], bpf.MapsMapMetrics: w.maps.Maps[bpf.MapsMapMetrics]}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		frame := arp(nodeMAC, wireMAC, 1, wireMAC, out4, mac{}, node4)
		before := w.counters(hook)
		ctx := context{Ifindex: loopback}
		ret, err := c.Programs["stub"].Run(&ebpf.RunOptions{Data: frame, Context: &ctx})
		if err != nil {
			t.Fatal(err)
		}
		want, reason := uint32(next), bpf.MapsReasonFORWARD_NOT_OURS
		if hook == bpf.MapsHookHOOK_FROM_POD || hook == bpf.MapsHookHOOK_TO_POD {
			want, reason = shot, bpf.MapsReasonDROP_NO_PROGRAM
		}
		if ret != want || w.counters(hook)[reason] != before[reason]+1 {
			t.Errorf("hook %d without a program: %d", hook, int32(ret))
		}
	}
	for _, p := range bpf.DevicePrograms() {
		w.put(bpf.MapsMapHooks, uint32(p.Hook), w.program(p.Name).Programs[p.Name])
	}
	spec, err := bpf.LoadStub()
	if err != nil {
		t.Fatal(err)
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		bpf.MapsMapHooks: w.maps.Maps[bpf.MapsMapHooks], bpf.MapsMapMetrics: w.maps.Maps[bpf.MapsMapMetrics]}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context{Ifindex: loopback}
	ret, err := c.Programs["stub"].Run(&ebpf.RunOptions{Data: fromA(podB4).frame(), Context: &ctx})
	if err != nil || ret != redirect {
		t.Errorf("through the stub: %d, %v", int32(ret), err)
	}
}
