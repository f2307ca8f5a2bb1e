// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
)

// Follower keeps Servers up to date from the EndpointSlices of the Service default/kubernetes, which each API server
// maintains for itself.
type Follower struct {
	Client  client.Client
	Servers *Servers
}

// SetupWithManager makes the follower a controller that runs on every replica, leader or not.
func (f *Follower) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("api-servers").
		For(&discoveryv1.EndpointSlice{}, builder.WithPredicates(predicate.NewPredicateFuncs(isAPIServer))).
		WithOptions(controller.Options{NeedLeaderElection: new(bool)}).
		Complete(f)
}

// Reconcile reads all slices of the Service, whichever changed.
func (f *Follower) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	var slices discoveryv1.EndpointSliceList
	err := f.Client.List(ctx, &slices, client.InNamespace("default"), client.MatchingLabels{discoveryv1.LabelServiceName: "kubernetes"})
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("list the API server's endpoints: %w", err)
	}
	return ctrl.Result{}, f.Servers.Learn(FromSlices(slices.Items))
}

// FromSlices returns host:port of every ready https endpoint, sorted.
func FromSlices(items []discoveryv1.EndpointSlice) []string {
	var out []string
	for _, s := range items {
		for _, p := range s.Ports {
			if p.Port == nil || p.Name == nil || *p.Name != "https" {
				continue
			}
			for _, e := range s.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, a := range e.Addresses {
					out = appendNew(out, net.JoinHostPort(a, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

func isAPIServer(o client.Object) bool {
	return o.GetNamespace() == "default" && o.GetLabels()[discoveryv1.LabelServiceName] == "kubernetes"
}
