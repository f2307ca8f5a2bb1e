// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
	"github.com/kube-cilium/kube-cilium/plugins/progress"
)

// Snapshot is what a summary is made from: the cluster's objects at one time.
type Snapshot struct {
	Now       time.Time
	DaemonSet *appsv1.DaemonSet  // nil: there is none
	Operator  *appsv1.Deployment // nil: there is none
	Pods      []corev1.Pod       // of the agent and the operator
	Leases    []coordinationv1.Lease
	Nodes     []corev1.Node
	Configs   []v1alpha1.CiliumConfig
	Members   []v1alpha1.CiliumNode
	Reports   []v1alpha1.CiliumNodeReport
	// Policies of the cluster; nil where the caller may not list them.
	Policies []networkingv1.NetworkPolicy
	// NoKinds is true when the API server does not know our kinds.
	NoKinds bool
}

// Severity says whether a problem keeps the cluster from being well.
type Severity string

const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
)

// Problem is one thing that is not as it should be.
type Problem struct {
	Severity Severity `json:"severity"`
	// Object as kubectl names it, such as node/worker-1.
	Object  string `json:"object"`
	Message string `json:"message"`
}

// Workload is how far a DaemonSet or Deployment has come.
type Workload struct {
	Object  string `json:"object"`
	Found   bool   `json:"found"`
	Desired int32  `json:"desired"`
	Ready   int32  `json:"ready"`
	Updated int32  `json:"updated"`
}

// uncounted is the total of a prefix that has more addresses than it, as those of IPv6 have: the largest number that JSON
// holds exactly whoever reads it.
const uncounted = 1<<53 - 1

// Usage is how many pod addresses of one family are taken. Total is uncounted where there are that many or more.
type Usage struct {
	Used    int64 `json:"used"`
	Resting int64 `json:"resting"`
	Total   int64 `json:"total"`
}

func (u *Usage) add(v Usage) {
	u.Used += v.Used
	u.Resting += v.Resting
	u.Total = min(u.Total, uncounted) + min(v.Total, uncounted)
	u.Total = min(u.Total, uncounted)
}

// Usages are both families; nil where no prefix of the family is in use.
type Usages struct {
	IPv4 *Usage `json:"ipv4,omitempty"`
	IPv6 *Usage `json:"ipv6,omitempty"`
}

// of is the usage of one family, made where it is not there yet.
func (u *Usages) of(family6 bool) *Usage {
	p := &u.IPv4
	if family6 {
		p = &u.IPv6
	}
	if *p == nil {
		*p = &Usage{}
	}
	return *p
}

// HealthSummary counts probes between nodes: one by ICMP and one by TCP for each address of each other node.
type HealthSummary struct {
	Probes   int `json:"probes"`
	Answered int `json:"answered"`
	// SlowestMicros is the slowest answer, in microseconds.
	SlowestMicros int64 `json:"slowestMicros,omitempty"`
}

// NodeSummary is one node's line.
type NodeSummary struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	// Agent is the state of the agent's pod in a word or two.
	Agent        string   `json:"agent"`
	AgentVersion string   `json:"agentVersion,omitempty"`
	Addresses    []string `json:"addresses,omitempty"`
	PodCIDRs     []string `json:"podCIDRs,omitempty"`
	IPAM         Usages   `json:"ipam"`
	Endpoints    int32    `json:"endpoints"`
	Routing      string   `json:"routing,omitempty"`
	Masquerade   string   `json:"masquerade,omitempty"`
	Devices      []string `json:"devices,omitempty"`
	PodMTU       int32    `json:"podMTU,omitempty"`
	Kernel       string   `json:"kernel,omitempty"`
	// Report is nil where the agent has not said anything yet.
	Report *v1alpha1.CiliumNodeReportStatus `json:"report,omitempty"`
}

// Summary is the answer to: is the network well?
type Summary struct {
	// Ready is true when there is no problem of severity error.
	Ready    bool     `json:"ready"`
	Agent    Workload `json:"agent"`
	Operator Workload `json:"operator"`
	// ConfigPresent is false where the defaults hold.
	ConfigPresent    bool               `json:"configPresent"`
	ConfigConditions []metav1.Condition `json:"configConditions,omitempty"`
	NodesReady       int                `json:"nodesReady"`
	NodesTotal       int                `json:"nodesTotal"`
	IPAM             Usages             `json:"ipam"`
	Endpoints        int64              `json:"endpoints"`
	// Policies that are known, and how many of them every node that can be waited for enforces.
	Policies        int `json:"policies"`
	PoliciesInForce int `json:"policiesInForce"`
	// Flows that the nodes' agents were told of since they started.
	Flows v1alpha1.FlowCounters `json:"flows"`
	// FlowReporting counts nodes by which of the packets that pass are reported.
	FlowReporting map[string]int `json:"flowReporting,omitempty"`
	// Health sums up how nodes reach one another.
	Health HealthSummary `json:"health"`
	// Routing, Masquerade, Versions and Images count nodes or pods.
	Routing    map[string]int `json:"routing,omitempty"`
	Masquerade map[string]int `json:"masquerade,omitempty"`
	Versions   map[string]int `json:"versions,omitempty"`
	Images     map[string]int `json:"images,omitempty"`
	Nodes      []NodeSummary  `json:"nodes"`
	Problems   []Problem      `json:"problems"`
}

// Summarize is a pure function of the snapshot, whatever the order of its lists.
func Summarize(s *Snapshot) *Summary {
	out := &Summary{
		FlowReporting: map[string]int{},
		Routing:       map[string]int{}, Masquerade: map[string]int{}, Versions: map[string]int{}, Images: map[string]int{},
		Nodes: []NodeSummary{}, Problems: []Problem{},
	}
	out.summarizeAgent(s)
	out.summarizeOperator(s)
	out.summarizeConfig(s)
	generation := configGeneration(s)
	for i := range s.Nodes {
		out.summarizeNode(s, &s.Nodes[i], generation)
	}
	out.strays(s)
	out.policies(s)
	for i := range s.Pods {
		for _, c := range s.Pods[i].Spec.Containers {
			out.Images[c.Image]++
		}
	}
	if len(out.Versions) > 1 {
		out.warn("daemonset.apps/"+cluster.AgentName, "agents of %d versions run: %s", len(out.Versions), counts(out.Versions))
	}
	slices.SortFunc(out.Nodes, func(a, b NodeSummary) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(out.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Message, b.Message))
	})
	out.Ready = !slices.ContainsFunc(out.Problems, func(p Problem) bool { return p.Severity == SeverityError })
	return out
}

func (out *Summary) err(object, format string, args ...any) {
	out.Problems = append(out.Problems, Problem{SeverityError, object, fmt.Sprintf(format, args...)})
}

func (out *Summary) warn(object, format string, args ...any) {
	out.Problems = append(out.Problems, Problem{SeverityWarning, object, fmt.Sprintf(format, args...)})
}

// installHint cannot name a file: the images are where whoever installs has pushed them.
const installHint = "kubectl apply -k of your overlay of config/default installs it: docs/install.md"

func (out *Summary) summarizeAgent(s *Snapshot) {
	out.Agent = Workload{Object: "daemonset.apps/" + cluster.AgentName}
	ds := s.DaemonSet
	if ds == nil {
		out.err(out.Agent.Object, "not found in namespace %s (%s)", cluster.Namespace, installHint)
		return
	}
	st := ds.Status
	st.NumberReady -= min(st.NumberReady, ending(s.Pods, cluster.AgentName))
	out.Agent = Workload{out.Agent.Object, true, st.DesiredNumberScheduled, st.NumberReady, st.UpdatedNumberScheduled}
	switch {
	case st.ObservedGeneration < ds.Generation:
		out.warn(out.Agent.Object, "its latest change has not been looked at by the controller manager yet")
	case st.DesiredNumberScheduled == 0:
		out.err(out.Agent.Object, "no node takes its pods")
	case st.NumberReady < st.DesiredNumberScheduled:
		out.err(out.Agent.Object, "%d of %d pods are ready", st.NumberReady, st.DesiredNumberScheduled)
	case st.UpdatedNumberScheduled < st.DesiredNumberScheduled:
		out.warn(out.Agent.Object, "a rollout goes on: %d of %d pods are of the latest kind", st.UpdatedNumberScheduled, st.DesiredNumberScheduled)
	}
	out.troubledPods(s, cluster.AgentName)
}

func (out *Summary) summarizeOperator(s *Snapshot) {
	out.Operator = Workload{Object: "deployment.apps/" + cluster.OperatorName}
	d := s.Operator
	if d == nil {
		out.err(out.Operator.Object, "not found in namespace %s (%s)", cluster.Namespace, installHint)
		return
	}
	desired := int32(1)
	if d.Spec.Replicas != nil {
		desired = *d.Spec.Replicas
	}
	out.Operator = Workload{out.Operator.Object, true, desired, d.Status.ReadyReplicas, d.Status.UpdatedReplicas}
	switch {
	case d.Status.ReadyReplicas == 0:
		out.err(out.Operator.Object, "0 of %d pods are ready: no node gets a prefix and nothing is cleaned up; what runs goes on", desired)
	case d.Status.ReadyReplicas < desired:
		out.warn(out.Operator.Object, "%d of %d pods are ready", d.Status.ReadyReplicas, desired)
	}
	out.troubledPods(s, cluster.OperatorName)
}

// ending are the pods that are being deleted and still say that they are ready: a DaemonSet counts them.
func ending(pods []corev1.Pod, app string) (n int32) {
	for i := range pods {
		if pods[i].Labels[cluster.LabelName] == app && pods[i].DeletionTimestamp != nil && cluster.PodReady(&pods[i]) {
			n++
		}
	}
	return n
}

// troubledPods says what the containers of unready pods say of themselves.
func (out *Summary) troubledPods(s *Snapshot, app string) {
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.Labels[cluster.LabelName] != app || p.DeletionTimestamp != nil {
			continue
		}
		for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			if why := trouble(c); why != "" {
				where := ""
				if p.Spec.NodeName != "" {
					where = " on node " + p.Spec.NodeName
				}
				out.err("pod/"+p.Name, "container %s%s: %s", c.Name, where, why)
			}
		}
		if c := cluster.PodCondition(p, corev1.PodScheduled); c != nil && c.Status == corev1.ConditionFalse {
			out.err("pod/"+p.Name, "not scheduled: %s", c.Message)
		}
	}
}

// trouble is "" for a container that runs or has just begun to.
func trouble(c corev1.ContainerStatus) string {
	why := ""
	if w := c.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
		why = strings.TrimSuffix(w.Reason+": "+w.Message, ": ")
	}
	if t := c.State.Terminated; t != nil && t.ExitCode != 0 {
		why = fmt.Sprintf("%s, exit code %d", t.Reason, t.ExitCode)
	}
	if why == "" {
		return ""
	}
	if t := c.LastTerminationState.Terminated; t != nil {
		if last := strings.TrimSpace(t.Message); last != "" {
			lines := strings.Split(last, "\n")
			why += "; it said: " + lines[len(lines)-1]
		}
	}
	return why
}

func configGeneration(s *Snapshot) int64 {
	for i := range s.Configs {
		if s.Configs[i].Name == v1alpha1.ConfigName {
			return s.Configs[i].Generation
		}
	}
	return 0
}

func (out *Summary) summarizeConfig(s *Snapshot) {
	if s.NoKinds {
		out.err("customresourcedefinition.apiextensions.k8s.io", "the kinds of %s are not installed (%s)", v1alpha1.GroupVersion.Group, installHint)
	}
	for i := range s.Configs {
		c := &s.Configs[i]
		object := "ciliumconfig/" + c.Name
		if c.Name != v1alpha1.ConfigName {
			out.warn(object, "is not honoured: only the one named %s is", v1alpha1.ConfigName)
			continue
		}
		out.ConfigPresent, out.ConfigConditions = true, c.Status.Conditions
		ready := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionReady)
		switch {
		case ready == nil || ready.ObservedGeneration < c.Generation:
			out.err(object, "the operator has not looked at its latest change yet")
		case ready.Status == metav1.ConditionFalse:
			out.err(object, "%s", said(ready))
		case ready.Status != metav1.ConditionTrue:
			out.warn(object, "%s", said(ready))
		}
		for _, other := range []struct {
			kind string
			bad  metav1.ConditionStatus
			tell func(object, format string, args ...any)
		}{
			{v1alpha1.ConditionStalled, metav1.ConditionTrue, out.err},
			{v1alpha1.ConditionPrefixesAssigned, metav1.ConditionFalse, out.err},
			{v1alpha1.ConditionPoolsApart, metav1.ConditionFalse, out.warn},
			{v1alpha1.ConditionReconciling, metav1.ConditionTrue, out.warn},
		} {
			if cond := meta.FindStatusCondition(c.Status.Conditions, other.kind); cond != nil && cond.Status == other.bad {
				other.tell(object, "%s", said(cond))
			}
		}
	}
}

// said is a condition in one line.
func said(c *metav1.Condition) string {
	line := c.Type + "=" + string(c.Status)
	if c.Reason != "" {
		line += " (" + c.Reason + ")"
	}
	if c.Message != "" {
		line += ": " + c.Message
	}
	return line
}

func (out *Summary) summarizeNode(s *Snapshot, node *corev1.Node, generation int64) {
	object := "node/" + node.Name
	line := NodeSummary{Name: node.Name, Agent: agentState(s, node.Name)}
	before := countErrors(out.Problems)
	out.NodesTotal++
	if line.Agent == "none" {
		out.err(object, "no agent pod runs here")
	}
	if t := findTaint(node, v1alpha1.TaintAgentNotReady); t {
		out.warn(object, "has the taint %s: no pod is scheduled here until its agent is ready", v1alpha1.TaintAgentNotReady)
	}
	out.member(s, node.Name, &line)
	out.lease(s, node.Name)
	out.report(s, node, &line, generation)
	line.Ready = countErrors(out.Problems) == before && line.Report != nil &&
		meta.IsStatusConditionTrue(line.Report.Conditions, v1alpha1.ConditionReady)
	if line.Ready {
		out.NodesReady++
	}
	out.Nodes = append(out.Nodes, line)
}

func countErrors(all []Problem) int {
	n := 0
	for _, p := range all {
		if p.Severity == SeverityError {
			n++
		}
	}
	return n
}

// agentState is the agent's pod on a node in a word or two; the youngest pod where a rollout has two.
func agentState(s *Snapshot, node string) string {
	var pod *corev1.Pod
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.Spec.NodeName == node && p.Labels[cluster.LabelName] == cluster.AgentName &&
			(pod == nil || pod.CreationTimestamp.Before(&p.CreationTimestamp)) {
			pod = p
		}
	}
	if pod == nil {
		return "none"
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.Name != cluster.AgentContainer {
			continue
		}
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			return c.State.Waiting.Reason
		case c.State.Terminated != nil:
			return "Terminated"
		case !c.Ready:
			return "NotReady"
		}
		return "Ready"
	}
	return string(pod.Status.Phase)
}

func findTaint(node *corev1.Node, key string) bool {
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
}

func (out *Summary) member(s *Snapshot, name string, line *NodeSummary) {
	i := slices.IndexFunc(s.Members, func(m v1alpha1.CiliumNode) bool { return m.Name == name })
	object := "ciliumnode/" + name
	if i < 0 {
		if !s.NoKinds {
			out.err(object, "not found: the operator has not given this node a prefix yet")
		}
		return
	}
	m := &s.Members[i]
	line.PodCIDRs = m.Spec.PodCIDRs
	for _, a := range m.Status.Addresses {
		if a.Type == v1alpha1.NodeInternalIP {
			line.Addresses = append(line.Addresses, a.Address)
		}
	}
	if c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionPrefixesAssigned); c != nil && c.Status == metav1.ConditionFalse {
		out.err(object, "%s", said(c))
	} else if len(m.Spec.PodCIDRs) == 0 {
		out.err(object, "has no prefix")
	}
}

// leaseGrace is how long a lease counts where it does not say.
const leaseGrace = 40 * time.Second

func (out *Summary) lease(s *Snapshot, node string) {
	name := v1alpha1.AgentLeasePrefix + node
	i := slices.IndexFunc(s.Leases, func(l coordinationv1.Lease) bool { return l.Name == name })
	if i < 0 {
		return // the report, or its absence, says enough
	}
	spec := &s.Leases[i].Spec
	if spec.RenewTime == nil {
		return
	}
	grace := leaseGrace
	if spec.LeaseDurationSeconds != nil {
		grace = time.Duration(*spec.LeaseDurationSeconds) * time.Second
	}
	if age := s.Now.Sub(spec.RenewTime.Time); age > grace {
		out.err("node/"+node, "nothing was heard from its agent for %s (lease/%s)", age.Round(time.Second), name)
	}
}

// arrays have every entry from the beginning: their fill means nothing.
var arrays = map[string]bool{
	bpf.MapsMapMetrics: true, bpf.MapsMapLiveSettings: true, bpf.MapsMapHooks: true, bpf.MapsMapDropBudgets: true,
	bpf.MapsMapPolicies: true, bpf.MapsMapAdvances: true,
}

// mapFull is the fill from which on a map is worth a warning.
const mapFull = 0.9

func (out *Summary) report(s *Snapshot, node *corev1.Node, line *NodeSummary, generation int64) {
	i := slices.IndexFunc(s.Reports, func(r v1alpha1.CiliumNodeReport) bool { return r.Name == node.Name })
	object := "ciliumnodereport/" + node.Name
	if i < 0 {
		if !s.NoKinds && line.Agent != "none" {
			out.err(object, "not found: the agent has not reported yet")
		}
		return
	}
	r := &s.Reports[i].Status
	line.Report = r
	line.AgentVersion, line.Endpoints, line.Routing, line.Masquerade = r.AgentVersion, r.Endpoints, r.Routing, r.Masquerade
	line.Devices, line.PodMTU, line.Kernel = r.Devices, r.PodMTU, r.Kernel.Release
	for _, u := range r.IPAM {
		six := strings.Contains(u.Prefix, ":")
		usage := Usage{u.Used, u.Resting, u.Total}
		line.IPAM.of(six).add(usage)
		out.IPAM.of(six).add(usage)
	}
	out.Endpoints += int64(r.Endpoints)
	count(out.Routing, r.Routing)
	count(out.Masquerade, r.Masquerade)
	count(out.Versions, r.AgentVersion)
	out.reportConditions(object, r)
	out.health(s, object, r)
	count(out.FlowReporting, string(r.FlowReporting))
	out.Flows.Seen += r.Flows.Seen
	out.Flows.Lost += r.Flows.Lost
	if boot := node.Status.NodeInfo.BootID; boot != "" && r.BootID != "" && boot != r.BootID {
		out.err(object, "is of an earlier boot of the machine: the agent has not reported since")
	}
	if r.ObservedConfigGeneration < generation {
		out.warn(object, "generation %d of ciliumconfig/%s is not in force here yet, %d is", generation, v1alpha1.ConfigName, r.ObservedConfigGeneration)
	}
	for family, u := range map[string]*Usage{"IPv4": line.IPAM.IPv4, "IPv6": line.IPAM.IPv6} {
		if u != nil && u.Total > 0 && u.Used+u.Resting >= u.Total {
			out.warn(object, "every %s pod address is taken: %d used and %d resting of %d", family, u.Used, u.Resting, u.Total)
		}
	}
	for _, m := range r.Maps {
		if !arrays[m.Name] && m.Entries > 0 && m.MaxEntries > 0 && float64(m.Entries) >= mapFull*float64(m.MaxEntries) {
			out.warn(object, "map %s is %d%% full: %d of %d entries", m.Name, 100*m.Entries/m.MaxEntries, m.Entries, m.MaxEntries)
		}
	}
}

// reportConditions tells of each condition that is not True; Ready only where no other says why.
func (out *Summary) reportConditions(object string, r *v1alpha1.CiliumNodeReportStatus) {
	told := false
	for _, kind := range []string{v1alpha1.ConditionKernelSupported, v1alpha1.ConditionDatapathReady, v1alpha1.ConditionCNIConfigured} {
		if c := meta.FindStatusCondition(r.Conditions, kind); c != nil && c.Status != metav1.ConditionTrue {
			out.err(object, "%s", said(c))
			told = true
		} else if c != nil && c.Reason == v1alpha1.ReasonRepairFailing {
			out.warn(object, "%s", said(c))
		}
	}
	for _, kind := range []string{v1alpha1.ConditionPolicyEnforced, v1alpha1.ConditionNodesReachable, v1alpha1.ConditionFlowsServed} {
		if c := meta.FindStatusCondition(r.Conditions, kind); c != nil && c.Status == metav1.ConditionFalse {
			out.warn(object, "%s", said(c))
		}
	}
	ready := meta.FindStatusCondition(r.Conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil:
		out.err(object, "has no condition Ready yet")
	case ready.Status != metav1.ConditionTrue && !told:
		out.err(object, "%s", said(ready))
	}
}

// health counts probes and names those without an answer. They are warnings: what keeps a node from being well has its
// own line, and a network may not let ICMP through.
func (out *Summary) health(s *Snapshot, object string, r *v1alpha1.CiliumNodeReportStatus) {
	for _, h := range r.Health {
		for _, way := range []struct {
			name    string
			outcome v1alpha1.HealthOutcome
		}{{"ICMP", h.ICMP}, {"TCP", h.TCP}} {
			out.Health.Probes++
			switch {
			case way.outcome.Reachable:
				out.Health.Answered++
				out.Health.SlowestMicros = max(out.Health.SlowestMicros, way.outcome.LatencyMicros)
			case way.outcome.FailingSince != nil:
				out.warn(object, "node/%s does not answer by %s at %s for %s", h.Node, way.name, h.Address, s.Now.Sub(way.outcome.FailingSince.Time).Round(time.Second))
			}
		}
	}
}

// policies counts those in force, and names those that are not.
func (out *Summary) policies(s *Snapshot) {
	view := progress.View{Now: s.Now, Reports: s.Reports, Leases: s.Leases}
	out.Policies = len(s.Policies)
	for i := range s.Policies {
		p := &s.Policies[i]
		state := view.Of(policy.KindNetworkPolicy, p.Namespace, p.Name, p.ResourceVersion)
		object := fmt.Sprintf("networkpolicy/%s in namespace %s", p.Name, p.Namespace)
		if state.Wanted == 0 {
			why := "no node's agent has reported"
			if away := state.In(progress.Unreachable); len(away) > 0 {
				why = fmt.Sprintf("of %d nodes that reported, none was heard from lately", len(away))
			}
			out.warn(object, "nobody tells whether it is in force: %s", why)
			continue
		}
		if state.Done() {
			out.PoliciesInForce++
			continue
		}
		first := state.In(progress.Exception, progress.Behind)[0] // there is one: it is not in force on all that count
		out.warn(object, "in force on %s nodes; node/%s: %s", state.Counts(), first.Name, strings.TrimPrefix(first.Reason+": "+first.Message, ": "))
	}
}

// strays are objects of nodes that are gone.
func (out *Summary) strays(s *Snapshot) {
	known := map[string]bool{}
	for i := range s.Nodes {
		known[s.Nodes[i].Name] = true
	}
	for i := range s.Members {
		if !known[s.Members[i].Name] {
			out.warn("ciliumnode/"+s.Members[i].Name, "no node has this name: the operator removes it")
		}
	}
}

func count(m map[string]int, key string) {
	if key != "" {
		m[key]++
	}
}

// counts is "a (2), b (1)", sorted by name.
func counts(m map[string]int) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, fmt.Sprintf("%s (%d)", k, m[k]))
	}
	return strings.Join(all, ", ")
}
