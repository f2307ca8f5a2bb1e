// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// The life of an identity that nobody uses: IdentityGrace as it is, then IdentityTombstone dead but there, so that its
// number goes to no other labels, then gone. IdentityInterval is how often it is looked at.
const (
	IdentityInterval  = 5 * time.Minute
	IdentityGrace     = 15 * time.Minute
	IdentityTombstone = time.Hour
)

// Identities deletes CiliumIdentities that no endpoint uses. docs/design/identities.md tells why each step is safe.
type Identities struct {
	client.Client
	// Live reads past the cache: all of this is about what is true, not about what was.
	Live                       client.Reader
	Clock                      func() time.Time
	Interval, Grace, Tombstone time.Duration

	// unused is when this process first saw an identity unused at this resourceVersion. Any write to the object (an
	// adoption above all) starts the grace period again, and so does a new leader: the clocks of agents play no part.
	unused map[types.UID]unusedSince
}

type unusedSince struct {
	version string
	since   time.Time
}

// SetupWithManager starts the reconciler with the manager.
func (r *Identities) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).Named("ciliumidentities").WatchesRawSource(atStart).Complete(r)
}

// Reconcile looks once at every identity.
func (r *Identities) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	// First the identities, then who uses them: an agent that takes one up in between has written to it, so that what
	// is decided here fails at the resourceVersion.
	var all []*metav1.PartialObjectMetadata
	err := eachMeta(ctx, r.Live, v1alpha1.GroupVersion.WithKind("CiliumIdentity"), func(m *metav1.PartialObjectMetadata) {
		slim := &metav1.PartialObjectMetadata{TypeMeta: m.TypeMeta}
		slim.Name, slim.UID, slim.ResourceVersion, slim.DeletionTimestamp = m.Name, m.UID, m.ResourceVersion, m.DeletionTimestamp
		if t, ok := m.Annotations[v1alpha1.AnnotationTombstone]; ok {
			slim.Annotations = map[string]string{v1alpha1.AnnotationTombstone: t}
		}
		all = append(all, slim)
	})
	if err != nil || len(all) == 0 {
		return ctrl.Result{RequeueAfter: r.Interval}, err
	}
	used, err := r.used(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	var errs []error
	seen := map[types.UID]unusedSince{}
	for _, m := range all {
		act, since := judgeIdentity(m, used[m.Name], r.unused[m.UID], r.Clock(), r.Grace, r.Tombstone)
		if since.version != "" {
			seen[m.UID] = since
		}
		if err := r.carryOut(ctx, m, act); err != nil && !apierrors.IsConflict(err) { // a conflict: it is in use again
			errs = append(errs, err)
		}
	}
	r.unused = seen
	return ctrl.Result{RequeueAfter: r.Interval}, errors.Join(errs...)
}

// used reads the numbers that slices and endpoints name. Endpoints count too: they may be ahead of the slices.
func (r *Identities) used(ctx context.Context) (map[string]bool, error) {
	used := map[string]bool{}
	err := pages(ctx, r.Live, newSlices, func(list *v1alpha1.CiliumEndpointSliceList) {
		for _, s := range list.Items {
			for _, e := range s.Spec.Endpoints {
				used[strconv.FormatInt(e.Identity, 10)] = true
			}
		}
	})
	if err != nil {
		return nil, err
	}
	newEndpoints := func() *v1alpha1.CiliumEndpointList { return &v1alpha1.CiliumEndpointList{} }
	err = pages(ctx, r.Live, newEndpoints, func(list *v1alpha1.CiliumEndpointList) {
		for _, e := range list.Items {
			used[strconv.FormatInt(e.Status.Identity.ID, 10)] = true
		}
	})
	return used, err
}

// identityAct is what is done to one identity.
type identityAct int

const (
	keep    identityAct = iota
	bury                // set the tombstone
	unearth             // take the tombstone away: somebody uses the identity after all
	remove              // delete: the tombstone has stood long enough
)

// judgeIdentity decides from the object, whether anything uses it, and what was seen before. The second answer is what
// to remember; its version is "" where there is nothing to.
func judgeIdentity(m *metav1.PartialObjectMetadata, used bool, before unusedSince, now time.Time, grace, tombstone time.Duration) (identityAct, unusedSince) {
	mark, dead := m.Annotations[v1alpha1.AnnotationTombstone]
	switch {
	case m.DeletionTimestamp != nil:
		return keep, unusedSince{}
	case used && dead:
		return unearth, unusedSince{}
	case used:
		return keep, unusedSince{}
	case dead:
		at, err := time.Parse(time.RFC3339, mark)
		switch {
		case err != nil || at.After(now.Add(grace)):
			return bury, unusedSince{} // not written by us, or by a clock far ahead: start the hour again
		case now.Sub(at) >= tombstone:
			return remove, unusedSince{}
		}
		return keep, unusedSince{}
	}
	if before.version != m.ResourceVersion {
		before = unusedSince{version: m.ResourceVersion, since: now}
	}
	if now.Sub(before.since) >= grace {
		return bury, before
	}
	return keep, before
}

func (r *Identities) carryOut(ctx context.Context, m *metav1.PartialObjectMetadata, act identityAct) error {
	switch act {
	case bury:
		return r.mark(ctx, m, fmt.Sprintf("%q", r.Clock().UTC().Format(time.RFC3339)))
	case unearth:
		return r.mark(ctx, m, "null")
	case remove:
		return deleteAsSeen(ctx, r.Client, m)
	}
	return nil
}

// mark sets or takes away the tombstone, unless the object has changed since it was read.
func (r *Identities) mark(ctx context.Context, m *metav1.PartialObjectMetadata, value string) error {
	patch := fmt.Sprintf(`{"metadata":{"uid":%q,"resourceVersion":%q,"annotations":{%q:%s}}}`, m.UID, m.ResourceVersion, v1alpha1.AnnotationTombstone, value)
	err := r.Patch(ctx, m.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(patch)), client.FieldOwner(v1alpha1.OperatorFieldManager))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("mark CiliumIdentity %s: %w", m.Name, err)
	}
	return nil
}
