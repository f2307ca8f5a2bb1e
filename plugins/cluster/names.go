// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// Name is who an address is to people.
type Name struct {
	// Kind is pod, node or service.
	Kind string
	// Namespace is empty for nodes.
	Namespace, Name string
}

// String is namespace/name, or the name alone.
func (n Name) String() string {
	if n.Namespace == "" {
		return n.Name
	}
	return n.Namespace + "/" + n.Name
}

// Names are the names of addresses and identities at one time. The zero Names knows none.
type Names struct {
	addresses  map[netip.Addr]Name
	identities map[uint32][]string
}

// Objects are what names are made from.
type Objects struct {
	Slices     []v1alpha1.CiliumEndpointSlice
	Nodes      []v1alpha1.CiliumNode
	Identities []v1alpha1.CiliumIdentity
	Services   []corev1.Service
}

// NewNames takes names from objects. An address counts for a pod only where it lies in a prefix of the slice's node,
// as for the agents; a pod's name wins over a node's, and a node's over a service's.
func NewNames(o Objects) *Names {
	n := &Names{addresses: map[netip.Addr]Name{}, identities: map[uint32][]string{}}
	for i := range o.Services {
		s := &o.Services[i]
		for _, text := range slices.Concat(s.Spec.ClusterIPs, s.Spec.ExternalIPs) {
			n.add(text, Name{"service", s.Namespace, s.Name})
		}
	}
	prefixes := map[string][]netip.Prefix{}
	for i := range o.Nodes {
		node := &o.Nodes[i]
		for _, a := range node.Status.Addresses {
			n.add(a.Address, Name{Kind: "node", Name: node.Name})
		}
		for _, text := range node.Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				prefixes[node.Name] = append(prefixes[node.Name], p)
			}
		}
	}
	for i := range o.Slices {
		for _, e := range o.Slices[i].Spec.Endpoints {
			for _, text := range e.Addresses {
				addr, err := netip.ParseAddr(text)
				if err == nil && slices.ContainsFunc(prefixes[o.Slices[i].Spec.Node], func(p netip.Prefix) bool { return p.Contains(addr) }) {
					n.add(text, Name{"pod", e.Namespace, e.Name})
				}
			}
		}
	}
	for i := range o.Identities {
		number, err := strconv.ParseUint(o.Identities[i].Name, 10, 32)
		if err != nil {
			continue
		}
		n.identities[uint32(number)] = LabelList(o.Identities[i].Spec.Labels)
	}
	return n
}

func (n *Names) add(text string, name Name) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return
	}
	name.Namespace, name.Name = flow.Safe(name.Namespace), flow.Safe(name.Name)
	n.addresses[addr.Unmap()] = name
}

// LabelList is a label set as key=value, sorted, safe to print.
func LabelList(labels map[string]string) []string {
	all := make([]string, 0, len(labels))
	for k, v := range labels {
		all = append(all, flow.Safe(k+"="+v))
	}
	slices.Sort(all)
	return all
}

// Address gives the name of an address; ok is false where nobody in the cluster has it.
func (n *Names) Address(a netip.Addr) (Name, bool) {
	name, ok := n.addresses[a.Unmap()]
	return name, ok
}

// Identity gives a reserved identity's name, or the labels of the others; nil where it is not known.
func (n *Names) Identity(number uint32) []string {
	if name := flow.IdentityName(number); name != "" {
		return []string{"reserved:" + name}
	}
	return n.identities[number]
}

// Fill gives both sides of an event their names.
func (n *Names) Fill(e *flow.Event) {
	for _, p := range [...]*flow.Party{&e.Source, &e.Destination} {
		if name, ok := n.Address(p.Address); ok && p.Name == "" {
			p.Name = name.String()
		}
		if p.Labels == nil && p.Identity >= 256 {
			p.Labels = n.Identity(p.Identity)
		}
	}
}

// LoadNames asks the API server. What may not be read is left out and told to remark, so that somebody who may read
// pods' events only still gets them, by number.
func (c *Cluster) LoadNames(ctx context.Context, remark func(string)) *Names {
	var (
		sl v1alpha1.CiliumEndpointSliceList
		nl v1alpha1.CiliumNodeList
		il v1alpha1.CiliumIdentityList
		vl corev1.ServiceList
	)
	for _, list := range []struct {
		what string
		into client.ObjectList
	}{{"pods", &sl}, {"nodes", &nl}, {"identities", &il}, {"services", &vl}} {
		if err := c.List(ctx, list.into); err != nil && ctx.Err() == nil {
			remark(fmt.Sprintf("names of %s are left out: %s", list.what, flow.Safe(err.Error())))
		}
	}
	return NewNames(Objects{Slices: sl.Items, Nodes: nl.Items, Identities: il.Items, Services: vl.Items})
}

// LiveNames are names that are read again when an unknown address turns up, but not more often than every few seconds.
type LiveNames struct {
	Cluster *Cluster
	Remark  func(string)

	mu    sync.Mutex
	names *Names
	at    time.Time
}

// namesAge is how old names must be before an unknown address makes us ask again.
const namesAge = 5 * time.Second

// Fill gives both sides of an event their names.
func (l *LiveNames) Fill(ctx context.Context, e *flow.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names == nil || (l.unknown(e.Source) || l.unknown(e.Destination)) && time.Since(l.at) > namesAge {
		remark := l.Remark
		if l.names != nil {
			remark = func(string) {} // said once
		}
		l.names = l.Cluster.LoadNames(ctx, remark)
		l.at = time.Now()
	}
	l.names.Fill(e)
}

// unknown is true for an address of the cluster without a name: the world's never have one.
func (l *LiveNames) unknown(p flow.Party) bool {
	if !p.Address.IsValid() || flow.IdentityName(p.Identity) == "world" {
		return false
	}
	_, ok := l.names.Address(p.Address)
	return !ok
}
