// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// queue is a controller's.
type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// bell wakes a reconciler for something that is no object of the API server. Ringing never blocks.
type bell chan event.GenericEvent

func newBell() bell { return make(bell, 1) }

func (b bell) ring() {
	select {
	case b <- event.GenericEvent{Object: &corev1.Node{}}:
	default: // it is ringing already
	}
}

// source feeds a controller that works on the whole, after the given delay.
func (b bell) source(name string, after time.Duration) source.Source {
	return source.Channel(b, whole(name, after))
}

// whole maps every event to one request, so that however many come, the whole is computed once. The delay gathers what
// comes in bursts.
func whole(name string, after time.Duration) handler.EventHandler {
	req := reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}
	add := func(q queue) { q.AddAfter(req, after) }
	return handler.Funcs{
		CreateFunc:  func(_ context.Context, _ event.TypedCreateEvent[client.Object], q queue) { add(q) },
		UpdateFunc:  func(_ context.Context, _ event.TypedUpdateEvent[client.Object], q queue) { add(q) },
		DeleteFunc:  func(_ context.Context, _ event.TypedDeleteEvent[client.Object], q queue) { add(q) },
		GenericFunc: func(_ context.Context, _ event.TypedGenericEvent[client.Object], q queue) { add(q) },
	}
}
