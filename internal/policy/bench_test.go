// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// manyPolicies is an engine of n identities and n policies: ten applications a namespace, a policy for each pod of
// another one, and one that lets the pods of the namespace in.
func manyPolicies(tb testing.TB, n int) (*Engine, []Subject) {
	e := NewEngine()
	var subjects []Subject
	for i := range n {
		l := podLabels(fmt.Sprint("ns", i/10), map[string]string{"app": fmt.Sprint("app", i%10), "version": fmt.Sprint("v", i%3), "team": fmt.Sprint("t", i%7)})
		e.SetIdentity(identity.Min+identity.Number(i), l, []NamedPort{{"http", 6, 8080}})
		subjects = append(subjects, Subject{Labels: l})
		own := PodSelector{Namespace: fmt.Sprint("ns", i/10)}
		app := PodSelector{Namespace: own.Namespace, Labels: []Requirement{{"app", In, []string{fmt.Sprint("app", i%10)}}}}
		if err := e.SetPolicy(Ref{KindNetworkPolicy, own.Namespace, fmt.Sprint("p", i)}, []Rule{
			{Tier: Normal, Isolates: true, Subject: app, Direction: Ingress},
			{Tier: Normal, Verdict: Allow, Subject: app, Direction: Ingress, Peers: []PeerSelector{&own}, Ports: []PortSelector{{Protocol: 6, First: 8080, Last: 8080}}, Path: "spec.ingress[0]"},
			{Tier: Normal, Verdict: Allow, Subject: app, Direction: Ingress, Peers: []PeerSelector{&PodSelector{NamespaceLabels: []Requirement{{"team", Exists, nil}}}}, AnyPort: true, Path: "spec.ingress[1]"},
		}); err != nil {
			tb.Fatal(err)
		}
	}
	return e, subjects[:min(n, 100)]
}

// One more identity, among a thousand and a thousand policies, in the tables of a hundred different pods.
func BenchmarkOneMoreIdentity(b *testing.B) {
	e, subjects := manyPolicies(b, 1000)
	for _, s := range subjects {
		e.Tables(s)
	}
	l := podLabels("ns3", map[string]string{"app": "new"})
	for b.Loop() {
		e.SetIdentity(5000, l, nil)
		for _, s := range subjects {
			e.Tables(s)
		}
		e.DeleteIdentity(5000)
		for _, s := range subjects {
			e.Tables(s)
		}
	}
}

// One policy applied that selects one pod of a hundred.
func BenchmarkOnePolicyChanged(b *testing.B) {
	e, subjects := manyPolicies(b, 1000)
	app := PodSelector{Namespace: "ns3", Labels: []Requirement{{"app", In, []string{"app3"}}}}
	ref := Ref{KindNetworkPolicy, "ns3", "one"}
	for b.Loop() {
		if err := e.SetPolicy(ref, []Rule{{Tier: Normal, Verdict: Allow, Subject: app, Direction: Ingress, AnyPeer: true, AnyPort: true}}); err != nil {
			b.Fatal(err)
		}
		for _, s := range subjects {
			e.Tables(s)
		}
		e.DeletePolicy(ref)
	}
}

// A hundred pods of equal labels whose tables are there already.
func BenchmarkTablesOfEqualPods(b *testing.B) {
	e, subjects := manyPolicies(b, 1000)
	for b.Loop() {
		for range 100 {
			e.Tables(subjects[0])
		}
	}
}

// Everything from nothing, as at the start of an agent.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		e, subjects := manyPolicies(b, 1000)
		for _, s := range subjects {
			e.Tables(s)
		}
	}
}

func BenchmarkExplain(b *testing.B) {
	e, subjects := manyPolicies(b, 1000)
	f := Flow{Source: End{Pod: &subjects[0]}, Destination: End{Pod: &subjects[50]}, Protocol: 6, Port: 80}
	for b.Loop() {
		e.Explain(f)
	}
}

// A hundred pods of equal labels share one table, and so do pods that differ in what no policy asks for.
func TestEqualPodsShareTables(t *testing.T) {
	e, subjects := manyPolicies(t, 20)
	first, _ := e.Tables(subjects[0])
	if first == nil {
		t.Fatal("no table")
	}
	other := podLabels("ns0", map[string]string{"app": "app0", "color": "green"})
	for range 100 {
		if in, _ := e.Tables(Subject{Labels: other}); in != first {
			t.Fatal("another table for the same rules")
		}
	}
	if len(e.states) != 1 {
		t.Errorf("%d states", len(e.states))
	}
	// What goes and comes back is the same table, as long as somebody holds it.
	e.SetIdentity(5000, podLabels("ns0", nil), nil)
	if in, _ := e.Tables(subjects[0]); in == first || len(in.Entries) == len(first.Entries) {
		t.Error("the identity is not in the table")
	}
	e.DeleteIdentity(5000)
	if in, _ := e.Tables(subjects[0]); in != first {
		t.Error("the same content has another pointer")
	}
}

// One table of ten thousand prefixes is made in the time of an agent's turn, not in that of a square.
func TestManyPrefixes(t *testing.T) {
	e := NewEngine()
	var peers []PeerSelector
	for i := range 10000 {
		peers = append(peers, Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)})
	}
	start := time.Now()
	if err := e.SetPolicy(Ref{KindNetworkPolicy, "a", "p"}, []Rule{{Tier: Normal, Verdict: Allow, Direction: Ingress, AnyPort: true, Peers: peers, Path: "spec.ingress[0]"}}); err != nil {
		t.Fatal(err)
	}
	in, _ := e.Tables(Subject{Labels: podLabels("a", nil)})
	t.Logf("%d entries in %s", len(in.Entries), time.Since(start))
	if len(in.Entries) != 10000 {
		t.Errorf("%d entries", len(in.Entries))
	}
}

// manyExcepts is an ipBlock with n exceptions, of several lengths, some prefixes around them, and as many as a quarter
// beside them.
func manyExcepts(n int) []PeerSelector {
	b := Block{CIDR: netip.MustParsePrefix("10.0.0.0/8")}
	for i := range n {
		b.Except = append(b.Except, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 14), byte(i >> 6), byte(i << 2)}), 30+i%3))
	}
	peers := []PeerSelector{b, Block{CIDR: netip.MustParsePrefix("10.1.0.0/16")}, Block{CIDR: netip.MustParsePrefix("2001:db8::/32")}}
	for i := range n / 4 {
		peers = append(peers, Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}), 32)})
	}
	return peers
}

// withExcepts brings a policy of n exceptions into force, in the order in which an agent writes, and says how many
// prefixes it has.
func withExcepts(tb testing.TB, n int) int {
	e, s := NewEngine(), Subject{Labels: podLabels("a", nil)}
	if err := e.SetPolicy(Ref{KindNetworkPolicy, "a", "around"}, []Rule{{Tier: Normal, Verdict: Allow, Direction: Ingress, AnyPort: true, Path: "spec.ingress[0]",
		Peers: []PeerSelector{Block{CIDR: netip.MustParsePrefix("0.0.0.0/0")}}}}); err != nil {
		tb.Fatal(err)
	}
	settle := func() {
		for again := true; again; again = e.ClassesInForce(e.Classes()) {
			e.Tables(s)
		}
	}
	settle()
	if err := e.SetPolicy(Ref{KindNetworkPolicy, "a", "p"}, []Rule{{Tier: Normal, Verdict: Allow, Direction: Ingress, AnyPort: true, Peers: manyExcepts(n), Path: "spec.ingress[0]"}}); err != nil {
		tb.Fatal(err)
	}
	settle()
	if e.Waiting() {
		tb.Fatal("waits")
	}
	return len(e.Classes())
}

// A policy of 20,000 exceptions, from nothing to in force.
func BenchmarkManyExcepts(b *testing.B) {
	for b.Loop() {
		withExcepts(b, 20000)
	}
}

// manyRules are policies of n rules for one pod, each rule with an address of its own.
func manyRules(policies, n int) map[Ref][]Rule {
	out := map[Ref][]Rule{}
	for p := range policies {
		var rules []Rule
		for r := range n {
			at := p*n + r
			rules = append(rules, Rule{Tier: Normal, Verdict: Allow, Isolates: true, Direction: Ingress, AnyPort: true, Path: fmt.Sprintf("spec.ingress[%d]", r),
				Subject: PodSelector{Namespace: "a"}, Peers: []PeerSelector{Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(at >> 8), byte(at)}), 32)}}})
		}
		out[Ref{KindNetworkPolicy, "a", fmt.Sprint("p", p)}] = rules
	}
	return out
}

// Ten policies of a thousand rules, from nothing to in force for the node's first pod: it comes before them, between
// them, or after them.
func BenchmarkManyRules(b *testing.B) {
	for _, pod := range []string{"first", "between", "last"} {
		b.Run("pod "+pod, func(b *testing.B) {
			for b.Loop() {
				e, s, n := NewEngine(), Subject{Labels: podLabels("a", nil)}, 0
				e.Retain(nil)
				comes := func(when string) {
					if pod == when {
						e.Tables(s)
					}
				}
				settle := func() {
					for again := true; again; again = e.ClassesInForce(e.Classes()) {
						if pod == "first" || pod == "between" && n > 5 || n > 10 {
							e.Tables(s)
						}
					}
				}
				settle()
				comes("first")
				for ref, rules := range manyRules(10, 1000) {
					if err := e.SetPolicy(ref, rules); err != nil {
						b.Fatal(err)
					}
					if n++; n == 5 {
						comes("between")
					}
					settle()
				}
				comes("last")
				n++
				settle()
				if in, _ := e.Tables(s); len(in.Entries) != 10000 || e.Waiting() || e.Early() {
					b.Fatalf("%d entries, waits %t, early %t", len(in.Entries), e.Waiting(), e.Early())
				}
			}
		})
	}
}
