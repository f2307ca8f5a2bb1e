// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// TestWhatIsKnownEndsWithItsNumber: a program remembers who has an address, and believes it no longer than
// settings.addresses says.
func TestWhatIsKnownEndsWithItsNumber(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		b := pick(v6, podB4, podB6)
		key := bpf.AddrFrom(b)
		var e bpf.Endpoint
		if err := w.maps.Maps[bpf.MapsMapEndpoints].Lookup(key, &e); err != nil {
			t.Fatal(err)
		}
		defer w.put(bpf.MapsMapEndpoints, key, e)
		send := func(sport uint16, want bpf.Reason) {
			t.Helper()
			if got := w.run("from_pod", fromA(b).with(func(p *packet) { p.sport = sport }).frame()).reason; got != want {
				t.Errorf("port %d: %v, want %v", sport, got, want)
			}
		}
		send(1000, bpf.MapsReasonFORWARD_TO_POD)
		if err := w.maps.Maps[bpf.MapsMapEndpoints].Delete(key); err != nil {
			t.Fatal(err)
		}
		send(1001, bpf.MapsReasonFORWARD_TO_POD) // the table was not asked
		w.moved()
		send(1002, bpf.MapsReasonDROP_UNKNOWN_TARGET)
		w.put(bpf.MapsMapEndpoints, key, e)
		send(1003, bpf.MapsReasonFORWARD_TO_POD)
	})
}

// TestKnownAddressesShareSlots: addresses of one slot are told apart, whichever was asked for last.
func TestKnownAddressesShareSlots(t *testing.T) {
	w := newWorld(t, nil)
	slot := func(a [4]byte) uint32 {
		low := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
		return (low ^ low>>10) & 1023
	}
	b := podB4.As4()
	twin := b
	for twin[3]++; slot(twin) != slot(b); twin[3]++ {
		if twin[3] == 255 {
			twin[2]++
		}
		if twin[2] == 255 {
			twin[1]++
		}
	}
	other := netip.AddrFrom4(twin)
	for i := range uint16(4) {
		at := w.run("from_pod", fromA(podB4).with(func(p *packet) { p.sport = 2000 + i }).frame())
		if at.reason != bpf.MapsReasonFORWARD_TO_POD {
			t.Fatalf("to the pod: %v", at.reason)
		}
		at = w.run("from_pod", fromA(other).with(func(p *packet) { p.sport = 2000 + i }).frame())
		if at.reason == bpf.MapsReasonFORWARD_TO_POD {
			t.Fatalf("to %s, which is nobody here: %v", other, at.reason)
		}
	}
}
