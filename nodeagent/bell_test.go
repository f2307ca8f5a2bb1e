// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

// heardQueue counts what it was asked to add later.
type heardQueue struct {
	queue
	heard atomic.Int64
}

func (q *heardQueue) AddAfter(r reconcile.Request, after time.Duration) {
	q.queue.AddAfter(r, after)
	q.heard.Add(1)
}

// Endpoints that come or go one after the other are computed once, after a rest; what cannot wait is not held up by it.
func TestEndpointsRest(t *testing.T) {
	clock := testclock.NewFakeClock(time.Unix(0, 0))
	q := &heardQueue{queue: workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.DefaultTypedControllerRateLimiter[reconcile.Request](), workqueue.TypedRateLimitingQueueConfig[reconcile.Request]{Clock: clock})}
	defer q.ShutDown()
	const soon = 10 * time.Millisecond
	later, now := newBell(), newBell()
	nodetest.Must(t, later.source("policies", endpointsRest).Start(t.Context(), q))
	nodetest.Must(t, now.source("policies", soon).Start(t.Context(), q))
	ring := func(b bell) {
		t.Helper()
		before := q.heard.Load()
		b.ring()
		waitFor(t, "the bell", func() error {
			if q.heard.Load() == before {
				return fmt.Errorf("not heard")
			}
			return nil
		})
	}
	get := func() string {
		t.Helper()
		waitFor(t, "the queue", func() error {
			if q.Len() == 0 {
				return fmt.Errorf("nothing comes")
			}
			return nil
		})
		r, _ := q.Get()
		q.Done(r)
		return r.Name
	}
	// quiet lets time pass in which nothing is due: marks that are put behind come first.
	quiet := func(pass time.Duration) {
		t.Helper()
		clock.Step(pass)
		for range 3 {
			q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Name: "mark"}}, time.Nanosecond)
			clock.Step(time.Nanosecond)
			if got := get(); got != "mark" {
				t.Fatalf("%s comes when nothing is due", got)
			}
		}
	}
	for range 20 {
		ring(later)
	}
	quiet(endpointsRest - time.Millisecond)
	ring(later) // one more that comes at the end does not begin the rest anew
	clock.Step(time.Millisecond)
	if got := get(); got != "policies" {
		t.Fatal(got)
	}
	quiet(2 * endpointsRest)
	ring(later)
	ring(now)
	clock.Step(soon)
	if got := get(); got != "policies" {
		t.Fatal(got)
	}
	quiet(2 * endpointsRest)
}
