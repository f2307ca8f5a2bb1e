// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	authenticationv1client "k8s.io/client-go/kubernetes/typed/authentication/v1"
	"k8s.io/client-go/rest"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/hubble/metrics"
	"github.com/kube-cilium/kube-cilium/hubble/observer"
	"github.com/kube-cilium/kube-cilium/internal/flow"
)

type flowOptions struct {
	address  string
	capacity int
}

// flows is this node's Hubble server: the observer and the metrics.
type flows struct {
	*observer.Observer
	metrics *metrics.Flows
	address string
	auth    *observer.Authenticator
}

func newFlows(node string, o flowOptions, config *rest.Config) (*flows, error) {
	reviews, err := authenticationv1client.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client for token reviews: %w", err)
	}
	server := observer.New(node, observer.NewRing(o.capacity))
	f := &flows{
		Observer: server, metrics: metrics.New(server.Lost), address: o.address,
		auth: observer.NewAuthenticator(reviews.TokenReviews(), v1alpha1.HubbleUser, v1alpha1.HubbleAudience),
	}
	if err := ctrlmetrics.Registry.Register(f.metrics); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return f, nil
}

func (f *flows) Take(batch []flow.Event) {
	f.Observer.Take(batch)
	f.metrics.Take(batch)
}

func (f *flows) Serve(ctx context.Context, names flow.Names, serving func()) error {
	return f.Observer.Serve(ctx, f.address, f.auth, names, serving)
}
