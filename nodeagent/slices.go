// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
)

// sliceGap is the least time between two writes of slices: under churn each write carries what came meanwhile.
const sliceGap = 1500 * time.Millisecond

// Slices tells the other nodes of this node's pods: it keeps this node's CiliumEndpointSlices equal to its endpoints.
type Slices struct {
	node      string
	cache     client.Reader
	writer    *Writer
	endpoints func() *endpoint.Set
	// written is what this process wrote last; the cache may be behind.
	written map[string][]v1alpha1.SliceEndpoint
	last    time.Time
}

// Reconcile writes one slice at a time, looking again before each: what was written meanwhile need not be.
func (s *Slices) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	set := s.endpoints()
	if set == nil {
		return ctrl.Result{}, nil
	}
	if wait := sliceGap - time.Since(s.last); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	var owner v1alpha1.CiliumNode
	if err := s.cache.Get(ctx, types.NamespacedName{Name: s.node}, &owner); err != nil || owner.DeletionTimestamp != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err) // its event comes
	}
	var all v1alpha1.CiliumEndpointSliceList
	if err := s.cache.List(ctx, &all); err != nil {
		return ctrl.Result{}, fmt.Errorf("slices: %w", err)
	}
	mine := map[string][]v1alpha1.SliceEndpoint{}
	doomed := map[string]bool{} // go with a CiliumNode that another has replaced
	for _, o := range all.Items {
		if o.Spec.Node == s.node && o.DeletionTimestamp == nil {
			mine[o.Name] = o.Spec.Endpoints
			doomed[o.Name] = !slices.ContainsFunc(o.OwnerReferences, func(r metav1.OwnerReference) bool { return r.UID == owner.UID })
		}
	}
	want := place(s.node, mine, sliceEndpoints(set.List()))
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if apiequality.Semantic.DeepEqual(mine[name], want[name]) && mine[name] != nil && !doomed[name] {
			continue
		}
		if last, ok := s.written[name]; ok && apiequality.Semantic.DeepEqual(last, want[name]) {
			delete(s.written, name) // on its way back to us; look once more before writing it again
			return ctrl.Result{RequeueAfter: 2 * time.Second}, nil
		}
		if err := s.writer.Apply(ctx, Shared, s.slice(name, want[name], &owner)); err != nil {
			return ctrl.Result{}, fmt.Errorf("write slice %s: %w", name, err)
		}
		s.written[name], s.last = want[name], time.Now()
		return ctrl.Result{RequeueAfter: sliceGap}, nil
	}
	for _, name := range slices.Sorted(maps.Keys(mine)) {
		if _, ok := want[name]; !ok {
			o := &v1alpha1.CiliumEndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name}}
			if err := s.writer.Delete(ctx, Shared, o); err != nil {
				return ctrl.Result{}, fmt.Errorf("delete slice %s: %w", name, err)
			}
			delete(s.written, name)
			s.last = time.Now()
			return ctrl.Result{RequeueAfter: sliceGap}, nil
		}
	}
	return ctrl.Result{}, nil
}

func (s *Slices) slice(name string, endpoints []v1alpha1.SliceEndpoint, owner *v1alpha1.CiliumNode) *v1alpha1.CiliumEndpointSlice {
	return &v1alpha1.CiliumEndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{v1alpha1.LabelNode: s.node},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: v1alpha1.GroupVersion.String(), Kind: "CiliumNode", Name: owner.Name, UID: owner.UID,
			}},
		},
		Spec: v1alpha1.CiliumEndpointSliceSpec{Node: s.node, Endpoints: endpoints},
	}
}

// sliceEndpoints are those that others may know: a pending pod is found by its node's prefix.
func sliceEndpoints(list []*endpoint.Endpoint) []v1alpha1.SliceEndpoint {
	var out []v1alpha1.SliceEndpoint
	for _, e := range list {
		if !e.Identity.Allocated() || len(e.Addresses()) == 0 {
			continue
		}
		se := v1alpha1.SliceEndpoint{Namespace: e.Pod.Namespace, Name: e.Pod.Name, Identity: int64(e.Identity)}
		for _, a := range e.Addresses() {
			se.Addresses = append(se.Addresses, a.String())
		}
		for _, port := range e.Ports[:min(len(e.Ports), v1alpha1.MaxPortsPerEndpoint)] {
			se.Ports = append(se.Ports, v1alpha1.SlicePort{
				Name: port.Name, Protocol: string(protocolName(port.Protocol)), Port: int32(port.Port),
			})
		}
		out = append(out, se)
	}
	return out
}

// place spreads endpoints over slices so that as little as possible is rewritten: who has a place keeps it, who is new
// goes into the fullest slice with room, and a slice without anybody is not in the result.
func place(node string, have map[string][]v1alpha1.SliceEndpoint, want []v1alpha1.SliceEndpoint) map[string][]v1alpha1.SliceEndpoint {
	type key = string
	of := func(e v1alpha1.SliceEndpoint) key { return e.Addresses[0] }
	left := make(map[key]v1alpha1.SliceEndpoint, len(want))
	for _, e := range want {
		left[of(e)] = e
	}
	out := map[string][]v1alpha1.SliceEndpoint{}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		for _, e := range have[name] {
			if len(e.Addresses) == 0 || len(out[name]) == v1alpha1.MaxEndpointsPerSlice {
				continue
			}
			if now, ok := left[of(e)]; ok {
				out[name] = append(out[name], now)
				delete(left, of(e))
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(left)) {
		name := room(node, out, have)
		out[name] = append(out[name], left[k])
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b v1alpha1.SliceEndpoint) int { return cmp.Compare(of(a), of(b)) })
	}
	return out
}

// room is the fullest slice that is not full, or a new name.
func room(node string, out, have map[string][]v1alpha1.SliceEndpoint) string {
	best := ""
	for _, name := range slices.Sorted(maps.Keys(out)) {
		if n := len(out[name]); n < v1alpha1.MaxEndpointsPerSlice && (best == "" || n > len(out[best])) {
			best = name
		}
	}
	if best != "" {
		return best
	}
	for n := 1; ; n++ {
		name := sliceName(node, n)
		if _, taken := out[name]; taken {
			continue
		}
		return name
	}
}

// sliceName is unlike that of any other node: what follows the last dash is the number.
func sliceName(node string, n int) string { return node + "-" + strconv.Itoa(n) }
