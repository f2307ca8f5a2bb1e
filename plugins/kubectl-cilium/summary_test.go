// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
	"github.com/kube-cilium/kube-cilium/plugins/progress"
)

// readSnapshot makes a snapshot of the cluster.yaml of a script: what the API server would say, without one.
func readSnapshot(t *testing.T, script string) *Snapshot {
	t.Helper()
	archive, err := txtar.ParseFile(script)
	if err != nil {
		t.Fatal(err)
	}
	s := &Snapshot{Now: time.Date(2026, 1, 1, 1, 0, 0, 0, time.UTC)}
	docs := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(archive.Files[0].Data), 4096)
	for {
		u := &unstructured.Unstructured{}
		err := docs.Decode(&u.Object)
		if errors.Is(err, io.EOF) {
			return s
		}
		if err != nil {
			t.Fatal(err)
		}
		if status, ok := u.Object["status"]; ok {
			setGeneration(status, 1)
		}
		u.SetGeneration(1)
		switch u.GetKind() {
		case "DaemonSet":
			s.DaemonSet = to[appsv1.DaemonSet](t, u)
		case "Deployment":
			s.Operator = to[appsv1.Deployment](t, u)
		case "Pod":
			s.Pods = append(s.Pods, *to[corev1.Pod](t, u))
		case "Lease":
			s.Leases = append(s.Leases, *to[coordinationv1.Lease](t, u))
		case "Node":
			s.Nodes = append(s.Nodes, *to[corev1.Node](t, u))
		case "CiliumConfig":
			s.Configs = append(s.Configs, *to[v1alpha1.CiliumConfig](t, u))
		case "CiliumNode":
			s.Members = append(s.Members, *to[v1alpha1.CiliumNode](t, u))
		case "CiliumNodeReport":
			s.Reports = append(s.Reports, *to[v1alpha1.CiliumNodeReport](t, u))
		}
	}
}

func to[T any](t *testing.T, u *unstructured.Unstructured) *T {
	t.Helper()
	out := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// The summary that the scripts show of a real API server is that of the objects alone, in whatever order they come.
func TestSummaryOfScripts(t *testing.T) {
	for _, script := range []string{"testdata/2-well.txtar", "testdata/3-trouble.txtar"} {
		s := readSnapshot(t, script)
		archive, err := txtar.ParseFile(script)
		if err != nil {
			t.Fatal(err)
		}
		want := string(archive.Files[1].Data)
		for range 20 {
			rand.Shuffle(len(s.Pods), func(i, j int) { s.Pods[i], s.Pods[j] = s.Pods[j], s.Pods[i] })
			rand.Shuffle(len(s.Nodes), func(i, j int) { s.Nodes[i], s.Nodes[j] = s.Nodes[j], s.Nodes[i] })
			rand.Shuffle(len(s.Members), func(i, j int) { s.Members[i], s.Members[j] = s.Members[j], s.Members[i] })
			rand.Shuffle(len(s.Reports), func(i, j int) { s.Reports[i], s.Reports[j] = s.Reports[j], s.Reports[i] })
			var out bytes.Buffer
			if err := printSummary(&out, Summarize(s), false, false, colors{}); err != nil {
				t.Fatal(err)
			}
			if got := ages.ReplaceAllString(out.String(), "Ns"); got != want {
				t.Fatalf("%s: got\n%swant\n%s", script, got, want)
			}
		}
	}
}

// What comes from objects must not reach a terminal as it is, nor break the JSON.
func TestSummaryIsSafeToPrint(t *testing.T) {
	s := readSnapshot(t, "testdata/2-well.txtar")
	evil := "\x1b]0;owned\x07\u009b2J\r\n"
	s.Reports[0].Status.Routing, s.Reports[0].Status.AgentVersion = evil, evil
	s.Reports[0].Status.Conditions[0].Status, s.Reports[0].Status.Conditions[0].Message = "False", evil
	s.Reports[0].Status.Kernel.Features[0].Message, s.Reports[0].Status.Maps[0].Name = evil, evil
	s.Configs[0].Status.Conditions[0].Type = evil
	s.Nodes[0].Name = evil
	var out bytes.Buffer
	if err := printSummary(&out, Summarize(s), true, true, colors{}); err != nil {
		t.Fatal(err)
	}
	for _, r := range out.String() {
		if r != '\n' && (r < 0x20 || r >= 0x7f && r < 0xa0) {
			t.Fatalf("%q is printed in\n%q", r, out.String())
		}
	}
	text, err := json.Marshal(Summarize(s))
	if err != nil || !json.Valid(text) {
		t.Errorf("%v: %s", err, text)
	}
}

// Agents that were just deleted say that they are ready for a moment, and their DaemonSet counts them.
func TestSummaryOfAgentsThatEnd(t *testing.T) {
	s := readSnapshot(t, "testdata/2-well.txtar")
	gone := corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: "cilium-agent-1", Labels: map[string]string{cluster.LabelName: cluster.AgentName}, DeletionTimestamp: &metav1.Time{Time: s.Now},
	}}
	gone.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	s.Pods = append(s.Pods, gone)
	if got := Summarize(s); got.Ready || got.Agent.Ready != s.DaemonSet.Status.NumberReady-1 || len(got.Problems) != 1 {
		t.Errorf("%+v, %+v", got.Agent, got.Problems)
	}
	s.Pods[len(s.Pods)-1].Status.Conditions[0].Status = corev1.ConditionFalse // nobody counts it any more
	if got := Summarize(s); !got.Ready {
		t.Errorf("%+v, %+v", got.Agent, got.Problems)
	}
}

// Nobody is left to guess why a policy is not in force everywhere.
func TestRemarksOfAPolicyOnItsWay(t *testing.T) {
	late := func(names ...string) (p progress.Policy) {
		for _, name := range names {
			p.Nodes = append(p.Nodes, progress.Node{Name: name, State: progress.Behind})
		}
		return p
	}
	for want, p := range map[string]progress.Policy{
		"":                                 {Nodes: []progress.Node{{Name: "a", State: progress.InForce}}},
		"node/b has not reported it yet":   late("b"),
		"3 nodes have not reported it yet": late("b", "c", "d"),
	} {
		if got := (&PolicySummary{Progress: p}).remarks(false); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestSummaryOfWhatIsNew(t *testing.T) {
	s := readSnapshot(t, "testdata/2-well.txtar")
	s.Configs[0].Generation = 2
	got := Summarize(s)
	if got.Ready || !strings.Contains(got.Problems[0].Message, "not looked at its latest change") {
		t.Errorf("a config that nobody has looked at: %+v", got.Problems)
	}
	s = readSnapshot(t, "testdata/2-well.txtar")
	s.Nodes[0].Status.NodeInfo.BootID, s.Reports[0].Status.BootID = "now", "before"
	if got := Summarize(s); got.Ready || got.NodesReady != 1 {
		t.Errorf("a report of the boot before: %+v", got.Problems)
	}
	if got := Summarize(&Snapshot{NoKinds: true}); got.Ready || len(got.Problems) != 3 {
		t.Errorf("nothing installed: %+v", got.Problems)
	}
}

// A repair that fails leaves the node working and its condition True, and nobody was told.
func TestSummaryWarnsOfFailingRepairs(t *testing.T) {
	s := readSnapshot(t, "testdata/2-well.txtar")
	c := meta.FindStatusCondition(s.Reports[0].Status.Conditions, v1alpha1.ConditionDatapathReady)
	c.Reason, c.Message = v1alpha1.ReasonRepairFailing, "route to 10.0.1.0/24: file exists"
	got := Summarize(s)
	if !got.Ready || len(got.Problems) != 1 || got.Problems[0].Severity == SeverityError || !strings.Contains(got.Problems[0].Message, c.Message) {
		t.Errorf("ready %v: %+v", got.Ready, got.Problems)
	}
}

// A node that serves its pods and yet does not do all that it should says so.
func TestSummaryTellsOfWhatIsNotDone(t *testing.T) {
	for _, kind := range []string{v1alpha1.ConditionPolicyEnforced, v1alpha1.ConditionNodesReachable, v1alpha1.ConditionFlowsServed} {
		s := readSnapshot(t, "testdata/2-well.txtar")
		r := &s.Reports[0].Status
		r.Conditions = append(r.Conditions, metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: "Broken", Message: "it is " + kind})
		var out bytes.Buffer
		if err := printSummary(&out, Summarize(s), false, false, colors{}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "it is "+kind) {
			t.Errorf("nothing of %s:\n%s", kind, out.String())
		}
	}
}

// After an uninstall each policy was "in force on 0/0 nodes".
func TestSummaryOfPoliciesThatNobodyTellsOf(t *testing.T) {
	s := readSnapshot(t, "testdata/2-well.txtar")
	s.Policies = []networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}}
	reports := s.Reports
	for want, left := range map[string][]v1alpha1.CiliumNodeReport{"no node's agent has reported": nil, "of 2 nodes that reported, none was heard from lately": reports} {
		s.Reports, s.Leases = left, nil
		got := Summarize(s).Problems
		if !slices.ContainsFunc(got, func(p Problem) bool { return p.Message == "nobody tells whether it is in force: "+want }) {
			t.Errorf("%s: %+v", want, got)
		}
	}
}

// 9223372036854775807 became 9223372036854776000 on its way to JSON.
func TestTotalsOfIPv6AreExactInJSON(t *testing.T) {
	s := readSnapshot(t, "testdata/2-well.txtar")
	for i := range s.Reports {
		s.Reports[i].Status.IPAM = append(s.Reports[i].Status.IPAM, v1alpha1.IPAMReport{Prefix: "fd00::/64", Used: 1, Total: math.MaxInt64})
	}
	var out bytes.Buffer
	o := newOutput(&cobra.Command{})
	*o.flags.OutputFormat = "json"
	if err := o.answer(&out, "ClusterStatus", Summarize(s)); err != nil {
		t.Fatal(err)
	}
	var got struct {
		IPAM  Usages
		Nodes []NodeSummary
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.IPAM.IPv6.Total != 1<<53-1 || got.Nodes[0].IPAM.IPv6.Total != 1<<53-1 || got.Nodes[0].Report.IPAM[len(got.Nodes[0].Report.IPAM)-1].Total != math.MaxInt64 {
		t.Errorf("%+v, %+v: %s", got.IPAM.IPv6, got.Nodes[0].IPAM.IPv6, out.String())
	}
}
