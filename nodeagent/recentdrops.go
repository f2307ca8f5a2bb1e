// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// dropsGap is the least time between two writes of an endpoint for its drops alone.
const dropsGap = 30 * time.Second

// maxDropPolicies bounds the policies of one drop, as the CRD does.
const maxDropPolicies = 16

// drop is what tells one kind of drops from another.
type drop struct {
	reason   flow.Reason
	ingress  bool
	peer     netip.Addr
	protocol uint8
	port     uint16
}

// dropped is how often one kind was seen, and the last time.
type dropped struct {
	drop
	name string // of the peer, when it was seen last
	rule uint32
	time time.Time
	seen int64
}

// recentDrops remembers for each endpoint of this node the last kinds of packets that went nowhere. It is a sink of
// events.
type recentDrops struct {
	rule func(uint32) (policy.Provenance, bool)
	// news is called when there is something to show that was not there before.
	news func()

	mu   sync.Mutex
	byID map[uint16][]dropped // endpoint id -> the latest first
}

func newRecentDrops(rule func(uint32) (policy.Provenance, bool), news func()) *recentDrops {
	return &recentDrops{rule: rule, news: news, byID: map[uint16][]dropped{}}
}

// Take counts the drops among events.
func (r *recentDrops) Take(list []flow.Event) {
	news := false
	r.mu.Lock()
	for i := range list {
		if e := &list[i]; e.Endpoint != 0 && e.Reason.Dropped() {
			r.count(e)
			news = true
		}
	}
	r.mu.Unlock()
	if news {
		r.news()
	}
}

func (r *recentDrops) count(e *flow.Event) {
	peer, side := e.Destination, policy.Egress
	if e.Ingress {
		peer, side = e.Source, policy.Ingress
	}
	d := dropped{
		drop: drop{reason: e.Reason, ingress: e.Ingress, peer: peer.Address, protocol: e.Protocol},
		name: peer.Who.String(), rule: e.Rules[side], time: e.Time, seen: 1,
	}
	if hasPorts(e.Protocol) {
		d.port = e.Destination.Port
	}
	known := r.byID[e.Endpoint]
	if i := slices.IndexFunc(known, func(o dropped) bool { return o.drop == d.drop }); i >= 0 {
		d.seen += known[i].seen
		known = slices.Delete(known, i, i+1)
	}
	known = slices.Insert(known, 0, d)
	r.byID[e.Endpoint] = known[:min(len(known), v1alpha1.MaxRecentDrops)]
}

func hasPorts(protocol uint8) bool { return protocolName(protocol) != "" }

// forget makes room for another pod with the id.
func (r *recentDrops) forget(id uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byID, id)
}

// show returns what an endpoint's status should say, given what it says: the same while the last write is not long
// ago, and later then tells when there is more to say.
func (r *recentDrops) show(id uint16, shown []v1alpha1.EndpointDrop, now time.Time) (out []v1alpha1.EndpointDrop, later time.Duration) {
	r.mu.Lock()
	known := slices.Clone(r.byID[id])
	r.mu.Unlock()
	if len(known) == 0 {
		return shown, 0 // of an agent before this one
	}
	for _, d := range known {
		out = append(out, r.status(d))
	}
	if len(shown) == 0 || slices.EqualFunc(out, shown, sameDrop) {
		return out, 0
	}
	if age := now.Sub(shown[0].Time.Time); age < dropsGap {
		return shown, max(dropsGap-age, time.Second)
	}
	return out, 0
}

func sameDrop(a, b v1alpha1.EndpointDrop) bool {
	return a.Time.Equal(&b.Time) && a.Reason == b.Reason && a.Peer == b.Peer && a.Port == b.Port && a.Count == b.Count && a.Direction == b.Direction
}

func (r *recentDrops) status(d dropped) v1alpha1.EndpointDrop {
	out := v1alpha1.EndpointDrop{
		Time: metav1.NewTime(d.time.Truncate(time.Second)), Reason: d.reason.String(), Direction: "Egress", Peer: d.name,
		Protocol: flow.ProtocolName(d.protocol), Port: int32(d.port), Count: d.seen,
	}
	if d.ingress {
		out.Direction = "Ingress"
	}
	if out.Peer == "" && d.peer.IsValid() {
		out.Peer = d.peer.String()
	}
	if d.rule != 0 {
		if why, ok := r.rule(d.rule); ok {
			for _, o := range why.Origins {
				out.Policies = append(out.Policies, o.Ref.String())
			}
			slices.Sort(out.Policies)
			out.Policies = slices.Compact(out.Policies)
			out.Policies = out.Policies[:min(len(out.Policies), maxDropPolicies)]
		}
	}
	return out
}
