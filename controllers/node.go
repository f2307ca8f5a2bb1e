// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// Nodes keeps the taint node.kube-cilium.io/agent-not-ready and the condition NetworkUnavailable of each Node.
type Nodes struct {
	client.Client
	Clock func() time.Time
}

// SetupWithManager starts the reconciler with the manager.
func (r *Nodes) SetupWithManager(mgr ctrl.Manager) error {
	byName := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: o.GetName()}}}
	})
	byLease := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		node, ok := strings.CutPrefix(o.GetName(), v1alpha1.AgentLeasePrefix)
		if !ok {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: node}}}
	})
	// Renewals are many and say nothing new: a silent agent is noticed by coming back when its Lease would end.
	notRenewals := predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }}
	return ctrl.NewControllerManagedBy(mgr).
		Named("nodes").
		For(&corev1.Node{}, builder.WithPredicates(predicate.Funcs{
			UpdateFunc: func(e event.UpdateEvent) bool {
				old, now := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
				return old.Status.NodeInfo.BootID != now.Status.NodeInfo.BootID || len(old.Spec.Taints) != len(now.Spec.Taints) ||
					networkUnavailable(old) != networkUnavailable(now)
			},
		})).
		Watches(&v1alpha1.CiliumNodeReport{}, byName, builder.WithPredicates(reportTurned)).
		Watches(&coordinationv1.Lease{}, byLease, builder.WithPredicates(notRenewals)).
		Complete(r)
}

// reportTurned lets through what the operator acts on; the counters of a report change all the time.
var reportTurned = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	old, now := e.ObjectOld.(*v1alpha1.CiliumNodeReport), e.ObjectNew.(*v1alpha1.CiliumNodeReport)
	for _, c := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionDatapathReady} {
		if meta.IsStatusConditionTrue(old.Status.Conditions, c) != meta.IsStatusConditionTrue(now.Status.Conditions, c) {
			return true
		}
	}
	if refused(old) != refused(now) {
		return true
	}
	return old.Status.BootID != now.Status.BootID || old.Status.ObservedConfigGeneration != now.Status.ObservedConfigGeneration
}}

// Reconcile decides for one Node.
func (r *Nodes) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var node corev1.Node
	if err := r.Get(ctx, req.NamespacedName, &node); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	var report *v1alpha1.CiliumNodeReport
	var lease *coordinationv1.Lease
	var rep v1alpha1.CiliumNodeReport
	if err := r.Get(ctx, req.NamespacedName, &rep); err == nil {
		report = &rep
	} else if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("get CiliumNodeReport: %w", err)
	}
	var l coordinationv1.Lease
	if err := r.Get(ctx, client.ObjectKey{Namespace: v1alpha1.AgentLeaseNamespace, Name: v1alpha1.AgentLeasePrefix + node.Name}, &l); err == nil {
		lease = &l
	} else if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("get the agent's lease: %w", err)
	}
	now := r.Clock()
	switch judge(&node, report, lease, now) {
	case open:
		if err := r.setTaint(ctx, &node, false); err != nil {
			return ctrl.Result{}, err
		}
		return ctrl.Result{}, r.setAvailable(ctx, &node, now)
	case closed:
		return ctrl.Result{}, r.setTaint(ctx, &node, true)
	default:
		if lease == nil {
			return ctrl.Result{}, nil // its creation brings us back
		}
		return ctrl.Result{RequeueAfter: max(expiry(lease).Sub(now), time.Second)}, nil
	}
}

// gate is what becomes of a Node's taint.
type gate int

const (
	asItIs gate = iota // nothing is known that would change it
	open               // pods may come
	closed             // no pod may come: its network would never be made
)

// judge decides from the node's boot, what its agent said last, and whether the agent is alive.
//
// An agent that is away after the datapath of this boot was ready changes nothing: what runs goes on, and new pods wait
// in CNI ADD. A Node that has no report was never ours; whether it starts with the taint is up to who registers it, so
// that installing us beside another network taints nobody's nodes.
func judge(node *corev1.Node, report *v1alpha1.CiliumNodeReport, lease *coordinationv1.Lease, now time.Time) gate {
	if report == nil {
		return asItIs
	}
	if c := meta.FindStatusCondition(report.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Reason == v1alpha1.ReasonOtherCNI {
		return asItIs // another network serves this node
	}
	thisBoot := report.Status.BootID == node.Status.NodeInfo.BootID
	switch {
	case thisBoot && meta.IsStatusConditionTrue(report.Status.Conditions, v1alpha1.ConditionReady):
		return open
	case thisBoot && meta.IsStatusConditionTrue(report.Status.Conditions, v1alpha1.ConditionDatapathReady):
		return asItIs
	case lease == nil || !fresh(lease, now):
		return closed
	case thisBoot && refused(report):
		return closed
	}
	return asItIs
}

// refused tells that the agent lives and cannot serve the node until a person repairs it: a pod that came would wait
// for its network without end.
func refused(report *v1alpha1.CiliumNodeReport) bool {
	c := meta.FindStatusCondition(report.Status.Conditions, v1alpha1.ConditionDatapathReady)
	if c == nil || c.Status != metav1.ConditionFalse {
		return false
	}
	switch c.Reason {
	case v1alpha1.ReasonNoBPFFS, v1alpha1.ReasonNoCgroup2, v1alpha1.ReasonMissingCapability, v1alpha1.ReasonKernelTooOld,
		v1alpha1.ReasonNewerLayout, v1alpha1.ReasonNodeNameTooLong:
		return true
	}
	return false
}

// setTaint patches the taints as they were read: they are one list without keys, which others write too.
func (r *Nodes) setTaint(ctx context.Context, node *corev1.Node, want bool) error {
	ours := func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintAgentNotReady }
	if slices.ContainsFunc(node.Spec.Taints, ours) == want {
		return nil
	}
	now := node.DeepCopy()
	if want {
		now.Spec.Taints = append(now.Spec.Taints, corev1.Taint{Key: v1alpha1.TaintAgentNotReady, Effect: corev1.TaintEffectNoSchedule})
	} else {
		now.Spec.Taints = slices.DeleteFunc(now.Spec.Taints, ours)
	}
	err := r.Patch(ctx, now, client.MergeFromWithOptions(node, client.MergeFromWithOptimisticLock{}), client.FieldOwner(v1alpha1.OperatorFieldManager))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("patch the taints of node %s: %w", node.Name, err)
	}
	*node = *now
	return nil
}

// setAvailable says that the node's network is made: cloud providers register nodes with NetworkUnavailable=True.
func (r *Nodes) setAvailable(ctx context.Context, node *corev1.Node, now time.Time) error {
	if networkUnavailable(node) == corev1.ConditionFalse {
		return nil
	}
	t := metav1.NewTime(now)
	is := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: "DatapathReady",
		Message: "kube-cilium is ready on this node", LastHeartbeatTime: t, LastTransitionTime: t}
	patched := node.DeepCopy()
	patched.Status.Conditions = append(slices.DeleteFunc(patched.Status.Conditions,
		func(c corev1.NodeCondition) bool { return c.Type == is.Type }), is)
	err := r.Status().Patch(ctx, patched, client.StrategicMergeFrom(node), client.FieldOwner(v1alpha1.OperatorFieldManager))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("patch the status of node %s: %w", node.Name, err)
	}
	return nil
}

// networkUnavailable is the status of that condition, "" where there is none.
func networkUnavailable(node *corev1.Node) corev1.ConditionStatus {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			return c.Status
		}
	}
	return ""
}
