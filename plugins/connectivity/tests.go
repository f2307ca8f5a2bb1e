// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kube-cilium/kube-cilium/internal/probe"
)

// test is a state of the cluster's policies and what should be reached in it.
type test struct {
	name, about string
	policies    []*networkingv1.NetworkPolicy
	checks      []check
}

// check is one question.
type check struct {
	// row and column of the first test's matrix.
	row, column string
	// from is a pod of the lab.
	from   string
	target probe.Target
	// to and how are the target in words.
	to, how string
	refused bool
	// addresses are those that a name must have, for DNS.
	addresses []string
}

// shape is one column of the matrix.
type shape struct {
	name     string
	protocol string
	size     int
}

var (
	tcp    = shape{"TCP", probe.TCP, 0}
	udp    = shape{"UDP", probe.UDP, 0}
	ping   = shape{"ICMP", probe.ICMP, 0}
	shapes = []shape{tcp, udp, ping, {"large TCP", probe.TCP, 60000}, {"UDP fragments", probe.UDP, 4000}}
)

// tests are all that this lab can show.
func (l *lab) tests(external []probe.Target) []test {
	all := []test{l.reachability(), l.names()}
	if len(external) > 0 {
		all = append(all, l.world(external))
	}
	return append(all, l.policyTests()...)
}

// ask is a check for each shape and family from a pod to addresses.
func (l *lab) ask(from, to string, addresses podAddresses, port uint16, refused bool, shapes ...shape) []check {
	var all []check
	for _, f := range l.families {
		a, has := addresses[f]
		if !has {
			continue
		}
		for _, s := range shapes {
			t := probe.Target{Protocol: s.protocol, Host: a.String(), Port: port, Size: s.size}
			if s.protocol == probe.ICMP {
				t.Port = 0
			}
			how := fmt.Sprintf("%s IPv%d", s.name, f)
			if port != serverPort && port != l.hostPort && t.Port != 0 {
				how += " port " + strconv.Itoa(int(port))
			}
			all = append(all, check{from: from, target: t, to: to, how: how, column: how, refused: refused})
		}
	}
	return all
}

func (l *lab) reachability() test {
	t := test{name: "reachability", about: "who should be reached without any policy"}
	row := func(name string, checks []check) {
		for _, c := range checks {
			c.row = name
			t.checks = append(t.checks, c)
		}
	}
	row("pod, same node", l.ask(asker, serverSame, l.pods[serverSame], serverPort, false, shapes...))
	if !l.single() {
		row("pod, other node", l.ask(asker, serverOther, l.pods[serverOther], serverPort, false, shapes...))
	}
	row("own host", l.ask(asker, hostOwn, l.pods[hostOwn], l.hostPort, false, shapes...))
	if !l.single() {
		row("other host", l.ask(asker, hostOther, l.pods[hostOther], l.hostPort, false, shapes...))
	}
	row("ClusterIP", l.ask(asker, "service/"+service, l.service, serverPort, false, tcp, udp))
	row("host to own pod", l.ask(hostOwn, serverSame, l.pods[serverSame], serverPort, false, shapes...))
	if !l.single() {
		row("host to other pod", l.ask(hostOwn, serverOther, l.pods[serverOther], serverPort, false, shapes...))
	}
	row("host to ClusterIP", l.ask(hostOwn, "service/"+service, l.service, serverPort, false, tcp, udp))
	return t
}

func (l *lab) names() test {
	t := test{name: "dns", about: "the cluster's DNS answers, and what it says can be reached"}
	name := service + "." + l.namespace + ".svc"
	for _, from := range []string{asker, stranger} {
		for _, f := range l.families {
			a, has := l.service[f]
			if !has {
				continue
			}
			protocol := probe.DNS4
			if f == 6 {
				protocol = probe.DNS6
			}
			t.checks = append(t.checks, check{
				from: from, to: name, how: fmt.Sprintf("DNS IPv%d", f), addresses: []string{a.String()},
				target: probe.Target{Protocol: protocol, Host: name},
			})
		}
		t.checks = append(t.checks, check{
			from: from, to: name, how: "TCP by name", target: probe.Target{Protocol: probe.TCP, Host: name, Port: serverPort},
		})
	}
	return t
}

func (l *lab) world(external []probe.Target) test {
	t := test{name: WorldTest, about: "outside of the cluster, as asked for"}
	for _, from := range []string{asker, hostOwn} {
		for _, target := range external {
			t.checks = append(t.checks, check{from: from, to: target.String(), how: strings.ToUpper(target.Protocol), target: target})
		}
	}
	return t
}

// ParseExternal reads what --external says: [PROTOCOL://]HOST[:PORT]. What it names does not echo, so a connection is
// enough; without a port it is 443.
func ParseExternal(text string) (probe.Target, error) {
	if !strings.Contains(text, "://") {
		if _, _, err := net.SplitHostPort(text); err != nil {
			text = net.JoinHostPort(strings.Trim(text, "[]"), "443")
		}
		text = probe.Connect + "://" + text
	}
	t, err := probe.ParseTarget(text)
	if t.Protocol == probe.TCP {
		t.Protocol = probe.Connect
	}
	return t, err
}

// policyTests each put policies in force and ask who still gets through.
func (l *lab) policyTests() []test {
	dns := networkingv1.NetworkPolicyEgressRule{Ports: []networkingv1.NetworkPolicyPort{
		policyPort(corev1.ProtocolUDP, intstr.FromInt32(53), 0), policyPort(corev1.ProtocolTCP, intstr.FromInt32(53), 0),
	}}
	toServers := func(from string, refused bool, shapes ...shape) []check {
		return l.toServers(from, serverPort, refused, shapes...)
	}
	join := func(parts ...[]check) []check {
		var all []check
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	// Sockets of a node reach the node's own pods whatever the policy: kubelet's probes do.
	ownHost := l.ask(hostOwn, serverSame, l.pods[serverSame], serverPort, false, tcp, udp)
	otherHost := []check{}
	if !l.single() {
		otherHost = l.ask(hostOther, serverSame, l.pods[serverSame], serverPort, true, tcp)
	}
	return []test{
		{
			name: "ingress-default-deny", about: "a policy without rules lets nobody in but the pod's own node",
			policies: []*networkingv1.NetworkPolicy{l.ingress("deny-all")},
			checks:   join(toServers(asker, true, tcp, udp, ping), toServers(stranger, true, tcp), ownHost, otherHost),
		},
		{
			name: "ingress-by-pod-label", about: "only pods with a label come in",
			policies: []*networkingv1.NetworkPolicy{l.ingress("allow-client", networkingv1.NetworkPolicyIngressRule{
				From: []networkingv1.NetworkPolicyPeer{{PodSelector: labels(roleLabel, asker)}}})},
			checks: join(toServers(asker, false, tcp, udp, ping), toServers(neighbour, true, tcp, udp), toServers(stranger, true, tcp)),
		},
		{
			name: "ingress-by-namespace", about: "only pods of a labelled namespace come in",
			policies: []*networkingv1.NetworkPolicy{l.ingress("allow-other-namespace", networkingv1.NetworkPolicyIngressRule{
				From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: labels(teamLabel, "other")}}})},
			checks: join(toServers(asker, true, tcp, udp), toServers(stranger, false, tcp, udp)),
		},
		{
			name: "ingress-by-ipblock", about: "every address comes in except the neighbour's",
			policies: []*networkingv1.NetworkPolicy{l.ingress("allow-but-neighbour", networkingv1.NetworkPolicyIngressRule{From: l.everywhereBut(neighbour)})},
			checks:   join(toServers(asker, false, tcp, udp), toServers(neighbour, true, tcp, udp), toServers(stranger, false, tcp)),
		},
		{
			name: "ingress-by-named-port", about: "a port's name stands for its number, and for its protocol alone",
			policies: []*networkingv1.NetworkPolicy{l.ingress("allow-named-port", networkingv1.NetworkPolicyIngressRule{
				Ports: []networkingv1.NetworkPolicyPort{policyPort(corev1.ProtocolTCP, intstr.FromString(namedPort), 0)}})},
			checks: join(toServers(asker, false, tcp), toServers(asker, true, udp), l.toServers(asker, secondPort, true, tcp)),
		},
		{
			name: "ingress-by-port-range", about: "the ports of a range, and no other",
			policies: []*networkingv1.NetworkPolicy{l.ingress("allow-port-range", networkingv1.NetworkPolicyIngressRule{
				Ports: []networkingv1.NetworkPolicyPort{policyPort(corev1.ProtocolUDP, intstr.FromInt32(int32(secondPort)), int32(secondPort)+10)}})},
			checks: join(l.toServers(asker, secondPort, false, udp), l.toServers(asker, secondPort, true, tcp), toServers(asker, true, udp)),
		},
		{
			name: "egress-default-deny", about: "a policy without rules lets a pod reach nobody; replies still leave",
			policies: []*networkingv1.NetworkPolicy{l.egress("deny-all")},
			checks: join(toServers(asker, true, tcp, udp, ping), toServers(neighbour, false, tcp),
				l.ask(neighbour, asker, l.pods[asker], serverPort, false, tcp, udp)),
		},
		{
			name: "egress-by-pod-label", about: "only servers and names are reached, through the Service too",
			policies: []*networkingv1.NetworkPolicy{l.egress("allow-servers", dns, networkingv1.NetworkPolicyEgressRule{
				To: []networkingv1.NetworkPolicyPeer{{PodSelector: labels(roleLabel, "server")}}})},
			checks: join(toServers(asker, false, tcp, udp, ping), l.ask(asker, "service/"+service, l.service, serverPort, false, tcp),
				l.ask(asker, stranger, l.pods[stranger], serverPort, true, tcp), l.ask(asker, hostOwn, l.pods[hostOwn], l.hostPort, true, tcp)),
		},
		{
			name: "egress-by-ipblock", about: "one host's addresses are reached, and nobody else's",
			policies: []*networkingv1.NetworkPolicy{l.egress("allow-own-host", networkingv1.NetworkPolicyEgressRule{To: blocks(l.pods[hostOwn])})},
			checks:   join(l.ask(asker, hostOwn, l.pods[hostOwn], l.hostPort, false, tcp, udp), toServers(asker, true, tcp, udp)),
		},
	}
}

func (l *lab) toServers(from string, port uint16, refused bool, shapes ...shape) []check {
	var all []check
	for _, s := range l.servers() {
		all = append(all, l.ask(from, s, l.pods[s], port, refused, shapes...)...)
	}
	return all
}

func labels(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

// ingress selects the servers, egress the asker.
func (l *lab) ingress(name string, rules ...networkingv1.NetworkPolicyIngressRule) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, Name: "ingress-" + name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *labels(roleLabel, "server"), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, Ingress: rules,
		},
	}
}

func (l *lab) egress(name string, rules ...networkingv1.NetworkPolicyEgressRule) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, Name: "egress-" + name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *labels(roleLabel, asker), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, Egress: rules,
		},
	}
}

// everywhereBut is all addresses of both families but a pod's.
func (l *lab) everywhereBut(pod string) []networkingv1.NetworkPolicyPeer {
	var peers []networkingv1.NetworkPolicyPeer
	for _, f := range l.families {
		all := "0.0.0.0/0"
		if f == 6 {
			all = "::/0"
		}
		peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: all, Except: []string{whole(l.pods[pod][f])}}})
	}
	return peers
}

func blocks(addresses podAddresses) []networkingv1.NetworkPolicyPeer {
	var peers []networkingv1.NetworkPolicyPeer
	for _, f := range []int{4, 6} {
		if a, has := addresses[f]; has {
			peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: whole(a)}})
		}
	}
	return peers
}

func whole(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

func policyPort(protocol corev1.Protocol, port intstr.IntOrString, end int32) networkingv1.NetworkPolicyPort {
	p := networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port}
	if end != 0 {
		p.EndPort = &end
	}
	return p
}
