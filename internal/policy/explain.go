// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// Walk is a decision with the way to it.
type Walk struct {
	Decision
	// EgressSteps and IngressSteps hold each rule that is about the pod of that side in that direction, in the order in
	// which they count.
	EgressSteps, IngressSteps []Step
	// Nearest says, where the flow is denied, which rule came nearest to allowing it or which denied it by name, or what
	// is missing. Nil where the flow is allowed.
	Nearest *Miss
}

// Step is one rule that was tried.
type Step struct {
	Origin
	// Verdict that the rule has when it matches; 0 for one that only isolates.
	Verdict Verdict
	Matched bool
	// Why it did not match.
	Why []Mismatch
}

// Mismatch is one respect in which a rule is not about a flow.
type Mismatch struct {
	Aspect Aspect
	// Text is a part of a sentence that goes on after the name of the rule.
	Text string
}

// Aspect of a rule, in one word.
type Aspect string

const (
	AspectPort           Aspect = "Port"
	AspectProtocol       Aspect = "Protocol"
	AspectNamedPort      Aspect = "NamedPort"
	AspectLabel          Aspect = "Label"
	AspectHiddenLabel    Aspect = "HiddenLabel"
	AspectNamespace      Aspect = "Namespace"
	AspectNamespaceLabel Aspect = "NamespaceLabel"
	AspectAddress        Aspect = "Address"
	AspectExcept         Aspect = "Except"
	AspectFamily         Aspect = "Family"
	AspectNoPod          Aspect = "NoPod"
	AspectEntity         Aspect = "Entity"
	AspectSubject        Aspect = "Subject"
	AspectWrongNamespace Aspect = "WrongNamespace"
	AspectDirection      Aspect = "Direction"
	AspectDNS            Aspect = "DNS"
	AspectNoRules        Aspect = "NoRules"
	AspectDenied         Aspect = "Denied"
	AspectPending        Aspect = "Pending"
)

// Miss is what came nearest.
type Miss struct {
	// Side that denied.
	Side Direction
	Origin
	Mismatch
}

func (m Miss) String() string { return m.Origin.String() + " " + m.Text }

// Explain answers a question with the way to the answer.
func (e *Engine) Explain(f Flow) Walk {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := Walk{Decision: e.evaluate(f)}
	egress, ingress := e.question(f, Egress), e.question(f, Ingress)
	w.EgressSteps, w.IngressSteps = egress.steps(), ingress.steps()
	switch {
	case w.Egress.Verdict == Deny:
		w.Nearest = e.nearest(egress, w.Egress)
	case w.Ingress.Verdict == Deny:
		w.Nearest = e.nearest(ingress, w.Ingress)
	}
	return w
}

func (q *question) steps() []Step {
	var out []Step
	for _, r := range q.rules {
		s := Step{Origin: r.origin(), Verdict: r.Verdict}
		if !r.onlyIsolates {
			if s.Matched = q.matches(r.rule); !s.Matched {
				s.Why, _ = q.why(r.rule)
			}
		}
		out = append(out, s)
	}
	return out
}

// How far things are from a match: one respect is nearer than two, and what is easily mistyped is nearer than what was
// meant otherwise.
const (
	farSubject   = 6
	farDNS       = 7
	farPort      = 8
	farHidden    = 8
	farLabel     = 10
	farNamespace = 10
	farElsewhere = 12
	farDirection = 14
	farExcept    = 10
	farAddress   = 20
	farFamily    = 22
	farKind      = 30
	farTwice     = 40 // added when both peer and port are others
	farNoRules   = 200
)

// candidate for the nearest miss.
type candidate struct {
	Origin
	Mismatch
	distance int
}

func (e *Engine) nearest(q *question, s Side) *Miss {
	var cs []candidate
	offer := func(o Origin, distance int, a Aspect, format string, args ...any) {
		cs = append(cs, candidate{o, Mismatch{a, fmt.Sprintf(format, args...)}, distance})
	}
	speaking := false
	for _, r := range q.rules {
		switch {
		case r.onlyIsolates:
		case s.Pending && r.Verdict == Deny:
			offer(r.origin(), 0, AspectPending, "may be about the peer, of which it is not known yet who it is")
		case r.Verdict == Deny && q.matches(r.rule):
			offer(r.origin(), 1, AspectDenied, "denies this")
		case r.Verdict == Allow:
			speaking = true
			if why, far := q.why(r.rule); len(why) > 0 {
				offer(r.origin(), far, why[0].Aspect, "%s", joinWhy(why))
			}
		}
	}
	for _, r := range q.rules {
		if !r.Isolates {
			continue
		}
		o := Origin{Ref: r.ref}
		if q.direction == Egress && q.port == 53 && speaking && !q.anyAboutDNS() {
			offer(o, farDNS, AspectDNS, "selects the pod for egress, and nothing allows DNS (UDP and TCP 53): names cannot be resolved")
		}
		if !speaking {
			offer(o, farNoRules, AspectNoRules, "selects the pod for %s and allows nothing: it has no %s rules", q.direction, q.direction)
		}
	}
	e.offerOthers(q, offer)
	if len(cs) == 0 {
		return nil
	}
	c := slices.MinFunc(cs, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), compareOrigins(a.Origin, b.Origin))
	})
	return &Miss{Side: q.direction, Origin: c.Origin, Mismatch: c.Mismatch}
}

func joinWhy(why []Mismatch) string {
	texts := make([]string, len(why))
	for i, w := range why {
		texts[i] = w.Text
	}
	return strings.Join(texts, "; and ")
}

func (q *question) anyAboutDNS() bool {
	return slices.ContainsFunc(q.rules, func(r stated) bool {
		return !r.onlyIsolates && (r.AnyPort || slices.ContainsFunc(r.Ports, func(p PortSelector) bool {
			return p.Name != "" || p.First <= 53 && 53 <= p.Last
		}))
	})
}

// offerOthers looks among the rules that are not about the pod in this direction for one that would have allowed.
func (e *Engine) offerOthers(q *question, offer func(Origin, int, Aspect, string, ...any)) {
	me := q.self.Pod
	namespace := me.Labels[namespaceName]
	e.desired(func(r *rule) {
		if r.Verdict != Allow {
			return
		}
		about := r.Subject.ask(me.Labels, me.Whole) == yes
		switch {
		case about && r.Direction != q.direction && !r.AnyPeer && q.matchesReversed(r):
			offer(r.origin(), farDirection, AspectDirection, "is about %s, the way of who speaks first; here the pod is the other end, and no %s rule allows this", r.Direction, q.direction)
		case about || r.Direction != q.direction || !q.matches(r):
		case r.Subject.Namespace != "" && r.Subject.Namespace != namespace:
			elsewhere := r.Subject
			elsewhere.Namespace = namespace
			if elsewhere.ask(me.Labels, me.Whole) == yes {
				offer(r.origin(), farElsewhere, AspectWrongNamespace, "would allow this, but it stands in namespace %s and selects pods of that namespace only; the pod is in %s", r.ref.Namespace, namespace)
			}
		default:
			if failing := failing(r.Subject.Labels, me.Labels, podLabel, me.Whole); len(failing) > 0 {
				offer(r.origin(), farSubject+2*(len(failing)-1), AspectSubject, "would allow this, but the policy does not select the pod: it selects %s; the pod has %s",
					joinRequirements(failing), has(failing, me.Labels, podLabel))
			}
		}
	})
}

// matchesReversed tells whether a rule of the other direction names the other end, on this port where it names ports.
func (q *question) matchesReversed(r *rule) bool {
	return slices.ContainsFunc(r.Peers, func(p PeerSelector) bool { return q.isPeer(r, p) }) && (r.AnyPort || q.isPort(r, nil))
}

// why tells in which respects a rule is not about the flow, and how far that is from a match: the nearest of its peers
// and the nearest of its ports.
func (q *question) why(r *rule) ([]Mismatch, int) {
	type pair struct {
		why []Mismatch
		far int
	}
	one := func(p PeerSelector) pair {
		var out pair
		if p != nil && !q.isPeer(r, p) {
			m, far := q.whyPeer(p)
			out.why, out.far = append(out.why, m), far
		}
		if !q.isPort(r, p) {
			m, far := q.whyPort(r, p)
			if out.far > 0 {
				far += farTwice
			}
			out.why, out.far = append(out.why, m), out.far+far
		}
		return out
	}
	if r.AnyPeer {
		p := one(nil)
		return p.why, p.far
	}
	if len(r.Peers) == 0 {
		return []Mismatch{{AspectNoPod, "allows nobody"}}, farKind
	}
	pairs := make([]pair, len(r.Peers))
	for i, p := range r.Peers {
		pairs[i] = one(p)
	}
	best := slices.MinFunc(pairs, func(a, b pair) int { return cmp.Compare(a.far, b.far) })
	return best.why, best.far
}

func (q *question) whyPeer(p PeerSelector) (Mismatch, int) {
	switch p := p.(type) {
	case *PodSelector:
		return q.whyPod(p)
	case Block:
		return q.whyBlock(p)
	case Entity:
		return Mismatch{AspectEntity, fmt.Sprintf("allows %s; the peer is %s", entityName(identity.Number(p)), q.peerName())}, farKind
	}
	return Mismatch{AspectNoPod, "allows nobody"}, farKind
}

func (q *question) whyPod(p *PodSelector) (Mismatch, int) {
	namespace, isPod := q.labels[namespaceName]
	labels := failing(p.Labels, q.labels, podLabel, false)
	if !isPod {
		return Mismatch{AspectNoPod, fmt.Sprintf("allows %s; the peer is %s, no pod", p.describe(), q.peerName())}, farKind
	}
	more := 2 * len(labels)
	if len(labels) > 0 {
		more += farNamespace
	}
	if p.Namespace != "" && p.Namespace != namespace {
		return Mismatch{AspectNamespace, fmt.Sprintf("allows pods of its own namespace %s only, because it has no namespaceSelector; the peer is in namespace %s", p.Namespace, namespace)},
			farNamespace + more
	}
	if bad := failing(p.NamespaceLabels, q.labels, namespaceLabel, true); len(bad) > 0 {
		return Mismatch{AspectNamespaceLabel, fmt.Sprintf("allows namespaces with %s; the peer's namespace %s has %s", joinRequirements(bad), namespace, has(bad, q.labels, namespaceLabel))},
			farNamespace + 2*(len(bad)-1) + more
	}
	if r := labels[0]; hidden(r.Key) {
		return Mismatch{AspectHiddenLabel, fmt.Sprintf("selects peers by label %s, which differs from pod to pod of one workload and is not a part of an identity: nobody matches", r.Key)}, farHidden
	}
	return Mismatch{AspectLabel, fmt.Sprintf("allows pods with %s; the peer has %s", joinRequirements(labels), has(labels, q.labels, podLabel))},
		farLabel + 2*(len(labels)-1)
}

func (q *question) whyBlock(b Block) (Mismatch, int) {
	a := q.other.Addr
	for _, x := range b.Except {
		if x.Contains(a) {
			return Mismatch{AspectExcept, fmt.Sprintf("allows %s but for %s, where the peer %s is", b.CIDR, x, a)}, farExcept
		}
	}
	if a.IsValid() && a.Is4() != b.CIDR.Addr().Is4() {
		return Mismatch{AspectFamily, fmt.Sprintf("allows %s; the peer's address %s is of the other family", b.CIDR, a)}, farFamily
	}
	return Mismatch{AspectAddress, fmt.Sprintf("allows %s; the peer is %s", b.CIDR, q.peerName())}, farAddress
}

func (q *question) whyPort(r *rule, peer PeerSelector) (Mismatch, int) {
	to := portName(q.protocol, q.port)
	_, block := peer.(Block)
	destination := "the peer"
	if q.direction == Ingress {
		destination = "the pod"
	}
	var texts []string
	aspect, far := AspectPort, farPort
	for _, p := range r.Ports {
		switch {
		case p.Name == "":
			texts = append(texts, p.String())
			if p.Protocol != q.protocol && p.First <= q.port && q.port <= p.Last {
				aspect = AspectProtocol
			}
		case block && q.direction == Egress:
			texts = append(texts, fmt.Sprintf("%s (a name that addresses of an ipBlock do not have)", p))
			aspect = AspectNamedPort
		default:
			text := p.String()
			if ports := portsNamed(q.namedPorts(), p); len(ports) > 0 {
				text += " (which is " + portName(ports[0].Protocol, ports[0].Port) + ")"
			} else if aspect = AspectNamedPort; hasName(q.namedPorts(), p.Name) {
				text += fmt.Sprintf(" (%s has that name for another protocol)", destination)
			} else {
				text += fmt.Sprintf(" (%s has no port of that name)", destination)
			}
			texts = append(texts, text)
		}
	}
	return Mismatch{aspect, fmt.Sprintf("allows %s; the connection goes to %s", strings.Join(texts, ", "), to)}, far
}

func hasName(ports []NamedPort, name string) bool {
	return slices.ContainsFunc(ports, func(n NamedPort) bool { return n.Name == name })
}

// failing are the requirements that do not hold for certain.
func failing(rs []Requirement, l identity.Labels, source string, whole bool) []Requirement {
	var out []Requirement
	for _, r := range rs {
		if r.ask(l, source, whole) != yes {
			out = append(out, r)
		}
	}
	return out
}

func joinRequirements(rs []Requirement) string {
	texts := make([]string, len(rs))
	for i, r := range rs {
		texts[i] = r.String()
	}
	return strings.Join(texts, " and ")
}

// has says which values the labels have that requirements are about.
func has(rs []Requirement, l identity.Labels, source string) string {
	texts := make([]string, len(rs))
	for i, r := range rs {
		if v, ok := l[source+r.Key]; ok {
			texts[i] = r.Key + "=" + v
		} else {
			texts[i] = "no label " + r.Key
		}
	}
	return strings.Join(texts, " and ")
}

func (s *PodSelector) describe() string {
	out := "pods"
	if len(s.Labels) > 0 {
		out += " with " + joinRequirements(s.Labels)
	}
	switch {
	case s.Namespace != "":
		out += " of namespace " + s.Namespace
	case len(s.NamespaceLabels) > 0:
		out += " of namespaces with " + joinRequirements(s.NamespaceLabels)
	}
	return out
}

func (q *question) peerName() string {
	if q.other.Addr.IsValid() {
		return q.other.Addr.String()
	}
	return entityName(q.other.Identity)
}

func entityName(n identity.Number) string {
	switch n {
	case identity.Host:
		return "the pod's own node"
	case identity.RemoteNode:
		return "another node"
	case identity.World:
		return "outside the cluster"
	case identity.Pending:
		return "not known yet"
	}
	return "identity " + n.String()
}

func protocolName(p uint8) string {
	switch p {
	case protocolTCP:
		return "TCP"
	case protocolUDP:
		return "UDP"
	case protocolSCTP:
		return "SCTP"
	case 1:
		return "ICMP"
	case 58:
		return "ICMPv6"
	}
	return fmt.Sprintf("protocol %d", p)
}

func portName(protocol uint8, port uint16) string {
	if port == 0 {
		return protocolName(protocol)
	}
	return fmt.Sprintf("%s %d", protocolName(protocol), port)
}

func (p PortSelector) String() string {
	switch {
	case p.Name != "":
		return fmt.Sprintf("%s port %q", protocolName(p.Protocol), p.Name)
	case p.First == 0 && p.Last == 65535:
		return "every " + protocolName(p.Protocol) + " port"
	case p.First == p.Last:
		return portName(p.Protocol, p.First)
	}
	return fmt.Sprintf("%s %d-%d", protocolName(p.Protocol), p.First, p.Last)
}

// Waits says what a policy names that does not exist yet. Subject is asked of identities, so it may be known on other
// nodes only.
func (e *Engine) Waits(ref Ref) []Note {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.policies[ref]
	if w == nil {
		return nil
	}
	var out []Note
	for i, r := range w.desired {
		if i == 0 && !e.anyPod(&r.Subject) {
			out = append(out, Note{"spec.podSelector", "waits for " + r.Subject.describe()})
		}
		for _, p := range r.Peers {
			if s, ok := p.(*PodSelector); ok && !e.anyPod(s) {
				out = append(out, Note{r.Path, "waits for " + s.describe()})
			}
		}
		for _, p := range r.Ports {
			if p.Name != "" && !e.anyPort(r, p) {
				out = append(out, Note{r.Path, fmt.Sprintf("waits for a pod with %s", p)})
			}
		}
	}
	return out
}

func (e *Engine) anyPod(s *PodSelector) bool {
	for _, i := range e.candidates(s) {
		if s.ask(i.labels, false) != no {
			return true
		}
	}
	return false
}

// anyPort tells whether some destination of a rule has a port of the name.
func (e *Engine) anyPort(r *rule, p PortSelector) bool {
	for _, i := range e.idents {
		if len(portsNamed(i.ports, p)) == 0 {
			continue
		}
		q := question{direction: r.Direction, labels: i.labels, other: End{Addr: netip.Addr{}}}
		if r.Direction == Ingress && r.Subject.ask(i.labels, false) != no ||
			r.Direction == Egress && (r.AnyPeer || slices.ContainsFunc(r.Peers, func(x PeerSelector) bool { return q.isPeer(r, x) })) {
			return true
		}
	}
	return false
}
