// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// pageSize bounds what one answer of the API server holds in memory while a sweep reads a kind whole.
const pageSize = 500

// atStart is a source that asks once: a sweep then keeps itself going by RequeueAfter.
var atStart = source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	q.Add(clusterRequest)
	return nil
})

// eachMeta reads the metadata of a kind page by page, past every cache. Sweeps are rare; informers for what may be
// hundreds of thousands of objects would cost their memory all the time.
func eachMeta(ctx context.Context, live client.Reader, gvk schema.GroupVersionKind, do func(*metav1.PartialObjectMetadata)) error {
	fresh := func() *metav1.PartialObjectMetadataList {
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
		return list
	}
	return pages(ctx, live, fresh, func(list *metav1.PartialObjectMetadataList) {
		for i := range list.Items {
			list.Items[i].SetGroupVersionKind(gvk) // absent in the items of a list
			do(&list.Items[i])
		}
	})
}

// pages reads a list to its end; each page is an object of its own.
func pages[L client.ObjectList](ctx context.Context, live client.Reader, fresh func() L, do func(L)) error {
	next := ""
	for {
		list := fresh()
		if err := live.List(ctx, list, client.Limit(pageSize), client.Continue(next)); err != nil {
			return fmt.Errorf("list %T: %w", list, err)
		}
		do(list)
		if next = list.GetContinue(); next == "" {
			return nil
		}
	}
}

// exists asks the API server for one object. With a UID, a namesake does not count.
func exists(ctx context.Context, live client.Reader, gvk schema.GroupVersionKind, key client.ObjectKey, uid string) (bool, error) {
	o := &metav1.PartialObjectMetadata{}
	o.SetGroupVersionKind(gvk)
	err := live.Get(ctx, key, o)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s %s: %w", gvk.Kind, key, err)
	}
	return uid == "" || string(o.UID) == uid, nil
}

var (
	nodeKind = corev1.SchemeGroupVersion.WithKind("Node")
	podKind  = corev1.SchemeGroupVersion.WithKind("Pod")
)
