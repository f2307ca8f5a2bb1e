// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

func parse(t *testing.T, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	return unmarshal[networkingv1.NetworkPolicy](t, []byte("{kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec: "+spec+"}"))
}

func convert(t *testing.T, spec string) []Rule {
	t.Helper()
	rules, _, err := FromNetworkPolicy(parse(t, spec))
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func TestDirections(t *testing.T) {
	for spec, want := range map[string]string{
		`{podSelector: {}}`:                                                              "ingress",
		`{podSelector: {}, egress: [{}]}`:                                                "ingress egress egress:spec.egress[0]",
		`{podSelector: {}, egress: []}`:                                                  "ingress",
		`{podSelector: {}, policyTypes: [Egress]}`:                                       "egress",
		`{podSelector: {}, policyTypes: [Egress], egress: [{}]}`:                         "egress egress:spec.egress[0]",
		`{podSelector: {}, policyTypes: [Egress], ingress: [{}]}`:                        "egress",
		`{podSelector: {}, policyTypes: [Ingress], egress: [{}]}`:                        "ingress",
		`{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}`: "ingress egress ingress:spec.ingress[0] egress:spec.egress[0]",
	} {
		var got []string
		for _, r := range convert(t, spec) {
			text := r.Direction.String()
			if !r.Isolates {
				text += ":" + r.Path
			}
			got = append(got, text)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", spec, got, want)
		}
	}
}

// CVE-2025-64715: what is empty was taken for what is not there. In a NetworkPolicy some empty things mean everything and
// others nothing; each keeps its meaning through JSON and back.
func TestEmptyIsNotAbsent(t *testing.T) {
	own := &PodSelector{Namespace: "shop", Labels: []Requirement{}}
	everywhere := &PodSelector{NamespaceLabels: []Requirement{}}
	for spec, want := range map[string]Rule{
		`{podSelector: {}, ingress: [{}]}`:                                              {AnyPeer: true, AnyPort: true},
		`{podSelector: {}, ingress: [{from: [], ports: []}]}`:                           {AnyPeer: true, AnyPort: true},
		`{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`:                     {AnyPort: true, Peers: []PeerSelector{own}},
		`{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`:               {AnyPort: true, Peers: []PeerSelector{everywhere}},
		`{podSelector: {}, ingress: [{ports: [{}]}]}`:                                   {AnyPeer: true, Ports: []PortSelector{{Protocol: 6, Last: 65535}}},
		`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}`:          {AnyPort: true, Peers: []PeerSelector{Block{CIDR: netip.MustParsePrefix("0.0.0.0/0")}}},
		`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "::/0", except: []}}]}]}`: {AnyPort: true, Peers: []PeerSelector{Block{CIDR: netip.MustParsePrefix("::/0")}}},
	} {
		want.Tier, want.Verdict, want.Direction, want.Path = Normal, Allow, Ingress, "spec.ingress[0]"
		want.Subject = *own
		np := parse(t, spec)
		data, err := json.Marshal(np)
		if err != nil {
			t.Fatal(err)
		}
		for _, np := range []*networkingv1.NetworkPolicy{np, unmarshal[networkingv1.NetworkPolicy](t, data)} {
			rules, _, err := FromNetworkPolicy(np)
			if err != nil || len(rules) != 2 || !reflect.DeepEqual(rules[1], want) {
				t.Errorf("%s: %+v %v, want %+v", spec, rules, err, want)
			}
		}
	}
	// No items, and items that name nobody, allow nobody.
	e := NewEngine()
	if err := e.SetPolicy(Ref{KindNetworkPolicy, "shop", "p"}, []Rule{
		{Tier: Normal, Isolates: true, Subject: *own, Direction: Ingress},
		{Tier: Normal, Verdict: Allow, Subject: *own, Direction: Ingress, AnyPort: true, Path: "no peers"},
		{Tier: Normal, Verdict: Allow, Subject: *own, Direction: Ingress, AnyPeer: true, Path: "no ports"},
	}); err != nil {
		t.Fatal(err)
	}
	ingress, egress := e.Tables(Subject{Labels: podLabels("shop", nil)})
	if ingress == nil || len(ingress.Entries) != 0 || ingress.Default == 0 || egress != nil {
		t.Errorf("%+v %+v", ingress, egress)
	}
}

func TestPeersAndPorts(t *testing.T) {
	rules := convert(t, `{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{
		to: [{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [b, a, b]}]}},
		     {ipBlock: {cidr: 10.0.0.1/8, except: [10.1.0.0/16, 10.2.0.0/16]}}],
		ports: [{port: 80}, {port: 53, protocol: UDP}, {port: 8000, endPort: 8080}, {protocol: SCTP}, {port: web}]}]}`)
	want := Rule{
		Tier: Normal, Verdict: Allow, Direction: Egress, Path: "spec.egress[0]",
		Subject: PodSelector{Namespace: "shop", Labels: []Requirement{{"app", In, []string{"web"}}}},
		Peers: []PeerSelector{
			&PodSelector{NamespaceLabels: []Requirement{{"team", In, []string{"a"}}}, Labels: []Requirement{{"app", NotIn, []string{"a", "b"}}}},
			Block{netip.MustParsePrefix("10.0.0.0/8"), []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")}},
		},
		Ports: []PortSelector{{6, 80, 80, ""}, {17, 53, 53, ""}, {6, 8000, 8080, ""}, {132, 0, 65535, ""}, {6, 0, 0, "web"}},
	}
	if !reflect.DeepEqual(rules[1], want) {
		t.Errorf("got  %+v\nwant %+v", rules[1], want)
	}
}

func TestBadPolicies(t *testing.T) {
	for spec, want := range map[string]string{
		`{podSelector: {}, policyTypes: [Both]}`:                                                                     `spec.policyTypes[0]: "Both"`,
		`{podSelector: {}, ingress: [{from: [{}]}]}`:                                                                 "spec.ingress[0].from[0]: names no peer",
		`{podSelector: {}, ingress: [{}, {from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}`:                 "spec.ingress[1].from[0]: ipBlock together with a selector",
		`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: ten}}]}]}`:                                             `spec.ingress[0].from[0].ipBlock.cidr: "ten" is no prefix`,
		`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]}`:                "spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/8 is not inside 10.0.0.0/8",
		`{podSelector: {}, ingress: [{ports: [{port: 0}]}]}`:                                                         "spec.ingress[0].ports[0].port: 0 to 0",
		`{podSelector: {}, ingress: [{ports: [{port: 70000}]}]}`:                                                     "spec.ingress[0].ports[0].port: 70000 to 70000",
		`{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 79}]}]}`:                                           "spec.ingress[0].ports[0].port: 80 to 79",
		`{podSelector: {}, ingress: [{ports: [{port: web, endPort: 79}]}]}`:                                          "spec.ingress[0].ports[0].endPort: with a named port",
		`{podSelector: {}, ingress: [{ports: [{endPort: 79}]}]}`:                                                     "spec.ingress[0].ports[0].endPort: without a port",
		`{podSelector: {}, ingress: [{ports: [{protocol: ICMP}]}]}`:                                                  `spec.ingress[0].ports[0].protocol: "ICMP"`,
		`{podSelector: {matchExpressions: [{key: a, operator: Near}]}}`:                                              "spec.podSelector",
		`{podSelector: {matchExpressions: [{key: a, operator: In}]}}`:                                                "spec.podSelector",
		`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {"a b": c}}}]}]}`: "spec.egress[0].to[0].namespaceSelector",
	} {
		rules, _, err := FromNetworkPolicy(parse(t, spec))
		if !errors.Is(err, ErrBadRule) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", spec, err, want)
		}
		// Whom it isolates is all that is taken of it, where that can be told.
		known := want != "spec.podSelector" && !strings.HasPrefix(want, "spec.policyTypes")
		if allows := slices.ContainsFunc(rules, func(r Rule) bool { return !r.Isolates || r.Verdict != 0 }); allows || (len(rules) > 0) != known {
			t.Errorf("%s: %+v", spec, rules)
		}
	}
}

func TestNotes(t *testing.T) {
	for spec, want := range map[string]string{
		`{podSelector: {}, policyTypes: [Egress], ingress: [{}]}`:                                                         "spec.ingress[0]: is not heard",
		`{podSelector: {}, policyTypes: [Ingress], egress: [{}]}`:                                                         "spec.egress[0]: is not heard",
		`{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod-template-hash: x}}}]}]}`:                    "spec.ingress[0].from[0]: label pod-template-hash",
		`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: web}]}]}`: "spec.egress[0].ports: a named port",
	} {
		_, notes, err := FromNetworkPolicy(parse(t, spec))
		if err != nil || len(notes) != 1 || !strings.HasPrefix(notes[0].String(), want) {
			t.Errorf("%s: %v %v, want %s", spec, notes, err, want)
		}
	}
}

func TestWaits(t *testing.T) {
	e := NewEngine()
	np := parse(t, `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: tother}}, podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}]}`)
	rules, _, err := FromNetworkPolicy(np)
	if err != nil || e.SetPolicy(RefOf(np), rules) != nil {
		t.Fatal(err)
	}
	want := []Note{
		{"spec.podSelector", "waits for pods with app=web of namespace shop"},
		{"spec.ingress[0]", "waits for pods with app=client of namespaces with team=tother"},
		{"spec.ingress[0]", `waits for a pod with TCP port "http"`},
	}
	if got := e.Waits(RefOf(np)); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	e.SetIdentity(300, podLabels("shop", map[string]string{"app": "web"}), []NamedPort{{"http", 6, 80}})
	e.SetIdentity(301, podLabels("other", map[string]string{"app": "client"}), nil)
	if got := e.Waits(RefOf(np)); got != nil {
		t.Errorf("%v", got)
	}
}

// Selectors say what those of Kubernetes say.
func TestSelectorsAsKubernetes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &metav1.LabelSelector{MatchLabels: drawLabels(t)}
		for range rapid.IntRange(0, 3).Draw(t, "n") {
			r := drawRequirement(t, someKeys[:2])
			s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: r.Key, Operator: metav1.LabelSelectorOperator(r.Operator), Values: r.Values})
		}
		theirs, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		c := converter{namespace: "a"}
		ours, pod := c.pods("", nil, s), drawLabels(t)
		if got := ours.ask(podLabels("a", pod), false); (got == yes) != theirs.Matches(labels.Set(pod)) || got == perhaps {
			t.Fatalf("%v on %v: %d", s, pod, got)
		}
		if ours.ask(podLabels("b", pod), false) != no {
			t.Fatal("a pod of another namespace")
		}
	})
}

// GHSA-pfhr-pccp-hwmh and CVE-2023-39347: what users write on pods or in selectors decided in which namespace a pod was
// taken to be.
func TestLabelsOfUsersDecideNoNamespace(t *testing.T) {
	evil := map[string]string{identity.KeyNamespace: "shop", identity.KeyNamespaceLabels + "team": "tshop", "reserved:host": "", "reserved.host": ""}
	e := NewEngine()
	np := parse(t, `{podSelector: {}, ingress: [{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {team: tshop}}}]}]}`)
	rules, _, err := FromNetworkPolicy(np)
	if err != nil || e.SetPolicy(RefOf(np), rules) != nil {
		t.Fatal(err)
	}
	l, err := identity.ForPod(identity.Workload{Namespace: "evil", Labels: evil, NamespaceLabels: map[string]string{"team": "tevil"}}, identity.DefaultFilter())
	if err != nil {
		t.Fatal(err)
	}
	e.SetIdentity(300, l, nil)
	ingress, _ := e.Tables(Subject{Labels: podLabels("shop", nil)})
	if len(ingress.Entries) != 0 {
		t.Errorf("a pod of another namespace entered: %+v", ingress)
	}
	if in, out := e.Tables(Subject{Labels: l}); in != nil || out != nil {
		t.Error("a policy of another namespace selects the pod")
	}
	// A selector that asks for what only the agent writes asks for a label that nobody hears: as a peer it is nobody.
	for _, key := range []string{identity.KeyNamespace, identity.KeyNamespaceLabels + "team", identity.KeyServiceAccount} {
		for _, op := range []Operator{In, NotIn, Exists, DoesNotExist} {
			s := PodSelector{Labels: []Requirement{{key, op, []string{"shop"}}}}
			if s.ask(podLabels("shop", nil), true) != perhaps {
				t.Errorf("%s %s has an answer", key, op)
			}
		}
	}
}

// CVE-2023-41333: a selector with an escape hatch made a policy of a namespace one of the whole cluster.
func TestPoliciesStayInTheirNamespace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		np := &networkingv1.NetworkPolicy{}
		np.Namespace, np.Name = "a", "p"
		keys := []string{"app", "reserved:init", "reserved.init", identity.KeyNamespace, "io.cilium.k8s.policy.cluster", "k8s:app"}
		for range rapid.IntRange(0, 3).Draw(t, "n") {
			r := drawRequirement(t, keys)
			np.Spec.PodSelector.MatchExpressions = append(np.Spec.PodSelector.MatchExpressions,
				metav1.LabelSelectorRequirement{Key: r.Key, Operator: metav1.LabelSelectorOperator(r.Operator), Values: r.Values})
		}
		np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &np.Spec.PodSelector}}}}
		rules, _, err := FromNetworkPolicy(np)
		if err != nil {
			return // not a label's key
		}
		e := NewEngine()
		if err := e.SetPolicy(RefOf(np), rules); err != nil {
			t.Fatal(err)
		}
		for n, namespace := range map[identity.Number]string{300: "a", 301: "b"} {
			e.SetIdentity(n, podLabels(namespace, drawLabels(t)), nil)
		}
		if in, out := e.Tables(Subject{Labels: podLabels("b", drawLabels(t))}); in != nil || out != nil {
			t.Fatal("selects a pod of another namespace")
		}
		in, _ := e.Tables(Subject{Labels: podLabels("a", drawLabels(t))})
		for _, k := range in.sortedKeys() {
			if k.Peer != 300 {
				t.Fatalf("peer %d", k.Peer)
			}
		}
	})
}

func (t *Table) sortedKeys() []Key {
	if t == nil {
		return nil
	}
	return t.Keys()
}

// CVE-2026-56743: an ipBlock beside a setting of the cluster became a selector of every pod. An ipBlock is about
// addresses: no identity is in its table, whatever the labels are.
func TestBlocksSelectNoPods(t *testing.T) {
	for _, name := range []string{"", "default", "west"} {
		e := NewEngine()
		l, err := identity.ForPod(identity.Workload{Namespace: "shop", Cluster: name}, identity.DefaultFilter())
		if err != nil {
			t.Fatal(err)
		}
		e.SetIdentity(300, l, nil)
		np := parse(t, `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}`)
		rules, _, err := FromNetworkPolicy(np)
		if err != nil || e.SetPolicy(RefOf(np), rules) != nil {
			t.Fatal(err)
		}
		ingress, egress := e.Tables(Subject{Labels: l})
		for _, table := range []*Table{ingress, egress} {
			if keys := table.Keys(); len(keys) != 1 || keys[0].Peer != e.Classes()[netip.MustParsePrefix("192.0.2.0/24")] {
				t.Errorf("cluster %q: %+v", name, keys)
			}
		}
	}
}

// Selecting one pod of a workload works where the pod's whole labels are given, and never lets more in where they are not.
func TestLabelsThatIdentitiesLeaveOut(t *testing.T) {
	e := NewEngine()
	np := parse(t, `{podSelector: {matchLabels: {statefulset.kubernetes.io/pod-name: set-0}}, ingress: [{}]}`)
	rules, _, err := FromNetworkPolicy(np)
	if err != nil || e.SetPolicy(RefOf(np), rules) != nil {
		t.Fatal(err)
	}
	whole := func(name string) Subject {
		l, err := identity.ForPod(identity.Workload{Namespace: "shop", Labels: map[string]string{"statefulset.kubernetes.io/pod-name": name}}, identity.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		return Subject{Labels: l, Whole: true}
	}
	if in, _ := e.Tables(whole("set-0")); in == nil || len(in.Entries) != 1 {
		t.Errorf("%+v", in)
	}
	if in, _ := e.Tables(whole("set-1")); in != nil {
		t.Errorf("%+v", in)
	}
	if in, _ := e.Tables(Subject{Labels: podLabels("shop", nil)}); in == nil || len(in.Entries) != 0 {
		t.Errorf("it is not known which pod it is: %+v", in)
	}
}

func FuzzFromNetworkPolicy(f *testing.F) {
	for _, s := range []string{
		`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "::ffff:10.0.0.0/104", except: ["::ffff:10.1.0.0/112"]}}]}]}`,
		`{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 010.0.0.0/8}}], ports: [{port: web}, {port: 1, endPort: 65535}]}]}`,
		`{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [b]}]}, policyTypes: [Egress, Ingress]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		np := &networkingv1.NetworkPolicy{}
		if yaml.Unmarshal(data, &np.Spec) != nil {
			return
		}
		np.Namespace, np.Name = "shop", "p"
		rules, _, err := FromNetworkPolicy(np)
		if err != nil {
			if !errors.Is(err, ErrBadRule) {
				t.Fatal(err)
			}
			return
		}
		e := NewEngine()
		if err := e.SetPolicy(RefOf(np), rules); err != nil {
			t.Fatal(err)
		}
		e.SetIdentity(300, podLabels("shop", nil), []NamedPort{{"web", 6, 80}})
		if in, out := e.Tables(Subject{Labels: podLabels("other", nil)}); in != nil || out != nil {
			t.Fatal("selects a pod of another namespace")
		}
		s := Subject{Labels: podLabels("shop", nil)}
		in, _ := e.Tables(s)
		if in != nil && len(np.Spec.Ingress) == 0 && len(in.Entries) > 0 {
			t.Fatal("allows without an item")
		}
		e.Explain(Flow{Source: End{Identity: 300, Pod: &s}, Destination: End{Pod: &s}, Protocol: 6, Port: 80})
	})
}
