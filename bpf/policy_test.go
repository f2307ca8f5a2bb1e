// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

const (
	verdictAllow = uint8(bpf.MapsVerdictVERDICT_ALLOWED)
	verdictDeny  = uint8(bpf.MapsVerdictVERDICT_DENIED)
	enforced     = bpf.MapsPolicyFlagsPOLICY_ENFORCED
	ports        = bpf.MapsPolicyFlagsPOLICY_PORTS
	protocols    = bpf.MapsPolicyFlagsPOLICY_PROTOCOLS
	identities   = bpf.MapsPolicyFlagsPOLICY_IDENTITIES
	withClasses  = bpf.MapsPolicyFlagsPOLICY_CLASSES
	anyone       = bpf.MapsPolicyFlagsPOLICY_ANYONE
	withRanges   = bpf.MapsPolicyFlagsPOLICY_RANGES
	denies       = bpf.MapsPolicyFlagsPOLICY_DENIES
	one          = bpf.MapsPolicyFlagsPOLICY_ONE_PRECEDENCE

	egress  = 0
	ingress = 1
	table   = 9
	class   = uint32(bpf.PeerClassBit | 3)
	byRule  = 77
	bySet   = 55
)

// verdictRow is one entry of the table; bits is 16 for a port.
type verdictRow struct {
	peer       uint32
	proto      uint8
	bits       uint32
	port       uint16
	verdict    uint8
	precedence uint32
}

// enforce gives a pod's direction a table of these rows.
func (w *world) enforce(id uint32, side int, flags bpf.MapsPolicyFlags, rows ...verdictRow) {
	w.t.Helper()
	for _, r := range rows {
		k := bpf.VerdictKey{Table: table, Proto: r.proto, Peer: r.peer, Port: be16(r.port)}
		v := bpf.VerdictEntry{Rule: byRule, Precedence: r.precedence, Verdict: r.verdict}
		if r.proto != 0 && r.bits < 16 {
			w.put(bpf.MapsMapVerdictRanges, bpf.VerdictRangeKey{Prefixlen: bpf.VerdictRangeBits + r.bits, Key: k}, v)
		} else {
			w.put(bpf.MapsMapVerdicts, k, v)
		}
	}
	var p bpf.Policy
	if err := w.maps.Maps[bpf.MapsMapPolicies].Lookup(id, &p); err != nil {
		w.t.Fatal(err)
	}
	p.Side[side] = bpf.PolicySide{DefaultRule: bySet, Table: table, Flags: uint16(enforced | flags)}
	w.put(bpf.MapsMapPolicies, id, p)
}

// unselect takes every policy away.
func (w *world) unselect() {
	for id := range uint32(4) {
		w.put(bpf.MapsMapPolicies, id, bpf.Policy{Side: [2]bpf.PolicySide{unselected, unselected}})
	}
	for _, name := range []string{bpf.MapsMapVerdicts, bpf.MapsMapVerdictRanges, bpf.MapsMapClasses} {
		m := w.maps.Maps[name]
		var keys [][]byte
		k, v := []byte{}, []byte{}
		for it := m.Iterate(); it.Next(&k, &v); {
			keys = append(keys, append([]byte{}, k...))
		}
		for _, k := range keys {
			_ = m.Delete(k)
		}
	}
}

// TestVerdicts: what a table says of one packet, asked as egress of pod a and as ingress of pod b.
func TestVerdicts(t *testing.T) {
	w := newWorld(t, nil)
	const denied, byDefault = bpf.MapsReasonDROP_POLICY_DENY, bpf.MapsReasonDROP_POLICY
	const passes = bpf.MapsReasonFORWARD_TO_POD
	for _, c := range []struct {
		name  string
		flags bpf.MapsPolicyFlags
		// other is the peer's identity in the table; 0 stands for it in rows.
		rows   []verdictRow
		reason bpf.Reason
		rule   uint32
	}{
		{"nothing in the table", 0, nil, byDefault, bySet},
		{"identity and port", identities | ports | one, []verdictRow{{1, protoTCP, 16, 80, verdictAllow, 5}}, passes, byRule},
		{"another port", identities | ports | one, []verdictRow{{1, protoTCP, 16, 81, verdictAllow, 5}}, byDefault, bySet},
		{"another protocol", identities | ports | one, []verdictRow{{1, protoUDP, 16, 80, verdictAllow, 5}}, byDefault, bySet},
		{"another identity", identities | ports | one, []verdictRow{{4711, protoTCP, 16, 80, verdictAllow, 5}}, byDefault, bySet},
		{"any protocol", identities | protocols | one, []verdictRow{{1, 0, 0, 0, verdictAllow, 5}}, passes, byRule},
		{"whole protocol", identities | withRanges | one, []verdictRow{{1, protoTCP, 0, 0, verdictAllow, 5}}, passes, byRule},
		{"range", identities | withRanges | one, []verdictRow{{1, protoTCP, 12, 80, verdictAllow, 5}}, passes, byRule},
		{"beside the range", identities | withRanges | one, []verdictRow{{1, protoTCP, 12, 96, verdictAllow, 5}}, byDefault, bySet},
		{"the port counts before the range", identities | ports | withRanges, []verdictRow{
			{1, protoTCP, 12, 80, verdictAllow, 4}, {1, protoTCP, 16, 80, verdictDeny, 5}}, denied, byRule},
		{"the longer range counts", identities | withRanges, []verdictRow{
			{1, protoTCP, 12, 80, verdictAllow, 5}, {1, protoTCP, 0, 0, verdictDeny, 4}}, passes, byRule},
		{"a range counts before any protocol", identities | withRanges | protocols, []verdictRow{
			{1, protoTCP, 0, 0, verdictAllow, 5}, {1, 0, 0, 0, verdictDeny, 4}}, passes, byRule},
		{"anyone", anyone | ports | one, []verdictRow{{0, protoTCP, 16, 80, verdictAllow, 5}}, passes, byRule},
		{"class", withClasses | protocols | one, []verdictRow{{class, 0, 0, 0, verdictAllow, 5}}, passes, byRule},
		{"another class", withClasses | protocols | one, []verdictRow{{class + 1, 0, 0, 0, verdictAllow, 5}}, byDefault, bySet},
		{"better precedence: identity", identities | anyone | protocols, []verdictRow{
			{1, 0, 0, 0, verdictDeny, 3}, {0, 0, 0, 0, verdictAllow, 4}}, denied, byRule},
		{"better precedence: anyone", identities | anyone | protocols | denies, []verdictRow{
			{1, 0, 0, 0, verdictDeny, 4}, {0, 0, 0, 0, verdictAllow, 3}}, passes, byRule},
		{"better precedence: class", identities | withClasses | anyone | protocols, []verdictRow{
			{1, 0, 0, 0, verdictAllow, 4}, {class, 0, 0, 0, verdictDeny, 2}, {0, 0, 0, 0, verdictAllow, 3}}, denied, byRule},
		{"equal precedence: the identity", identities | anyone | protocols, []verdictRow{
			{1, 0, 0, 0, verdictAllow, 4}, {0, 0, 0, 0, verdictDeny, 4}}, passes, byRule},
	} {
		for side, name := range []string{"egress", "ingress"} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				both(t, func(t *testing.T, v6 bool) {
					w.t = t
					w.reset()
					w.unselect()
					local, peer, other := uint32(1), uint32(idB), pick(v6, podB4, podB6)
					if side == ingress {
						local, peer, other = 2, idA, pick(v6, podA4, podA6)
					}
					w.put(bpf.MapsMapClasses, bpf.PrefixKeyFrom(netip.PrefixFrom(other, other.BitLen()-4)), class)
					rows := append([]verdictRow{}, c.rows...)
					for i := range rows {
						if rows[i].peer == 1 {
							rows[i].peer = peer
						}
					}
					w.enforce(local, side, c.flags, rows...)
					o := w.run("from_pod", fromA(pick(v6, podB4, podB6)).frame())
					if o.reason != c.reason {
						t.Errorf("reason %v, want %v", o.reason, c.reason)
					}
					events := w.events()
					if len(events) != 1 {
						t.Fatalf("%d events", len(events))
					}
					e := events[0]
					if e.Rules[side] != c.rule || e.Rules[1-side] != 0 {
						t.Errorf("rules %v, want %d on side %d", e.Rules, c.rule, side)
					}
					if e.Type == uint8(bpf.MapsEventTypeEVENT_DROP) {
						in := bpf.MapsEventFlags(e.Flags)&bpf.MapsEventFlagsEVENT_INGRESS != 0
						if e.Endpoint != uint16(local) || in != (side == ingress) {
							t.Errorf("drop of endpoint %d, ingress %v", e.Endpoint, in)
						}
					}
				})
			})
		}
	}
}

// TestPolicyOfOthers: who is who when policy is asked, on every way into a pod.
func TestPolicyOfOthers(t *testing.T) {
	w := newWorld(t, nil)
	allow := func(peer uint32) []verdictRow { return []verdictRow{{peer, 0, 0, 0, verdictAllow, 5}} }
	toPod := func(src netip.Addr) packet {
		return packet{smac: hostMAC, dmac: podMAC, src: src, dst: podA4, proto: protoTCP, sport: 5, dport: 80, flags: syn}
	}
	forwarded := func(c *context) { c.IngressIfindex = loopback }
	outer, inner := fromFar(podA4)
	for _, c := range []struct {
		name   string
		prog   string
		frame  []byte
		ctx    func(*context)
		flags  bpf.MapsPolicyFlags
		rows   []verdictRow
		reason bpf.Reason
	}{
		{"a socket of the host", "to_pod", toPod(node4).frame(), nil, 0, nil, bpf.MapsReasonFORWARD_TO_POD},
		{"masqueraded to the host's address by somebody", "to_pod", toPod(node4).frame(), forwarded, 0, nil, bpf.MapsReasonDROP_POLICY},
		{"the same, though the host is allowed by name", "to_pod", toPod(node4).frame(), forwarded, identities | protocols, allow(idHost), bpf.MapsReasonDROP_POLICY},
		{"pending, anyone allowed", "to_pod", toPod(node4).frame(), forwarded, anyone | protocols, allow(0), bpf.MapsReasonFORWARD_TO_POD},
		{"pending, anyone allowed, somebody denied", "to_pod", toPod(node4).frame(), forwarded, anyone | identities | protocols | denies,
			append(allow(0), verdictRow{4711, 0, 0, 0, verdictDeny, 4}), bpf.MapsReasonDROP_PENDING_DENY},
		{"pending is no identity", "to_pod", toPod(node4).frame(), forwarded, identities | protocols, allow(idPending), bpf.MapsReasonDROP_POLICY},
		{"the world, by class", "to_pod", toPod(out4).frame(), forwarded, withClasses | protocols, allow(class), bpf.MapsReasonFORWARD_TO_POD},
		{"the world, not allowed", "to_pod", toPod(out4).frame(), forwarded, identities | protocols, allow(idB), bpf.MapsReasonDROP_POLICY},
		{"by the tunnel, as the VNI says", "from_netdev", outer.vxlan(idFar, inner.frame()), nil, identities | protocols, allow(idFar), bpf.MapsReasonFORWARD_TO_POD},
		{"by the tunnel, not allowed", "from_netdev", outer.vxlan(idFar, inner.frame()), nil, identities | protocols, allow(idB), bpf.MapsReasonDROP_POLICY},
		{"by the tunnel, allowed by class", "from_netdev", outer.vxlan(idFar, inner.frame()), nil, withClasses | protocols, allow(class + 1), bpf.MapsReasonFORWARD_TO_POD},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			w.reset()
			w.unselect()
			w.put(bpf.MapsMapClasses, bpf.PrefixKeyFrom(netip.PrefixFrom(out4, 24)), class)
			w.put(bpf.MapsMapClasses, bpf.PrefixKeyFrom(netip.PrefixFrom(far4, 24)), class+1)
			w.enforce(1, ingress, c.flags, c.rows...)
			ctx := c.ctx
			if ctx == nil {
				ctx = func(*context) {}
			}
			if o := w.run(c.prog, c.frame, ctx); o.reason != c.reason {
				t.Errorf("reason %v, want %v", o.reason, c.reason)
			}
		})
	}
}

// TestClosed: a pod whose policy was never written gets nothing and sends nothing, and is open with its first policy.
func TestClosed(t *testing.T) {
	w := newWorld(t, nil)
	for id := range uint32(2) {
		w.reset()
		w.unselect()
		w.put(bpf.MapsMapPolicies, id+1, bpf.Policy{})
		for range 2 {
			w.run("from_pod", fromA(podB4).frame()).expect(t, bpf.MapsReasonDROP_NO_POLICY_YET, shot, nil)
		}
		w.unselect()
		w.run("from_pod", fromA(podB4).frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
	}
}

// TestPolicyChanges: an established connection is judged again when the generation moves on, on its original
// direction, for packets both ways; what is refused is marked and comes back with the policy.
func TestPolicyChanges(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		w.unselect()
		there := fromA(pick(v6, podB4, podB6))
		onward := there.with(func(p *packet) { p.flags = ack })
		back := there.reply().with(func(p *packet) { p.flags = syn | ack })
		generation := uint32(100)
		bump := func() {
			generation++
			w.put(bpf.MapsMapLiveSettings, uint32(0), bpf.Settings{Generation: generation, ReportInterval: 5})
		}
		expect := func(reason bpf.Reason) {
			t.Helper()
			if o := w.run("from_pod", onward.frame()); o.reason != reason {
				t.Errorf("onward: %v, want %v", o.reason, reason)
			}
			w.asB(func() {
				if o := w.run("from_pod", back.frame()); o.reason != reason {
					t.Errorf("back: %v, want %v", o.reason, reason)
				}
			})
		}
		w.enforce(2, ingress, identities|ports, verdictRow{idA, protoTCP, 16, 80, verdictAllow, 5})
		w.run("from_pod", there.frame())
		expect(bpf.MapsReasonFORWARD_TO_POD)
		// Nothing is asked again before the generation moves on.
		w.enforce(2, ingress, 0)
		expect(bpf.MapsReasonFORWARD_TO_POD)
		bump()
		expect(bpf.MapsReasonDROP_POLICY)
		w.enforce(2, ingress, identities|ports)
		expect(bpf.MapsReasonDROP_POLICY)
		bump()
		expect(bpf.MapsReasonFORWARD_TO_POD)
		// Pod b may not begin anything: its answers were those of a connection that it did not begin.
		w.enforce(2, egress, 0)
		bump()
		expect(bpf.MapsReasonFORWARD_TO_POD)
		w.asB(func() {
			o := w.run("from_pod", back.with(func(p *packet) { p.sport, p.dport, p.flags = 7000, 7001, syn }).frame())
			if o.reason != bpf.MapsReasonDROP_POLICY {
				t.Errorf("b began a connection: %v", o.reason)
			}
		})
	})
}

// TestForgottenTCP: a packet without SYN and without entry goes on in either direction that is allowed.
func TestForgottenTCP(t *testing.T) {
	w := newWorld(t, nil)
	answers := fromA(podB4).with(func(p *packet) { p.sport, p.dport, p.flags = 80, 40000, ack })
	allowed := []verdictRow{{idB, protoTCP, 16, 80, verdictAllow, 5}}
	prepare := func(t *testing.T) {
		w.t = t
		w.reset()
		w.unselect()
		// Pod a may be asked by b on port 80, and may not begin anything itself.
		w.enforce(1, ingress, identities|ports, allowed...)
		w.put(bpf.MapsMapPolicies, uint32(1), bpf.Policy{Side: [2]bpf.PolicySide{
			{DefaultRule: bySet, Flags: uint16(enforced)}, {DefaultRule: bySet, Table: table, Flags: uint16(enforced | identities | ports)}}})
	}
	t.Run("in the middle of an answer", func(t *testing.T) {
		prepare(t)
		w.run("from_pod", answers.frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
		for k, c := range w.begun(1) {
			fromHi := bpf.MapsConnFlags(c.Flags)&bpf.MapsConnFlagsCONN_FROM_HI != 0
			if hiIsB := k.Hi == bpf.AddrFrom(podB4); fromHi != hiIsB || c.Identity != idB {
				t.Errorf("begun by %d, from hi %v", c.Identity, fromHi)
			}
		}
		w.asB(func() {
			w.run("from_pod", answers.reply().with(func(p *packet) { p.flags = ack }).frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
		})
	})
	t.Run("a SYN is a beginning", func(t *testing.T) {
		prepare(t)
		w.run("from_pod", answers.with(func(p *packet) { p.flags = syn }).frame()).expect(t, bpf.MapsReasonDROP_POLICY, shot, nil)
	})
	t.Run("neither direction", func(t *testing.T) {
		prepare(t)
		other := answers.with(func(p *packet) { p.sport = 81 })
		for range 2 {
			w.run("from_pod", other.frame()).expect(t, bpf.MapsReasonDROP_POLICY, shot, nil)
		}
		for _, e := range w.events() {
			if e.Endpoint != 1 || e.Rules != [2]uint32{bySet, 0} || bpf.MapsEventFlags(e.Flags)&bpf.MapsEventFlagsEVENT_INGRESS != 0 {
				t.Errorf("refused as %+v", e)
			}
		}
	})
	t.Run("to the pod", func(t *testing.T) {
		prepare(t)
		// The far pod's answer to a connection that pod a began and nobody remembers.
		w.enforce(1, egress, identities|ports, verdictRow{idFar, protoTCP, 16, 443, verdictAllow, 5})
		outer, inner := fromFar(podA4)
		inner = inner.with(func(p *packet) { p.sport, p.dport, p.flags = 443, 41000, ack })
		o := w.run("from_netdev", outer.vxlan(idFar, inner.frame()))
		if o.reason != bpf.MapsReasonFORWARD_TO_POD {
			t.Errorf("reason %v", o.reason)
		}
	})
	t.Run("UDP has one direction", func(t *testing.T) {
		prepare(t)
		w.run("from_pod", answers.with(func(p *packet) { p.proto = protoUDP }).frame()).expect(t, bpf.MapsReasonDROP_POLICY, shot, nil)
	})
}

// A stray ACK passes as the middle of a connection that its receiver may have begun. It must not open the way for the
// SYN that its sender may not send.
func TestStrayACKLetsNoSYNIn(t *testing.T) {
	w := newWorld(t, nil)
	toA := fromA(podB4).reply().with(func(p *packet) { p.sport, p.dport, p.flags = 40000, 80, ack })
	withSYN := func(p *packet) { p.flags = syn }
	t.Run("on one node", func(t *testing.T) {
		w.t = t
		w.reset()
		w.unselect()
		w.enforce(1, ingress, 0)
		w.asB(func() {
			w.run("from_pod", toA.frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
			for range 2 {
				w.run("from_pod", toA.with(withSYN).frame()).expect(t, bpf.MapsReasonDROP_POLICY, shot, nil)
			}
		})
	})
	t.Run("from another node", func(t *testing.T) {
		w.t = t
		w.reset()
		w.unselect()
		w.enforce(1, ingress, 0)
		outer, inner := fromFar(podA4)
		for _, row := range []struct {
			flags  uint8
			reason bpf.Reason
		}{{ack, bpf.MapsReasonFORWARD_TO_POD}, {syn, bpf.MapsReasonDROP_POLICY}} {
			p := inner.with(func(p *packet) { p.sport, p.dport, p.flags = 40000, 80, row.flags })
			if o := w.run("from_netdev", outer.vxlan(idFar, p.frame())); o.reason != row.reason {
				t.Errorf("flags %#x: reason %v, want %v", row.flags, o.reason, row.reason)
			}
		}
	})
	t.Run("to the own host", func(t *testing.T) {
		w.t = t
		w.reset()
		w.unselect()
		w.enforce(1, ingress, 0)
		w.enforce(1, egress, 0)
		toHost := fromA(node4).with(func(p *packet) { p.sport, p.dport, p.flags = 40000, 10250, ack })
		w.run("from_pod", toHost.frame()).expect(t, bpf.MapsReasonFORWARD_TO_STACK, next, nil)
		w.run("from_pod", toHost.with(withSYN).frame()).expect(t, bpf.MapsReasonDROP_POLICY, shot, nil)
	})
}

// What was refused owns no name: the other end may use the same ports in its own direction.
func TestRefusedPacketOwnsNoName(t *testing.T) {
	w := newWorld(t, nil)
	w.unselect()
	w.enforce(1, ingress, 0)
	out := fromA(podB4).with(func(p *packet) { p.proto, p.sport, p.dport = protoUDP, 7946, 7946 })
	w.asB(func() {
		w.run("from_pod", out.reply().frame()).expect(t, bpf.MapsReasonDROP_POLICY, shot, nil)
	})
	w.run("from_pod", out.frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
	w.asB(func() {
		w.run("from_pod", out.reply().frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, nil)
	})
}
