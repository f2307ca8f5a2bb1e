// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// End is one end of a connection.
type End struct {
	// Pod is set for a pod: then its own policies judge this side.
	Pod *Subject
	// Identity as the datapath knows it: of pods too, Host for a socket of the other end's own node, Pending for an
	// address of the cluster that is not known yet. 0 with Pod: the other side sees the pod's own labels and ports.
	Identity identity.Number
	Addr     netip.Addr
}

// Flow is a question: may Source open this to Destination?
type Flow struct {
	Source, Destination End
	// Protocol is the IP protocol number; Port of the destination, in host order, 0 where the protocol has none.
	Protocol uint8
	Port     uint16
}

// Side is what one end's policies say.
type Side struct {
	// Judged: some policy selects the pod in this direction. Otherwise the side allows, without a rule.
	Judged  bool
	Verdict Verdict
	// Rule that decided, as the kernel reports it; 0 where none did.
	Rule       RuleID
	Provenance Provenance
	// OwnNode: allowed because a socket of the pod's own node speaks, whatever the policies say.
	OwnNode bool
	// Pending: denied because it is not known yet who the other end is, and a deny could be about it.
	Pending bool
}

// Decision is a verdict and what decided on each side.
type Decision struct {
	Verdict Verdict
	// Egress is the source's side, Ingress the destination's.
	Egress, Ingress Side
}

// Evaluate answers a question from the rules as they were written, whatever the kernel knows of them by now.
func (e *Engine) Evaluate(f Flow) Decision {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.evaluate(f)
}

func (e *Engine) evaluate(f Flow) Decision {
	d := Decision{Verdict: Allow, Egress: e.judge(e.question(f, Egress)), Ingress: e.judge(e.question(f, Ingress))}
	if d.Egress.Verdict == Deny || d.Ingress.Verdict == Deny {
		d.Verdict = Deny
	}
	return d
}

// question is a flow as one side sees it.
type question struct {
	direction   Direction
	self, other End
	protocol    uint8
	port        uint16
	// labels and ports of the other end, as its identity has them; nil where it is no pod that is known.
	labels identity.Labels
	ports  []NamedPort
	// rules that are about self, in order.
	rules []stated
}

func (e *Engine) question(f Flow, d Direction) *question {
	q := &question{direction: d, self: f.Source, other: f.Destination, protocol: f.Protocol, port: f.Port}
	if d == Ingress {
		q.self, q.other = f.Destination, f.Source
	}
	q.other.Addr = q.other.Addr.Unmap()
	switch i := e.idents[q.other.Identity]; {
	case i != nil:
		q.labels, q.ports = i.labels, i.ports
	case q.other.Identity == 0 && q.other.Pod != nil:
		q.labels, q.ports = q.other.Pod.Labels, q.other.Pod.Ports
	}
	if q.self.Pod != nil {
		q.rules = selecting(q.self.Pod, d, e.desired)
	}
	return q
}

// desired calls f with every rule that is written.
func (e *Engine) desired(f func(*rule)) {
	for _, w := range e.policies {
		for _, r := range w.desired {
			f(r)
		}
	}
}

func (q *question) judge() (Verdict, bool) {
	for number := range Tier(tiers) {
		var first *rule
		isolated := false
		for _, r := range q.rules {
			if r.Tier != number {
				continue
			}
			isolated = isolated || r.Isolates
			if !r.onlyIsolates && (first == nil || r.precedence < first.precedence) && q.matches(r.rule) {
				first = r.rule
			}
		}
		switch {
		case first != nil && first.Verdict != Pass:
			return first.Verdict, true
		case first == nil && isolated:
			return Deny, true
		}
	}
	return Allow, judged(q.rules)
}

func (e *Engine) judge(q *question) Side {
	verdict, judged := q.judge()
	s := Side{Judged: judged, Verdict: verdict}
	switch {
	case !judged:
	case q.direction == Ingress && q.other.Identity == identity.Host:
		s.Verdict, s.OwnNode = Allow, true
	case q.other.Identity == identity.Pending && slices.ContainsFunc(q.rules, func(r stated) bool { return r.Verdict == Deny }):
		s.Verdict, s.Pending = Deny, true
	default:
		s.Rule = e.deciding(q)
		if g := e.names.byID[s.Rule]; g != nil {
			s.Provenance = g.Provenance
		}
	}
	return s
}

// deciding finds the rule that the kernel reports: it makes that part of the pod's table which is about the other end,
// and asks it.
func (e *Engine) deciding(q *question) RuleID {
	// Any number will do for the class, and for a pod whose identity is not given.
	peers := []Peer{Peer(q.other.Identity), ClassBit, Anyone}
	if q.other.Identity == 0 {
		peers[0] = ClassBit - 1
	}
	if q.other.Identity == identity.Pending {
		peers = peers[1:]
	}
	st := &state{direction: q.direction, rules: q.rules, flat: map[string][]cell{}}
	e.makeTiers(st)
	var first *Table
	for _, t := range slices.Backward(st.tiers) {
		table := &Table{Entries: map[Key]Entry{}, Default: t.isolated, Next: first}
		for _, p := range peers {
			var cs []claim
			for _, r := range t.rules {
				if c := q.claim(r, p); c.anyPort || len(c.ranges) > 0 {
					cs = append(cs, c)
				}
			}
			t.put(table.Entries, p, e.flatten(st, cs))
		}
		first = table
	}
	return first.Lookup(peers, q.protocol, q.port).Rule
}

// claim is what a rule says about the other end as one of the peers that it is.
func (q *question) claim(r *rule, p Peer) claim {
	c := claim{rule: r}
	about := r.AnyPeer && p == Anyone
	byName := r.AnyPeer && p != ClassBit && p != Anyone
	for _, x := range r.Peers {
		_, block := x.(Block)
		if p != Anyone && block == (p == ClassBit) && q.isPeer(r, x) {
			about = true
		}
	}
	switch {
	case about && r.AnyPort:
		c.anyPort = true
	case about || byName:
		for _, s := range r.Ports {
			if s.Name != "" {
				if q.direction == Ingress && about || q.direction == Egress && p != ClassBit && p != Anyone {
					c.ranges = append(c.ranges, numbered(portsNamed(q.namedPorts(), s))...)
				}
			} else if about {
				c.ranges = append(c.ranges, s)
			}
		}
	}
	return c
}

// namedPorts are those of the destination.
func (q *question) namedPorts() []NamedPort {
	if q.direction == Ingress {
		return q.self.Pod.Ports
	}
	return q.ports
}

// matches tells whether a rule is about the flow.
func (q *question) matches(r *rule) bool {
	if r.AnyPeer {
		return q.isPort(r, nil)
	}
	return slices.ContainsFunc(r.Peers, func(p PeerSelector) bool { return q.isPeer(r, p) && q.isPort(r, p) })
}

func (q *question) isPeer(r *rule, p PeerSelector) bool {
	switch p := p.(type) {
	case *PodSelector:
		a := p.ask(q.labels, false)
		return a == yes || a == perhaps && r.Verdict == Deny
	case Block:
		return p.contains(q.other.Addr)
	case Entity:
		return q.other.Identity == identity.Number(p)
	}
	return false
}

func (b Block) contains(a netip.Addr) bool {
	return b.CIDR.Contains(a) && !slices.ContainsFunc(b.Except, func(e netip.Prefix) bool { return e.Contains(a) })
}

// isPort tells whether the flow goes to a port of the rule, for which the peer selector matches; nil is anyone.
func (q *question) isPort(r *rule, p PeerSelector) bool {
	return r.AnyPort || slices.ContainsFunc(r.Ports, func(s PortSelector) bool {
		if s.Protocol != q.protocol {
			return false
		}
		if s.Name == "" {
			return s.First <= q.port && q.port <= s.Last
		}
		if _, block := p.(Block); block && q.direction == Egress {
			return false
		}
		return slices.ContainsFunc(portsNamed(q.namedPorts(), s), func(n NamedPort) bool { return n.Port == q.port })
	})
}
