// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func coreNode(name string, addresses ...string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func ciliumNode(name string, cidrs ...string) v1alpha1.CiliumNode {
	return v1alpha1.CiliumNode{
		ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: "100",
			OwnerReferences: []metav1.OwnerReference{{UID: types.UID("uid-" + name)}}},
		Spec: v1alpha1.CiliumNodeSpec{PodCIDRs: cidrs},
	}
}

// held is a ledger in which node has what it has.
func held(node string, cidrs ...string) ledger {
	return ledger{node: {prefixes: parsePrefixes(cidrs)}}
}

// freed is a ledger in which the prefix of a rests for some time.
func freed(ago time.Duration) ledger {
	return ledger{"a": {prefixes: parsePrefixes([]string{"10.1.0.0/24"}), freed: noon.Add(-ago), after: "100"}}
}

func pool(cidrs ...string) v1alpha1.CiliumConfigSpec {
	return v1alpha1.CiliumConfigSpec{IPAM: &v1alpha1.IPAMConfig{IPv4: &v1alpha1.AddressPool{CIDRs: cidrs}}}
}

// told prints a plan: one word for each act.
func told(p nodePlan) string {
	var out []string
	for _, cn := range p.gone {
		out = append(out, "delete "+cn.Name)
	}
	for _, d := range p.write {
		out = append(out, fmt.Sprintf("write %s=%s", d.node.Name, strings.Join(d.prefixes, "+")))
	}
	for _, d := range p.desired {
		if d.problem != nil {
			out = append(out, "lacks "+d.node.Name)
		}
	}
	for node, e := range p.ledger {
		if !e.freed.IsZero() {
			out = append(out, fmt.Sprintf("rests %s@%s", node, e.after))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestPlanNodes(t *testing.T) {
	for _, row := range []struct {
		name    string
		world   nodeWorld
		want    string
		requeue time.Duration
	}{
		{"a new node", nodeWorld{nodes: []corev1.Node{coreNode("a")}, spec: pool("10.1.0.0/16")}, "write a=10.1.0.0/24", 0},
		{"nothing to do",
			nodeWorld{nodes: []corev1.Node{coreNode("a")}, ciliumNodes: []v1alpha1.CiliumNode{ciliumNode("a", "10.1.0.0/24")}, spec: pool("10.1.0.0/16")}, "", 0},
		{"no CiliumConfig: the default pool, apart from the nodes' and services' networks",
			nodeWorld{nodes: []corev1.Node{coreNode("a", "10.0.0.5"), coreNode("b", "10.1.7.7", "host.example")}, services: parsePrefixes([]string{"10.2.0.0/16"})},
			"write a=10.3.0.0/24, write b=10.3.1.0/24", 0},
		{"a pool that a person wrote holds the nodes too",
			nodeWorld{nodes: []corev1.Node{coreNode("a", "10.1.0.5")}, spec: pool("10.1.0.0/16")}, "write a=10.1.1.0/24", 0},
		{"a family is added",
			nodeWorld{nodes: []corev1.Node{coreNode("a")}, ciliumNodes: []v1alpha1.CiliumNode{ciliumNode("a", "10.1.0.0/24")},
				spec: v1alpha1.CiliumConfigSpec{IPAM: &v1alpha1.IPAMConfig{IPv4: &v1alpha1.AddressPool{CIDRs: []string{"10.1.0.0/16"}}, IPv6: &v1alpha1.AddressPool{CIDRs: []string{"fd00::/112"}}}}},
			"write a=10.1.0.0/24+fd00::/120", 0},
		{"a node is gone", nodeWorld{ciliumNodes: []v1alpha1.CiliumNode{ciliumNode("a", "10.1.0.0/24")}, spec: pool("10.1.0.0/16")}, "delete a", 0},
		{"a node is gone, and its CiliumNode too: its prefix rests, the next node gets another",
			nodeWorld{nodes: []corev1.Node{coreNode("b")}, ledger: held("a", "10.1.0.0/24"), spec: pool("10.1.0.0/16")},
			"rests a@777, write b=10.1.1.0/24", time.Minute},
		{"it goes on resting", nodeWorld{ledger: freed(10 * time.Second), spec: pool("10.1.0.0/16")}, "rests a@100", 50 * time.Second},
		{"while all the pool rests nobody gets it",
			nodeWorld{nodes: []corev1.Node{coreNode("b")}, ledger: freed(0), spec: pool("10.1.0.0/24")},
			"lacks b, rests a@100, write b=", time.Minute},
		{"rested, and no agent lives that could still know it", nodeWorld{ledger: freed(time.Minute), spec: pool("10.1.0.0/16")}, "", 0},
		{"rested: the next node gets it",
			nodeWorld{nodes: []corev1.Node{coreNode("b")}, ledger: freed(time.Minute), spec: pool("10.1.0.0/16")}, "write b=10.1.0.0/24", 0},
		{"rested, but an agent has not acted on the deletion",
			nodeWorld{ledger: freed(time.Minute), spec: pool("10.1.0.0/16"), confirmed: map[string]string{"b": "99", "c": "100"}}, "rests a@100", restPoll},
		{"rested, but an agent does not say",
			nodeWorld{ledger: freed(time.Minute), spec: pool("10.1.0.0/16"), confirmed: map[string]string{"b": ""}}, "rests a@100", restPoll},
		{"rested and confirmed, also by a number with more digits",
			nodeWorld{ledger: freed(time.Minute), spec: pool("10.1.0.0/16"), confirmed: map[string]string{"a": "1", "b": "1000", "c": "100"}}, "", 0},
		{"waiting for confirmations ends",
			nodeWorld{ledger: freed(10 * time.Minute), spec: pool("10.1.0.0/16"), confirmed: map[string]string{"b": ""}}, "", 0},
		{"the CiliumNode of a living node was deleted: it comes back with the same prefix",
			nodeWorld{nodes: []corev1.Node{coreNode("a"), coreNode("0")}, ledger: held("a", "10.1.7.0/24"), spec: pool("10.1.0.0/16")},
			"write 0=10.1.0.0/24, write a=10.1.7.0/24", 0},
		{"a node comes back while its prefix rests: it gets it back", nodeWorld{nodes: []corev1.Node{coreNode("a")}, ledger: freed(time.Second), spec: pool("10.1.0.0/16")},
			"write a=10.1.0.0/24", 0},
		{"a person wrote other prefixes into a CiliumNode: the ledger holds",
			nodeWorld{nodes: []corev1.Node{coreNode("a")}, ledger: held("a", "10.1.7.0/24"), ciliumNodes: []v1alpha1.CiliumNode{ciliumNode("a", "0.0.0.0/0")}, spec: pool("10.1.0.0/16")},
			"write a=10.1.7.0/24", 0},
		{"the operator died between ledger and CiliumNode",
			nodeWorld{nodes: []corev1.Node{coreNode("a"), coreNode("b")}, ledger: held("b", "10.1.0.0/24"), spec: pool("10.1.0.0/16")},
			"write a=10.1.1.0/24, write b=10.1.0.0/24", 0},
		{"a new machine under an old name takes the object over",
			nodeWorld{nodes: []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "another"}}}, ciliumNodes: []v1alpha1.CiliumNode{ciliumNode("a", "10.1.7.0/24")}, spec: pool("10.1.0.0/16")},
			"write a=10.1.7.0/24", 0},
		{"exhausted", nodeWorld{nodes: []corev1.Node{coreNode("a"), coreNode("b")}, spec: pool("10.1.0.0/24")}, "lacks b, write a=10.1.0.0/24, write b=", 0},
		{"one prefix twice", nodeWorld{nodes: []corev1.Node{coreNode("a"), coreNode("b")}, spec: pool("10.1.0.0/16"),
			ciliumNodes: []v1alpha1.CiliumNode{ciliumNode("a", "10.1.0.0/24"), ciliumNode("b", "10.1.0.0/24")}}, "lacks b, write b=10.1.1.0/24", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := row.world
			w.now, w.rest, w.restLimit, w.version = noon, time.Minute, 10*time.Minute, "777"
			plan := planNodes(w)
			got := told(plan)
			if got != row.want || plan.requeue != row.requeue {
				t.Errorf("got %q after %v, want %q after %v", got, plan.requeue, row.want, row.requeue)
			}
			slices.Reverse(w.nodes)
			slices.Reverse(w.ciliumNodes)
			if again := told(planNodes(w)); again != got {
				t.Errorf("in another order: %q", again)
			}
		})
	}
}

// TestPrefixWalk walks at random through the lives of nodes, with operators that die between any two writes, and looks
// at every step at what the agents would see.
func TestPrefixWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := nodeWorld{now: noon, rest: time.Minute, restLimit: 10 * time.Minute, spec: pool("10.1.0.0/26"), ledger: ledger{}}
		mask := int32(28) // four prefixes for six names
		w.spec.IPAM.IPv4.MaskSize = &mask
		names := []string{"a", "b", "c", "d", "e", "f"}
		version := 100
		lastHeld := map[string]time.Time{} // prefix -> when a CiliumNode last had it
		lastBy := map[string]string{}
		nodeAt := func(name string) int {
			return slices.IndexFunc(w.nodes, func(n corev1.Node) bool { return n.Name == name })
		}
		cnAt := func(name string) int {
			return slices.IndexFunc(w.ciliumNodes, func(c v1alpha1.CiliumNode) bool { return c.Name == name })
		}
		changed := func() { version++; w.version = fmt.Sprint(version) }
		changed()
		name := func(t *rapid.T) string { return rapid.SampledFrom(names).Draw(t, "name") }
		t.Repeat(map[string]func(*rapid.T){
			"node comes": func(t *rapid.T) {
				if n := name(t); nodeAt(n) < 0 {
					w.nodes = append(w.nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, UID: types.UID(fmt.Sprint(version))}})
				}
			},
			"node goes": func(t *rapid.T) {
				if i := nodeAt(name(t)); i >= 0 {
					w.nodes = slices.Delete(w.nodes, i, i+1)
				}
			},
			"somebody deletes a CiliumNode": func(t *rapid.T) {
				if i := cnAt(name(t)); i >= 0 {
					w.ciliumNodes = slices.Delete(w.ciliumNodes, i, i+1)
					changed()
				}
			},
			"somebody writes into a CiliumNode": func(t *rapid.T) {
				// Only free ranges: what others hold is the case of a lost ledger, in a test of its own.
				if i := cnAt(name(t)); i >= 0 {
					w.ciliumNodes[i].Spec.PodCIDRs = []string{"192.168.0.0/16"}
				}
			},
			"time": func(t *rapid.T) {
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 400).Draw(t, "seconds")) * time.Second)
			},
			"agents": func(t *rapid.T) {
				w.confirmed = map[string]string{}
				for _, n := range rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID[string]).Draw(t, "alive") {
					w.confirmed[n] = fmt.Sprint(rapid.IntRange(99, version).Draw(t, "seen"))
				}
			},
			"operator": func(t *rapid.T) {
				plan := planNodes(w)
				// It may die after any write; a later one starts from what stands.
				steps := rapid.IntRange(0, 1+len(plan.gone)+len(plan.write)).Draw(t, "steps before it dies")
				if steps == 0 {
					return
				}
				w.ledger = plan.ledger
				for _, cn := range plan.gone[:min(len(plan.gone), steps-1)] {
					if i := cnAt(cn.Name); i >= 0 {
						w.ciliumNodes = slices.Delete(slices.Clone(w.ciliumNodes), i, i+1)
						changed()
					}
				}
				for _, d := range plan.write[:min(len(plan.write), max(0, steps-1-len(plan.gone)))] {
					cn := ciliumNode(d.node.Name, d.prefixes...)
					cn.OwnerReferences[0].UID = d.node.UID
					if i := cnAt(cn.Name); i >= 0 {
						w.ciliumNodes[i] = cn
					} else {
						w.ciliumNodes = append(w.ciliumNodes, cn)
					}
					changed()
				}
			},
			"": func(t *rapid.T) {
				by := map[string]string{}
				for _, cn := range w.ciliumNodes {
					for _, p := range cn.Spec.PodCIDRs {
						if p == "192.168.0.0/16" {
							continue
						}
						if other, ok := by[p]; ok {
							t.Fatalf("%s is held by %s and %s", p, other, cn.Name)
						}
						by[p] = cn.Name
						if lastBy[p] != "" && lastBy[p] != cn.Name && w.now.Sub(lastHeld[p]) < w.rest {
							t.Fatalf("%s went from %s to %s after %v", p, lastBy[p], cn.Name, w.now.Sub(lastHeld[p]))
						}
						lastBy[p], lastHeld[p] = cn.Name, w.now
					}
				}
			},
		})
	})
}

func TestLedgerReadsWhatItWrites(t *testing.T) {
	l := freed(time.Second)
	l["b"] = entry{prefixes: parsePrefixes([]string{"10.2.0.0/24", "fd00::/120"})}
	data := map[string]string{}
	for node, e := range l {
		data[node] = e.String()
	}
	if got := readLedger(data); !got.equal(l) {
		t.Errorf("wrote %v, read %v", l, got)
	}
	if got := readLedger(map[string]string{"a": "", "b": "freed=never banana", "c": "banana 10.0.0.0/24"}); len(got) != 1 || len(got["c"].prefixes) != 1 {
		t.Errorf("read %v from damaged lines", got)
	}
}

func agentLease(node string, renewed time.Duration) *coordinationv1.Lease {
	at, seconds := metav1.NewMicroTime(noon.Add(-renewed)), int32(30)
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.AgentLeaseNamespace, Name: v1alpha1.AgentLeasePrefix + node},
		Spec: coordinationv1.LeaseSpec{RenewTime: &at, LeaseDurationSeconds: &seconds}}
}

func nodeReport(name, boot string, conditions ...string) *v1alpha1.CiliumNodeReport {
	r := &v1alpha1.CiliumNodeReport{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.CiliumNodeReportStatus{BootID: boot}}
	for _, c := range conditions {
		meta.SetStatusCondition(&r.Status.Conditions, metav1.Condition{Type: c, Status: metav1.ConditionTrue, Reason: "X"})
	}
	return r
}

func TestJudgeNode(t *testing.T) {
	const ready, datapath = v1alpha1.ConditionReady, v1alpha1.ConditionDatapathReady
	alive, silent := agentLease("a", 0), agentLease("a", time.Minute)
	otherCNI := nodeReport("a", "boot")
	otherCNI.Status.Conditions = []metav1.Condition{{Type: ready, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonOtherCNI}}
	because := func(boot, reason string) *v1alpha1.CiliumNodeReport {
		r := nodeReport("a", boot)
		r.Status.Conditions = []metav1.Condition{{Type: datapath, Status: metav1.ConditionFalse, Reason: reason}}
		return r
	}
	for _, row := range []struct {
		name   string
		report *v1alpha1.CiliumNodeReport
		lease  *coordinationv1.Lease
		want   gate
	}{
		{"never ours", nil, nil, asItIs},
		{"ready", nodeReport("a", "boot", ready, datapath), alive, open},
		{"ready, agent away since: what runs goes on", nodeReport("a", "boot", ready, datapath), silent, open},
		{"starting", nodeReport("a", "boot"), alive, asItIs},
		{"agent restarts, datapath was ready in this boot", nodeReport("a", "boot", datapath), silent, asItIs},
		{"died before the datapath was ready", nodeReport("a", "boot"), silent, closed},
		{"rebooted, agent not yet back", nodeReport("a", "boot before", ready, datapath), silent, closed},
		{"rebooted, no lease", nodeReport("a", "boot before", ready, datapath), nil, closed},
		{"another network serves the node", otherCNI, silent, asItIs},
		{"no bpffs, the agent lives", because("boot", v1alpha1.ReasonNoBPFFS), alive, closed},
		{"no bpffs before the reboot", because("boot before", v1alpha1.ReasonNoBPFFS), alive, asItIs},
		{"waits for its prefixes", because("boot", "NoPrefix"), alive, asItIs},
		{"rebooted, agent back and starting", nodeReport("a", "boot before", ready, datapath), alive, asItIs},
	} {
		node := coreNode("a")
		node.Status.NodeInfo.BootID = "boot"
		if got := judge(&node, row.report, row.lease, noon); got != row.want {
			t.Errorf("%s: got %v, want %v", row.name, got, row.want)
		}
	}
}

func TestFoldConfig(t *testing.T) {
	config := &v1alpha1.CiliumConfig{ObjectMeta: metav1.ObjectMeta{Generation: 3}}
	at := func(generation int64, r *v1alpha1.CiliumNodeReport) v1alpha1.CiliumNodeReport {
		r.Status.ObservedConfigGeneration = generation
		return *r
	}
	three := []corev1.Node{coreNode("a"), coreNode("b"), coreNode("c")}
	alive := []coordinationv1.Lease{*agentLease("a", 0), *agentLease("b", 0), *agentLease("c", 0)}
	silent := []coordinationv1.Lease{*agentLease("a", 0), *agentLease("b", 0), *agentLease("c", time.Hour)}
	lacking := ciliumNode("b")
	lacking.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionPrefixesAssigned, Status: metav1.ConditionFalse, Message: "no free /24"}}
	good := func(n string) v1alpha1.CiliumNodeReport { return at(3, nodeReport(n, "", v1alpha1.ConditionReady)) }
	for _, row := range []struct {
		name    string
		nodes   []corev1.Node
		cns     []v1alpha1.CiliumNode
		reports []v1alpha1.CiliumNodeReport
		leases  []coordinationv1.Lease
		count   string
		// conditions that are True
		want    string
		message string
	}{
		{"no nodes", nil, nil, nil, nil, "0/0", "PoolsApart PrefixesAssigned Ready", ""},
		{"all ready", three, nil, []v1alpha1.CiliumNodeReport{good("a"), good("b"), good("c")}, alive, "3/3", "PoolsApart PrefixesAssigned Ready", ""},
		{"one old, one silent", three, nil, []v1alpha1.CiliumNodeReport{good("a"), at(2, nodeReport("b", "", v1alpha1.ConditionReady)), good("c")}, silent,
			"1/3", "PoolsApart PrefixesAssigned Reconciling", "1/3 nodes are ready; waiting for b (runs generation 2), c (the agent is silent)"},
		{"one never came, one starts", three, nil, []v1alpha1.CiliumNodeReport{good("a"), at(3, nodeReport("b", ""))}, alive,
			"1/3", "PoolsApart PrefixesAssigned Reconciling", "1/3 nodes are ready; waiting for b (the agent is starting), c (no agent has reported)"},
		{"exhausted", three, []v1alpha1.CiliumNode{lacking}, []v1alpha1.CiliumNodeReport{good("a"), good("b"), good("c")}, alive, "3/3", "PoolsApart Stalled", "b: no free /24"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := foldConfig(config, row.nodes, row.cns, row.reports, row.leases, noon)
			var is []string
			for _, c := range got.Conditions {
				if c.Status == metav1.ConditionTrue {
					is = append(is, c.Type)
				}
				if c.ObservedGeneration != 3 {
					t.Errorf("%s observed generation %d", c.Type, c.ObservedGeneration)
				}
			}
			slices.Sort(is)
			if got.Nodes != row.count || strings.Join(is, " ") != row.want || len(got.Conditions) != 5 {
				t.Errorf("got %s, true: %v", got.Nodes, is)
			}
			if c := meta.FindStatusCondition(got.Conditions, v1alpha1.ConditionReady); row.message != "" && c.Message != row.message {
				t.Errorf("message %q", c.Message)
			}
		})
	}
}

func TestPoolsApart(t *testing.T) {
	node := coreNode("a")
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "a"}, {Type: corev1.NodeInternalIP, Address: "10.1.2.3"}, {Type: corev1.NodeInternalIP, Address: "fd00::3"}}
	dual := func(ipv4, ipv6 string) *v1alpha1.IPAMConfig {
		return &v1alpha1.IPAMConfig{IPv4: &v1alpha1.AddressPool{CIDRs: []string{ipv4}}, IPv6: &v1alpha1.AddressPool{CIDRs: []string{ipv6}}}
	}
	for _, row := range []struct {
		name  string
		pools *v1alpha1.IPAMConfig
		want  string // how the message begins, where it is False
	}{
		{"of nobody's choice", nil, ""},
		{"apart", dual("10.244.0.0/16", "fd01::/56"), ""},
		{"around the node", dual("10.1.0.0/16", "fd01::/56"), "10.1.0.0/16 holds 10.1.2.3 of node a: "},
		{"around both its addresses", dual("10.0.0.0/8", "fd00::/56"), "10.0.0.0/8 holds 10.1.2.3 of node a, fd00::/56 holds fd00::3 of node a: "},
	} {
		got := foldConfig(&v1alpha1.CiliumConfig{Spec: v1alpha1.CiliumConfigSpec{IPAM: row.pools}}, []corev1.Node{node}, nil, nil, nil, noon)
		c := meta.FindStatusCondition(got.Conditions, v1alpha1.ConditionPoolsApart)
		if c == nil || (c.Status == metav1.ConditionFalse) != (row.want != "") || !strings.HasPrefix(c.Message, row.want) {
			t.Errorf("%s: %+v", row.name, c)
		}
	}
}

func TestJudgeIdentity(t *testing.T) {
	const grace, hour = 15 * time.Minute, time.Hour
	id := func(mark string) *metav1.PartialObjectMetadata {
		m := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "4711", ResourceVersion: "9"}}
		if mark != "" {
			m.Annotations = map[string]string{v1alpha1.AnnotationTombstone: mark}
		}
		return m
	}
	ago := func(d time.Duration) string { return noon.Add(-d).Format(time.RFC3339) }
	since := func(version string, d time.Duration) unusedSince { return unusedSince{version, noon.Add(-d)} }
	gone := id("")
	gone.DeletionTimestamp = &metav1.Time{Time: noon}
	for _, row := range []struct {
		name   string
		m      *metav1.PartialObjectMetadata
		used   bool
		before unusedSince
		want   identityAct
		then   unusedSince
	}{
		{"used", id(""), true, since("9", hour), keep, unusedSince{}},
		{"unused for the first time", id(""), false, unusedSince{}, keep, since("9", 0)},
		{"unused for less than the grace", id(""), false, since("9", grace-1), keep, since("9", grace-1)},
		{"unused for the grace", id(""), false, since("9", grace), bury, since("9", grace)},
		{"adopted meanwhile: the grace starts again", id(""), false, since("8", hour), keep, since("9", 0)},
		{"dead for less than the hour", id(ago(hour - time.Second)), false, unusedSince{}, keep, unusedSince{}},
		{"dead for the hour", id(ago(hour)), false, unusedSince{}, remove, unusedSince{}},
		{"dead, but somebody uses it", id(ago(hour)), true, unusedSince{}, unearth, unusedSince{}},
		{"a tombstone that nobody can read", id("yesterday"), false, unusedSince{}, bury, unusedSince{}},
		{"a tombstone from the far future", id(noon.Add(hour).Format(time.RFC3339)), false, unusedSince{}, bury, unusedSince{}},
		{"going already", gone, false, since("9", hour), keep, unusedSince{}},
	} {
		act, then := judgeIdentity(row.m, row.used, row.before, noon, grace, hour)
		if act != row.want || then != row.then {
			t.Errorf("%s: got %v %v, want %v %v", row.name, act, then, row.want, row.then)
		}
	}
}
