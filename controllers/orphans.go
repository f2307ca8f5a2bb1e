// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// OrphanInterval is how often orphans are looked for; a Node that goes starts a sweep at once.
const OrphanInterval = 5 * time.Minute

// orphanGrace spares what is younger: its pod or node may not have been listed yet.
const orphanGrace = 30 * time.Second

// Orphans deletes what agents left behind: CiliumEndpoints without their Pod; CiliumEndpointSlices, CiliumNodeReports
// and Leases without their Node. Kubernetes' own garbage collector does most of it by owner references; this is for
// what has none, or lost its owner in between.
type Orphans struct {
	client.Client
	Live     client.Reader
	Clock    func() time.Time
	Interval time.Duration
	// Grace is orphanGrace where it is zero.
	Grace time.Duration
}

// SetupWithManager starts the reconciler with the manager.
func (r *Orphans) SetupWithManager(mgr ctrl.Manager) error {
	goes := predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false },
		UpdateFunc: func(event.UpdateEvent) bool { return false },
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("orphans").
		WatchesRawSource(atStart).
		Watches(&corev1.Node{}, wholeCluster, builder.WithPredicates(goes)).
		Complete(r)
}

// Reconcile looks once at everything. Each candidate is asked for by name before it is deleted, and deleted only as it
// was seen.
func (r *Orphans) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	err := errors.Join(r.endpoints(ctx), r.ofNodes(ctx))
	return ctrl.Result{RequeueAfter: r.Interval}, err
}

func (r *Orphans) young(o client.Object) bool {
	grace := r.Grace
	if grace == 0 {
		grace = orphanGrace
	}
	return r.Clock().Sub(o.GetCreationTimestamp().Time) < grace
}

// endpoints compares CiliumEndpoints with pods. The endpoints are read first: a pod that is not in the later list is
// gone or belongs to a later endpoint.
func (r *Orphans) endpoints(ctx context.Context) error {
	type seen struct {
		object *metav1.PartialObjectMetadata
		pod    string // UID
	}
	byName := map[client.ObjectKey]seen{}
	err := eachMeta(ctx, r.Live, v1alpha1.GroupVersion.WithKind("CiliumEndpoint"), func(m *metav1.PartialObjectMetadata) {
		if r.young(m) || m.DeletionTimestamp != nil {
			return
		}
		pod := ""
		for _, o := range m.OwnerReferences {
			if o.Kind == "Pod" {
				pod = string(o.UID)
			}
		}
		// Kept for the time of a sweep: nothing but what a deletion needs.
		slim := &metav1.PartialObjectMetadata{TypeMeta: m.TypeMeta}
		slim.Namespace, slim.Name, slim.UID, slim.ResourceVersion = m.Namespace, m.Name, m.UID, m.ResourceVersion
		byName[client.ObjectKeyFromObject(m)] = seen{slim, pod}
	})
	if err != nil || len(byName) == 0 {
		return err
	}
	err = eachMeta(ctx, r.Live, podKind, func(m *metav1.PartialObjectMetadata) {
		if e, ok := byName[client.ObjectKeyFromObject(m)]; ok && (e.pod == "" || e.pod == string(m.UID)) {
			delete(byName, client.ObjectKeyFromObject(m))
		}
	})
	if err != nil {
		return err
	}
	var errs []error
	for key, e := range byName {
		there, err := exists(ctx, r.Live, podKind, key, e.pod)
		if err == nil && !there {
			err = deleteAsSeen(ctx, r.Client, e.object)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ofNodes deletes what names a Node that is not there.
func (r *Orphans) ofNodes(ctx context.Context) error {
	var candidates []nodeThing
	err := pages(ctx, r.Live, newSlices, func(list *v1alpha1.CiliumEndpointSliceList) {
		for i := range list.Items {
			s := &list.Items[i]
			o := &v1alpha1.CiliumEndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion, CreationTimestamp: s.CreationTimestamp}}
			candidates = append(candidates, nodeThing{s.Spec.Node, o})
		}
	})
	if err != nil {
		return err
	}
	byName := func(gvk schema.GroupVersionKind, nodeOf func(string) string) error {
		return eachMeta(ctx, r.Live, gvk, func(m *metav1.PartialObjectMetadata) {
			if node := nodeOf(m.Name); node != "" {
				candidates = append(candidates, nodeThing{node, m.DeepCopy()})
			}
		})
	}
	if err := byName(v1alpha1.GroupVersion.WithKind("CiliumNodeReport"), func(name string) string { return name }); err != nil {
		return err
	}
	var leases coordinationv1.LeaseList
	if err := r.List(ctx, &leases, client.InNamespace(v1alpha1.AgentLeaseNamespace)); err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for i := range leases.Items {
		if node, ok := strings.CutPrefix(leases.Items[i].Name, v1alpha1.AgentLeasePrefix); ok {
			candidates = append(candidates, nodeThing{node, &leases.Items[i]})
		}
	}

	nodes := map[string]bool{}
	if err := eachMeta(ctx, r.Live, nodeKind, func(m *metav1.PartialObjectMetadata) { nodes[m.Name] = true }); err != nil {
		return err
	}
	var errs []error
	for _, c := range candidates {
		if nodes[c.node] || r.young(c.object) {
			continue
		}
		there, err := exists(ctx, r.Live, nodeKind, client.ObjectKey{Name: c.node}, "")
		if err == nil && !there {
			err = deleteAsSeen(ctx, r.Client, c.object)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func newSlices() *v1alpha1.CiliumEndpointSliceList { return &v1alpha1.CiliumEndpointSliceList{} }

// nodeThing is an object that has no meaning without its Node.
type nodeThing struct {
	node   string
	object client.Object
}
