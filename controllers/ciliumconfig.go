// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	ac "github.com/kube-cilium/kube-cilium/api/v1alpha1/applyconfiguration/api/v1alpha1"
)

// configPoll is how often silent agents are looked for while the CiliumConfig exists.
const configPoll = 20 * time.Second

// Configs writes the status of the CiliumConfig: what came of it on the nodes.
type Configs struct {
	client.Client
	Clock func() time.Time
}

// SetupWithManager starts the reconciler with the manager.
func (r *Configs) SetupWithManager(mgr ctrl.Manager) error {
	comesOrGoes := predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }}
	return ctrl.NewControllerManagedBy(mgr).
		Named("ciliumconfigs").
		Watches(&v1alpha1.CiliumConfig{}, wholeCluster, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&corev1.Node{}, wholeCluster, builder.WithPredicates(comesOrGoes)).
		Watches(&v1alpha1.CiliumNode{}, wholeCluster).
		Watches(&v1alpha1.CiliumNodeReport{}, wholeCluster, builder.WithPredicates(reportTurned)).
		Complete(r)
}

// Reconcile folds what the nodes say.
func (r *Configs) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	var (
		config  v1alpha1.CiliumConfig
		nodes   corev1.NodeList
		cns     v1alpha1.CiliumNodeList
		reports v1alpha1.CiliumNodeReportList
		leases  coordinationv1.LeaseList
	)
	if err := r.Get(ctx, client.ObjectKey{Name: v1alpha1.ConfigName}, &config); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	for _, list := range []client.ObjectList{&nodes, &cns, &reports} {
		if err := r.List(ctx, list); err != nil {
			return ctrl.Result{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	if err := r.List(ctx, &leases, client.InNamespace(v1alpha1.AgentLeaseNamespace)); err != nil {
		return ctrl.Result{}, fmt.Errorf("list leases: %w", err)
	}
	status := foldConfig(&config, nodes.Items, cns.Items, reports.Items, leases.Items, r.Clock())
	if equality.Semantic.DeepEqual(status, config.Status) {
		return ctrl.Result{RequeueAfter: configPoll}, nil
	}
	want := ac.CiliumConfigStatus().WithObservedGeneration(status.ObservedGeneration).
		WithNodesReady(status.NodesReady).WithNodesTotal(status.NodesTotal).WithNodes(status.Nodes)
	for _, c := range status.Conditions {
		want.WithConditions(applied(c))
	}
	err := r.Status().Apply(ctx, ac.CiliumConfig(config.Name).WithStatus(want), client.FieldOwner(v1alpha1.OperatorFieldManager), client.ForceOwnership)
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("write the status of the CiliumConfig: %w", err)
	}
	return ctrl.Result{RequeueAfter: configPoll}, nil
}

// foldConfig depends on nothing but what it is given.
func foldConfig(config *v1alpha1.CiliumConfig, nodes []corev1.Node, cns []v1alpha1.CiliumNode, reports []v1alpha1.CiliumNodeReport,
	leases []coordinationv1.Lease, now time.Time,
) v1alpha1.CiliumConfigStatus {
	report := map[string]*v1alpha1.CiliumNodeReport{}
	for i := range reports {
		report[reports[i].Name] = &reports[i]
	}
	alive := map[string]bool{}
	for i := range leases {
		alive[strings.TrimPrefix(leases[i].Name, v1alpha1.AgentLeasePrefix)] = fresh(&leases[i], now)
	}
	var waiting []string
	for _, n := range nodes {
		if why := waitingFor(config.Generation, report[n.Name], alive[n.Name]); why != "" {
			waiting = append(waiting, n.Name+" "+why)
		}
	}
	slices.Sort(waiting)
	var lacking []string
	for _, cn := range cns {
		if c := meta.FindStatusCondition(cn.Status.Conditions, v1alpha1.ConditionPrefixesAssigned); c != nil && c.Status == metav1.ConditionFalse {
			lacking = append(lacking, cn.Name+": "+c.Message)
		}
	}
	slices.Sort(lacking)

	s := v1alpha1.CiliumConfigStatus{
		ObservedGeneration: config.Generation,
		NodesTotal:         int32(len(nodes)),
		NodesReady:         int32(len(nodes) - len(waiting)),
		Conditions:         slices.Clone(config.Status.Conditions),
	}
	s.Nodes = fmt.Sprintf("%d/%d", s.NodesReady, s.NodesTotal)
	set := func(kind string, is bool, reason, message string) {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: config.Generation}
		if is {
			c.Status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&s.Conditions, c)
	}
	summary := s.Nodes + " nodes are ready"
	switch {
	case len(lacking) > 0:
		text := few(lacking)
		set(v1alpha1.ConditionReady, false, "PoolExhausted", text)
		set(v1alpha1.ConditionReconciling, false, "PoolExhausted", text)
		set(v1alpha1.ConditionStalled, true, "PoolExhausted", text)
	case len(waiting) > 0:
		text := summary + "; waiting for " + few(waiting)
		set(v1alpha1.ConditionReady, false, "NodesNotReady", text)
		set(v1alpha1.ConditionReconciling, true, "NodesNotReady", text)
		set(v1alpha1.ConditionStalled, false, "Progressing", summary)
	default:
		set(v1alpha1.ConditionReady, true, "NodesReady", summary)
		set(v1alpha1.ConditionReconciling, false, "Done", summary)
		set(v1alpha1.ConditionStalled, false, "Done", summary)
	}
	if len(lacking) > 0 {
		set(v1alpha1.ConditionPrefixesAssigned, false, "PoolExhausted", few(lacking))
	} else {
		set(v1alpha1.ConditionPrefixesAssigned, true, "Assigned", "every node holds its prefixes")
	}
	if in := hostsInPools(&config.Spec, nodes); len(in) > 0 {
		set(v1alpha1.ConditionPoolsApart, false, "PoolHoldsHosts", few(in)+
			": all of a pool is the pods', so they do not reach what else lives there; take a pool that nobody uses (to change one, delete the CiliumConfig and create another)")
	} else {
		set(v1alpha1.ConditionPoolsApart, true, "Apart", "no pool holds a node's address")
	}
	return s
}

// hostsInPools says which nodes have an address of a pool that a person wrote. From the default pool their networks are
// left out.
func hostsInPools(spec *v1alpha1.CiliumConfigSpec, nodes []corev1.Node) []string {
	if spec.IPAM == nil {
		return nil
	}
	var ranges []netip.Prefix
	for _, pool := range poolsOf(spec) {
		ranges = append(ranges, pool.CIDRs...)
	}
	var out []string
	for i := range nodes {
		for _, a := range hostAddresses(&nodes[i]) {
			if in := slices.IndexFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) }); in >= 0 {
				out = append(out, fmt.Sprintf("%s holds %v of node %s", ranges[in], a, nodes[i].Name))
			}
		}
	}
	slices.Sort(out)
	return out
}

// waitingFor says what keeps a node from counting as ready, "" for nothing.
func waitingFor(generation int64, report *v1alpha1.CiliumNodeReport, alive bool) string {
	if report == nil {
		return "(no agent has reported)"
	}
	if !alive {
		return "(the agent is silent)"
	}
	if report.Status.ObservedConfigGeneration != generation {
		return fmt.Sprintf("(runs generation %d)", report.Status.ObservedConfigGeneration)
	}
	c := meta.FindStatusCondition(report.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case c == nil:
		return "(the agent is starting)"
	case c.Status != metav1.ConditionTrue:
		return "(" + c.Reason + ")"
	}
	return ""
}

// few keeps a sentence short.
func few(list []string) string {
	const n = 5
	if len(list) <= n {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:n], ", "), len(list)-n)
}
