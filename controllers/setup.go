// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// Scheme returns the kinds that the operator reads and writes.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// CacheOptions keeps in memory only what a reconciler looks at.
func CacheOptions() cache.Options {
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}:               {Transform: slimNode},
			&v1alpha1.CiliumNodeReport{}: {Transform: slimReport},
			&coordinationv1.Lease{}: {
				Namespaces: map[string]cache.Config{v1alpha1.AgentLeaseNamespace: {}},
			},
			&corev1.ConfigMap{}: {
				Namespaces: map[string]cache.Config{ledgerKey.Namespace: {}},
				Field:      fields.OneTermEqualSelector("metadata.name", ledgerKey.Name),
			},
			// The API servers' own endpoints, for internal/apiserver.
			&discoveryv1.EndpointSlice{}: {
				Namespaces: map[string]cache.Config{"default": {}},
				Label:      labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: "kubernetes"}),
			},
		},
	}
}

// slimNode drops the long lists of a Node: images, volumes, capacities, annotations.
func slimNode(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	slim := &corev1.Node{TypeMeta: n.TypeMeta}
	slim.Name, slim.UID, slim.ResourceVersion = n.Name, n.UID, n.ResourceVersion
	slim.CreationTimestamp, slim.DeletionTimestamp = n.CreationTimestamp, n.DeletionTimestamp
	slim.Spec.Taints = n.Spec.Taints
	slim.Status.Addresses = n.Status.Addresses
	slim.Status.Conditions = n.Status.Conditions
	slim.Status.NodeInfo.BootID = n.Status.NodeInfo.BootID
	return slim, nil
}

// slimReport drops what is for people: programs, maps, counters.
func slimReport(o any) (any, error) {
	r, ok := o.(*v1alpha1.CiliumNodeReport)
	if !ok {
		return o, nil
	}
	slim := &v1alpha1.CiliumNodeReport{TypeMeta: r.TypeMeta}
	slim.Name, slim.UID, slim.ResourceVersion = r.Name, r.UID, r.ResourceVersion
	slim.CreationTimestamp, slim.DeletionTimestamp = r.CreationTimestamp, r.DeletionTimestamp
	slim.Status.ObservedConfigGeneration = r.Status.ObservedConfigGeneration
	slim.Status.ObservedNodes = r.Status.ObservedNodes
	slim.Status.BootID = r.Status.BootID
	slim.Status.Conditions = r.Status.Conditions
	return slim, nil
}

// Setup adds every reconciler to the manager. It asks the API server which kinds it has.
func Setup(mgr ctrl.Manager) error {
	_, err := mgr.GetRESTMapper().RESTMapping(networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR").GroupKind(), "v1")
	if err != nil && !meta.IsNoMatchError(err) {
		return fmt.Errorf("ask for the kind ServiceCIDR: %w", err)
	}
	c, live := mgr.GetClient(), mgr.GetAPIReader()
	for _, r := range []interface{ SetupWithManager(ctrl.Manager) error }{
		&CiliumNodes{Client: c, Live: live, Recorder: mgr.GetEventRecorder(v1alpha1.OperatorFieldManager), Clock: time.Now,
			Rest: PrefixRest, RestLimit: PrefixRestLimit, HasServiceCIDRs: err == nil},
		&Nodes{Client: c, Clock: time.Now},
		&Configs{Client: c, Clock: time.Now},
		&Orphans{Client: c, Live: live, Clock: time.Now, Interval: OrphanInterval},
		&Identities{Client: c, Live: live, Clock: time.Now, Interval: IdentityInterval, Grace: IdentityGrace, Tombstone: IdentityTombstone},
	} {
		if err := r.SetupWithManager(mgr); err != nil {
			return fmt.Errorf("set up %T: %w", r, err)
		}
	}
	return nil
}
