// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// FuzzFrames gives any bytes to every program. Each run must end with exactly one count, and a drop must be one; what
// from_pod lets go on in IP must have the pod's source address, or be discovery of this link.
func FuzzFrames(f *testing.F) {
	outer, inner := fromFar(podA4)
	for _, frame := range [][]byte{
		fromA(podB4).frame(), fromA(podB6).frame(), fromA(out4).frame(), fromA(far6).frame(),
		fromA(podB6).with(func(p *packet) { p.next, p.ext = 60, option(protoTCP, 3) }).frame(),
		fromA(podB6).with(func(p *packet) { p.fragment, p.more, p.fragID = true, true, 9 }).frame(),
		arp(hostMAC, podMAC, 1, podMAC, podA4, mac{}, gateway4), solicitation(podA6, gateway6),
		outer.vxlan(idFar, inner.frame()),
		errorAbout(fromA(out4).with(func(p *packet) { p.src = node4 }), out4, node4, 3, 4, 1300).frame(),
	} {
		f.Add(frame)
	}
	w := newWorld(f, nil)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) < shortest(frame) || len(frame) > 3000 {
			t.Skip("BPF_PROG_TEST_RUN does not take it")
		}
		w.t = t
		for _, p := range bpf.DevicePrograms() {
			o := w.run(p.Name, append([]byte{}, frame...))
			if p.Name != "from_pod" || o.reason >= 128 || o.reason == bpf.MapsReasonFORWARD_ANSWERED {
				continue
			}
			if src, ok := sourceOf(frame); ok && src != podA4 && src != podA6 &&
				!(o.reason == bpf.MapsReasonFORWARD_TO_STACK && (src == podLinkLocal || src == zero6)) {
				t.Errorf("a packet from %v went on: %v", src, o.reason)
			}
		}
	})
}

func sourceOf(frame []byte) (netip.Addr, bool) {
	switch uint16(frame[12])<<8 | uint16(frame[13]) {
	case 0x0800:
		return netip.AddrFrom4([4]byte(frame[26:30])), true
	case 0x86dd:
		return netip.AddrFrom16([16]byte(frame[22:38])), true
	}
	return netip.Addr{}, false
}
