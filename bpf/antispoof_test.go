// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

var (
	// What the kernel makes of podMAC, 02:00:00:00:00:0a.
	podLinkLocal = netip.MustParseAddr("fe80::ff:fe00:a")
	allNodes     = netip.MustParseAddr("ff02::1")
	allRouters   = netip.MustParseAddr("ff02::2")
	zero4, zero6 = netip.IPv4Unspecified(), netip.IPv6Unspecified()
)

// discovery is an ICMPv6 message of neighbour discovery from pod a.
func discovery(typ uint8, src, dst, target netip.Addr) packet {
	body := target.AsSlice()
	option := append([]byte{1, 1}, podMAC[:]...)
	return packet{smac: podMAC, dmac: hostMAC, src: src, dst: dst, ttl: 255, proto: protoICMPv6, typ: typ,
		payload: append(body, option...)}
}

func solicitation(src, target netip.Addr) []byte {
	return discovery(135, src, gateway6, target).frame()
}

// TestSpoofing: CVE-2020-10749 and the like. A pod has its own name and no other.
func TestSpoofing(t *testing.T) {
	w := newWorld(t, nil)
	type row struct {
		name   string
		frame  []byte
		reason bpf.Reason
	}
	tcp := func(src, dst netip.Addr) []byte {
		return fromA(dst).with(func(p *packet) { p.src = src }).frame()
	}
	udp := func(dst netip.Addr, sport, dport uint16) []byte {
		return fromA(dst).with(func(p *packet) { p.proto, p.sport, p.dport = protoUDP, sport, dport }).frame()
	}
	icmp := func(dst netip.Addr, typ uint8) []byte {
		return fromA(dst).with(func(p *packet) { p.proto, p.typ = protoICMP, typ }).frame()
	}
	const (
		source  = bpf.MapsReasonDROP_INVALID_SOURCE
		martian = bpf.MapsReasonDROP_MARTIAN
		icmp6   = bpf.MapsReasonDROP_FORBIDDEN_ICMP6
		dhcp    = bpf.MapsReasonDROP_DHCP_SERVER
		encap   = bpf.MapsReasonDROP_ENCAP_PROHIBITED
		badARP  = bpf.MapsReasonDROP_SPOOFED_ARP
		stack   = bpf.MapsReasonFORWARD_TO_STACK
	)
	for _, c := range []row{
		{"another pod's address", tcp(podB4, out4), source},
		{"another pod's address 6", tcp(podB6, out6), source},
		{"the node's address", tcp(node4, out4), source},
		{"the node's address 6", tcp(node6, out6), source},
		{"0.0.0.0", tcp(zero4, out4), martian},
		{"::", tcp(zero6, out6), martian},
		{"loopback", tcp(netip.MustParseAddr("127.0.0.1"), out4), martian},
		{"loopback 6", tcp(netip.IPv6Loopback(), out6), martian},
		{"multicast source", tcp(netip.MustParseAddr("224.0.0.5"), out4), martian},
		{"multicast source 6", tcp(netip.MustParseAddr("ff02::5"), out6), martian},
		{"link-local with TCP", tcp(podLinkLocal, out6), martian},
		{"to loopback (CVE-2020-8558)", tcp(podA4, netip.MustParseAddr("127.0.0.1")), martian},
		{"to loopback 6", tcp(podA6, netip.IPv6Loopback()), martian},
		{"to multicast", tcp(podA4, netip.MustParseAddr("224.0.0.251")), martian},
		{"to multicast 6", tcp(podA6, netip.MustParseAddr("ff02::fb")), martian},
		{"to broadcast", tcp(podA4, netip.MustParseAddr("255.255.255.255")), martian},
		{"to the gateway's name", tcp(podA4, gateway4), martian},
		{"to link-local", tcp(podA6, gateway6), martian},
		{"to itself", tcp(podA4, podA4), martian},
		{"to itself 6", tcp(podA6, podA6), martian},

		{"router advertisement (CVE-2020-10749)", discovery(134, podLinkLocal, allNodes, zero6).frame(), icmp6},
		{"router advertisement, own address", discovery(134, podA6, allNodes, zero6).frame(), icmp6},
		{"router advertisement to a pod", discovery(134, podA6, podB6, zero6).frame(), icmp6},
		{"redirect", discovery(137, podLinkLocal, allNodes, zero6).frame(), icmp6},
		{"listener query", discovery(130, podLinkLocal, allNodes, zero6).frame(), icmp6},
		{"forged advertisement", discovery(136, podLinkLocal, allNodes, gateway6).frame(), icmp6},
		{"forged advertisement of another pod", discovery(136, podA6, allNodes, podB6).frame(), icmp6},
		{"advertisement to a pod", discovery(136, podA6, podB6, podA6).frame(), icmp6},
		{"own advertisement", discovery(136, podA6, allNodes, podA6).frame(), stack},
		{"own link-local advertisement", discovery(136, podLinkLocal, allNodes, podLinkLocal).frame(), stack},
		{"solicitation that was routed", discovery(135, podA6, gateway6, gateway6).with(func(p *packet) { p.ttl = 64 }).frame(), icmp6},
		{"solicitation to a pod", discovery(135, podA6, podB6, podB6).frame(), icmp6},
		{"solicitation from a strange link-local", discovery(135, netip.MustParseAddr("fe80::1:2"), gateway6, gateway6).frame(), martian},
		{"duplicate address detection", discovery(135, zero6, netip.MustParseAddr("ff02::1:ff00:2"), podA6).frame(), stack},
		{"router solicitation", discovery(133, podLinkLocal, allRouters, zero6).frame(), stack},
		{"listener report", discovery(143, podLinkLocal, netip.MustParseAddr("ff02::16"), zero6).frame(), stack},
		{"ICMP redirect", icmp(out4, 5), icmp6},
		{"ICMP router advertisement", icmp(out4, 9), icmp6},
		{"group membership", fromA(netip.MustParseAddr("224.0.0.22")).with(func(p *packet) { p.proto = protoIGMP }).frame(), stack},

		{"DHCP server", udp(podB4, 67, 68), dhcp},
		{"DHCPv6 server", udp(podB6, 547, 546), dhcp},
		{"tunnel port of another node", udp(peer4, 40000, vxlanPort), encap},
		{"tunnel port of another node 6", udp(peer6, 40000, vxlanPort), encap},
		{"tunnel port of this node", udp(node4, 40000, vxlanPort), encap},
		{"tunnel port of this node 6", udp(node6, 40000, vxlanPort), encap},
		{"tunnel port of a pod", udp(podB4, 40000, vxlanPort), bpf.MapsReasonFORWARD_TO_POD},
		{"tunnel port of the world", udp(out4, 40000, vxlanPort), bpf.MapsReasonFORWARD_TO_NETWORK},
		{"tunnel port in a first fragment", fromA(peer4).with(func(p *packet) {
			p.proto, p.dport, p.fragment, p.more, p.fragID = protoUDP, vxlanPort, true, true, 1
		}).frame(), encap},
		{"tunnel port in a later fragment", fromA(peer4).with(func(p *packet) {
			p.proto, p.fragment, p.fragOffset, p.fragID, p.payload = protoUDP, true, 8, 1, make([]byte, 8)
		}).frame(), encap},

		{"ARP with another's address", arp(hostMAC, podMAC, 1, podMAC, podB4, mac{}, gateway4), badARP},
		{"ARP with another's MAC", arp(hostMAC, podMAC, 1, podBMAC, podA4, mac{}, gateway4), badARP},
		{"ARP from another's MAC", arp(hostMAC, podBMAC, 1, podMAC, podA4, mac{}, gateway4), badARP},
		{"ARP reply for the gateway", arp(hostMAC, podMAC, 2, podMAC, gateway4, podBMAC, podB4), badARP},
		{"ARP probe for another's address", arp(hostMAC, podMAC, 1, podMAC, zero4, mac{}, podB4), badARP},
		{"ARP probe for its own", arp(hostMAC, podMAC, 1, podMAC, zero4, mac{}, podA4), stack},
		{"gratuitous ARP of its own", arp(hostMAC, podMAC, 2, podMAC, podA4, mac{}, podA4), stack},
		{"ARP over Token Ring", func() []byte {
			b := arp(hostMAC, podMAC, 1, podMAC, podA4, mac{}, gateway4)
			b[15] = 6
			return b
		}(), bpf.MapsReasonDROP_INVALID_PACKET},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			if c.name != "tunnel port in a later fragment" { // goes with the row before it
				w.reset()
			}
			if o := w.run("from_pod", c.frame); o.reason != c.reason {
				t.Errorf("reason %v, want %v", o.reason, c.reason)
			}
			if c.reason == stack || c.reason >= 128 {
				if n := len(w.begun(1)); n != 0 {
					t.Errorf("%d connections recorded", n)
				}
			}
		})
	}
}

// TestGateway: the pod asks for its gateway's MAC and gets the host's end, from the program.
func TestGateway(t *testing.T) {
	w := newWorld(t, nil)
	o := w.run("from_pod", arp(hostMAC, podMAC, 1, podMAC, podA4, mac{}, gateway4))
	o.expect(t, bpf.MapsReasonFORWARD_ANSWERED, redirect, arp(podMAC, hostMAC, 2, hostMAC, gateway4, podMAC, podA4))
	if o.target != loopback {
		t.Errorf("answered to %d", o.target)
	}

	advertisement := func(dst netip.Addr, flags uint32) []byte {
		body := append(gateway6.AsSlice(), append([]byte{2, 1}, hostMAC[:]...)...)
		return packet{smac: hostMAC, dmac: podMAC, src: gateway6, dst: dst, ttl: 255, proto: protoICMPv6, typ: 136,
			info: flags, payload: body}.frame()
	}
	for _, src := range []netip.Addr{podA6, podLinkLocal} {
		w.run("from_pod", solicitation(src, gateway6)).
			expect(t, bpf.MapsReasonFORWARD_ANSWERED, redirect, advertisement(src, 0xe0000000))
	}
	// A probe that nobody else has fe80::1: everybody is told that we have.
	w.run("from_pod", discovery(135, zero6, netip.MustParseAddr("ff02::1:ff00:1"), gateway6).frame()).
		expect(t, bpf.MapsReasonFORWARD_ANSWERED, redirect, advertisement(allNodes, 0xa0000000))
}

// TestUnknownInterface: closed from the first packet.
func TestUnknownInterface(t *testing.T) {
	w := newWorld(t, nil)
	if err := w.maps.Maps[bpf.MapsMapPodInterfaces].Delete(uint32(loopback)); err != nil {
		t.Fatal(err)
	}
	w.moved()
	w.run("from_pod", fromA(podB4).frame()).expect(t, bpf.MapsReasonDROP_ENDPOINT_NOT_READY, shot, nil)
}
