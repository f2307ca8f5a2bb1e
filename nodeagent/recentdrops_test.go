// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

func TestRecentDrops(t *testing.T) {
	rung := 0
	deny := policy.Provenance{Verdict: policy.Deny, Default: true, Origins: []policy.Origin{
		{Ref: policy.Ref{Kind: policy.KindNetworkPolicy, Namespace: "a", Name: "two"}}, {Ref: policy.Ref{Kind: policy.KindNetworkPolicy, Namespace: "a", Name: "one"}},
	}}
	r := newRecentDrops(func(id uint32) (policy.Provenance, bool) { return deny, id == 77 }, func() { rung++ })
	now := time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)
	at := func(seconds int, port uint16) flow.Event {
		return flow.Event{
			Time: now.Add(time.Duration(seconds) * time.Second), Reason: flow.Reason(bpf.MapsReasonDROP_POLICY), Protocol: 6, Endpoint: 7, Ingress: true,
			Source:      flow.Party{Address: netip.MustParseAddr("10.0.0.9"), Port: 40000, Who: &flow.Who{Namespace: "a", Pod: "client"}},
			Destination: flow.Party{Address: netip.MustParseAddr("10.0.0.7"), Port: port}, Rules: [2]uint32{0, 77},
		}
	}
	passed := at(0, 80)
	passed.Reason = flow.Reason(bpf.MapsReasonFORWARD_TO_TUNNEL)
	out := at(1, 443)
	out.Ingress, out.Rules, out.Source, out.Destination = false, [2]uint32{0, 0}, out.Destination, flow.Party{Address: netip.MustParseAddr("192.0.2.1"), Port: 443}
	r.Take([]flow.Event{passed, at(0, 80), out, at(2, 80)})
	if rung != 1 {
		t.Errorf("rung %d times", rung)
	}
	shown, later := r.show(7, nil, now)
	if len(shown) != 2 || later != 0 {
		t.Fatalf("%+v, %v", shown, later)
	}
	if d := shown[0]; d.Count != 2 || d.Peer != "a/client" || d.Port != 80 || d.Protocol != "TCP" || d.Direction != "Ingress" || d.Reason != "POLICY" ||
		!d.Time.Time.Equal(now.Add(2*time.Second)) || !slices.Equal(d.Policies, []string{"NetworkPolicy a/one", "NetworkPolicy a/two"}) {
		t.Errorf("%+v", d)
	}
	if d := shown[1]; d.Peer != "192.0.2.1" || d.Direction != "Egress" || d.Policies != nil {
		t.Errorf("%+v", d)
	}
	// A scan of ports: the latest few, and no write for each.
	for port := range uint16(100) {
		r.Take([]flow.Event{at(3+int(port), 1000+port)})
	}
	if again, later := r.show(7, shown, now.Add(4*time.Second)); len(again) != 2 || later <= 0 {
		t.Errorf("written at once: %+v, %v", again, later)
	}
	again, later := r.show(7, shown, now.Add(dropsGap+3*time.Second))
	if len(again) != v1alpha1.MaxRecentDrops || again[0].Port != 1099 || later != 0 {
		t.Errorf("%+v, %v", again, later)
	}
	// The id goes to another pod; one that an agent before this one knew drops of keeps them.
	r.forget(7)
	if kept, _ := r.show(7, shown, now); len(kept) != 2 {
		t.Errorf("%+v", kept)
	}
	if none, _ := r.show(7, nil, now); none != nil {
		t.Errorf("%+v", none)
	}
}
