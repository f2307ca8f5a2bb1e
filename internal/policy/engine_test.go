// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// world is a small cluster in which much collides: few namespaces, labels, ports and prefixes.
type world struct {
	policies map[Ref][]Rule
	idents   map[identity.Number]ident
}

var (
	someNamespaces = []string{"a", "b", "c"}
	someValues     = []string{"x", "y"}
	someKeys       = []string{"app", "tier", "pod-template-hash"}
	somePrefixes   = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"),
		netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("10.1.1.7/32"), netip.MustParsePrefix("10.2.0.0/16"),
		netip.MustParsePrefix("::/0"), netip.MustParsePrefix("fd00::/16"), netip.MustParsePrefix("fd00:1::/32"),
	}
	someAddresses = []netip.Addr{
		netip.MustParseAddr("10.1.1.7"), netip.MustParseAddr("10.1.1.8"), netip.MustParseAddr("10.1.9.9"), netip.MustParseAddr("10.2.0.1"),
		netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("fd00:2::1"),
		netip.MustParseAddr("2001:db8::1"),
	}
	somePorts = []uint16{0, 1, 53, 79, 80, 81, 443, 8079, 8080, 8081, 32767, 32768, 65535}
	someNames = []string{"web", "dns"}
)

func podLabels(namespace string, labels map[string]string) identity.Labels {
	l, err := identity.ForPod(identity.Workload{Namespace: namespace, Labels: labels, NamespaceLabels: map[string]string{"team": "t" + namespace, "kubernetes.io/metadata.name": namespace}}, identity.DefaultFilter())
	if err != nil {
		panic(err)
	}
	return l
}

func drawLabels(t *rapid.T) map[string]string {
	return rapid.MapOfN(rapid.SampledFrom(someKeys[:2]), rapid.SampledFrom(someValues), 0, 2).Draw(t, "labels")
}

func drawNamed(t *rapid.T) []NamedPort {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) NamedPort {
		return NamedPort{rapid.SampledFrom(someNames).Draw(t, "name"), rapid.SampledFrom([]uint8{6, 17}).Draw(t, "protocol"), rapid.SampledFrom(somePorts[1:]).Draw(t, "port")}
	}), 0, 3).Draw(t, "named")
}

func drawSubject(t *rapid.T) Subject {
	return Subject{Labels: podLabels(rapid.SampledFrom(someNamespaces).Draw(t, "namespace"), drawLabels(t)), Ports: drawNamed(t)}
}

func drawRequirement(t *rapid.T, keys []string) Requirement {
	r := Requirement{Key: rapid.SampledFrom(keys).Draw(t, "key"), Operator: rapid.SampledFrom([]Operator{In, In, In, NotIn, Exists, DoesNotExist}).Draw(t, "operator")}
	if r.Operator == In || r.Operator == NotIn {
		r.Values = rapid.SliceOfNDistinct(rapid.SampledFrom(append(someValues, "ta", "tb")), 1, 2, rapid.ID[string]).Draw(t, "values")
		slices.Sort(r.Values)
	}
	return r
}

func drawPods(t *rapid.T) *PodSelector {
	s := &PodSelector{}
	if rapid.Bool().Draw(t, "own") {
		s.Namespace = rapid.SampledFrom(someNamespaces).Draw(t, "namespace")
	} else {
		for range rapid.IntRange(0, 1).Draw(t, "n") {
			s.NamespaceLabels = append(s.NamespaceLabels, drawRequirement(t, []string{"team", "kubernetes.io/metadata.name"}))
		}
	}
	for range rapid.IntRange(0, 2).Draw(t, "n") {
		s.Labels = append(s.Labels, drawRequirement(t, someKeys))
	}
	return s
}

func drawPeer(t *rapid.T) PeerSelector {
	switch rapid.IntRange(0, 5).Draw(t, "peer") {
	case 0:
		return Entity(rapid.SampledFrom([]identity.Number{identity.Host, identity.World, identity.RemoteNode}).Draw(t, "entity"))
	case 1, 2:
		b := Block{CIDR: rapid.SampledFrom(somePrefixes).Draw(t, "cidr")}
		for _, p := range somePrefixes {
			if p != b.CIDR && inside(p, b.CIDR) && rapid.IntRange(0, 3).Draw(t, "except") == 0 {
				b.Except = append(b.Except, p)
			}
		}
		return b
	}
	return drawPods(t)
}

func drawPort(t *rapid.T) PortSelector {
	p := PortSelector{Protocol: rapid.SampledFrom([]uint8{6, 6, 17, 132}).Draw(t, "protocol")}
	switch rapid.IntRange(0, 4).Draw(t, "ports") {
	case 0:
		p.Last = 65535
	case 1:
		p.Name = rapid.SampledFrom(someNames).Draw(t, "name")
	case 2:
		p.First = rapid.SampledFrom(somePorts[1:]).Draw(t, "port")
		p.Last = p.First
	default:
		a, b := rapid.SampledFrom(somePorts).Draw(t, "first"), rapid.SampledFrom(somePorts).Draw(t, "last")
		p.First, p.Last = min(a, b), max(a, b)
	}
	return p
}

// drawRules: plain ones are such as NetworkPolicy makes.
func drawRules(t *rapid.T, plain bool) []Rule {
	var out []Rule
	for i := range rapid.IntRange(0, 3).Draw(t, "rules") {
		r := Rule{Tier: Normal, Verdict: Allow, Subject: *drawPods(t), Direction: rapid.SampledFrom([]Direction{Ingress, Egress}).Draw(t, "direction"), Path: fmt.Sprint(i)}
		if !plain {
			r.Tier = rapid.SampledFrom([]Tier{Admin, Normal, Baseline}).Draw(t, "tier")
			r.Priority = rapid.SampledFrom([]int64{0, 1, MaxPriority}).Draw(t, "priority")
			r.Verdict = rapid.SampledFrom([]Verdict{Allow, Deny, Pass, Audit}).Draw(t, "verdict")
		}
		r.Isolates = rapid.IntRange(0, 2).Draw(t, "isolates") == 0
		if r.AnyPeer = rapid.IntRange(0, 3).Draw(t, "anyone") == 0; !r.AnyPeer {
			r.Peers = rapid.SliceOfN(rapid.Custom(drawPeer), 0, 3).Draw(t, "peers")
		}
		if r.AnyPort = rapid.IntRange(0, 2).Draw(t, "anyport") == 0; !r.AnyPort {
			r.Ports = rapid.SliceOfN(rapid.Custom(drawPort), 0, 4).Draw(t, "ports")
		}
		out = append(out, r)
	}
	return out
}

func drawRef(t *rapid.T) Ref {
	return Ref{"NetworkPolicy", "a", rapid.SampledFrom([]string{"p", "q", "r", "s"}).Draw(t, "policy")}
}

// change draws one change and tells the engine.
func (w *world) change(t *rapid.T, e *Engine, plain bool) {
	switch rapid.IntRange(0, 5).Draw(t, "change") {
	case 0, 1, 2:
		ref := drawRef(t)
		w.policies[ref] = drawRules(t, plain)
		if err := e.SetPolicy(ref, w.policies[ref]); err != nil {
			t.Fatal(err)
		}
	case 3:
		ref := drawRef(t)
		delete(w.policies, ref)
		e.DeletePolicy(ref)
	case 4:
		n := identity.Min + identity.Number(rapid.IntRange(0, 4).Draw(t, "identity"))
		i := ident{podLabels(rapid.SampledFrom(someNamespaces).Draw(t, "namespace"), drawLabels(t)), drawNamed(t)}
		w.idents[n] = i
		e.SetIdentity(n, i.labels, i.ports)
	case 5:
		n := identity.Min + identity.Number(rapid.IntRange(0, 4).Draw(t, "identity"))
		delete(w.idents, n)
		e.DeleteIdentity(n)
	}
}

// fresh makes an engine of the world as it is, told in some order.
func (w *world) fresh(t *rapid.T) *Engine {
	e := NewEngine()
	steps := []func(){}
	for ref, rules := range w.policies {
		steps = append(steps, func() {
			if err := e.SetPolicy(ref, rules); err != nil {
				t.Fatal(err)
			}
		})
	}
	for n, i := range w.idents {
		steps = append(steps, func() { e.SetIdentity(n, i.labels, i.ports) })
	}
	for _, s := range steps { // the order of maps is another one each time
		s()
	}
	return e
}

func longest(classes map[netip.Prefix]Peer, a netip.Addr) (Peer, bool) {
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, _ := a.Prefix(bits)
		if c, ok := classes[p]; ok {
			return c, true
		}
	}
	return 0, false
}

// askTable answers as the kernel would.
func askTable(t *Table, classes map[netip.Prefix]Peer, other End, protocol uint8, port uint16) Entry {
	if t == nil {
		return Entry{Verdict: Allow}
	}
	var peers []Peer
	if other.Identity != identity.Pending {
		peers = append(peers, Peer(other.Identity))
	}
	if c, ok := longest(classes, other.Addr); ok {
		peers = append(peers, c)
	}
	return t.Lookup(append(peers, Anyone), protocol, port)
}

func drawOther(t *rapid.T) End {
	return End{
		Identity: rapid.SampledFrom([]identity.Number{identity.World, identity.RemoteNode, identity.Pending, 256, 257, 258, 259, 260}).Draw(t, "other"),
		Addr:     rapid.SampledFrom(someAddresses).Draw(t, "address"),
	}
}

func anyDeny(t *Table) bool {
	for ; t != nil; t = t.Next {
		for _, e := range t.Entries {
			if e.Verdict == Deny {
				return true
			}
		}
	}
	return false
}

func testTablesSayWhatRulesSay(t *rapid.T, plain bool) {
	w := world{map[Ref][]Rule{}, map[identity.Number]ident{}}
	e := NewEngine()
	subjects := rapid.SliceOfN(rapid.Custom(drawSubject), 1, 3).Draw(t, "subjects")
	for range rapid.IntRange(1, 12).Draw(t, "changes") {
		w.change(t, e, plain)
		if rapid.Bool().Draw(t, "ask") {
			e.Tables(subjects[0])
		}
	}
	f := w.fresh(t)
	for _, s := range subjects {
		ingress, egress := e.Tables(s)
		i2, e2 := f.Tables(s)
		if !reflect.DeepEqual(ingress, i2) || !reflect.DeepEqual(egress, e2) {
			t.Fatalf("after changes %v %v, from the start %v %v", ingress, egress, i2, e2)
		}
		if again, _ := e.Tables(s); again != ingress {
			t.Fatal("another pointer for the same content")
		}
		classes := e.Classes()
		if !maps.Equal(classes, f.Classes()) {
			t.Fatal("classes depend on the order")
		}
		for range 20 {
			other := drawOther(t)
			protocol := rapid.SampledFrom([]uint8{1, 6, 17, 132}).Draw(t, "protocol")
			port := rapid.SampledFrom(somePorts).Draw(t, "port")
			if protocol == 1 {
				port = 0
			}
			self := End{Pod: &s, Identity: identity.Max}
			for d, table := range map[Direction]*Table{Ingress: ingress, Egress: egress} {
				flow := Flow{Source: self, Destination: other, Protocol: protocol, Port: port}
				side := e.Evaluate(flow).Egress
				if d == Ingress {
					flow = Flow{Source: other, Destination: self, Protocol: protocol, Port: port}
					side = e.Evaluate(flow).Ingress
				}
				if side.Pending != (other.Identity == identity.Pending && anyDeny(table)) && !side.Pending {
					t.Fatal("a deny of the table could be about a pending peer, and the rules do not say so")
				}
				if side.Pending {
					continue
				}
				got := askTable(table, classes, other, protocol, port)
				if got.Verdict != side.Verdict || got.Rule != side.Rule || side.Judged != (table != nil) {
					t.Fatalf("%s %v protocol %d port %d: table says %+v, rules %+v\n%+v", d, other, protocol, port, got, side, table)
				}
				if p, ok := e.Provenance(got.Rule); got.Rule != 0 && (!ok || len(p.Origins) == 0 || p.Direction != d || p.Verdict != got.Verdict) {
					t.Fatalf("rule %d: %+v %t", got.Rule, p, ok)
				}
			}
		}
	}
}

func TestTablesSayWhatRulesSay(t *testing.T) {
	t.Run("as NetworkPolicy", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) { testTablesSayWhatRulesSay(t, true) })
	})
	t.Run("tiers", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) { testTablesSayWhatRulesSay(t, false) })
	})
}
