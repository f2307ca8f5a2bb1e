// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// TestMalformed breaks one thing of a good packet each; a pod's program must refuse it.
func TestMalformed(t *testing.T) {
	w := newWorld(t, nil)
	const invalid = bpf.MapsReasonDROP_INVALID_PACKET
	const l3 = 14
	good4, good6 := fromA(out4), fromA(out6)
	icmp6 := fromA(out6).with(func(p *packet) { p.proto, p.typ, p.id = protoICMPv6, 128, 7 })
	for _, c := range []struct {
		name   string
		in     packet
		break_ func(b []byte) []byte
		reason bpf.Reason
	}{
		{"version 5", good4, func(b []byte) []byte { b[l3] = 0x55; return b }, invalid},
		{"header of 16 bytes", good4, func(b []byte) []byte { b[l3] = 0x44; return b }, invalid},
		{"total length below header", good4, func(b []byte) []byte { b[l3+3] = 19; return b }, invalid},
		{"total length beyond frame", good4, func(b []byte) []byte { b[l3+3]++; return b }, invalid},
		{"total length 0, not a segment to be cut", good4, func(b []byte) []byte { b[l3+2], b[l3+3] = 0, 0; return b }, invalid},
		{"no room for TCP", good4, func(b []byte) []byte { b[l3+3] = 39; return b }, invalid},
		{"options beyond packet", good4, func(b []byte) []byte { b[l3] = 0x4f; return b }, invalid},
		{"TCP data offset 4", good4, func(b []byte) []byte { b[l3+20+12] = 0x40; return b }, invalid},
		{"ICMPv6 over IPv4", good4, func(b []byte) []byte { b[l3+9] = protoICMPv6; return b }, invalid},
		{"version 4 in IPv6", good6, func(b []byte) []byte { b[l3] = 0x40; return b }, invalid},
		{"payload beyond frame", good6, func(b []byte) []byte { b[l3+5]++; return b }, invalid},
		{"no room for TCP6", good6, func(b []byte) []byte { b[l3+5] = 19; return b }, invalid},
		{"ICMP over IPv6", icmp6, func(b []byte) []byte { b[l3+6] = protoICMP; return b }, invalid},
		{"mapped source", good6, func(b []byte) []byte { m := podA4.As16(); copy(b[l3+8:], m[:]); return b }, bpf.MapsReasonDROP_MARTIAN},
		{"mapped destination", good6, func(b []byte) []byte { m := out4.As16(); copy(b[l3+24:], m[:]); return b }, bpf.MapsReasonDROP_MARTIAN},
		{"unknown Ethernet type", good4, func(b []byte) []byte { b[12], b[13] = 0x88, 0x47; return b }, bpf.MapsReasonDROP_NOT_SUPPORTED_L3},
		{"unknown type, only an Ethernet header", good4, func(b []byte) []byte { b[12] = 0x88; return b[:14] }, bpf.MapsReasonDROP_NOT_SUPPORTED_L3},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			w.reset()
			w.run("from_pod", c.break_(c.in.frame())).expect(t, c.reason, shot, nil)
			if n := len(w.begun(1)); n != 0 {
				t.Errorf("%d connections of a packet that makes no sense", n)
			}
		})
	}
}

// option is an IPv6 extension header of n times 8 bytes.
func option(next uint8, n int) []byte {
	b := make([]byte, 8*n)
	b[0], b[1] = next, byte(n-1)
	b[2], b[3] = 1, byte(8*n-4) // PadN
	return b
}

func TestExtensionHeaders(t *testing.T) {
	w := newWorld(t, nil)
	const hopByHop, routing, auth, dest = 0, 43, 51, 60
	chain := func(kinds ...uint8) (next uint8, ext []byte) {
		for i, k := range kinds {
			after := uint8(protoTCP)
			if i+1 < len(kinds) {
				after = kinds[i+1]
			}
			h := option(after, 1)
			switch k {
			case routing:
				h[2], h[3] = 4, 0
			case auth:
				h[1] = 0 // (0 + 2) * 4 bytes
			}
			ext = append(ext, h...)
		}
		return kinds[0], ext
	}
	for _, c := range []struct {
		name   string
		kinds  []uint8
		change func([]byte)
		reason bpf.Reason
	}{
		{"hop by hop", []uint8{hopByHop}, nil, bpf.MapsReasonFORWARD_TO_POD},
		{"all", []uint8{hopByHop, dest, routing, auth, dest}, nil, bpf.MapsReasonFORWARD_TO_POD},
		{"six are too many", []uint8{dest, dest, dest, dest, dest, dest}, nil, bpf.MapsReasonDROP_INVALID_PACKET},
		{"routing type 0", []uint8{routing}, func(b []byte) { b[2] = 0 }, bpf.MapsReasonDROP_INVALID_PACKET},
		{"longer than the packet", []uint8{dest}, func(b []byte) { b[1] = 200 }, bpf.MapsReasonDROP_INVALID_PACKET},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			w.reset()
			in := fromA(podB6)
			in.next, in.ext = chain(c.kinds...)
			if c.change != nil {
				c.change(in.ext)
			}
			o := w.run("from_pod", in.frame())
			if o.reason != c.reason {
				t.Fatalf("reason %v, want %v", o.reason, c.reason)
			}
			if c.reason == bpf.MapsReasonFORWARD_TO_POD {
				for k := range w.begun(1) {
					if k.Proto != protoTCP || (k.LoPort != be16(80) && k.HiPort != be16(80)) {
						t.Errorf("recorded as %+v", k)
					}
				}
			}
		})
	}
}

// TestTruncated cuts every packet at every byte, and gives it to every program. None may forward it as if whole, and
// each must count it once.
func TestTruncated(t *testing.T) {
	w := newWorld(t, nil)
	echo := func(p *packet) { p.proto, p.typ, p.id = protoICMP, 8, 7 }
	echo6 := func(p *packet) { p.proto, p.typ, p.id = protoICMPv6, 128, 7 }
	udp := func(p *packet) { p.proto = protoUDP }
	inner := packet{smac: podMAC, dmac: podMAC, src: far4, dst: podA4, proto: protoTCP, sport: 5, dport: 6, flags: syn}
	outer := packet{smac: wireMAC, dmac: nodeMAC, src: peer4, dst: node4, sport: 50000, dport: vxlanPort}
	quoted := fromA(out4).network()
	packets := map[string][]byte{
		"tcp4": fromA(podB4).frame(), "tcp6": fromA(podB6).frame(),
		"udp4": fromA(podB4).with(udp).frame(), "udp6": fromA(podB6).with(udp).frame(),
		"icmp4": fromA(podB4).with(echo).frame(), "icmp6": fromA(podB6).with(echo6).frame(),
		"options4": fromA(podB4).with(func(p *packet) { p.options = make([]byte, 40) }).frame(),
		"ext6":     fromA(podB6).with(func(p *packet) { p.next, p.ext = 60, option(protoTCP, 3) }).frame(),
		"frag4":    fromA(podB4).with(udp).with(func(p *packet) { p.fragment, p.more, p.fragID = true, true, 9 }).frame(),
		"frag6":    fromA(podB6).with(udp).with(func(p *packet) { p.fragment, p.more, p.fragID = true, true, 9 }).frame(),
		"arp":      arp(hostMAC, podMAC, 1, podMAC, podA4, mac{}, gateway4),
		"ns":       solicitation(podA6, gateway6),
		"vxlan":    outer.vxlan(idFar, inner.frame()),
		"error4": packet{smac: wireMAC, dmac: nodeMAC, src: out4, dst: node4, proto: protoICMP, typ: 3, code: 1,
			payload: quoted}.frame(),
	}
	for name, whole := range packets {
		t.Run(name, func(t *testing.T) {
			w.t = t
			for _, p := range bpf.DevicePrograms() {
				w.reset()
				for n := shortest(whole); n < len(whole); n++ {
					cut := append([]byte{}, whole[:n]...)
					o := w.run(p.Name, cut)
					if o.ret == redirect {
						t.Errorf("%s redirects the first %d of %d bytes", p.Name, n, len(whole))
					}
				}
			}
		})
	}
	// The same with the lengths made to fit, so that the cut goes through the inner headers.
	for _, name := range []string{"tcp4", "udp4", "icmp4", "vxlan", "error4", "frag4", "options4"} {
		t.Run(name+" with lengths", func(t *testing.T) {
			w.t = t
			whole := packets[name]
			for _, p := range bpf.DevicePrograms() {
				w.reset()
				for n := 14 + 20; n < len(whole); n++ {
					cut := append([]byte{}, whole[:n]...)
					binary.BigEndian.PutUint16(cut[16:], uint16(n-14))
					if o := w.run(p.Name, cut); o.ret == redirect && !enough(name, n) {
						t.Errorf("%s redirects the first %d of %d bytes", p.Name, n, len(whole))
					}
				}
			}
		})
	}
}

// shortest is what BPF_PROG_TEST_RUN takes: it refuses an IP packet without a whole IP header by itself.
func shortest(frame []byte) int {
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		return 14 + 20
	case 0x86dd:
		return 14 + 40
	}
	return 14
}

// enough says whether n bytes of a packet hold all that its transport needs, so that shortening only cuts payload.
func enough(name string, n int) bool {
	need := map[string]int{"tcp4": 54, "udp4": 42, "icmp4": 42, "frag4": 42, "options4": 94, "vxlan": 1 << 20, "error4": 42}
	return n >= need[name]
}
