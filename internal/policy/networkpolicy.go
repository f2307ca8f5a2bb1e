// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// KindNetworkPolicy is Ref.Kind of a networking.k8s.io NetworkPolicy.
const KindNetworkPolicy = "NetworkPolicy"

const (
	protocolTCP  = 6
	protocolUDP  = 17
	protocolSCTP = 132
)

// RefOf names a NetworkPolicy.
func RefOf(np *networkingv1.NetworkPolicy) Ref {
	return Ref{Kind: KindNetworkPolicy, Namespace: np.Namespace, Name: np.Name}
}

// FromNetworkPolicy turns a NetworkPolicy into rules: one that isolates for each direction that it is about, and one for
// each of its ingress and egress items. It returns ErrBadRule for what the API server would not have let pass; the
// policy as a whole is then not to be had, and rules are those that isolate alone: none where whom it selects cannot be
// told.
func FromNetworkPolicy(np *networkingv1.NetworkPolicy) ([]Rule, []Note, error) {
	c := converter{namespace: np.Namespace}
	if np.Namespace == "" {
		c.bad("metadata.namespace", "empty") // or it would select in all of them
	}
	subject := c.pods("spec.podSelector", nil, &np.Spec.PodSelector)
	if c.err != nil {
		return nil, nil, c.err
	}
	ingress, egress := c.directions(&np.Spec)
	var rules []Rule
	if ingress {
		rules = append(rules, Rule{Tier: Normal, Isolates: true, Subject: *subject, Direction: Ingress})
	}
	if egress {
		rules = append(rules, Rule{Tier: Normal, Isolates: true, Subject: *subject, Direction: Egress})
	}
	for i, item := range np.Spec.Ingress {
		if path := fmt.Sprintf("spec.ingress[%d]", i); ingress {
			rules = append(rules, c.rule(path, "from", Ingress, subject, item.From, item.Ports))
		} else {
			c.note(path, "is not heard: spec.policyTypes does not hold Ingress")
		}
	}
	for i, item := range np.Spec.Egress {
		if path := fmt.Sprintf("spec.egress[%d]", i); egress {
			rules = append(rules, c.rule(path, "to", Egress, subject, item.To, item.Ports))
		} else {
			c.note(path, "is not heard: spec.policyTypes does not hold Egress")
		}
	}
	if c.err != nil {
		return slices.DeleteFunc(rules, func(r Rule) bool { return !r.Isolates }), nil, c.err
	}
	return rules, c.notes, nil
}

// converter keeps the first error, with the path of its field.
type converter struct {
	namespace string
	notes     []Note
	err       error
}

func (c *converter) note(path, text string) { c.notes = append(c.notes, Note{Path: path, Text: text}) }

func (c *converter) bad(path, format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %s: %s", ErrBadRule, path, fmt.Sprintf(format, args...))
	}
}

// directions: without policyTypes a policy is about ingress, and about egress when it has egress items.
func (c *converter) directions(spec *networkingv1.NetworkPolicySpec) (ingress, egress bool) {
	if len(spec.PolicyTypes) == 0 {
		return true, len(spec.Egress) > 0
	}
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			ingress = true
		case networkingv1.PolicyTypeEgress:
			egress = true
		default:
			c.bad(fmt.Sprintf("spec.policyTypes[%d]", i), "%q (want Ingress or Egress)", t)
		}
	}
	return ingress, egress
}

func (c *converter) rule(path, peersField string, d Direction, subject *PodSelector, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) Rule {
	r := Rule{Tier: Normal, Verdict: Allow, Subject: *subject, Direction: d, Path: path, AnyPeer: len(peers) == 0, AnyPort: len(ports) == 0}
	for i := range peers {
		if p := c.peer(fmt.Sprintf("%s.%s[%d]", path, peersField, i), &peers[i]); p != nil {
			r.Peers = append(r.Peers, p)
		}
	}
	named := false
	for i := range ports {
		p := c.port(fmt.Sprintf("%s.ports[%d]", path, i), &ports[i])
		r.Ports, named = append(r.Ports, p), named || p.Name != ""
	}
	if named && d == Egress && slices.ContainsFunc(r.Peers, func(p PeerSelector) bool { _, ok := p.(Block); return ok }) {
		c.note(path+".ports", "a named port is that of a pod: it is not looked up for the addresses of an ipBlock")
	}
	return r
}

func (c *converter) peer(path string, p *networkingv1.NetworkPolicyPeer) PeerSelector {
	switch {
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		c.bad(path, "ipBlock together with a selector")
	case p.IPBlock != nil:
		return c.block(path+".ipBlock", p.IPBlock)
	case p.PodSelector != nil || p.NamespaceSelector != nil:
		return c.pods(path, p.NamespaceSelector, p.PodSelector)
	default:
		c.bad(path, "names no peer")
	}
	return nil
}

// pods: without a namespace selector, pods of the policy's own namespace.
func (c *converter) pods(path string, namespaces, pods *metav1.LabelSelector) *PodSelector {
	s := &PodSelector{}
	if namespaces == nil {
		s.Namespace = c.namespace
	} else {
		s.NamespaceLabels = c.requirements(path+".namespaceSelector", namespaces)
	}
	if pods != nil {
		s.Labels = c.requirements(path, pods)
		for _, r := range s.Labels {
			if hidden(r.Key) {
				c.note(path, fmt.Sprintf("label %s differs from pod to pod of one workload, so it is not a part of an identity: as a peer nobody matches", r.Key))
			}
		}
	}
	return s
}

func (c *converter) requirements(path string, s *metav1.LabelSelector) []Requirement {
	if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
		c.bad(path, "%v", err)
		return nil
	}
	out := make([]Requirement, 0, len(s.MatchLabels)+len(s.MatchExpressions))
	for k, v := range s.MatchLabels {
		out = append(out, Requirement{Key: k, Operator: In, Values: []string{v}})
	}
	for _, e := range s.MatchExpressions {
		values := slices.Compact(slices.Sorted(slices.Values(e.Values)))
		out = append(out, Requirement{Key: e.Key, Operator: Operator(e.Operator), Values: values})
	}
	slices.SortFunc(out, func(a, b Requirement) int { return strings.Compare(a.String(), b.String()) })
	return out
}

func (c *converter) block(path string, b *networkingv1.IPBlock) PeerSelector {
	out := Block{CIDR: c.prefix(path+".cidr", b.CIDR)}
	for i, text := range b.Except {
		field := fmt.Sprintf("%s.except[%d]", path, i)
		p := c.prefix(field, text)
		if c.err == nil && !inside(p, out.CIDR) {
			c.bad(field, "%s is not inside %s", p, out.CIDR)
		}
		out.Except = append(out.Except, p)
	}
	return out
}

// prefix reads as the API server does, which still takes leading zeroes.
func (c *converter) prefix(path, text string) netip.Prefix {
	_, n, err := netutils.ParseCIDRSloppy(text)
	if err != nil {
		c.bad(path, "%q is no prefix", text)
		return netip.Prefix{}
	}
	ones, bits := n.Mask.Size()
	addr, _ := netip.AddrFromSlice(n.IP)
	if addr.Is4In6() && bits == 128 && ones >= 96 {
		ones -= 96
	} else if addr.Is4In6() && bits == 128 {
		return netip.PrefixFrom(addr, ones)
	}
	return netip.PrefixFrom(addr.Unmap(), ones)
}

// inside tells whether every address of a is one of b.
func inside(a, b netip.Prefix) bool { return a.Bits() >= b.Bits() && b.Contains(a.Addr()) }

func (c *converter) port(path string, p *networkingv1.NetworkPolicyPort) PortSelector {
	out := PortSelector{Protocol: protocolTCP, Last: 65535}
	if p.Protocol != nil {
		switch *p.Protocol {
		case corev1.ProtocolTCP:
		case corev1.ProtocolUDP:
			out.Protocol = protocolUDP
		case corev1.ProtocolSCTP:
			out.Protocol = protocolSCTP
		default:
			c.bad(path+".protocol", "%q (want TCP, UDP or SCTP)", *p.Protocol)
		}
	}
	switch {
	case p.Port == nil:
		if p.EndPort != nil {
			c.bad(path+".endPort", "without a port")
		}
	case p.Port.Type == intstr.String:
		out.Last, out.Name = 0, p.Port.StrVal
		if p.EndPort != nil {
			c.bad(path+".endPort", "with a named port")
		}
		if out.Name == "" {
			c.bad(path+".port", "an empty name")
		}
	default:
		last := p.Port.IntVal
		if p.EndPort != nil {
			last = *p.EndPort
		}
		if p.Port.IntVal < 1 || last > 65535 || last < p.Port.IntVal {
			c.bad(path+".port", "%d to %d (want 1 to 65535)", p.Port.IntVal, last)
		}
		out.First, out.Last = uint16(p.Port.IntVal), uint16(last)
	}
	return out
}

// hidden tells whether identities leave a pod label of this key out, so that selecting by it has no certain answer.
func hidden(key string) bool {
	return !keptLabels.Keeps(key) || ownKey(key)
}

// ownKey: keys that only the agent fills in. What a user means by them is a label that nobody hears.
func ownKey(key string) bool {
	return key == identity.KeyNamespace || strings.HasPrefix(key, "io.cilium.k8s.")
}
