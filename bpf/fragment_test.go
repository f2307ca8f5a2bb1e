// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// pieces cuts a UDP packet in two at a multiple of 8 of its transport bytes.
func pieces(p packet, at int) (first, later packet) {
	body := p.transport()
	first, later = p, p
	first.fragment, first.more, first.fragID = true, true, 77
	later.fragment, later.fragOffset, later.fragID = true, uint16(at), 77
	// The first piece has the whole packet's transport header, checksum and length as they are.
	first.proto, later.proto = p.proto, p.proto
	first.payload = body[:at]
	later.payload = body[at:]
	return first, later
}

// raw builds the first piece, whose transport header must not be made again.
func raw(p packet) []byte {
	proto := p.proto
	p.proto = 250
	f := p.frame()
	if p.v6() {
		f[14+40] = proto
	} else {
		f[14+9] = proto
		f[14+10], f[14+11] = 0, 0
		c := fold(sum16(f[14:34], 0))
		f[14+10], f[14+11] = byte(c>>8), byte(c)
	}
	return f
}

func TestFragments(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		whole := fromA(pick(v6, podB4, podB6)).with(func(p *packet) { p.proto, p.payload = protoUDP, make([]byte, 40) })
		first, later := pieces(whole, 24)
		delivered := func(p *packet) { p.smac, p.dmac, p.ttl = hostB, podBMAC, 63 }

		w.t = t
		w.reset()
		w.run("from_pod", later.frame()).expect(t, bpf.MapsReasonDROP_FRAGMENT_NOT_FOUND, shot, nil)
		w.run("from_pod", raw(first)).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, raw(first.with(delivered)))
		w.run("from_pod", later.frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, later.with(delivered).frame())
		if n := len(w.begun(1)); n != 1 {
			t.Errorf("%d connections, want 1 for both pieces", n)
		}
		for _, e := range w.events() {
			if e.Flags&uint8(bpf.MapsEventFlagsEVENT_FRAGMENT) == 0 {
				t.Errorf("event without its flag: %+v", e)
			}
		}

		// A first piece too short for its header is nothing.
		tiny, _ := pieces(whole, 8)
		tiny.payload = tiny.payload[:4]
		w.run("from_pod", raw(tiny)).expect(t, bpf.MapsReasonDROP_INVALID_PACKET, shot, nil)
		other := later.with(func(p *packet) { p.fragID = 78 })
		w.run("from_pod", other.frame()).expect(t, bpf.MapsReasonDROP_FRAGMENT_NOT_FOUND, shot, nil)
	})
}

// TestFragmentsMasqueraded: pieces leave under the node's name, with the checksum of the whole, and come back.
func TestFragmentsMasqueraded(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		for name, kind := range kinds(v6) {
			if name == "tcp" {
				continue
			}
			t.Run(name, func(t *testing.T) {
				w.t = t
				w.reset()
				whole := fromA(pick(v6, out4, out6)).with(kind).with(func(p *packet) { p.payload = make([]byte, 40) })
				seen := whole.with(func(p *packet) { p.src, p.ttl = pick(v6, node4, node6), 63 })
				first, later := pieces(whole, 24)
				sfirst, slater := pieces(seen, 24)
				w.run("from_pod", raw(first)).expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect, raw(sfirst))
				w.run("from_pod", later.frame()).expect(t, bpf.MapsReasonFORWARD_TO_NETWORK, redirect, slater.frame())

				back, want := answer(seen), answer(whole).with(func(p *packet) { p.smac, p.dmac, p.ttl = hostMAC, podMAC, 49 })
				bfirst, blater := pieces(back, 24)
				wfirst, wlater := pieces(want, 24)
				w.run("from_netdev", raw(bfirst)).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, raw(wfirst))
				w.run("from_netdev", blater.frame()).expect(t, bpf.MapsReasonFORWARD_TO_POD, redirect, wlater.frame())
			})
		}
	})
}

// TestFragmentsToHost: without its first piece a fragment is the host's to put together, a pod's is dropped.
func TestFragmentsToHost(t *testing.T) {
	w := newWorld(t, nil)
	both(t, func(t *testing.T, v6 bool) {
		w.t = t
		w.reset()
		in := packet{smac: wireMAC, dmac: nodeMAC, src: pick(v6, out4, out6), dst: pick(v6, node4, node6), proto: protoUDP,
			fragment: true, fragOffset: 8, fragID: 5, payload: make([]byte, 8)}
		w.run("from_netdev", in.frame()).expect(t, bpf.MapsReasonFORWARD_NOT_OURS, next, in.frame())
		in.dst = pick(v6, podA4, podA6)
		w.run("from_netdev", in.frame()).expect(t, bpf.MapsReasonDROP_FRAGMENT_NOT_FOUND, shot, nil)
		w.run("to_pod", in.frame()).expect(t, bpf.MapsReasonDROP_FRAGMENT_NOT_FOUND, shot, nil)
	})
}
