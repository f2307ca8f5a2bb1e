// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const policyNamespace = "policy"

// friendsOnly lets friends in, and more rules if any.
func friendsOnly(namespace string, more ...string) string {
	return `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: ` + namespace + `, name: friends-only}
spec:
  podSelector: {matchLabels: {role: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {role: friend}}}]
` + strings.Join(more, "")
}

// denied lets nothing in or out of the pods of a role.
func denied(namespace, role string) string {
	return fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: %s, name: nothing-for-%s}
spec:
  podSelector: {matchLabels: {role: %s}}
  policyTypes: [Ingress, Egress]
---
`, namespace, role, role)
}

// applyPolicy applies policies and waits until every node reports them in force.
func (c *cluster) applyPolicy(t testing.TB, yaml string) {
	t.Helper()
	out, err := c.Kubectl(t.Context(), []byte(yaml), "apply", "--server-side", "--force-conflicts", "-f", "-", "-o", `jsonpath={.metadata.resourceVersion}{"\n"}`)
	if err != nil {
		t.Fatalf("%v\n%s", err, yaml)
	}
	for version := range strings.FieldsSeq(out) {
		c.waitInForce(t, version)
	}
}

// waitInForce waits until every node reports that NetworkPolicies are in force up to a resourceVersion.
func (c *cluster) waitInForce(t testing.TB, resourceVersion string) {
	t.Helper()
	want, err := strconv.ParseUint(strings.TrimSpace(resourceVersion), 10, 64)
	if err != nil {
		t.Fatalf("resourceVersion %q: %v", resourceVersion, err)
	}
	eventually(t, "NetworkPolicies in force on every node", 90*time.Second, func() error {
		for _, n := range c.Nodes {
			out, err := c.Kubectl(t.Context(), nil, "get", "ciliumnodereport", n.Name, "-o", `jsonpath={.status.policies[?(@.kind=="NetworkPolicy")]}`)
			if err != nil {
				return err
			}
			var p struct {
				InForce    string            `json:"inForce"`
				Exceptions []json.RawMessage `json:"exceptions"`
			}
			if err := json.Unmarshal([]byte(out), &p); err != nil {
				return fmt.Errorf("%s reports %q: %w", n.Name, out, err)
			}
			if have, err := strconv.ParseUint(p.InForce, 10, 64); err != nil || have < want || len(p.Exceptions) > 0 {
				return fmt.Errorf("want %d on %s: %s", want, n.Name, out)
			}
		}
		return nil
	})
}

// TestPolicy is what policy promises while everything around it changes; the parts share a cluster.
func TestPolicy(t *testing.T) {
	c := up(t, "policy", "--workers", "2", "--ip-family", "dual", "--cni", "ours")
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+policyNamespace+"}\n")
	t.Run("NothingPassesBeforeThePolicy", func(t *testing.T) { policyFirstPacket(t, c) })
	// GHSA-8fg8-jh2h-f2hc: traffic from outside counted as the host's, and no policy held.
	t.Run("OutsideMasqueradedIsNotHost", func(t *testing.T) { policyMasqueraded(t, c) })
	t.Run("TooLarge", func(t *testing.T) { policyTooLarge(t, c) })
	t.Run("Changes", func(t *testing.T) { policyChanges(t, c, false) })
	t.Run("Conformance", func(t *testing.T) { policyConformance(t, c) })
}

// policyConformance runs a handful of Kubernetes' own specs; make conformance runs them all.
func policyConformance(t *testing.T, c *cluster) {
	cmd := exec.CommandContext(t.Context(), testClusterTool(t), "conformance", "--name", c.Name, "--report", t.TempDir(),
		"--focus", "Netpol NetworkPolicy.*('default-deny-all' policy|enforce policy based on PodSelector and NamespaceSelector|except clause|allow egress access on one named port|ingress access from updated pod)")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// policyTooLarge makes a policy of more exceptions than a node has room for: its pods stay closed in its direction, and
// no other policy and no other pod notices. When it is smaller it comes into force, and stays when it grows again.
func policyTooLarge(t *testing.T, c *cluster) {
	const ns = policyNamespace
	tr := newTrace(t, c)
	node := c.Nodes[0].Name
	large := func(count int) string {
		var except strings.Builder
		for i := range count {
			fmt.Fprintf(&except, "\n        - 198.%d.%d.%d/31", 18+i>>15, i>>7&255, i<<1&255)
		}
		return fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: %s, name: too-large}
spec:
  podSelector: {matchLabels: {role: caged}}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock:
        cidr: 198.18.0.0/15
        except:%s
  - to: [{podSelector: {}}]
`, ns, except.String())
	}
	left := func(what string) {
		t.Helper()
		eventually(t, "the policy that does not fit is told of: "+what, time.Minute, func() error {
			out, err := c.plugin(t.Context(), "policy", "get", "too-large", "-n", ns)
			if err == nil && !strings.Contains(out, what) {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
	}
	c.apply(t, large(33000))
	c.apply(t, tr.sink(ns, "target", node, "role: server", 0))
	c.waitReady(t, ns, "target")
	ips := c.podIPs(t, ns, "target")
	caged, free := tr.to("caged to target", ips, "udp", "connect"), tr.to("free to target", ips, "udp", "connect")
	forbidden("its policy does not fit", caged...)
	c.apply(t, tr.sender(ns, "caged", node, "role: caged", caged...)+tr.sender(ns, "free", node, "role: friend", free...))
	c.waitReady(t, ns, "caged", "free")
	tr.flowing(t, free...)
	left("it isolates the pods that it selects and allows them nothing, for it does not fit: 33001 prefixes are new to this node")
	allowed("no policy is about it", free...)
	// Another policy comes into force beside it.
	c.apply(t, friendsOnly(ns))
	inForce := func(name string) {
		t.Helper()
		if out, err := c.plugin(t.Context(), "policy", "wait", name, "-n", ns, "--timeout", "60s"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	inForce("friends-only")
	c.kubectl(t, "-n", ns, "delete", "networkpolicy", "friends-only")
	unsaid(caged...)
	c.apply(t, large(5))
	inForce("too-large")
	tr.flowing(t, caged...)
	allowed("the version that fits is in force", caged...)
	c.apply(t, large(33000))
	left("the version before stays in force, for it does not fit: 32995 prefixes are new to this node")
	time.Sleep(time.Second)
	tr.check(t)
	c.kubectl(t, "-n", ns, "delete", "networkpolicy", "too-large")
	c.kubectl(t, "-n", ns, "delete", "pods", "--all", "--grace-period=0", "--force")
}

// policyFirstPacket makes policies and the pods they select in one apply: pods that send from their first millisecond,
// and pods that listen from their first, on addresses that others try all the time.
func policyFirstPacket(t *testing.T, c *cluster) {
	const ns = policyNamespace
	tr := newTrace(t, c)
	w1, w2 := c.Nodes[0].Name, c.Nodes[1].Name
	c.apply(t, tr.sink(ns, "open-1", w1, "role: open", 0)+tr.sink(ns, "open-2", w2, "role: open", 0))
	c.waitReady(t, ns, "open-1", "open-2")
	var sweep, late []*tracedFlow
	for _, open := range []string{"open-1", "open-2"} {
		ips := c.podIPs(t, ns, open)
		late = append(late, tr.to("new pod to "+open, ips, "udp", "connect")...)
		for i, next := range following(t, ips, 8) {
			sweep = append(sweep, tr.to(fmt.Sprintf("to address %d after %s", i+1, open), next, "udp")...)
		}
	}
	// One sweeper on each node, half of the addresses of both.
	c.apply(t, tr.sender(ns, "sweeper-1", w1, "role: sweeper", sweep...)+tr.sender(ns, "sweeper-2", w2, "role: sweeper", sweep...))
	c.waitReady(t, ns, "sweeper-1", "sweeper-2")
	forbidden("closed from the first instant", slices.Concat(sweep, late)...)
	c.apply(t, denied(ns, "late")+
		tr.sink(ns, "late-sink-1", w1, "role: late", 0)+tr.sink(ns, "late-sink-2", w2, "role: late", 0)+
		tr.sender(ns, "late-sender-1", w1, "role: late", late...)+tr.sender(ns, "late-sender-2", w2, "role: late", late...))
	c.waitReady(t, ns, "late-sink-1", "late-sink-2", "late-sender-1", "late-sender-2")
	time.Sleep(2 * time.Second)
	unsaid(slices.Concat(sweep, late)...)

	// That it was the policy, and nothing else, that kept them apart: without it they meet.
	c.kubectl(t, "-n", ns, "delete", "networkpolicy", "nothing-for-late")
	tr.flowing(t, late...)
	var met []*tracedFlow
	for _, pod := range []string{"late-sink-1", "late-sink-2"} {
		for _, ip := range c.podIPs(t, ns, pod) {
			i := slices.IndexFunc(sweep, func(f *tracedFlow) bool {
				return netip.MustParseAddrPort(f.dst).Addr() == netip.MustParseAddr(ip)
			})
			if i < 0 {
				t.Fatalf("%s of %s was not tried", ip, pod)
			}
			met = append(met, sweep[i])
		}
	}
	tr.flowing(t, met...)
	tr.check(t)
	c.kubectl(t, "-n", ns, "delete", "pods", "--all", "--grace-period=0", "--force")
}

// following gives the next addresses of both families.
func following(t testing.TB, ips map[string]string, count int) []map[string]string {
	t.Helper()
	next := make([]map[string]string, count)
	for i := range next {
		next[i] = map[string]string{}
	}
	for family, ip := range ips {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			t.Fatal(err)
		}
		for i := range next {
			addr = addr.Next()
			next[i][family] = addr.String()
		}
	}
	return next
}

// policyMasqueraded has a rule of somebody else's bring outside traffic to a pod under the node's own address, as
// kube-proxy does for a NodePort.
func policyMasqueraded(t *testing.T, c *cluster) {
	const ns, nodePort = policyNamespace, 30090
	tr := newTrace(t, c)
	n := c.Nodes[1]
	c.apply(t, tr.sink(ns, "guarded", n.Name, "role: server", 0))
	c.waitReady(t, ns, "guarded")
	var rules []string
	for family, ip := range c.podIPs(t, ns, "guarded") {
		fam, to := "ip", ip
		if family == "6" {
			fam, to = "ip6", "["+ip+"]"
		}
		rules = append(rules,
			fmt.Sprintf("add rule inet other in meta l4proto { tcp, udp } %s daddr %s th dport %d dnat %s to %s:%d", fam, byFamily(n.Addresses)[family], nodePort, fam, to, tracePort),
			fmt.Sprintf("add rule inet other out %s daddr %s masquerade", fam, ip))
	}
	nft := append([]string{"add table inet other", "add chain inet other in { type nat hook prerouting priority dstnat; }",
		"add chain inet other out { type nat hook postrouting priority srcnat; }"}, rules...)
	if out, err := c.OnNode(t.Context(), n.Name, "nft", strings.Join(nft, "; ")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		_ = exec.Command(c.NodeCommand(n.Name)[0], c.NodeCommand(n.Name, "nft", "delete", "table", "inet", "other")[1:]...).Run()
	})
	flows := tr.to("outside through the node", byFamily(n.Addresses), "udp", "connect")
	for _, f := range flows {
		f.dst = strings.TrimSuffix(f.dst, fmt.Sprint(tracePort)) + fmt.Sprint(nodePort)
	}
	line := c.OutsideCommand(append([]string{tr.binaries + "/prober", "send", "-rate", "10", "-record", tr.outside + "/sent-outside"}, flowArgs(flows)...)...)
	cmd := exec.Command(line[0], line[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	tr.flowing(t, flows...)
	allowed("no policy", flows...)
	time.Sleep(2 * time.Second)
	unsaid(flows...)
	c.applyPolicy(t, friendsOnly(ns))
	forbidden("the node's address is not the node", flows...)
	time.Sleep(2 * time.Second)
	// The node itself is let in all the same: kubelet's probes have to arrive.
	for family, ip := range c.podIPs(t, ns, "guarded") {
		if out, err := c.OnNode(t.Context(), n.Name, "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", ip, tracePort)); err != nil {
			t.Errorf("the node to its own pod, v%s: %v\n%s", family, err, out)
		}
	}
	tr.check(t)
	c.kubectl(t, "-n", ns, "delete", "networkpolicy", "friends-only")
	c.kubectl(t, "-n", ns, "delete", "pod", "guarded", "--grace-period=0", "--force")
}
