// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// TestFromPodRoutes sends a first packet to each kind of address.
func TestFromPodRoutes(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		w := newWorld(t, nil)
		hop := func(p *packet) { p.ttl = 63 }
		toB := func(p *packet) { p.ttl, p.smac, p.dmac = 63, hostB, podBMAC }
		masqueraded := func(p *packet) { p.ttl, p.src = 63, pick(v6, node4, node6) }
		for _, c := range []struct {
			name   string
			v4, v6 netip.Addr
			reason bpf.Reason
			ret    uint32
			change func(*packet)
			target uint32
			dst    uint32 // identity
		}{
			{"pod of this node", podB4, podB6, bpf.MapsReasonFORWARD_TO_POD, redirect, toB, podBIf, idB},
			{"own host", node4, node6, bpf.MapsReasonFORWARD_TO_STACK, next, func(*packet) {}, 0, idHost},
			{"world", out4, out6, bpf.MapsReasonFORWARD_TO_NETWORK, redirect, masqueraded, loopback, idWorld},
			{"other host", peer4, peer6, bpf.MapsReasonFORWARD_TO_NETWORK, redirect, masqueraded, loopback, idNode},
			{"excluded from masquerade", netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8:e::5"),
				bpf.MapsReasonFORWARD_TO_NETWORK, redirect, hop, loopback, idWorld},
			{"pools, nobody's", gone4, gone6, bpf.MapsReasonDROP_NO_TUNNEL_ENDPOINT, shot, nil, 0, idPending},
			{"own prefix, no pod", nopod4, nopod6, bpf.MapsReasonDROP_UNKNOWN_TARGET, shot, nil, 0, idPending},
			{"service address", svc4, svc6, bpf.MapsReasonDROP_NO_SERVICE_BACKEND, shot, nil, 0, 0},
		} {
			t.Run(c.name, func(t *testing.T) {
				w.t = t
				w.reset()
				in := fromA(pick(v6, c.v4, c.v6))
				o := w.run("from_pod", in.frame())
				var want []byte
				if c.change != nil {
					want = in.with(c.change).frame()
				}
				o.expect(t, c.reason, c.ret, want)
				if o.target != c.target {
					t.Errorf("redirected to %d, want %d", o.target, c.target)
				}
				ev := w.events()
				if len(ev) != 1 {
					t.Fatalf("%d events, want 1", len(ev))
				}
				if e := ev[0]; e.SrcIdentity != idA || e.DstIdentity != c.dst || e.Endpoint != 1 ||
					e.Reason != uint8(c.reason) || e.Sport != be16(40000) || e.Dport != be16(80) || e.Saddr.IP() != in.src {
					t.Errorf("event %+v", e)
				}
			})
		}
	})
}
