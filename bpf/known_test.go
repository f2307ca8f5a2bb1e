// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"errors"
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

// TestAddressesMoveBeforeTheGeneration: between the two writes of the agent no verdict is made that outlives them.
func TestAddressesMoveBeforeTheGeneration(t *testing.T) {
	w := newWorld(t, nil)
	w.unselect()
	w.enforce(1, egress, identities|protocols, verdictRow{peer: idFar, verdict: verdictAllow, precedence: 1})
	out := fromA(far4).with(func(p *packet) { p.proto = protoUDP })
	if got := w.run("from_pod", out.frame()).reason; got != bpf.MapsReasonFORWARD_TO_TUNNEL {
		t.Fatalf("to the peer: %v", got)
	}
	peers, settings := w.maps.Maps[bpf.MapsMapPeers], w.maps.Maps[bpf.MapsMapLiveSettings]
	var peer bpf.Peer
	var s bpf.Settings
	if err := errors.Join(peers.Lookup(bpf.AddrFrom(far4), &peer), settings.Lookup(uint32(0), &s)); err != nil {
		t.Fatal(err)
	}
	peer.Identity = idFar + 1
	s.Addresses += 1000
	if err := errors.Join(peers.Put(bpf.AddrFrom(far4), peer), settings.Put(uint32(0), s)); err != nil {
		t.Fatal(err)
	}
	w.run("from_pod", out.frame()) // judged a moment ago, in this generation
	s.Generation++
	if err := settings.Put(uint32(0), s); err != nil {
		t.Fatal(err)
	}
	if got := w.run("from_pod", out.frame()).reason; got != bpf.MapsReasonDROP_POLICY {
		t.Errorf("to somebody else at the same address: %v", got)
	}
}
