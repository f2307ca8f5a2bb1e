// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
)

// CiliumEndpoints shows people this node's pods, one object each. They go with their pod: Kubernetes deletes what a
// deleted pod owned.
type CiliumEndpoints struct {
	node      string
	cache     client.Reader
	writer    *Writer
	endpoints func() *endpoint.Set
	// policy says what is in force for an endpoint.
	policy func(*endpoint.Endpoint) (v1alpha1.EndpointPolicy, metav1.Condition)
	drops  *recentDrops
}

// Reconcile writes what differs. It waits for nobody: these objects come last in the node's budget.
func (c *CiliumEndpoints) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	set := c.endpoints()
	if set == nil {
		return ctrl.Result{}, nil
	}
	var errs []error
	var again ctrl.Result
	for _, e := range set.List() {
		if e, ok := set.Get(e.Attachment); ok { // writing takes time: it may have changed or gone
			later, err := c.write(ctx, e)
			errs = append(errs, err)
			if later > 0 && (again.RequeueAfter == 0 || later < again.RequeueAfter) {
				again.RequeueAfter = later
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return ctrl.Result{}, err
	}
	return again, nil
}

// write returns when there is more to write, if there is.
func (c *CiliumEndpoints) write(ctx context.Context, e *endpoint.Endpoint) (later time.Duration, err error) {
	key := types.NamespacedName{Namespace: e.Pod.Namespace, Name: e.Pod.Name}
	var pod corev1.Pod
	if err := c.cache.Get(ctx, key, &pod); err != nil || !isPod(&pod, e.Pod.UID) {
		return 0, client.IgnoreNotFound(err) // its event comes
	}
	var has v1alpha1.CiliumEndpoint
	err = c.cache.Get(ctx, key, &has)
	if client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("endpoint %s: %w", key, err)
	}
	if err != nil || !ownedBy(&has, &pod) {
		err := c.writer.Apply(ctx, Background, c.object(&pod))
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return 0, nil // it goes with its namespace
		}
		if err != nil {
			return 0, fmt.Errorf("write endpoint %s: %w", key, err)
		}
	}
	want := c.object(&pod)
	want.Status = c.status(e, &pod, has.Status.Conditions)
	want.Status.RecentDrops, later = c.drops.show(e.ID, has.Status.RecentDrops, time.Now())
	if same := want.Status.DeepCopy(); same != nil {
		// How many entries a table has changes with every pod that a policy speaks of: that alone is not worth a write.
		same.Policy.Ingress.Entries, same.Policy.Egress.Entries = has.Status.Policy.Ingress.Entries, has.Status.Policy.Egress.Entries
		if apiequality.Semantic.DeepEqual(*same, has.Status) {
			return later, nil
		}
	}
	if err := c.writer.ApplyStatus(ctx, Background, want); client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("write status of endpoint %s: %w", key, err)
	}
	return later, nil
}

func (c *CiliumEndpoints) object(pod *corev1.Pod) *v1alpha1.CiliumEndpoint {
	return &v1alpha1.CiliumEndpoint{ObjectMeta: metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, Labels: map[string]string{v1alpha1.LabelNode: c.node},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
	}}
}

func (c *CiliumEndpoints) status(e *endpoint.Endpoint, pod *corev1.Pod, conditions []metav1.Condition) v1alpha1.CiliumEndpointStatus {
	s := v1alpha1.CiliumEndpointStatus{
		ID: int64(e.ID), Node: c.node, PodUID: string(pod.UID), State: v1alpha1.EndpointReady, Interface: e.Interface,
		Identity: v1alpha1.EndpointIdentity{Labels: e.Labels.Strings()},
	}
	if e.Identity.Allocated() {
		s.Identity.ID = int64(e.Identity)
	} else {
		s.Identity.Pending = true
	}
	for _, a := range e.Addresses() {
		s.Addresses = append(s.Addresses, a.String())
	}
	for _, k := range conditions {
		s.Conditions = append(s.Conditions, *k.DeepCopy())
	}
	ready := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "DatapathComplete",
		Message: "the pod's interface, tables and programs are in force",
	}
	if pod.DeletionTimestamp != nil {
		s.State = v1alpha1.EndpointTerminating
	}
	apimeta.SetStatusCondition(&s.Conditions, ready)
	var enforced metav1.Condition
	s.Policy, enforced = c.policy(e)
	apimeta.SetStatusCondition(&s.Conditions, enforced)
	return s
}

func ownedBy(o client.Object, pod *corev1.Pod) bool {
	for _, r := range o.GetOwnerReferences() {
		if r.UID == pod.UID {
			return true
		}
	}
	return false
}
