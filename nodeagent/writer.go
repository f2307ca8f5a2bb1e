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
	// Early is what packets may wait for soon: numbers for pods whose ADD has not come. Nobody waits for it, and it waits
	// for no room: where there is none it fails.
	Early
	// Urgent is what the node's life hangs on: its lease.
	Urgent
)

const (
	budgetWindow = time.Minute
	// budgetWrites in any window: one a second, however they are spread.
	budgetWrites = 60
	// leaseReserve of them are left to the lease.
	leaseReserve = 6
	// ordinaryShare and sharedShare divide the rest, and neither gives the other any: what one has borrowed while the other
	// was still would be missing for up to a window, when policies and pods come close on one another.
	ordinaryShare = 16
	sharedShare   = budgetWrites - leaseReserve - ordinaryShare
	// idleShare of sharedShare is Background's, busyShare while pods come or go.
	idleShare = 12
	busyShare = 6
	// earlyShare of sharedShare is Early's, and nothing of the last as many is: whoever can bind pods to the node makes it ask
	// for as many numbers as they like, and pods whose ADD waits must find room.
	earlyShare = sharedShare / 3
	// calm is how long after a write for pods pods are taken to go on coming or going.
	calm = 10 * time.Second
	// ordinaryPace is how far apart Ordinary writes have to be for half of their share to last for a window.
	ordinaryPace = budgetWindow / (ordinaryShare / 2)
)

// noRoom is what an Early write gets when there is no room for it now.
type noRoom struct{ wait time.Duration }

func (n *noRoom) Error() string { return fmt.Sprintf("no room to write early for %v", n.wait) }

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
	now := b.now()
	if wait = b.full(p, now); wait > 0 {
		return wait, false
	}
	b.made = append(b.made, write{now, p})
	return 0, true
}

// now also forgets what is older than the window.
func (b *budget) now() time.Time {
	now := b.clock()
	b.made = slices.DeleteFunc(b.made, func(w write) bool { return now.Sub(w.at) >= budgetWindow })
	return now
}

// full is how long there is no room for one more write of p.
func (b *budget) full(p Priority, now time.Time) time.Duration {
	wait := b.above(budgetWrites, now, Background, Ordinary, Shared, Early, Urgent)
	switch p {
	case Ordinary:
		wait = max(wait, b.above(ordinaryShare, now, Ordinary))
	case Shared:
		wait = max(wait, b.above(sharedShare, now, Background, Shared, Early))
	case Early:
		wait = max(wait, b.above(sharedShare-earlyShare, now, Background, Shared, Early), b.above(earlyShare, now, Early))
	case Background:
		wait = max(wait, b.above(sharedShare, now, Background, Shared, Early), b.above(idleShare, now, Background), min(b.busy(now), b.above(busyShare, now, Background)))
	}
	return wait
}

// above is how long writes of the window leave no room for one more of these within limit.
func (b *budget) above(limit int, now time.Time, these ...Priority) time.Duration {
	made := b.of(these...)
	if len(made) < limit {
		return 0
	}
	return made[len(made)-limit].at.Add(budgetWindow).Sub(now)
}

func (b *budget) of(these ...Priority) []write {
	return slices.DeleteFunc(slices.Clone(b.made), func(w write) bool { return !slices.Contains(these, w.of) })
}

// busy is for how long pods are still taken to come or go.
func (b *budget) busy(now time.Time) time.Duration {
	made := b.of(Shared, Early)
	if len(made) == 0 {
		return 0
	}
	return max(0, made[len(made)-1].at.Add(calm).Sub(now))
}

// pace is how far apart Ordinary writes have to be for their share never to be used up: half of it may go at once.
func (b *budget) pace() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now()
	if len(b.of(Ordinary)) < ordinaryShare/2 {
		return 0
	}
	return ordinaryPace
}

// room tells whether a write of p may be made now.
func (b *budget) room(p Priority) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.full(p, b.now()) <= 0
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

// Wait returns when one write may be made; it is then taken. For Early it does not wait: it returns noRoom.
func (w *Writer) Wait(ctx context.Context, p Priority) error {
	for {
		wait, ok := w.budget.take(p)
		if ok {
			return nil
		}
		if p == Early {
			return &noRoom{wait}
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
