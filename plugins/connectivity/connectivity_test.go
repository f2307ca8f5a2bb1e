// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"bytes"
	"encoding/xml"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/probe"
)

func dualLab() *lab {
	l := &lab{namespace: "t", other: "t-other", image: "i", nodes: []string{"n1", "n2"}, hostPort: 14241, pods: map[string]podAddresses{}}
	pods, _ := l.objects()
	for i, p := range pods {
		l.pods[p.Name] = podAddresses{4: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 6: netip.MustParseAddr("fd00::1")}
	}
	l.service = podAddresses{4: netip.MustParseAddr("10.1.0.1")}
	l.settleFamilies()
	return l
}

// Every test has checks, every policy test both lets through and refuses, and each policy selects pods that exist.
func TestEveryTestCanFail(t *testing.T) {
	for _, l := range []*lab{dualLab(), func() *lab { l := dualLab(); l.nodes = l.nodes[:1]; return l }()} {
		for _, test := range l.tests(nil) {
			if len(test.checks) == 0 || test.about == "" {
				t.Errorf("%s has no checks", test.name)
			}
			reached := slices.ContainsFunc(test.checks, func(c check) bool { return !c.refused })
			refused := slices.ContainsFunc(test.checks, func(c check) bool { return c.refused })
			if !reached || len(test.policies) > 0 && !refused {
				t.Errorf("%s: reached %v, refused %v", test.name, reached, refused)
			}
			for _, c := range test.checks {
				if got, err := probe.ParseTarget(c.target.String()); err != nil || got != c.target {
					t.Errorf("%s: target %q is not what a pod understands: %v", test.name, c.target, err)
				}
			}
		}
	}
	if names := TestNames(); !slices.Contains(names, "world") || !slices.Contains(names, "egress-by-ipblock") {
		t.Errorf("%v", names)
	}
}

// Of a single-stack cluster the other family is not asked.
func TestFamiliesAreThoseOfAllPods(t *testing.T) {
	l := dualLab()
	delete(l.pods[stranger], 6)
	l.families = nil
	l.settleFamilies()
	if !slices.Equal(l.families, []int{4}) {
		t.Errorf("%v", l.families)
	}
	for _, test := range l.tests(nil) {
		for _, c := range test.checks {
			if strings.Contains(c.target.Host, ":") {
				t.Errorf("%s asks %s", test.name, c.target)
			}
		}
	}
}

func TestNodesThatTakePods(t *testing.T) {
	node := func(name string, change func(*corev1.Node)) corev1.Node {
		n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		change(&n)
		return n
	}
	well := func(*corev1.Node) {}
	got := chooseNodes([]corev1.Node{
		node("e", well), node("d", well), node("c", well),
		node("a-cordoned", func(n *corev1.Node) { n.Spec.Unschedulable = true }),
		node("a-tainted", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoSchedule}} }),
		node("a-windows", func(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelOSStable: "windows"} }),
		node("a-away", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }),
	})
	if !slices.Equal(got, []string{"c", "d"}) {
		t.Errorf("%v", got)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name   string
		check  check
		result probe.Result
		ok     bool
		reason string
	}{
		{"reached", check{}, probe.Result{OK: true}, true, ""},
		{"lost", check{}, probe.Result{Error: "no answer within 3s\x1b[31m"}, false, `no answer within 3s\x1b[31m`},
		{"refused", check{refused: true}, probe.Result{Error: "no answer within 1s"}, true, ""},
		{"slipped through", check{refused: true}, probe.Result{OK: true}, false, "it answered, and nothing should come through"},
		{"name", check{addresses: []string{"10.1.0.1"}}, probe.Result{OK: true, Addresses: []string{"10.1.0.1"}}, true, ""},
		{"wrong name", check{addresses: []string{"10.1.0.1"}}, probe.Result{OK: true, Addresses: []string{"10.9.9.9"}}, false, "the name stands for 10.9.9.9, not for 10.1.0.1"},
	} {
		if got := judge(c.check, c.result); got.OK != c.ok || got.Reason != c.reason {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// A failure names the drops between its two ends, of either direction, and nobody else's.
func TestFailuresNameTheirDrops(t *testing.T) {
	r := &runner{lab: dualLab()}
	from, to := r.lab.pods[asker][4], r.lab.pods[serverOther][4]
	drop := func(node string, source, destination netip.Addr, port uint16) flow.Event {
		return flow.Event{Time: time.Now(), Node: node, Type: flow.Drop, Reason: 133,
			Source: flow.Party{Address: source, Port: 40000}, Destination: flow.Party{Address: destination, Port: port}}
	}
	c := Check{From: asker, To: serverOther, Target: probe.Target{Protocol: probe.TCP, Host: to.String(), Port: serverPort}.String()}
	got := r.dropsOf(&c, []flow.Event{
		drop("n1", from, to, serverPort), drop("n1", from, to, serverPort), drop("n2", from, to, 22), drop("n2", r.lab.pods[stranger][4], to, serverPort),
	})
	if len(got) != 1 || !strings.HasPrefix(got[0], "dropped on node/n1 at ") {
		t.Errorf("%q", got)
	}
	c.To, c.Target = "service/server", probe.Target{Protocol: probe.TCP, Host: "10.1.0.1", Port: serverPort}.String()
	if got := r.dropsOf(&c, []flow.Event{drop("n2", from, to, serverPort)}); len(got) != 1 {
		t.Errorf("behind the service: %q", got)
	}
}

func TestJUnitCountsFailures(t *testing.T) {
	r := Report{}
	r.add(Test{Name: "a", Checks: []Check{{From: "x", To: "y", How: "TCP IPv4", OK: true}, {From: "x", To: "z", How: "UDP IPv4", Reason: "no answer <1s>", Drops: []string{"d"}}}})
	r.add(Test{Name: "b", Error: "create networkpolicy/p: forbidden"})
	var out bytes.Buffer
	if err := r.WriteJUnit(&out); err != nil {
		t.Fatal(err)
	}
	var back junitSuites
	if err := xml.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if back.Tests != 3 || back.Fails != 2 || len(back.Suites) != 2 || back.Suites[0].Cases[1].Failure.Message != "no answer <1s>" || back.Suites[1].Fails != 1 {
		t.Errorf("%s", &out)
	}
}

func TestParseExternal(t *testing.T) {
	for text, want := range map[string]string{
		"example.com": "connect://example.com:443", "10.0.0.1:80": "connect://10.0.0.1:80", "fd00::1": "connect://[fd00::1]:443", "[fd00::1]:80": "connect://[fd00::1]:80",
		"icmp://10.0.0.1": "icmp://10.0.0.1", "tcp://10.0.0.1:80": "connect://10.0.0.1:80",
	} {
		if got, err := ParseExternal(text); err != nil || got.String() != want {
			t.Errorf("%q became %q, %v", text, got, err)
		}
	}
}
