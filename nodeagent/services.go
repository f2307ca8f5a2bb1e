// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/kube-cilium/kube-cilium/internal/service"
)

// serviceDelay gathers the events of a rollout: the whole table is computed at most so often.
const serviceDelay = 50 * time.Millisecond

// ServiceTable is where frontends go: the datapath. SetServices takes the whole table and writes the difference.
type ServiceTable interface {
	SetServices([]service.Frontend) error
}

// ServiceReconciler keeps the node's service table equal to the cluster's Services and EndpointSlices.
type ServiceReconciler struct {
	client client.Reader
	table  ServiceTable
}

// NewServiceReconciler feeds table from what the cache behind c holds.
func NewServiceReconciler(c client.Reader, table ServiceTable) *ServiceReconciler {
	return &ServiceReconciler{client: c, table: table}
}

// Reconcile reads every Service and EndpointSlice and sets the whole table, whatever the event was. The objects are
// the cache's own, read and not kept: a copy of every slice of the cluster for each event would be most of the
// agent's memory.
func (r *ServiceReconciler) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	var services corev1.ServiceList
	if err := r.client.List(ctx, &services, client.UnsafeDisableDeepCopy); err != nil {
		return ctrl.Result{}, fmt.Errorf("list services: %w", err)
	}
	var endpoints discoveryv1.EndpointSliceList
	if err := r.client.List(ctx, &endpoints, client.UnsafeDisableDeepCopy); err != nil {
		return ctrl.Result{}, fmt.Errorf("list endpoint slices: %w", err)
	}
	if err := r.table.SetServices(service.Frontends(pointers(services.Items), pointers(endpoints.Items))); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{}, nil
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}

// SetupWithManager watches Services and EndpointSlices. Every event is the same request, so that what happens while
// one is carried out makes one more.
func (r *ServiceReconciler) SetupWithManager(mgr ctrl.Manager) error {
	err := ctrl.NewControllerManagedBy(mgr).
		Named("services").
		Watches(&corev1.Service{}, soon(serviceDelay)).
		Watches(&discoveryv1.EndpointSlice{}, soon(serviceDelay)).
		Complete(r)
	if err != nil {
		return fmt.Errorf("service controller: %w", err)
	}
	return nil
}

// soon answers every event with the one request, after a while.
func soon(delay time.Duration) handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	add := func(q queue) { q.AddAfter(reconcile.Request{}, delay) }
	return handler.Funcs{
		CreateFunc:  func(_ context.Context, _ event.CreateEvent, q queue) { add(q) },
		UpdateFunc:  func(_ context.Context, _ event.UpdateEvent, q queue) { add(q) },
		DeleteFunc:  func(_ context.Context, _ event.DeleteEvent, q queue) { add(q) },
		GenericFunc: func(_ context.Context, _ event.GenericEvent, q queue) { add(q) },
	}
}
