// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// ErrQuestion means that a question cannot be asked like this.
var ErrQuestion = errors.New("cannot be asked")

// Objects are what answers are made from.
type Objects struct {
	Pods       []corev1.Pod
	Namespaces []corev1.Namespace
	Policies   []networkingv1.NetworkPolicy
	Services   []corev1.Service
	Slices     []discoveryv1.EndpointSlice
	Nodes      []corev1.Node
	Members    []v1alpha1.CiliumNode
	// Reports are what nodes say of themselves: which policies they left out.
	Reports []v1alpha1.CiliumNodeReport
	// ClusterName of the CiliumConfig.
	ClusterName string
}

// World is objects, ready to be asked.
type World struct {
	Objects
	engine *policy.Engine
	// numbers of identities by their canonical labels, as agents would give them out.
	numbers map[string]identity.Number
	notes   map[policy.Ref][]policy.Note
}

// New gives the engine all policies and all identities.
func New(o Objects) (*World, error) {
	w := &World{Objects: o, engine: policy.NewEngine(), numbers: map[string]identity.Number{}, notes: map[policy.Ref][]policy.Note{}}
	for i := range o.Policies {
		ref := policy.RefOf(&o.Policies[i])
		rules, notes, err := policy.FromNetworkPolicy(&o.Policies[i])
		if err != nil {
			notes = []policy.Note{{Path: "spec", Text: policy.LeftOut{Err: err, Nobody: len(rules) == 0}.String()}}
		}
		if err := w.engine.SetPolicy(ref, rules); err != nil {
			return nil, err
		}
		w.notes[ref] = notes
	}
	ports := map[identity.Number][]policy.NamedPort{}
	labels := map[identity.Number]identity.Labels{}
	for i := range o.Pods {
		if !inNetwork(&o.Pods[i]) {
			continue
		}
		p, err := w.known(&o.Pods[i])
		if err != nil {
			continue // its agent gives it none either
		}
		n, has := w.numbers[p.Labels.Canonical()]
		if !has {
			n = identity.Min + identity.Number(len(w.numbers))
			w.numbers[p.Labels.Canonical()], labels[n] = n, p.Labels
		}
		ports[n] = append(ports[n], p.Ports...)
	}
	for n, l := range labels {
		w.engine.SetIdentity(n, l, ports[n])
	}
	return w, nil
}

// inNetwork tells whether a pod has a network of its own that still counts.
func inNetwork(p *corev1.Pod) bool {
	return !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// known is a pod as its agent knows it.
func (w *World) known(p *corev1.Pod) (policy.Pod, error) {
	var labels map[string]string
	if i := slices.IndexFunc(w.Namespaces, func(n corev1.Namespace) bool { return n.Name == p.Namespace }); i >= 0 {
		labels = w.Namespaces[i].Labels
	}
	return policy.FromPod(p, labels, w.ClusterName, identity.DefaultFilter())
}

// protocols by name, as Kubernetes and the IP header write them.
var protocols = map[string]uint8{"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPV6": 58}

func protocolName(n uint8) string {
	for name, number := range protocols {
		if number == n {
			return name
		}
	}
	return strconv.Itoa(int(n))
}

// Port is what --port says.
type Port struct {
	// Number in host order; 0 with a Name or for ICMP.
	Number   uint16
	Name     string
	Protocol uint8
}

func (p Port) String() string {
	name := protocolName(p.Protocol)
	switch {
	case p.Name != "":
		return p.Name + "/" + name
	case p.Number == 0:
		return name
	}
	return fmt.Sprintf("%d/%s", p.Number, name)
}

// ParsePort reads N, N/PROTO, NAME, NAME/PROTO or icmp.
func ParsePort(text string) (Port, error) {
	number, protocol, found := strings.Cut(text, "/")
	if !found {
		protocol = "TCP"
		if strings.EqualFold(text, "icmp") || strings.EqualFold(text, "icmpv6") {
			return Port{Protocol: protocols[strings.ToUpper(text)]}, nil
		}
	}
	p := Port{Protocol: protocols[strings.ToUpper(protocol)]}
	switch p.Protocol {
	case 6, 17, 132:
	default:
		return Port{}, fmt.Errorf("%w: --port %q: want N/TCP, N/UDP, N/SCTP or icmp", ErrQuestion, text)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	switch {
	case err == nil && n > 0:
		p.Number = uint16(n)
	case err == nil || errors.Is(err, strconv.ErrRange):
		return Port{}, fmt.Errorf("%w: --port %q: %s is no port (1 to 65535)", ErrQuestion, text, number)
	case err != nil && number != "" && strings.Trim(number, "0123456789") != "":
		p.Name = number
	default:
		return Port{}, fmt.Errorf("%w: --port %q: want N/TCP, N/UDP, N/SCTP or icmp", ErrQuestion, text)
	}
	return p, nil
}

// party is one side of a question: a pod, a node, or an address of neither.
type party struct {
	// name for people.
	name string
	pod  *corev1.Pod
	// node is set for a host's own sockets.
	node      string
	addresses []netip.Addr
	// standsFor says that the pod is one of several of a workload that was asked about.
	standsFor string
}

func (p *party) address(family4 bool) (netip.Addr, bool) {
	i := slices.IndexFunc(p.addresses, func(a netip.Addr) bool { return a.Is4() == family4 })
	if i < 0 {
		return netip.Addr{}, false
	}
	return p.addresses[i], true
}

// partyOf a pod: that of its host where it has no network of its own.
func (w *World) partyOf(pod *corev1.Pod) *party {
	p := &party{name: pod.Namespace + "/" + pod.Name, pod: pod}
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			p.addresses = append(p.addresses, a)
		}
	}
	if pod.Spec.HostNetwork {
		p.pod, p.node = nil, pod.Spec.NodeName
		p.name += " (on its host's network: node " + p.node + ")"
	}
	return p
}

// address is who has an address.
func (w *World) party(a netip.Addr) *party {
	a = a.Unmap()
	for i := range w.Pods {
		p := &w.Pods[i]
		if inNetwork(p) && slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return same(ip.IP, a) }) {
			out := w.partyOf(p)
			out.addresses = []netip.Addr{a}
			return out
		}
	}
	for i := range w.Nodes {
		for _, of := range w.Nodes[i].Status.Addresses {
			if same(of.Address, a) {
				return &party{name: "node " + w.Nodes[i].Name, node: w.Nodes[i].Name, addresses: []netip.Addr{a}}
			}
		}
	}
	for i := range w.Members {
		for _, of := range w.Members[i].Status.Addresses {
			if same(of.Address, a) {
				return &party{name: "node " + w.Members[i].Name, node: w.Members[i].Name, addresses: []netip.Addr{a}}
			}
		}
	}
	return &party{name: a.String(), addresses: []netip.Addr{a}}
}

func same(text string, a netip.Addr) bool {
	b, err := netip.ParseAddr(text)
	return err == nil && b.Unmap() == a
}

// end is a party as the other one's policies see it.
func (w *World) end(p, other *party, a netip.Addr) policy.End {
	e := policy.End{Addr: a}
	switch {
	case p.pod != nil:
		known, err := w.known(p.pod)
		subject := known.Subject()
		if e.Pod = &subject; err == nil {
			e.Identity = w.numbers[known.Labels.Canonical()]
		}
	case p.node != "" && other.pod != nil && other.pod.Spec.NodeName == p.node:
		e.Identity = identity.Host
	case p.node != "":
		e.Identity = identity.RemoteNode
	case w.ofCluster(a):
		e.Identity = identity.Pending
	default:
		e.Identity = identity.World
	}
	return e
}

// ofCluster tells whether an address lies in a prefix that some node gives to pods.
func (w *World) ofCluster(a netip.Addr) bool {
	for i := range w.Members {
		for _, text := range w.Members[i].Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(text); err == nil && p.Contains(a) {
				return true
			}
		}
	}
	return false
}
