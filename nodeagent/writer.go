// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// Priority decides who writes when there is more to write than the budget allows.
type Priority int

const (
	// Background is what people read and nobody waits for: endpoints, counters.
	Background Priority = iota
	// Ordinary is what people and tools wait for: conditions, which policies are in force.
	Ordinary
	// Shared is what packets wait for: identities, slices, addresses. Until others know them, policy lets nobody in by them.
	Shared
	// Urgent is what the node's life hangs on: its lease.
	Urgent
)

const (
	budgetWindow = time.Minute
	// budgetWrites in any window: one a second, however they are spread.
	budgetWrites = 60
	// leaseReserve of them are left to the lease.
	leaseReserve = 6
)

// share is how many of the window's writes may be of this priority.
var share = map[Priority]int{Background: 12, Ordinary: 20, Shared: budgetWrites - leaseReserve, Urgent: budgetWrites}

// budget lets at most budgetWrites through in any window, and of each priority its share. It remembers each of them.
type budget struct {
	clock func() time.Time

	mu   sync.Mutex
	made []write // of the last window, oldest first
}

type write struct {
	at time.Time
	of Priority
}

// take takes one write, or says how long there is none to be had.
func (b *budget) take(p Priority) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.clock()
	b.made = slices.DeleteFunc(b.made, func(w write) bool { return now.Sub(w.at) >= budgetWindow })
	own := slices.DeleteFunc(slices.Clone(b.made), func(w write) bool { return w.of != p })
	all := budgetWrites - leaseReserve
	if p == Urgent {
		all = budgetWrites
	}
	if wait = max(full(b.made, all, now), full(own, share[p], now)); wait > 0 {
		return wait, false
	}
	b.made = append(b.made, write{now, p})
	return 0, true
}

// full is how long writes of the last window leave no room for one more within limit.
func full(made []write, limit int, now time.Time) time.Duration {
	if len(made) < limit {
		return 0
	}
	return made[len(made)-limit].at.Add(budgetWindow).Sub(now)
}

// Writer is the only way to the API server for writes. It waits until the node's budget has room.
type Writer struct {
	client client.Client
	budget *budget
}

// NewWriter writes with c.
func NewWriter(c client.Client) *Writer {
	return &Writer{client: c, budget: &budget{clock: time.Now}}
}

// Wait returns when one write may be made; it is then taken.
func (w *Writer) Wait(ctx context.Context, p Priority) error {
	for {
		wait, ok := w.budget.take(p)
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// Apply makes obj what this agent says of it, by server-side apply; fields that are not in it are given up.
func (w *Writer) Apply(ctx context.Context, p Priority, obj client.Object) error {
	u, err := w.unstructured(obj)
	if err != nil {
		return err
	}
	unstructured.RemoveNestedField(u.Object, "status")
	if err := w.Wait(ctx, p); err != nil {
		return err
	}
	return w.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(v1alpha1.AgentFieldManager), client.ForceOwnership)
}

// ApplyStatus is Apply for the status alone.
func (w *Writer) ApplyStatus(ctx context.Context, p Priority, obj client.Object) error {
	u, err := w.unstructured(obj)
	if err != nil {
		return err
	}
	only := map[string]any{
		"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "status": u.Object["status"],
		"metadata": map[string]any{"name": u.GetName()},
	}
	if ns := u.GetNamespace(); ns != "" {
		only["metadata"].(map[string]any)["namespace"] = ns
	}
	if err := w.Wait(ctx, p); err != nil {
		return err
	}
	return w.client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: only}),
		client.FieldOwner(v1alpha1.AgentFieldManager), client.ForceOwnership)
}

// Create, Update, Patch and Delete are the client's, within the budget.
func (w *Writer) Create(ctx context.Context, p Priority, obj client.Object) error {
	if err := w.Wait(ctx, p); err != nil {
		return err
	}
	return w.client.Create(ctx, obj, client.FieldOwner(v1alpha1.AgentFieldManager))
}

// Update writes the whole object at its resourceVersion.
func (w *Writer) Update(ctx context.Context, p Priority, obj client.Object) error {
	if err := w.Wait(ctx, p); err != nil {
		return err
	}
	return w.client.Update(ctx, obj, client.FieldOwner(v1alpha1.AgentFieldManager))
}

// Patch sends the difference that patch holds.
func (w *Writer) Patch(ctx context.Context, p Priority, obj client.Object, patch client.Patch) error {
	if err := w.Wait(ctx, p); err != nil {
		return err
	}
	return w.client.Patch(ctx, obj, patch, client.FieldOwner(v1alpha1.AgentFieldManager))
}

// Delete deletes obj; one that is gone is no error.
func (w *Writer) Delete(ctx context.Context, p Priority, obj client.Object) error {
	if err := w.Wait(ctx, p); err != nil {
		return err
	}
	return client.IgnoreNotFound(w.client.Delete(ctx, obj))
}

// unstructured converts obj and leaves out what the server fills in.
func (w *Writer) unstructured(obj client.Object) (*unstructured.Unstructured, error) {
	gvk, err := apiutil.GVKForObject(obj, w.client.Scheme())
	if err != nil {
		return nil, fmt.Errorf("apply: %w", err)
	}
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, fmt.Errorf("apply %s %s: %w", gvk.Kind, obj.GetName(), err)
	}
	u := &unstructured.Unstructured{Object: m}
	u.SetGroupVersionKind(gvk)
	for _, f := range []string{"managedFields", "resourceVersion", "uid", "creationTimestamp", "generation"} {
		unstructured.RemoveNestedField(u.Object, "metadata", f)
	}
	return u, nil
}
