// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// state is objects and the table that they mean, one line a frontend.
type state struct {
	name     string
	services []*corev1.Service
	slices   []*discoveryv1.EndpointSlice
	table    []string
}

func text(fs []Frontend) []string {
	out := []string{}
	for _, f := range fs {
		var bs []string
		for _, b := range f.Backends {
			bs = append(bs, b.String())
		}
		out = append(out, fmt.Sprintf("%s/%s %s %s -> %s", netip.AddrPortFrom(f.IP, f.Port), f.Protocol, f.Service, f.PortName, strings.Join(bs, " ")))
	}
	return out
}

type port struct {
	name     string
	number   int32
	protocol corev1.Protocol
}

func svc(name string, ips string, ports ...port) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	s.Spec.ClusterIPs = strings.Fields(ips)
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: p.name, Port: p.number, Protocol: p.protocol})
	}
	return s
}

func labelled(s *corev1.Service, key, value string) *corev1.Service {
	s.Labels = map[string]string{key: value}
	return s
}

// endpoint is an address and its conditions: r ready, s serving, t terminating; capital letters: not; absent: nil.
func endpoint(address, conditions string) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{address}}
	for _, c := range conditions {
		switch c {
		case 'r', 'R':
			e.Conditions.Ready = new(c == 'r')
		case 's', 'S':
			e.Conditions.Serving = new(c == 's')
		case 't', 'T':
			e.Conditions.Terminating = new(c == 't')
		}
	}
	return e
}

func slice(service, name string, ports []port, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: service + "-" + name, Labels: map[string]string{discoveryv1.LabelServiceName: service},
	}}
	s.AddressType = discoveryv1.AddressTypeIPv4
	if len(endpoints) > 0 && strings.Contains(endpoints[0].Addresses[0], ":") {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, p := range ports {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new(p.name), Port: new(p.number), Protocol: new(p.protocol)})
	}
	s.Endpoints = endpoints
	return s
}

const (
	tcp = corev1.ProtocolTCP
	udp = corev1.ProtocolUDP
)

func states() []state {
	web := []port{{"http", 80, tcp}}
	target := []port{{"http", 8080, tcp}}
	return []state{
		{name: "nothing", table: []string{}},
		{
			name: "a service without slices refuses", services: []*corev1.Service{svc("web", "10.96.0.1", web...)},
			table: []string{"10.96.0.1:80/TCP shop/web http -> "},
		},
		{
			name: "a slice without its service means nothing", table: []string{},
			slices: []*discoveryv1.EndpointSlice{slice("web", "a", target, endpoint("10.0.0.1", "r"))},
		},
		{
			name: "two slices, both families, one frontend a family", services: []*corev1.Service{svc("web", "10.96.0.1 fd00::1", web...)},
			slices: []*discoveryv1.EndpointSlice{
				slice("web", "b", target, endpoint("10.0.0.2", "r"), endpoint("10.0.0.1", "r")),
				slice("web", "a", target, endpoint("10.0.0.3", "")),
				slice("web", "six", target, endpoint("fd01::2", "rsT")),
			},
			table: []string{
				"10.96.0.1:80/TCP shop/web http -> 10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8080",
				"[fd00::1]:80/TCP shop/web http -> [fd01::2]:8080",
			},
		},
		{
			name:     "the same number over TCP and UDP, matched by name and protocol",
			services: []*corev1.Service{svc("dns", "10.96.0.10", port{"dns", 53, udp}, port{"dns-tcp", 53, tcp})},
			slices: []*discoveryv1.EndpointSlice{
				slice("dns", "a", []port{{"dns", 5353, udp}, {"dns-tcp", 5354, tcp}, {"metrics", 9153, tcp}}, endpoint("10.0.0.9", "r")),
				slice("dns", "b", []port{{"dns", 5353, tcp}}, endpoint("10.0.0.8", "r")),
			},
			table: []string{
				"10.96.0.10:53/TCP shop/dns dns-tcp -> 10.0.0.9:5354",
				"10.96.0.10:53/UDP shop/dns dns -> 10.0.0.9:5353",
			},
		},
		{
			name: "not ready ones are left out", services: []*corev1.Service{svc("web", "10.96.0.1", web...)},
			slices: []*discoveryv1.EndpointSlice{slice("web", "a", target,
				endpoint("10.0.0.1", "R"), endpoint("10.0.0.2", "r"), endpoint("10.0.0.3", "Rst"), endpoint("10.0.0.4", "RS"))},
			table: []string{"10.96.0.1:80/TCP shop/web http -> 10.0.0.2:8080"},
		},
		{
			name: "terminating ones serve when nobody else does", services: []*corev1.Service{svc("web", "10.96.0.1", web...)},
			slices: []*discoveryv1.EndpointSlice{slice("web", "a", target,
				endpoint("10.0.0.1", "RS"), endpoint("10.0.0.3", "Rst"), endpoint("10.0.0.4", "RSt"), endpoint("10.0.0.5", "Rt"))},
			table: []string{"10.96.0.1:80/TCP shop/web http -> 10.0.0.3:8080 10.0.0.5:8080"},
		},
		{
			name: "an endpoint in two slices counts once, by its better state", services: []*corev1.Service{svc("web", "10.96.0.1", web...)},
			slices: []*discoveryv1.EndpointSlice{
				slice("web", "a", target, endpoint("10.0.0.1", "R")), slice("web", "b", target, endpoint("10.0.0.1", "r")),
			},
			table: []string{"10.96.0.1:80/TCP shop/web http -> 10.0.0.1:8080"},
		},
		{
			name: "headless, ExternalName, SCTP and other proxies' services are not ours",
			services: []*corev1.Service{
				svc("headless", "None", web...),
				{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "external"}, Spec: corev1.ServiceSpec{
					Type: corev1.ServiceTypeExternalName, ExternalName: "example.org", ClusterIP: "10.96.0.66", Ports: []corev1.ServicePort{{Port: 80}},
				}},
				svc("sctp", "10.96.0.3", port{"s", 7, corev1.ProtocolSCTP}),
				labelled(svc("other", "10.96.0.4", web...), labelProxyName, "theirs"),
				labelled(svc("marked", "10.96.0.5", web...), corev1.IsHeadlessService, ""),
			},
			table: []string{},
		},
		{
			name: "slices of other proxies are not ours", services: []*corev1.Service{svc("web", "10.96.0.1", web...)},
			slices: func() []*discoveryv1.EndpointSlice {
				s := slice("web", "a", target, endpoint("10.0.0.1", "r"))
				s.Labels[labelProxyName] = "theirs"
				h := slice("web", "b", target, endpoint("10.0.0.2", "r"))
				h.Labels[corev1.IsHeadlessService] = ""
				return []*discoveryv1.EndpointSlice{s, h}
			}(),
			table: []string{"10.96.0.1:80/TCP shop/web http -> "},
		},
		{
			name: "CVE-2021-25737: a slice does not lead to the node itself", services: []*corev1.Service{svc("web", "10.96.0.1 fd00::1", web...)},
			slices: []*discoveryv1.EndpointSlice{
				slice("web", "a", target, endpoint("127.0.0.1", "r"), endpoint("169.254.169.254", "r"), endpoint("224.0.0.1", "r"), endpoint("0.0.0.0", "r"), endpoint("nonsense", "r")),
				slice("web", "b", target, endpoint("::1", "r"), endpoint("fe80::1", "r"), endpoint("::ffff:10.0.0.1", "r")),
			},
			table: []string{"10.96.0.1:80/TCP shop/web http -> ", "[fd00::1]:80/TCP shop/web http -> "},
		},
		{
			name: "of two claims the first by name holds", services: []*corev1.Service{svc("web", "10.96.0.1", web...), svc("app", "10.96.0.1", web...)},
			slices: []*discoveryv1.EndpointSlice{slice("web", "a", target, endpoint("10.0.0.1", "r"))},
			table:  []string{"10.96.0.1:80/TCP shop/app http -> "},
		},
		{
			name: "the API server's own service", services: []*corev1.Service{svc("kubernetes", "10.96.0.1", port{"https", 443, tcp})},
			slices: []*discoveryv1.EndpointSlice{slice("kubernetes", "x", []port{{"https", 6443, tcp}}, endpoint("172.30.0.1", "r"))},
			table:  []string{"10.96.0.1:443/TCP shop/kubernetes https -> 172.30.0.1:6443"},
		},
		{
			name: "an unnamed port", services: []*corev1.Service{svc("web", "10.96.0.1", port{"", 80, ""})},
			slices: []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
				s := slice("web", "a", nil, endpoint("10.0.0.1", "r"))
				s.Ports = []discoveryv1.EndpointPort{{Port: new(int32(8080))}, {Name: new("")}}
				return s
			}()},
			table: []string{"10.96.0.1:80/TCP shop/web  -> 10.0.0.1:8080"},
		},
	}
}

// The table depends on the objects only: in whatever order they come, and whatever was before.
func TestFrontendsInAnyOrder(t *testing.T) {
	for _, s := range states() {
		t.Run(s.name, func(t *testing.T) {
			for range 20 {
				services, sl := slices.Clone(s.services), slices.Clone(s.slices)
				rand.Shuffle(len(services), func(i, j int) { services[i], services[j] = services[j], services[i] })
				rand.Shuffle(len(sl), func(i, j int) { sl[i], sl[j] = sl[j], sl[i] })
				if diff := cmp.Diff(s.table, text(Frontends(services, sl))); diff != "" {
					t.Fatalf("table (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// All states that do not share a service, squashed into one: each keeps its own lines.
func TestFrontendsTogether(t *testing.T) {
	var services []*corev1.Service
	var all []*discoveryv1.EndpointSlice
	want := 0
	for i, s := range states() {
		for _, o := range s.services {
			c := o.DeepCopy()
			c.Namespace = fmt.Sprintf("ns%d", i)
			for j := range c.Spec.ClusterIPs {
				ip, err := netip.ParseAddr(c.Spec.ClusterIPs[j])
				if err != nil {
					continue
				}
				b := ip.AsSlice()
				b[len(b)-2] = byte(i + 1)
				ip, _ = netip.AddrFromSlice(b)
				c.Spec.ClusterIPs[j] = ip.String()
			}
			services = append(services, c)
		}
		for _, o := range s.slices {
			c := o.DeepCopy()
			c.Namespace = fmt.Sprintf("ns%d", i)
			all = append(all, c)
		}
		want += len(s.table)
	}
	if got := Frontends(services, all); len(got) != want {
		t.Fatalf("%d frontends, want %d:\n%s", len(got), want, strings.Join(text(got), "\n"))
	}
}

func BenchmarkFrontends(b *testing.B) {
	var services []*corev1.Service
	var all []*discoveryv1.EndpointSlice
	for i := range 1000 {
		name := fmt.Sprintf("s%d", i)
		services = append(services, svc(name, fmt.Sprintf("10.96.%d.%d", i/250, i%250), port{"http", 80, tcp}))
		var es []discoveryv1.Endpoint
		for j := range 10 {
			es = append(es, endpoint(fmt.Sprintf("10.%d.%d.%d", i/250, i%250, j+1), "r"))
		}
		all = append(all, slice(name, "a", []port{{"http", 8080, tcp}}, es...))
	}
	for b.Loop() {
		Frontends(services, all)
	}
}
