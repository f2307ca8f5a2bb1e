// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/test/testcluster"
)

// seenFlow is what the test looks at of a flow that kubectl hubble prints.
type seenFlow struct {
	Node string `json:"node_name"`
	Flow struct {
		Verdict    string `json:"verdict"`
		DropReason string `json:"drop_reason_desc"`
		Point      string `json:"trace_observation_point"`
		Source     struct {
			Pod string `json:"pod_name"`
		} `json:"source"`
		L4 struct {
			TCP struct {
				Flags map[string]bool `json:"flags"`
			} `json:"TCP"`
		} `json:"l4"`
		EgressAllowedBy  []policyName `json:"egress_allowed_by"`
		IngressAllowedBy []policyName `json:"ingress_allowed_by"`
		EgressDeniedBy   []policyName `json:"egress_denied_by"`
		IngressDeniedBy  []policyName `json:"ingress_denied_by"`
	} `json:"flow"`
}

// policyName names a policy in a flow.
type policyName struct{ Kind, Namespace, Name string }

func (f seenFlow) String() string {
	var flags []string
	for name := range f.Flow.L4.TCP.Flags {
		flags = append(flags, name)
	}
	slices.Sort(flags)
	words := []string{f.Node + ":", f.Flow.Source.Pod, strings.Join(flags, "+"), f.Flow.Verdict, f.Flow.Point, f.Flow.DropReason}
	for _, by := range []struct {
		what     string
		policies []policyName
	}{
		{"egress allowed by", f.Flow.EgressAllowedBy}, {"ingress allowed by", f.Flow.IngressAllowedBy},
		{"egress denied by", f.Flow.EgressDeniedBy}, {"ingress denied by", f.Flow.IngressDeniedBy},
	} {
		for _, p := range by.policies {
			words = append(words, by.what, p.Kind, p.Namespace+"/"+p.Name)
		}
	}
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}

func (c *cluster) hubble(t testing.TB, args ...string) string {
	t.Helper()
	bin := filepath.Join(filepath.Dir(os.Getenv("TEST_CLUSTER")), "kubectl-hubble")
	out, err := testcluster.Run(c.Client(t.Context(), bin, args...), nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// handshakes are the first packets of connections between two pods and the refusals, each kind once.
func (c *cluster) handshakes(t testing.TB, ip string) []string {
	t.Helper()
	out := c.hubble(t, "flows", "-A", "--all", "--ip", ip, "--port", fmt.Sprint(proberPort), "--protocol", "tcp", "--tcp-flags", "SYN", "-o", "json",
		"--not", "--identity", "host,remote-node")
	var all []string
	for line := range strings.Lines(out) {
		var f seenFlow
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, f.String())
	}
	slices.Sort(all)
	return slices.Compact(all) // a SYN that got no answer is sent again
}

// TestFlows: connections between pods of one node and of two, IPv4 and IPv6, make exactly the flows that tell of them;
// each with the policies that allowed or refused it.
func TestFlows(t *testing.T) {
	c := up(t, "flows-e2e", "--workers", "2", "--ip-family", "dual", "--cni", "ours")
	const ns = "flows"
	dir := proberDir(t)
	one, two := c.Nodes[0].Name, c.Nodes[1].Name
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+"}\n---"+
		proberPod(ns, "client", one, dir, false)+proberPod(ns, "near", one, dir, false)+proberPod(ns, "far", two, dir, false))
	c.waitReady(t, ns, "client", "near", "far")
	connect := func(pod, family string, want bool) string {
		t.Helper()
		ip := c.podIPs(t, ns, pod)[family]
		for _, r := range c.ask(t, ns, "client", []target{question(pod, "tcp", ip, 0)}, 1) {
			if r.OK != want {
				t.Errorf("to %s over IPv%s: %+v, want %t", pod, family, r, want)
			}
		}
		return ip
	}
	compare := func(what, ip string, want ...string) {
		t.Helper()
		want = slices.Compact(slices.Sorted(slices.Values(want)))
		eventually(t, what, 10*time.Second, func() error {
			if got := c.handshakes(t, ip); !slices.Equal(got, want) {
				return fmt.Errorf("flows are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			return nil
		})
	}
	// Without policies, then with: what was seen before stays in the ring.
	seen := map[string][]string{}
	expect := func(what, pod, family string, answers bool, more ...string) {
		t.Helper()
		seen[pod+family] = append(seen[pod+family], more...)
		compare(what+", IPv"+family, connect(pod, family, answers), seen[pod+family]...)
	}
	for _, family := range []string{"4", "6"} {
		expect("one node", "near", family, true,
			one+": client SYN FORWARDED TO_ENDPOINT", one+": near ACK+SYN FORWARDED TO_ENDPOINT")
		expect("two nodes", "far", family, true,
			one+": client SYN FORWARDED TO_OVERLAY", two+": client SYN FORWARDED TO_ENDPOINT",
			two+": far ACK+SYN FORWARDED TO_OVERLAY", one+": far ACK+SYN FORWARDED TO_ENDPOINT")
	}
	c.applyPolicy(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: `+ns+`, name: closed}
spec: {podSelector: {}, policyTypes: [Ingress]}
`)
	for _, family := range []string{"4", "6"} {
		refused := "client SYN DROPPED POLICY_DENIED ingress denied by NetworkPolicy " + ns + "/closed"
		expect("refused on one node", "near", family, false, one+": "+refused)
		expect("refused on the other node", "far", family, false, two+": "+refused)
	}
	c.applyPolicy(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: `+ns+`, name: for-the-client}
spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {pod: client}}}]}]}
`)
	for _, family := range []string{"4", "6"} {
		allowed := " ingress allowed by NetworkPolicy " + ns + "/for-the-client"
		expect("allowed on one node", "near", family, true,
			one+": client SYN FORWARDED TO_ENDPOINT"+allowed, one+": near ACK+SYN FORWARDED TO_ENDPOINT"+allowed)
		expect("allowed on the other node", "far", family, true,
			two+": client SYN FORWARDED TO_ENDPOINT"+allowed, two+": far ACK+SYN FORWARDED TO_OVERLAY"+allowed)
	}
	if out := c.hubble(t, "flows", "-n", ns, "--verdict", "dropped", "--last", "1"); !strings.Contains(out, "(default deny of ingress by NetworkPolicy "+ns+"/closed)") {
		t.Errorf("the line for people does not say why: %s", out)
	}
	verdicts := c.hubble(t, "flows", "-n", ns, "-t", "policy-verdict", "--from-pod", "client", "--all")
	for _, want := range []string{
		"policy-verdict INGRESS DENIED (default deny of ingress by NetworkPolicy " + ns + "/closed)",
		"policy-verdict INGRESS ALLOWED (ingress allowed by NetworkPolicy " + ns + "/for-the-client spec.ingress[0]) (TCP Flags: SYN)",
	} {
		if !strings.Contains(verdicts, want) {
			t.Errorf("verdicts lack %q:\n%s", want, verdicts)
		}
	}
	if out := c.hubble(t, "status"); !strings.Contains(out, "Connected Nodes: 2/2") || !strings.Contains(out, "Healthcheck: Ok") {
		t.Error(out)
	}
}
