// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

const strangersByUDP = `  - from: [{podSelector: {matchLabels: {role: stranger}}}]
    ports: [{port: 8090, protocol: UDP}]
`

// identities are the numbers by which its own node's maps know the pod with an address.
func (c *cluster) identities(t testing.TB, node, address string) ([]int64, error) {
	t.Helper()
	numbers, err := c.numbers(t, node, address, "endpoints", "pod_interfaces")
	if err == nil && len(numbers) < 2 {
		err = fmt.Errorf("the maps of %s know %s as %v", node, address, numbers)
	}
	return numbers, err
}

// known waits until a node knows who has an address elsewhere: until then policy allows it nothing.
func (c *cluster) known(t testing.TB, node, address string) {
	t.Helper()
	eventually(t, node+" knows "+address, time.Minute, func() error {
		numbers, err := c.numbers(t, node, address, "peers")
		if err == nil && (len(numbers) == 0 || identity.Number(numbers[0]) == identity.Pending) {
			err = fmt.Errorf("as %v", numbers)
		}
		return err
	})
}

// numbers are the identities in the rows of some of a node's maps that have an address.
func (c *cluster) numbers(t testing.TB, node, address string, tables ...string) ([]int64, error) {
	t.Helper()
	agent, _ := c.agentPod(t, node)
	var numbers []int64
	for _, name := range tables {
		out, err := c.Kubectl(t.Context(), nil, "-n", systemNamespace, "exec", agent, "-c", "inspect", "--", "cilium-agent", "inspect", "map", name)
		if err != nil {
			return nil, err
		}
		var table struct {
			Columns []struct{ Name string }
			Rows    [][]any
		}
		if err := json.Unmarshal([]byte(out), &table); err != nil {
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
		column := slices.IndexFunc(table.Columns, func(c struct{ Name string }) bool { return c.Name == "identity" })
		for _, row := range table.Rows {
			if number, ok := row[column].(float64); ok && slices.Contains(row, any(address)) {
				numbers = append(numbers, int64(number))
			}
		}
	}
	return numbers, nil
}

// relabel changes a pod's labels and waits until its node knows it by another identity.
func (c *cluster) relabel(t testing.TB, namespace, pod, node, label string) {
	t.Helper()
	address := c.podIPs(t, namespace, pod)["4"]
	before, err := c.identities(t, node, address)
	if err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "-n", namespace, "label", "pod", pod, "--overwrite", label)
	eventually(t, pod+" has another identity", 30*time.Second, func() error {
		now, err := c.identities(t, node, address)
		if err == nil && slices.ContainsFunc(now, func(n int64) bool { return slices.Contains(before, n) }) {
			err = fmt.Errorf("identities %v, before it %v", now, before)
		}
		return err
	})
}

// TestPolicyLagging has slices and identities arrive 5 s late at every agent.
func TestPolicyLagging(t *testing.T) {
	c := up(t, "policy-lag", "--workers", "2", "--ip-family", "dual", "--cni", "ours", "--lag", "5s")
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+policyNamespace+"}\n")
	policyChanges(t, c, true)
}

// policyChanges sends without a pause, by UDP, by new connections and on old ones, while policies and pods change.
func policyChanges(t *testing.T, c *cluster, lagging bool) {
	const ns = policyNamespace
	far, near := c.Nodes[0].Name, c.Nodes[1].Name // of the server, which is on near
	tr := newTrace(t, c)
	start := time.Now()
	step := func(format string, args ...any) {
		t.Logf("%5.1fs: %s", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	c.apply(t, tr.sink(ns, "server", near, "role: server", 0)+
		"\napiVersion: v1\nkind: Namespace\nmetadata: {name: doomed}\n---"+
		strings.ReplaceAll(tr.sink("doomed", "server", near, "role: server", 8), "arrived-server", "arrived-doomed"))
	c.applyPolicy(t, friendsOnly("doomed"))
	c.waitReady(t, ns, "server")
	c.waitReady(t, "doomed", "server")
	server, doomed := c.podIPs(t, ns, "server"), c.podIPs(t, "doomed", "server")

	all := []string{"udp", "connect", "tcp"}
	friend, stranger := tr.to("friend", server, all...), tr.to("stranger", server, all...)
	friendNear, strangerNear := tr.to("friend of the server's node", server, all...), tr.to("stranger of the server's node", server, all...)
	leaver, leaverNear := tr.to("former friend", server, all...), tr.to("former friend of the server's node", server, all...)
	intruder := tr.to("stranger to the terminating namespace", doomed, "udp", "connect")
	mover, movingStranger := tr.to("friend that is drained", server, "udp", "connect"), tr.to("stranger that is drained", server, "udp", "connect")
	going := tr.to("friend whose address is given on", server, "udp")
	c.apply(t, tr.sender(ns, "friend", far, "role: friend", friend...)+tr.sender(ns, "stranger", far, "role: stranger", slices.Concat(stranger, intruder)...)+
		tr.sender(ns, "friend-near", near, "role: friend", friendNear...)+tr.sender(ns, "stranger-near", near, "role: stranger", strangerNear...)+
		tr.sender(ns, "leaver", far, "role: friend, leaves: soon", leaver...)+tr.sender(ns, "leaver-near", near, "role: friend, leaves: soon", leaverNear...)+
		tr.sender(ns, "goer", far, "role: friend", going...))
	friends, strangers := slices.Concat(friend, friendNear), slices.Concat(stranger, strangerNear)
	leavers := slices.Concat(leaver, leaverNear)
	tr.flowing(t, slices.Concat(friends, strangers, leavers, going)...)
	moving, rollouts := tr.deployment(ns, "moving-stranger", "stranger", movingStranger), []string{"deployment/moving-stranger"}
	if lagging {
		mover = nil // until its identity has come to the server's node, a new pod is nobody's friend there
	} else {
		moving, rollouts = moving+tr.deployment(ns, "mover", "friend", mover), append(rollouts, "deployment/mover")
	}
	settled := func() {
		c.kubectl(t, append([]string{"-n", ns, "rollout", "status", "--timeout=60s"}, rollouts...)...)
	}
	c.kubectl(t, "cordon", near)
	c.apply(t, moving)
	settled()
	c.kubectl(t, "uncordon", near)
	tr.flowing(t, slices.Concat(mover, movingStranger)...)
	if !lagging {
		for _, ip := range strings.Fields(c.kubectl(t, "-n", ns, "get", "pods", "-l", "app=mover", "-o", "jsonpath={.items[*].status.podIPs[*].ip}")) {
			c.known(t, near, ip)
		}
	}
	allowed("friends whatever happens", slices.Concat(friends, mover)...)
	allowed("no policy", strangers...)
	allowed("friends before they leave", leavers...)
	forbidden("its policy stays until its pods are gone", intruder...)
	goer := c.podIPs(t, ns, "goer")
	c.kubectl(t, "-n", ns, "delete", "pod", "goer", "--grace-period=0", "--force")
	freed := time.Now()
	step("everything flows, one friend's addresses %s are free", goer)

	time.Sleep(time.Second)
	unsaid(strangers...)
	c.applyPolicy(t, friendsOnly(ns))
	strangers = slices.Concat(strangers, movingStranger)
	forbidden("the policy is in force", strangers...)
	step("the policy is in force")

	// CVE-2024-7598: policies went with their namespace before its pods did.
	c.kubectl(t, "delete", "namespace", "doomed", "--wait=false")

	byUDP := only("udp", strangers)
	unsaid(byUDP...)
	c.applyPolicy(t, friendsOnly(ns, strangersByUDP))
	tr.flowing(t, byUDP...)
	allowed("the changed policy lets UDP in", byUDP...)
	step("the changed policy is in force: UDP for strangers")
	time.Sleep(time.Second)
	unsaid(byUDP...)
	c.applyPolicy(t, friendsOnly(ns))
	forbidden("the policy is in force again", byUDP...)
	step("the first policy is in force again")

	for _, who := range []struct {
		pod, node string
		flows     []*tracedFlow
	}{{"leaver", far, leaver}, {"leaver-near", near, leaverNear}} {
		unsaid(who.flows...)
		c.relabel(t, ns, who.pod, who.node, "role=former")
		forbidden("the label is gone", who.flows...)
		step("%s is a friend no more", who.pod)
	}

	// CVE-2023-27595: an agent's restart took the filters off for a moment.
	for _, n := range c.Nodes {
		c.killAgent(t, n.Name)
		step("the agent of %s was killed, its successor is ready", n.Name)
	}
	if lagging { // the upgrade's own test has the policies, and nothing late
		c.loadNext(t)
		for _, tag := range []string{"next", "dev"} {
			c.roll(t, tag)
			step("every agent is of the build %q", tag)
		}
	}
	time.Sleep(time.Until(freed.Add(62 * time.Second)))
	heir := tr.to("stranger with a friend's old address", server, "udp", "connect")
	forbidden("the address says nothing", heir...)
	c.giveAddressOn(t, tr, ns, far, goer, heir)
	time.Sleep(5 * time.Second) // a connect that nobody answers counts as sent when it is given up
	step("a stranger has %s", goer)
	unsaid(friend...)
	c.kubectl(t, "drain", far, "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s")
	settled()
	step("%s is drained", far)
	time.Sleep(time.Second)
	c.kubectl(t, "uncordon", far)
	strangers = slices.Concat(strangerNear, movingStranger)

	unsaid(slices.Concat(strangers, leavers)...)
	c.kubectl(t, "-n", ns, "delete", "networkpolicy", "friends-only")
	byUDP = only("udp", strangers)
	tr.flowing(t, byUDP...)
	allowed("the policy is gone", byUDP...)
	step("the policy is gone")
	time.Sleep(2 * time.Second)
	tr.check(t)
}

// giveAddressOn starts senders on a node until one has an address of freed.
func (c *cluster) giveAddressOn(t testing.TB, tr *trace, namespace, node string, freed map[string]string, flows []*tracedFlow) {
	t.Helper()
	var given []string
	for i := range 12 {
		name := fmt.Sprintf("heir-%d", i)
		c.apply(t, tr.sender(namespace, name, node, "role: stranger", flows...))
		c.waitReady(t, namespace, name)
		ips := c.podIPs(t, namespace, name)
		if ips["4"] == freed["4"] || ips["6"] == freed["6"] {
			return
		}
		given = append(given, ips["4"])
	}
	t.Fatalf("%s was given to nobody: %s", freed, given)
}

// deployment is one sender that is made again where the scheduler says.
func (tr *trace) deployment(namespace, name, role string, flows []*tracedFlow) string {
	args := append([]string{"send", "-rate", "10", "-record", "/trace/sent-$(POD)"}, flowArgs(flows)...)
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: %s, name: %s}
spec:
  replicas: 1
  selector: {matchLabels: {app: %s}}
  template:
    metadata: {labels: {app: %s, role: %s}}
    spec:
%s
---
`, namespace, name, name, name, role, tr.podSpec("      ", "", 2, args...)) // so long it may end what it is sending
}

// only picks the flows of one protocol.
func only(proto string, flows []*tracedFlow) []*tracedFlow {
	var kept []*tracedFlow
	for _, f := range flows {
		if f.proto == proto {
			kept = append(kept, f)
		}
	}
	return kept
}
