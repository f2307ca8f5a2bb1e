// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// labelProxyName on a Service or EndpointSlice says that another proxy serves it.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// Frontends is the table of all ClusterIPs: every TCP and UDP port of every Service that has them, sorted by address.
// Its backends are chosen as kube-proxy does: those that are ready; when there are none, those that are terminating
// and still serving; else none, and the frontend refuses connections.
//
// Not served: headless Services and those of type ExternalName, what the labels service-proxy-name and headless
// exclude, SCTP, and slices whose Service is not there. Of an address that two Services claim, the first by
// namespace and name has it.
func Frontends(services []*corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) []Frontend {
	byService := map[types.NamespacedName][]*discoveryv1.EndpointSlice{}
	for _, s := range endpointSlices {
		name := s.Labels[discoveryv1.LabelServiceName]
		if name == "" || excluded(s.Labels) {
			continue
		}
		key := types.NamespacedName{Namespace: s.Namespace, Name: name}
		byService[key] = append(byService[key], s)
	}
	ordered := slices.Clone(services)
	slices.SortFunc(ordered, func(a, b *corev1.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	taken := map[Address]bool{}
	var out []Frontend
	for _, s := range ordered {
		if excluded(s.Labels) || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
		for _, f := range frontendsOf(s, name, byService[name]) {
			if !taken[f.Address] {
				taken[f.Address] = true
				out = append(out, f)
			}
		}
	}
	slices.SortFunc(out, func(a, b Frontend) int {
		return cmp.Or(a.IP.Compare(b.IP), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return out
}

// excluded is true by presence of the label, whatever its value.
func excluded(labels map[string]string) bool {
	_, other := labels[labelProxyName]
	_, headless := labels[corev1.IsHeadlessService]
	return other || headless
}

func frontendsOf(s *corev1.Service, name types.NamespacedName, own []*discoveryv1.EndpointSlice) []Frontend {
	var out []Frontend
	for _, ip := range clusterIPs(s) {
		for _, p := range s.Spec.Ports {
			protocol, ok := protocolOf(p.Protocol)
			if !ok || p.Port < 1 || p.Port > 65535 {
				continue
			}
			out = append(out, Frontend{
				Address:  Address{IP: ip, Port: uint16(p.Port), Protocol: protocol},
				Service:  name,
				PortName: p.Name,
				Backends: backends(own, ip.Is4(), p.Name, protocol),
			})
		}
	}
	return out
}

// clusterIPs are the addresses of either family; a headless Service has none.
func clusterIPs(s *corev1.Service) []netip.Addr {
	texts := s.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{s.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, text := range texts {
		if ip, err := netip.ParseAddr(text); err == nil { // "None" and "" are none
			out = append(out, ip.Unmap())
		}
	}
	return out
}

func protocolOf(p corev1.Protocol) (Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	}
	return 0, false
}

// rank of an endpoint: lower ones are used only when there is no higher.
type rank int

const (
	unusable rank = iota
	terminating
	ready
)

// rankOf reads conditions as their API says: absent ready and serving mean yes, absent terminating means no.
func rankOf(c discoveryv1.EndpointConditions) rank {
	switch {
	case c.Ready == nil || *c.Ready:
		return ready
	case (c.Serving == nil || *c.Serving) && c.Terminating != nil && *c.Terminating:
		return terminating
	}
	return unusable
}

// backends are those of one port and family; a slice's port has its number resolved already. An endpoint that is in
// two slices, as happens while it moves from one to the other, has the better rank of the two.
func backends(own []*discoveryv1.EndpointSlice, ipv4 bool, portName string, protocol Protocol) []netip.AddrPort {
	want := discoveryv1.AddressTypeIPv6
	if ipv4 {
		want = discoveryv1.AddressTypeIPv4
	}
	best := unusable
	// backend -> rank
	found := map[netip.AddrPort]rank{}
	for _, s := range own {
		if s.AddressType != want {
			continue
		}
		for _, port := range portsNamed(s.Ports, portName, protocol) {
			for _, e := range s.Endpoints {
				ip, ok := address(e, ipv4)
				if !ok {
					continue
				}
				r := rankOf(e.Conditions)
				at := netip.AddrPortFrom(ip, port)
				found[at] = max(found[at], r)
				best = max(best, r)
			}
		}
	}
	if best == unusable {
		return nil
	}
	var out []netip.AddrPort
	for b, r := range found {
		if r == best {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

func portsNamed(ports []discoveryv1.EndpointPort, name string, protocol Protocol) []uint16 {
	var out []uint16
	for _, p := range ports {
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			continue
		}
		var pname string
		if p.Name != nil {
			pname = *p.Name
		}
		var pproto corev1.Protocol
		if p.Protocol != nil {
			pproto = *p.Protocol
		}
		if got, ok := protocolOf(pproto); ok && got == protocol && pname == name {
			out = append(out, uint16(*p.Port))
		}
	}
	return out
}

// address is the endpoint's first: the others are, by their API, the same endpoint. One that leads back to the node
// itself or to no single machine is refused: whoever may write slices must not reach what only the node may
// (CVE-2021-25737).
func address(e discoveryv1.Endpoint, ipv4 bool) (netip.Addr, bool) {
	if len(e.Addresses) == 0 {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(e.Addresses[0])
	if err != nil {
		return netip.Addr{}, false
	}
	ip = ip.Unmap()
	if ip.Is4() != ipv4 || ip.Zone() != "" || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
		return netip.Addr{}, false
	}
	return ip, true
}
