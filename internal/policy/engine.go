// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"weak"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// maxSubjects is how many subjects are remembered with their tables: more than a node has endpoints.
const maxSubjects = 8192

// Engine holds the policies and the identities, and answers from them. It is safe for use by several goroutines. What it
// says depends on what it was told last about each policy and identity, never on the order.
type Engine struct {
	mu       sync.Mutex
	policies map[Ref]*written
	// rules in force: namespace of the subject -> rules; those without one are under "".
	rules     map[string]map[*rule]struct{}
	idents    map[identity.Number]*ident
	inside    map[string]map[identity.Number]*ident // namespace -> its identities
	selectors selectors
	classes   classes
	// blocks: prefix of an ipBlock -> rules in force that have it
	blocks map[netip.Prefix]map[*rule]struct{}
	// byName holds the rules in force with named ports that are looked up at the other end.
	byName   map[*rule]struct{}
	subjects map[string]*subject
	states   map[string]*state
	interned map[uint64][]weak.Pointer[Table]
	names    registry
	limits   Limits
	// local: key -> subjects of this node; nil: nobody said.
	local  map[string]*Subject
	serial uint64
	clock  uint64
	// asked for tables; settled once nothing was left to be written again after that.
	asked, settled bool
}

// written is one policy: as it was written last, and as tables have it. They differ while the kernel does not know a
// prefix of the new one, and where that does not fit.
type written struct {
	desired, active []*rule
	// reserved are the rules whose prefixes are counted for desired.
	reserved []*rule
	order    uint64
	// needed: some subject of this node is selected, or prefixes do not matter; joins: since a moment ago.
	needed, joins bool
	// refused: desired does not fit.
	refused error
	// closed: active are no version of the policy, they only forbid, in place of closedFor.
	closed    bool
	closedFor []*rule
	// early: active are in force while the kernel does not know all their prefixes.
	early bool
}

// rule is a Rule in use. It is not changed, but for what it is linked to.
type rule struct {
	Rule
	ref        Ref
	serial     uint64
	precedence uint32
	blocks     []*block
	// around: CIDR of a block -> blocks
	around map[netip.Prefix][]*block
	// Set while the rule is in force.
	selectors []*selector
	states    map[*state]struct{}
}

// NewEngine makes an engine that knows nothing: every pod is allowed everything.
func NewEngine() *Engine {
	return &Engine{
		policies:  map[Ref]*written{},
		rules:     map[string]map[*rule]struct{}{},
		idents:    map[identity.Number]*ident{},
		inside:    map[string]map[identity.Number]*ident{},
		selectors: newSelectors(),
		classes:   newClasses(),
		blocks:    map[netip.Prefix]map[*rule]struct{}{},
		byName:    map[*rule]struct{}{},
		subjects:  map[string]*subject{},
		states:    map[string]*state{},
		interned:  map[uint64][]weak.Pointer[Table]{},
		names:     newRegistry(),
	}
}

func (r *rule) addBlock(b Block) {
	if r.around == nil {
		r.around = map[netip.Prefix][]*block{}
	}
	r.blocks = append(r.blocks, &block{Block: b})
	r.around[b.CIDR] = append(r.around[b.CIDR], r.blocks[len(r.blocks)-1])
}

func (r *rule) origin() Origin { return Origin{Ref: r.ref, Path: r.Path} }

// selects tells whether the rule is about a subject, or may be.
func (r *rule) selects(s *Subject) bool { return r.Subject.ask(s.Labels, s.Whole) != no }

func selects(rules []*rule, s *Subject) bool {
	return slices.ContainsFunc(rules, func(r *rule) bool { return r.selects(s) })
}

// speaks tells whether the rule puts anything into tables, besides isolating.
func (r *rule) speaks() bool { return r.Verdict == Allow || r.Verdict == Deny || r.Verdict == Pass }

// rank orders verdicts of one tier and priority.
func (v Verdict) rank() uint32 {
	switch v {
	case Deny:
		return 0
	case Pass:
		return 1
	}
	return 2
}

// precedence packs what orders rules into what the kernel compares: two bits of tier, 28 of priority, two of verdict.
// validate has bounded each.
func (r *Rule) precedence() uint32 {
	return uint32(r.Tier)<<30 | uint32(r.Priority)<<2 | r.Verdict.rank()
}

// SetPolicy replaces what the policy says. It returns ErrBadRule, and then has changed nothing. Rules must not be
// changed afterwards.
func (e *Engine) SetPolicy(ref Ref, rules []Rule) error {
	for i := range rules {
		if err := rules[i].validate(); err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.policies[ref]
	if w == nil {
		e.serial++
		w = &written{order: e.serial}
		e.policies[ref] = w
	}
	// A rule that stays as it is stays the same rule: nothing is computed anew for it.
	old := slices.Concat(w.desired, w.active)
	next := make([]*rule, len(rules))
	for i, r := range rules {
		if at := slices.IndexFunc(old, func(o *rule) bool { return o.Path == r.Path && reflect.DeepEqual(o.Rule, r) }); at >= 0 {
			next[i] = old[at]
			continue
		}
		e.serial++
		next[i] = &rule{Rule: r, ref: ref, serial: e.serial, precedence: r.precedence()}
		for _, p := range r.Peers {
			if b, ok := p.(Block); ok {
				next[i].addBlock(b)
			}
		}
	}
	w.desired = next
	w.needed, w.joins = e.needed(w), false
	e.advance(w)
	return nil
}

// DeletePolicy forgets a policy; what it does not know it leaves.
func (e *Engine) DeletePolicy(ref Ref) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.policies[ref]
	if w == nil {
		return
	}
	w.desired, w.needed = nil, true
	e.advance(w)
	delete(e.policies, ref)
}

func prefixesOf(rules []*rule) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range rules {
		for _, b := range r.blocks {
			out = append(append(out, b.CIDR), b.Except...)
		}
	}
	return out
}

// nameAll counts the prefixes of rules; a new one is a new class in the tables of all rules around it.
func (e *Engine) nameAll(rules []*rule) {
	for _, p := range prefixesOf(rules) {
		if e.classes.name(p) {
			e.touchClass(p)
		}
	}
}

func (e *Engine) unnameAll(rules []*rule) {
	for _, p := range prefixesOf(rules) {
		n := e.classes.numbers[p]
		if e.classes.unname(p) {
			e.touchNumber(p, n)
		}
	}
}

func (e *Engine) touchClass(p netip.Prefix) { e.touchNumber(p, e.classes.numbers[p]) }

// touchNumber marks what tables say about a class, in all rules with an ipBlock around its prefix.
func (e *Engine) touchNumber(p netip.Prefix, n Peer) {
	for around := range upwards(p, 0) {
		for r := range e.blocks[around] {
			r.touch(n)
		}
	}
}

// touch marks what the tables of a rule say about a peer as not up to date.
func (r *rule) touch(n Peer) {
	for s := range r.states {
		s.dirty[n] = struct{}{}
	}
}

// insert puts a rule in force.
func (e *Engine) insert(r *rule) {
	r.states = map[*state]struct{}{}
	add(e.rules, r.Subject.Namespace, r)
	for _, b := range r.blocks {
		add(e.blocks, b.CIDR, r)
	}
	if r.speaks() {
		for _, p := range r.Peers {
			if s, ok := p.(*PodSelector); ok {
				r.selectors = append(r.selectors, e.selectors.use(r, s, r.Verdict == Deny, e.candidates(s)))
			}
		}
		if r.Direction == Egress && slices.ContainsFunc(r.Ports, func(p PortSelector) bool { return p.Name != "" }) {
			e.byName[r] = struct{}{}
		}
	}
	e.restate(r)
}

// remove takes a rule out of force. Nobody finds its states any more: should it come back, they missed what happened
// meanwhile.
func (e *Engine) remove(r *rule) {
	e.restate(r)
	for st := range r.states {
		e.forgetState(st)
	}
	drop(e.rules, r.Subject.Namespace, r)
	for _, b := range r.blocks {
		drop(e.blocks, b.CIDR, r)
	}
	for _, s := range r.selectors {
		e.selectors.release(r, s)
	}
	r.selectors = nil
	delete(e.byName, r)
}

// restate marks the subjects that a rule selects: their tables are of other rules now.
func (e *Engine) restate(r *rule) {
	for _, s := range e.subjects {
		if r.selects(&s.Subject) {
			s.stale = true
		}
	}
}

func (e *Engine) candidates(s *PodSelector) map[identity.Number]*ident {
	if s.Namespace != "" {
		return e.inside[s.Namespace]
	}
	return e.idents
}

func add[K comparable](m map[K]map[*rule]struct{}, k K, r *rule) {
	if m[k] == nil {
		m[k] = map[*rule]struct{}{}
	}
	m[k][r] = struct{}{}
}

func drop[K comparable](m map[K]map[*rule]struct{}, k K, r *rule) {
	if delete(m[k], r); len(m[k]) == 0 {
		delete(m, k)
	}
}

// SetIdentity says which labels a number stands for, and which named ports the pods of it have between them.
func (e *Engine) SetIdentity(n identity.Number, l identity.Labels, ports []NamedPort) {
	ports = UniquePorts(slices.Clone(ports))
	e.mu.Lock()
	defer e.mu.Unlock()
	if old := e.idents[n]; old != nil {
		if old.labels.Equal(l) && slices.Equal(old.ports, ports) {
			return
		}
		e.leave(n, old)
	}
	i := &ident{labels: maps.Clone(l), ports: ports}
	e.idents[n] = i
	if ns, ok := l[namespaceName]; ok {
		if e.inside[ns] == nil {
			e.inside[ns] = map[identity.Number]*ident{}
		}
		e.inside[ns][n] = i
	}
	e.selectors.matching(i, func(s *selector) {
		s.matches[n] = struct{}{}
		s.touch(n)
	})
	e.touchNamed(n, i)
}

// DeleteIdentity forgets a number: no rule by labels is about it from now on.
func (e *Engine) DeleteIdentity(n identity.Number) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := e.idents[n]; i != nil {
		e.leave(n, i)
	}
}

func (e *Engine) leave(n identity.Number, i *ident) {
	e.selectors.matching(i, func(s *selector) {
		delete(s.matches, n)
		s.touch(n)
	})
	e.touchNamed(n, i)
	delete(e.idents, n)
	if ns, ok := i.labels[namespaceName]; ok {
		if delete(e.inside[ns], n); len(e.inside[ns]) == 0 {
			delete(e.inside, ns)
		}
	}
}

// touch marks an identity in the tables of all rules that have the selector.
func (s *selector) touch(n identity.Number) {
	for r := range s.users {
		r.touch(Peer(n))
	}
}

// touchNamed marks an identity in the tables of rules that are about whoever has a port of some name.
func (e *Engine) touchNamed(n identity.Number, i *ident) {
	if len(i.ports) == 0 {
		return
	}
	for r := range e.byName {
		if r.AnyPeer {
			r.touch(Peer(n))
		}
	}
}

// Classes are the prefixes that needed policies name, with the class of the addresses for which each is the longest. A
// prefix has the same number for as long as it stays, and after a restart (unless two hashes collide).
func (e *Engine) Classes() map[netip.Prefix]Peer {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[netip.Prefix]Peer, len(e.classes.named))
	for p := range e.classes.named {
		out[p] = e.classes.numbers[p]
	}
	return out
}

// ClassesInForce tells the engine which prefixes the kernel knows from now on: at the start what was read back, later
// what Classes said once that was written. It returns true when tables have changed by this: then Tables are written
// again, Classes after them, and ClassesInForce called again. Whoever never calls it gets tables as if the kernel knew
// every prefix always.
func (e *Engine) ClassesInForce(inForce map[netip.Prefix]Peer) (again bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.classes.known
	e.classes.known = make(map[netip.Prefix]struct{}, len(inForce))
	e.classes.changes++
	for p, n := range inForce {
		added := e.classes.add(p)
		if e.classes.numbers[p] != n {
			e.classes.drop(p) // written by somebody whose numbers are not ours
			continue
		}
		e.classes.known[p] = struct{}{}
		e.classes.changes++
		if added {
			again = true
			e.touchClass(p)
		}
	}
	for p := range old {
		n := e.classes.numbers[p]
		if _, ok := e.classes.known[p]; !ok && e.classes.drop(p) {
			again = true
			e.touchNumber(p, n)
		}
	}
	for _, w := range e.inOrder() {
		again = e.heard(w, old == nil) || again
		again = e.advance(w) || again
	}
	e.settled = e.settled || e.asked && !again
	return again
}

// heard does again what a policy that is in force says of the classes around prefixes that the kernel knows since now,
// or, the first time, does not know.
func (e *Engine) heard(w *written, first bool) (any bool) {
	if !w.early && !first {
		return false
	}
	prefixes := prefixesOf(w.active)
	if ready := e.classes.ready(prefixes); ready != w.early {
		return false
	}
	w.early = !w.early
	for _, p := range prefixes {
		any = e.touchAround(p) || any
	}
	return any
}

// touchAround marks the classes around a prefix: rules that leave the prefix out could not list them before.
func (e *Engine) touchAround(p netip.Prefix) (any bool) {
	for around := range upwards(p, 0) {
		if _, ok := e.classes.numbers[around]; ok {
			any = true
			e.touchClass(around)
		}
	}
	return any
}

// Waiting tells whether a policy waits for ClassesInForce. A new pod must wait too: its tables are those of the policy's
// old version, or without it.
func (e *Engine) Waiting() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.policies {
		if w.waits() {
			return true
		}
	}
	return false
}

func (w *written) waits() bool {
	return w.needed && w.refused == nil && !slices.Equal(w.desired, w.active)
}

// Pending are the policies that say something of a subject and are not yet in force as they will be, for want of
// ClassesInForce.
func (e *Engine) Pending(s Subject) []Ref {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Ref
	for ref, w := range e.policies {
		if (w.waits() || w.early) && (selects(w.desired, &s) || selects(w.active, &s)) {
			out = append(out, ref)
		}
	}
	return out
}

// Early tells whether a policy is in force without addresses that it allows, until ClassesInForce.
func (e *Engine) Early() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.policies {
		if w.early {
			return true
		}
	}
	return false
}

// Provenance says what a rule's number stands for, also for some time after the rule is gone.
func (e *Engine) Provenance(id RuleID) (Provenance, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	g, ok := e.names.byID[id]
	if !ok {
		return Provenance{}, false
	}
	p := g.Provenance
	p.Origins = slices.Clone(p.Origins)
	return p, true
}
