// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
)

// maxNames bounds the addresses and identities whose names are at hand; a node that meets more begins again.
const maxNames = 8192

// indexAddress finds objects by an address in them.
const indexAddress = "flow-address"

// FlowNames gives addresses and identities in events their names, from the caches that the agent has anyway. What was
// asked before is remembered until an object with the address changes: an event costs a look into a map.
type FlowNames struct {
	endpoints func() *endpoint.Set
	// rule is nil where nothing enforces policies.
	rule func(uint32) (policy.Provenance, bool)

	mu     sync.RWMutex
	known  map[netip.Addr]*flow.Who // nil: nobody has it
	labels map[uint32][]string
	// Stores of the kinds; nil until Watch.
	pods, slices, nodes, services, identities toolscache.Indexer
}

func newFlowNames(endpoints func() *endpoint.Set) *FlowNames {
	return &FlowNames{endpoints: endpoints, known: map[netip.Addr]*flow.Who{}, labels: map[uint32][]string{}}
}

// watch takes the kinds' caches. Before it nobody has a name.
func (n *FlowNames) watch(ctx context.Context, from cache.Cache) error {
	for _, kind := range []struct {
		object client.Object
		store  *toolscache.Indexer
	}{
		{&corev1.Pod{}, &n.pods}, {&v1alpha1.CiliumNode{}, &n.nodes}, {&corev1.Service{}, &n.services},
		{&v1alpha1.CiliumIdentity{}, &n.identities}, {&v1alpha1.CiliumEndpointSlice{}, &n.slices},
	} {
		i, err := from.GetInformer(ctx, kind.object, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("names of flows: %w", err)
		}
		if err := i.AddIndexers(toolscache.Indexers{indexAddress: namedAddresses}); err != nil {
			return fmt.Errorf("names of flows: %w", err)
		}
		shared, ok := i.(toolscache.SharedIndexInformer)
		if !ok {
			return fmt.Errorf("names of flows: a cache of another kind: %T", i)
		}
		n.mu.Lock()
		*kind.store = shared.GetIndexer()
		n.mu.Unlock()
		_, err = i.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { n.forget(o) },
			UpdateFunc: func(old, o any) { n.forget(old, o) },
			DeleteFunc: func(o any) { n.forget(o) },
		})
		if err != nil {
			return fmt.Errorf("names of flows: %w", err)
		}
	}
	return nil
}

// namedAddresses are the addresses that an object gives a name to.
func namedAddresses(o any) ([]string, error) {
	var out []string
	switch o := o.(type) {
	case *v1alpha1.CiliumEndpointSlice:
		for i := range o.Spec.Endpoints {
			out = append(out, o.Spec.Endpoints[i].Addresses...)
		}
	case *v1alpha1.CiliumNode:
		for _, a := range o.Status.Addresses {
			out = append(out, a.Address)
		}
	case *corev1.Service:
		out = slices.Concat(o.Spec.ClusterIPs, o.Spec.ExternalIPs)
	case *corev1.Pod:
		if !o.Spec.HostNetwork && o.Status.Phase != corev1.PodSucceeded && o.Status.Phase != corev1.PodFailed {
			for _, ip := range o.Status.PodIPs {
				out = append(out, ip.IP)
			}
		}
	}
	return out, nil
}

// forget makes the next question about an object's addresses be asked anew.
func (n *FlowNames) forget(objects ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range objects {
		if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if node, ok := o.(*v1alpha1.CiliumNode); ok && len(node.Spec.PodCIDRs) > 0 {
			clear(n.known) // its prefixes say which of its pods count
			continue
		}
		addresses, _ := namedAddresses(o)
		for _, text := range addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				delete(n.known, a.Unmap())
			}
		}
	}
}

// forgetOwn makes the questions about pods of this node be asked anew: the set of endpoints has changed.
func (n *FlowNames) forgetOwn(list []*endpoint.Endpoint) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range list {
		for _, a := range e.Addresses() {
			if w := n.known[a]; w == nil || w.Namespace != e.Pod.Namespace || w.Pod != e.Pod.Name {
				delete(n.known, a)
			}
		}
	}
}

// Address gives who has an address now: a pod of this node, of another, a node, a Service.
func (n *FlowNames) Address(a netip.Addr) *flow.Who {
	a = a.Unmap()
	n.mu.RLock()
	who, ok := n.known[a]
	n.mu.RUnlock()
	if ok {
		return who
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.slices == nil {
		return nil // soon
	}
	who = n.find(a)
	if len(n.known) >= maxNames {
		clear(n.known)
	}
	n.known[a] = who
	return who
}

func (n *FlowNames) find(a netip.Addr) *flow.Who {
	text := a.String()
	if who := n.ownPod(a, text); who != nil {
		return who
	}
	for _, o := range byAddress(n.slices, text) {
		s := o.(*v1alpha1.CiliumEndpointSlice)
		for i := range s.Spec.Endpoints {
			e := &s.Spec.Endpoints[i]
			if slices.Contains(e.Addresses, text) && n.holds(s.Spec.Node, a) {
				return &flow.Who{Namespace: e.Namespace, Pod: e.Name}
			}
		}
	}
	for _, o := range byAddress(n.nodes, text) {
		return &flow.Who{Node: o.(*v1alpha1.CiliumNode).Name}
	}
	for _, o := range byAddress(n.services, text) {
		s := o.(*corev1.Service)
		return &flow.Who{ServiceNamespace: s.Namespace, Service: s.Name}
	}
	return nil
}

// ownPod looks at the endpoints first: they know of a pod before the API server does.
func (n *FlowNames) ownPod(a netip.Addr, text string) *flow.Who {
	var who *flow.Who
	if set := n.endpoints(); set != nil {
		for _, e := range set.List() {
			if slices.Contains(e.Addresses(), a) {
				who = &flow.Who{Namespace: e.Pod.Namespace, Pod: e.Pod.Name}
			}
		}
	}
	if who == nil {
		return nil
	}
	for _, o := range byAddress(n.pods, text) {
		if p := o.(*corev1.Pod); p.Namespace == who.Namespace && p.Name == who.Pod {
			who.Workloads = workloads(p)
		}
	}
	return who
}

func byAddress(store toolscache.Indexer, text string) []any {
	if store == nil {
		return nil
	}
	found, err := store.ByIndex(indexAddress, text)
	if err != nil {
		return nil
	}
	return found
}

// holds tells whether an address lies in a prefix of the node: only then does it count for a pod there.
func (n *FlowNames) holds(node string, a netip.Addr) bool {
	o, ok, err := n.nodes.GetByKey(node)
	if err != nil || !ok {
		return false
	}
	return slices.ContainsFunc(o.(*v1alpha1.CiliumNode).Spec.PodCIDRs, func(text string) bool {
		p, err := netip.ParsePrefix(text)
		return err == nil && p.Contains(a)
	})
}

// workloads is what made a pod. A ReplicaSet stands for its Deployment: its name ends in the template's hash.
func workloads(p *corev1.Pod) []flow.Workload {
	owner := metav1.GetControllerOf(p)
	if owner == nil {
		return nil
	}
	w := flow.Workload{Kind: owner.Kind, Name: owner.Name}
	if hash := p.Labels["pod-template-hash"]; owner.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
			w = flow.Workload{Kind: "Deployment", Name: name}
		}
	}
	return []flow.Workload{w}
}

// Labels of an identity as its CiliumIdentity has them.
func (n *FlowNames) Labels(number uint32) []string {
	n.mu.RLock()
	have, ok := n.labels[number]
	store := n.identities
	n.mu.RUnlock()
	if ok || store == nil {
		return have
	}
	o, there, err := store.GetByKey(identity.Number(number).String())
	if err != nil || !there {
		return nil // not remembered: it may be on its way
	}
	labels := o.(*v1alpha1.CiliumIdentity).Spec.Labels
	all := make([]string, 0, len(labels))
	for k, v := range labels {
		all = append(all, k+"="+v)
	}
	slices.Sort(all)
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.labels) >= maxNames {
		clear(n.labels)
	}
	n.labels[number] = all
	return all
}

// Rule gives what a rule stands for.
func (n *FlowNames) Rule(id uint32) (policy.Provenance, bool) {
	n.mu.RLock()
	rule := n.rule
	n.mu.RUnlock()
	if rule == nil {
		return policy.Provenance{}, false
	}
	return rule(id)
}

// Rules says where rules are to be found.
func (n *FlowNames) Rules(rule func(uint32) (policy.Provenance, bool)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rule = rule
}
