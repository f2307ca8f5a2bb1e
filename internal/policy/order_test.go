// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// kernel is what a packet is judged by: a table and the classes, which are not written in one moment.
type kernel struct {
	ingress *Table
	classes map[netip.Prefix]Peer
}

func (k *kernel) allows(a netip.Addr) bool {
	return askTable(k.ingress, k.classes, End{Identity: identity.World, Addr: a}, 6, 80).Verdict == Allow
}

// change deletes a policy or gives it other ipBlocks.
func change(t *rapid.T, e *Engine, ref Ref) {
	if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
		e.DeletePolicy(ref)
	} else {
		rules := []Rule{{Tier: Normal, Isolates: true, Subject: PodSelector{Namespace: "a"}, Direction: Ingress}}
		for i := range rapid.IntRange(0, 2).Draw(t, "items") {
			r := Rule{Tier: Normal, Verdict: Allow, Subject: PodSelector{Namespace: "a"}, Direction: Ingress, AnyPort: true, Path: fmt.Sprint(i)}
			for range rapid.IntRange(1, 2).Draw(t, "blocks") {
				b := Block{CIDR: rapid.SampledFrom(somePrefixes).Draw(t, "cidr")}
				for _, p := range somePrefixes {
					if p != b.CIDR && inside(p, b.CIDR) && rapid.IntRange(0, 3).Draw(t, "except") == 0 {
						b.Except = append(b.Except, p)
					}
				}
				r.Peers = append(r.Peers, b)
			}
			rules = append(rules, r)
		}
		if err := e.SetPolicy(ref, rules); err != nil {
			t.Fatal(err)
		}
	}
}

// While prefixes come and go, at no moment is an address let in that neither the old policies nor the new ones let in,
// and at no moment one kept out that both let in.
func TestPrefixesChangeInSafeOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, k := NewEngine(), kernel{}
		s := Subject{Labels: podLabels("a", nil)}
		e.Tables(s)
		e.ClassesInForce(nil)
		would := func(a netip.Addr) bool {
			return e.Evaluate(Flow{Source: End{Identity: identity.World, Addr: a}, Destination: End{Pod: &s}, Protocol: 6, Port: 80}).Verdict == Allow
		}
		before := map[netip.Addr]bool{}
		for _, a := range someAddresses {
			before[a] = true
		}
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			// One change at a time: of two policies, one may come into force before the other, as if it had been written
			// before the other.
			change(t, e, drawRef(t))
			after := map[netip.Addr]bool{}
			for _, a := range someAddresses {
				after[a] = would(a)
			}
			check := func(when string) {
				for _, a := range someAddresses {
					if got := k.allows(a); got && !before[a] && !after[a] || !got && before[a] && after[a] {
						t.Fatalf("%s: %s allowed %t, before %t, after %t", when, a, got, before[a], after[a])
					}
				}
			}
			for again, round := true, 0; again; round++ {
				if round > 4 {
					t.Fatal("no end")
				}
				k.ingress, _ = e.Tables(s)
				check(fmt.Sprintf("tables %d", round))
				k.classes = e.Classes()
				check(fmt.Sprintf("classes %d", round))
				again = e.ClassesInForce(k.classes)
			}
			if e.Waiting() {
				t.Fatal("waits for nothing")
			}
			for _, a := range someAddresses {
				if k.allows(a) != after[a] {
					t.Fatalf("%s: %t in the end", a, !after[a])
				}
			}
			if len(e.classes.numbers) != len(e.classes.named) {
				t.Fatalf("classes that nobody names: %v", e.classes.numbers)
			}
			before = after
		}
	})
}

// Policies that changed while the agent was away: at no moment of its start is an address let in that neither the old ones
// nor the new ones let in.
func TestPrefixesThatChangedDuringARestart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Subject{Labels: podLabels("a", nil)}
		old := NewEngine()
		for range rapid.IntRange(0, 4).Draw(t, "policies") {
			change(t, old, drawRef(t))
		}
		k := kernel{classes: old.Classes()}
		k.ingress, _ = old.Tables(s)
		before := k
		e := NewEngine()
		e.ClassesInForce(k.classes)
		for ref, w := range old.policies {
			if rapid.Bool().Draw(t, "changed") {
				change(t, e, ref)
				continue
			}
			var rules []Rule
			for _, r := range w.desired {
				rules = append(rules, r.Rule)
			}
			if err := e.SetPolicy(ref, rules); err != nil {
				t.Fatal(err)
			}
		}
		would := func(a netip.Addr) bool {
			return e.Evaluate(Flow{Source: End{Identity: identity.World, Addr: a}, Destination: End{Pod: &s}, Protocol: 6, Port: 80}).Verdict == Allow
		}
		check := func() {
			for _, a := range someAddresses {
				if k.allows(a) && !before.allows(a) && !would(a) {
					t.Fatalf("%s is let in", a)
				}
			}
		}
		for again, round := true, 0; again; round++ {
			if round > 4 {
				t.Fatal("no end")
			}
			k.ingress, _ = e.Tables(s)
			check()
			k.classes = e.Classes()
			check()
			again = e.ClassesInForce(k.classes)
		}
		for _, a := range someAddresses {
			if k.allows(a) != would(a) {
				t.Fatalf("%s: %t in the end", a, k.allows(a))
			}
		}
	})
}

// A restart finds the prefixes that the kernel has, under numbers that are the same.
func TestClassesAreTheSameAfterARestart(t *testing.T) {
	a, b := NewEngine(), NewEngine()
	order := slices.Clone(somePrefixes)
	for _, e := range []*Engine{a, b} {
		for _, p := range order {
			if err := e.SetPolicy(Ref{KindNetworkPolicy, "a", fmt.Sprint(p)}, []Rule{{Verdict: Allow, Direction: Ingress, Peers: []PeerSelector{Block{CIDR: p}}, Path: "spec.ingress[0]"}}); err != nil {
				t.Fatal(err)
			}
		}
		slices.Reverse(order)
	}
	if !maps.Equal(a.Classes(), b.Classes()) {
		t.Errorf("%v\n%v", a.Classes(), b.Classes())
	}
	// What the kernel has and nobody names stays in tables until the kernel has it no more; a strange number is not ours.
	old, strange := netip.MustParsePrefix("10.1.2.0/24"), netip.MustParsePrefix("10.1.3.0/24")
	c := NewEngine()
	c.Tables(Subject{Labels: podLabels("a", nil)})
	for c.ClassesInForce(map[netip.Prefix]Peer{old: c.numberOf(old), strange: ClassBit | 1}) {
	}
	if err := c.SetPolicy(Ref{KindNetworkPolicy, "a", "p"}, []Rule{{Verdict: Allow, Direction: Ingress, AnyPort: true, Peers: []PeerSelector{Block{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}}}); err != nil {
		t.Fatal(err)
	}
	if !c.Waiting() {
		t.Fatal("a prefix that the kernel does not know is in force")
	}
	if c.ClassesInForce(map[netip.Prefix]Peer{old: c.numberOf(old), netip.MustParsePrefix("10.0.0.0/8"): c.Classes()[netip.MustParsePrefix("10.0.0.0/8")]}); c.Waiting() {
		t.Fatal("waits")
	}
	in, _ := c.Tables(Subject{Labels: podLabels("a", nil)})
	if len(in.Entries) != 2 {
		t.Errorf("%+v", in)
	}
	if !c.ClassesInForce(c.Classes()) {
		t.Error("tables did not change")
	}
	if in, _ := c.Tables(Subject{Labels: podLabels("a", nil)}); len(in.Entries) != 1 {
		t.Errorf("%+v", in)
	}
}

// numberOf is the number that a prefix would have.
func (e *Engine) numberOf(p netip.Prefix) Peer {
	c := newClasses()
	c.add(p)
	return c.numbers[p]
}

// CVE-2024-47825: a deny of a wide prefix was not heard beside an allow of a narrow one, or of everyone.
func TestDenyBeatsAllowWhateverThePrefix(t *testing.T) {
	for _, deny := range somePrefixes {
		for _, allow := range somePrefixes {
			for _, wide := range []PeerSelector{Block{CIDR: allow}, Entity(identity.World), nil} {
				e := NewEngine()
				a := Rule{Tier: Normal, Verdict: Allow, Direction: Ingress, AnyPort: true, Path: "allow"}
				if a.AnyPeer = wide == nil; !a.AnyPeer {
					a.Peers = []PeerSelector{wide}
				}
				d := Rule{Tier: Normal, Verdict: Deny, Direction: Ingress, AnyPort: true, Path: "deny", Peers: []PeerSelector{Block{CIDR: deny}}}
				if err := e.SetPolicy(Ref{"CiliumNetworkPolicy", "a", "p"}, []Rule{a, d}); err != nil {
					t.Fatal(err)
				}
				in, _ := e.Tables(Subject{Labels: podLabels("a", nil)})
				for _, addr := range someAddresses {
					got := askTable(in, e.Classes(), End{Identity: identity.World, Addr: addr}, 6, 80)
					if deny.Contains(addr) && got.Verdict != Deny {
						t.Errorf("deny %s, allow %v: %s is let in", deny, wide, addr)
					}
				}
			}
		}
	}
}

// CVE-2026-25804: a priority too large turned the order of rules around. Order at every border is that of the numbers,
// and what does not fit is refused.
func TestPrioritiesAtTheirBounds(t *testing.T) {
	rule := func(tier Tier, priority int64, v Verdict) Rule {
		return Rule{Tier: tier, Priority: priority, Verdict: v, Direction: Ingress, AnyPeer: true, AnyPort: true, Path: fmt.Sprint(tier, priority, v)}
	}
	var ordered []Rule
	for _, tier := range []Tier{Admin, Normal, Baseline} {
		for _, p := range []int64{0, 1, 2, 1<<15 - 1, 1 << 15, 1<<16 - 1, 1 << 16, 1<<24 - 1, 1 << 24, MaxPriority - 1, MaxPriority} {
			ordered = append(ordered, rule(tier, p, Deny), rule(tier, p, Pass), rule(tier, p, Allow))
		}
	}
	for i := range ordered[1:] {
		if ordered[i].precedence() >= ordered[i+1].precedence() {
			t.Errorf("%s does not stand before %s", ordered[i].Path, ordered[i+1].Path)
		}
	}
	for _, p := range []int64{-1, MaxPriority + 1, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, -1 << 63} {
		e := NewEngine()
		if err := e.SetPolicy(Ref{"K", "", "n"}, []Rule{rule(Admin, 0, Deny), rule(Admin, p, Allow)}); !errors.Is(err, ErrBadRule) {
			t.Errorf("priority %d: %v", p, err)
		}
		if in, _ := e.Tables(Subject{Labels: podLabels("a", nil)}); in != nil {
			t.Error("a half of a policy was taken")
		}
	}
}

// CVE-2024-7598: policies of a namespace that is being deleted went before its pods. The engine holds a policy until it
// is told to drop it, whatever becomes of the identities meanwhile.
func TestPoliciesStayUntilTheyAreDropped(t *testing.T) {
	e := NewEngine()
	np := parse(t, `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`)
	rules, _, err := FromNetworkPolicy(np)
	if err != nil || e.SetPolicy(RefOf(np), rules) != nil {
		t.Fatal(err)
	}
	s := Subject{Labels: podLabels("shop", nil)}
	e.SetIdentity(300, s.Labels, nil)
	with, _ := e.Tables(s)
	e.DeleteIdentity(300)
	without, _ := e.Tables(s)
	if len(with.Entries) != 1 || without == nil || len(without.Entries) != 0 || without.Default != with.Default {
		t.Errorf("%+v, then %+v", with, without)
	}
	e.DeletePolicy(RefOf(np))
	if in, _ := e.Tables(s); in != nil {
		t.Errorf("%+v", in)
	}
	if p, ok := e.Provenance(with.Default); !ok || !p.Default || p.Origins[0].Ref != RefOf(np) {
		t.Errorf("a drop that is a minute old has no name: %+v", p)
	}
}

// During a rollout one identity has pods that serve a name on different ports.
func TestANameOnTwoPorts(t *testing.T) {
	e := NewEngine()
	np := parse(t, `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]}`)
	rules, _, err := FromNetworkPolicy(np)
	if err != nil || e.SetPolicy(RefOf(np), rules) != nil {
		t.Fatal(err)
	}
	s := Subject{Labels: podLabels("shop", nil)}
	for _, ports := range [][]uint16{{80}, {80, 8080}, {8080}, {}} {
		var named []NamedPort
		for _, p := range ports {
			named = append(named, NamedPort{"http", 6, p}, NamedPort{"http", 17, 1}, NamedPort{"other", 6, 2})
		}
		e.SetIdentity(300, podLabels("shop", nil), named)
		_, out := e.Tables(s)
		want := []Key{}
		for _, p := range ports {
			want = append(want, Key{Peer: 300, Protocol: 6, Bits: 16, Port: p})
		}
		if got := out.Keys(); !slices.Equal(got, want) {
			t.Errorf("%v: %v", ports, got)
		}
	}
	// On ingress the name is the pod's own.
	np = parse(t, `{podSelector: {}, ingress: [{ports: [{port: http}]}]}`)
	rules, _, err = FromNetworkPolicy(np)
	if err != nil || e.SetPolicy(RefOf(np), rules) != nil {
		t.Fatal(err)
	}
	in, _ := e.Tables(Subject{Labels: s.Labels, Ports: []NamedPort{{"http", 6, 8080}}})
	if got := in.Keys(); !slices.Equal(got, []Key{{Peer: Anyone, Protocol: 6, Bits: 16, Port: 8080}}) {
		t.Errorf("%v", got)
	}
}

// Rules have the same number on every node, and each a different one.
func TestRuleNumbers(t *testing.T) {
	seen := map[RuleID]string{}
	names := newRegistry()
	for i := range 3000 {
		p := Provenance{Verdict: Allow, Direction: Direction(i % 2), Origins: []Origin{{Ref{KindNetworkPolicy, "ns", fmt.Sprint("p", i/20)}, fmt.Sprint("spec.ingress[", i%20, "]")}}}
		other := newRegistry()
		id := names.name(p)
		if id == 0 || seen[id] != "" || other.name(p) != id || names.name(p) != id {
			t.Fatalf("%+v: %d, %s", p, id, seen[id])
		}
		seen[id] = fmt.Sprint(p)
	}
	// The order in which origins are found does not matter.
	a, b := Origin{Ref: Ref{Name: "a"}}, Origin{Ref: Ref{Name: "b"}}
	if names.name(Provenance{Default: true, Origins: []Origin{a, b, a}}) != names.name(Provenance{Default: true, Origins: []Origin{b, a}}) {
		t.Error("origins are counted in their order")
	}
	// Names are kept for a while, and not for ever.
	first := names.name(Provenance{Verdict: Deny, Origins: []Origin{a}})
	for i := range 3 * rememberedRules {
		names.name(Provenance{Verdict: Deny, Origins: []Origin{{Path: fmt.Sprint(i)}}})
		names.sweep(func(mark func(RuleID)) { mark(first) })
	}
	if _, ok := names.byID[first]; !ok || len(names.byID) > 3*rememberedRules {
		t.Errorf("%d names, the first kept: %t", len(names.byID), ok)
	}
}

// Port ranges become prefixes that say the same.
func TestRangesBecomePrefixes(t *testing.T) {
	for _, c := range []struct {
		first, last uint16
		cells       int
	}{{0, 65535, 1}, {80, 80, 1}, {1, 65535, 16}, {0, 65534, 16}, {1, 65534, 30}, {1024, 65535, 6}, {8000, 8080, 3}, {32767, 32768, 2}} {
		r := &rule{Rule: Rule{Verdict: Allow}}
		cells := flatten([]claim{{rule: r, ranges: []PortSelector{{Protocol: 6, First: c.first, Last: c.last}}}})
		if len(cells) != c.cells {
			t.Errorf("%d-%d: %d cells", c.first, c.last, len(cells))
		}
		table := &Table{Entries: map[Key]Entry{}, Default: 1}
		(&tier{}).put(table.Entries, Anyone, cells)
		for port := range 65536 {
			if got := table.Lookup([]Peer{Anyone}, 6, uint16(port)).Verdict == Allow; got != (port >= int(c.first) && port <= int(c.last)) {
				t.Fatalf("%d-%d: port %d allowed %t", c.first, c.last, port, got)
			}
		}
	}
}
