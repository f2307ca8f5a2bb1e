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

func blockPolicy(app string, cidr string, except ...string) []Rule {
	own := PodSelector{Namespace: "a", Labels: []Requirement{{"app", In, []string{app}}}}
	b := Block{CIDR: netip.MustParsePrefix(cidr)}
	for _, x := range except {
		b.Except = append(b.Except, netip.MustParsePrefix(x))
	}
	return []Rule{
		{Tier: Normal, Isolates: true, Subject: own, Direction: Ingress},
		{Tier: Normal, Verdict: Allow, Subject: own, Direction: Ingress, AnyPort: true, Peers: []PeerSelector{b}, Path: "spec.ingress[0]"},
	}
}

func anApp(app string) Subject { return Subject{Labels: podLabels("a", map[string]string{"app": app})} }

func set(t *testing.T, e *Engine, name string, rules []Rule) {
	t.Helper()
	if err := e.SetPolicy(Ref{KindNetworkPolicy, "a", name}, rules); err != nil {
		t.Fatal(err)
	}
}

// write is what an agent does for its pods.
func write(t interface{ Fatal(...any) }, e *Engine, subjects ...Subject) map[netip.Prefix]Peer {
	for range 8 {
		for _, s := range subjects {
			e.Tables(s)
		}
		classes := e.Classes()
		if !e.ClassesInForce(classes) {
			return classes
		}
	}
	t.Fatal("no end")
	return nil
}

func prefixesIn(classes map[netip.Prefix]Peer) string {
	return fmt.Sprint(slices.SortedFunc(maps.Keys(classes), comparePrefixes))
}

// Only prefixes of policies that select a pod of the node are classes there.
func TestPrefixesOfPoliciesThatSelectNobodyAreNoClasses(t *testing.T) {
	e := NewEngine()
	e.Retain(nil)
	set(t, e, "web", blockPolicy("web", "10.0.0.0/8", "10.1.0.0/16"))
	set(t, e, "db", blockPolicy("db", "192.0.2.0/24", "192.0.2.7/32"))
	web, db := anApp("web"), anApp("db")
	if got := prefixesIn(write(t, e)); got != "[]" {
		t.Errorf("without pods: %s", got)
	}
	in, _ := e.Tables(web)
	if in == nil || in.Default == 0 || !e.Early() {
		t.Errorf("a first pod, before the kernel knows the prefixes: %+v, early %t", in, e.Early())
	}
	if got := prefixesIn(write(t, e, web)); got != "[10.0.0.0/8 10.1.0.0/16]" {
		t.Errorf("with a pod of one: %s", got)
	}
	if in, _ = e.Tables(web); len(in.Entries) != 1 || e.Early() || e.Waiting() {
		t.Errorf("%+v, waiting %t", in, e.Waiting())
	}
	e.Retain([]Subject{web, db})
	if got := prefixesIn(write(t, e, web, db)); got != "[10.0.0.0/8 10.1.0.0/16 192.0.2.0/24 192.0.2.7/32]" {
		t.Errorf("with a pod of each: %s", got)
	}
	e.Retain([]Subject{db})
	if got := prefixesIn(write(t, e, db)); got != "[192.0.2.0/24 192.0.2.7/32]" {
		t.Errorf("when the first is gone: %s", got)
	}
	// What is asked nevertheless is answered.
	if again, _ := e.Tables(web); again == nil || again.Default != in.Default {
		t.Errorf("%+v", again)
	}
}

// A policy too large for the node stops nobody else, and lets nobody in.
func TestPolicyThatDoesNotFit(t *testing.T) {
	e := NewEngine()
	e.SetLimits(Limits{Prefixes: 20, Singles: 100, Ranges: 50})
	web, db := anApp("web"), anApp("db")
	e.Retain([]Subject{web, db})
	large := func(first, n int) []Rule {
		rules := blockPolicy("web", "10.0.0.0/8")
		b := rules[1].Peers[0].(Block)
		for i := range n {
			b.Except = append(b.Except, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(first + i), 0, 0}), 16))
		}
		rules[1].Peers[0] = b
		return rules
	}
	left := func(name string, before bool) {
		t.Helper()
		got := e.LeftOut()
		why, ok := got[Ref{KindNetworkPolicy, "a", name}]
		if len(got) != 1 || !ok || !errors.Is(why.Err, ErrNoRoom) || why.Before != before {
			t.Fatalf("left out: %v", got)
		}
		if e.Waiting() {
			t.Fatal("everybody waits for what does not fit")
		}
	}
	set(t, e, "other", blockPolicy("db", "192.0.2.0/24", "192.0.2.7/32"))
	write(t, e, web, db)
	// Never in force: it isolates, and allows nothing.
	set(t, e, "large", large(0, 9))
	write(t, e, web, db)
	left("large", false)
	in, out := e.Tables(web)
	if in == nil || in.Default == 0 || len(in.Entries) > 0 || out != nil {
		t.Errorf("ingress %+v, egress %+v", in, out)
	}
	if p, _ := e.Provenance(in.Default); len(p.Origins) != 1 || p.Origins[0].Name != "large" {
		t.Errorf("%+v", p)
	}
	// Others go on.
	set(t, e, "other", blockPolicy("db", "198.51.100.0/24", "198.51.100.7/32"))
	set(t, e, "another", blockPolicy("web", "203.0.113.0/24"))
	write(t, e, web, db)
	left("large", false)
	if in, _ := e.Tables(web); len(in.Entries) != 1 {
		t.Errorf("%+v", in)
	}
	if in, _ := e.Tables(db); len(in.Entries) != 1 {
		t.Errorf("%+v", in)
	}
	// A version that fits comes into force, and stays when the next does not.
	set(t, e, "large", large(0, 5))
	write(t, e, web, db)
	if got := e.LeftOut(); len(got) > 0 {
		t.Fatal(got)
	}
	fits, _ := e.Tables(web)
	set(t, e, "large", large(50, 9))
	if len(write(t, e, web, db)) != 2+1+6 {
		t.Errorf("%v", e.Classes())
	}
	left("large", true)
	if in, _ := e.Tables(web); in != fits {
		t.Errorf("%+v after %+v", in, fits)
	}
	// Its room comes from what goes.
	e.DeletePolicy(Ref{KindNetworkPolicy, "a", "other"})
	e.DeletePolicy(Ref{KindNetworkPolicy, "a", "another"})
	set(t, e, "large", large(50, 6))
	write(t, e, web, db)
	if got := e.LeftOut(); len(got) > 0 {
		t.Fatal(got)
	}
	// So large a table that it is not made at all.
	rules := large(0, 0)
	rules[1].AnyPort = false
	for i := range 51 {
		rules[1].Ports = append(rules[1].Ports, PortSelector{Protocol: 6, First: uint16(10 + 2*i), Last: uint16(10 + 2*i)})
	}
	set(t, e, "large", rules)
	write(t, e, web, db)
	left("large", true)
	rules = large(0, 0)
	rules[1].AnyPort = false
	rules[1].Ports = []PortSelector{{Protocol: 6, First: 1, Last: 65534}}
	set(t, e, "large", rules)
	write(t, e, web, db)
	left("large", true)
	// Nothing of it is left when it is gone.
	e.DeletePolicy(Ref{KindNetworkPolicy, "a", "large"})
	if got := write(t, e, web, db); len(got) > 0 || len(e.LeftOut()) > 0 || len(e.classes.numbers) > 0 {
		t.Errorf("%v, %v", got, e.LeftOut())
	}
}

// A policy that denies, and does not fit, denies everything: others do not let in what it forbids.
func TestDenyThatDoesNotFit(t *testing.T) {
	e := NewEngine()
	e.SetLimits(Limits{Prefixes: 3})
	web := anApp("web")
	e.Retain([]Subject{web})
	set(t, e, "all", []Rule{{Tier: Normal, Verdict: Allow, Direction: Ingress, AnyPeer: true, AnyPort: true, Path: "spec.ingress[0]"}})
	deny := blockPolicy("web", "10.0.0.0/8", "10.1.0.0/16")[1:]
	deny[0].Verdict = Deny
	set(t, e, "deny", deny)
	write(t, e, web)
	in, _ := e.Tables(web)
	if got := in.Lookup([]Peer{identityWorld, Anyone}, 6, 80); got.Verdict != Deny {
		t.Errorf("%+v: %+v", in, got)
	}
}

const identityWorld = Peer(identity.World)

// A table of more entries than there can be is not made, and is when it is smaller.
func TestTableThatOverflows(t *testing.T) {
	e := NewEngine()
	e.SetLimits(Limits{Singles: 10})
	web := anApp("web")
	all := PodSelector{Namespace: "a"}
	set(t, e, "p", []Rule{{Tier: Normal, Isolates: true, Subject: all, Direction: Ingress}, {Tier: Normal, Verdict: Allow, Subject: all, Direction: Ingress, Peers: []PeerSelector{&all}, AnyPort: true, Path: "spec.ingress[0]"}})
	for i := range 30 {
		n := i
		if i >= 15 {
			n = 29 - i
			e.DeleteIdentity(identity.Min + identity.Number(n))
		} else {
			e.SetIdentity(identity.Min+identity.Number(n), podLabels("a", nil), nil)
			n++
		}
		in, _ := e.Tables(web)
		if in.Overflows != (n > 10) || !in.Overflows && len(in.Entries) != n || in.Overflows && len(in.Entries) > 0 || in.Default == 0 {
			t.Fatalf("%d identities: %d entries, overflows %t", n, len(in.Entries), in.Overflows)
		}
	}
}

// Pods come, go and are relabelled while policies change and some do not fit: at no moment is an address let in that
// the kernel did not let in before the change and that neither the policies as written let in nor those in force.
func TestNobodyIsLetInWhilePodsComeAndPoliciesDoNotFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, k := NewEngine(), kernel{}
		limit := rapid.SampledFrom([]int{0, 4, 8, 100}).Draw(t, "limit")
		e.SetLimits(Limits{Prefixes: limit})
		apps := []string{"web", "db"}
		s := anApp("web")
		e.Retain([]Subject{s})
		e.ClassesInForce(nil)
		k.ingress, _ = e.Tables(s)
		good := NewEngine() // the policies that are in force
		would := func(e *Engine, a netip.Addr) bool {
			return e.Evaluate(Flow{Source: End{Identity: identity.World, Addr: a}, Destination: End{Pod: &s}, Protocol: 6, Port: 80}).Verdict == Allow
		}
		for range rapid.IntRange(1, 8).Draw(t, "changes") {
			before := map[netip.Addr]bool{}
			for _, a := range someAddresses {
				before[a] = k.allows(a)
			}
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0: // the pod is another: labelled anew, or new under the same number, and closed
				s = anApp(rapid.SampledFrom(apps).Draw(t, "app"))
				if rapid.Bool().Draw(t, "new") {
					clear(before)
					k.ingress = &Table{Default: 1}
				}
				if rapid.Bool().Draw(t, "told") {
					e.Retain([]Subject{s})
				}
			default:
				ref := drawRef(t)
				if rapid.IntRange(0, 4).Draw(t, "delete") == 0 {
					e.DeletePolicy(ref)
					break
				}
				rules := blockPolicy(rapid.SampledFrom(apps).Draw(t, "of"), "0.0.0.0/0")
				b := Block{CIDR: rapid.SampledFrom(somePrefixes).Draw(t, "cidr")}
				for _, p := range somePrefixes {
					if p != b.CIDR && inside(p, b.CIDR) && rapid.Bool().Draw(t, "except") {
						b.Except = append(b.Except, p)
					}
				}
				rules[1].Peers = []PeerSelector{b}
				if err := e.SetPolicy(ref, rules); err != nil {
					t.Fatal(err)
				}
			}
			check := func(when string) {
				for _, a := range someAddresses {
					if k.allows(a) && !before[a] && !would(e, a) && !would(good, a) {
						t.Fatalf("%s: %s is let in", when, a)
					}
				}
			}
			for again, round := true, 0; again; round++ {
				if round > 6 {
					t.Fatal("no end")
				}
				k.ingress, _ = e.Tables(s)
				check(fmt.Sprintf("tables %d", round))
				wanted := e.Classes()
				k.classes = maps.Clone(k.classes)
				if k.classes == nil {
					k.classes = map[netip.Prefix]Peer{}
				}
				maps.Copy(k.classes, wanted)
				if limit > 0 && len(k.classes) > limit {
					t.Fatalf("%d classes do not fit", len(k.classes))
				}
				check(fmt.Sprintf("more classes %d", round))
				k.classes = wanted
				check(fmt.Sprintf("classes %d", round))
				again = e.ClassesInForce(k.classes)
			}
			if e.Waiting() || e.Early() {
				t.Fatal("waits for nothing")
			}
			if len(e.classes.numbers) != len(e.classes.named) {
				t.Fatalf("classes that nobody names: %v", e.classes.numbers)
			}
			left := e.LeftOut()
			if limit == 0 && len(left) > 0 {
				t.Fatalf("left out: %v", left)
			}
			good.policies = map[Ref]*written{}
			for ref, w := range e.policies {
				rules := w.desired
				if _, out := left[ref]; out {
					rules = w.active
				}
				good.policies[ref] = &written{desired: rules}
			}
			for _, a := range someAddresses {
				if k.allows(a) != would(good, a) {
					t.Fatalf("%s: %t in the end", a, k.allows(a))
				}
			}
		}
	})
}
