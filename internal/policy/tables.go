// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"weak"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// subject is a Subject that was asked for, and the states that answer for it.
type subject struct {
	Subject
	sides [2]*state // by Direction; nil: nothing selects it
	// stale: rules that select it came or went.
	stale bool
	asked uint64
}

// state is the table of one set of rules in one direction, kept up to date peer by peer. Subjects of the same rules share
// it.
type state struct {
	key       string
	direction Direction
	rules     []stated
	// ports are the named ports of the subject that ingress rules ask for.
	ports []NamedPort
	users int
	// tiers that say anything, in order.
	tiers []*tier
	built bool
	dirty map[Peer]struct{}
	// flat: claims of a peer -> cells, since most peers are claimed by the same rules
	flat map[string][]cell
	// table is the first of the chain.
	table *Table
}

// stated is a rule of a state. onlyIsolates: it is not certain that the rule is about the subject.
type stated struct {
	*rule
	onlyIsolates bool
}

// tier is what one tier says to a state.
type tier struct {
	number Tier
	rules  []*rule
	// order: rule -> its place in rules.
	order map[*rule]int
	// wide are the rules that name somebody else than addresses and pods.
	wide     []*rule
	isolated RuleID
	cells    map[Peer][]cell
	table    *Table
	// sum of the hashes of all entries.
	sum uint64
	// singles and ranges are how many entries cells are.
	singles, ranges int
}

// Tables are what the policies say about a pod. Nil: no policy selects it in that direction, and it is allowed
// everything. While the content is the same, so is the pointer, also for another subject, as long as somebody holds it.
func (e *Engine) Tables(s Subject) (ingress, egress *Table) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = true
	sub := e.subject(s)
	ingress, egress = e.table(sub.sides[Ingress]), e.table(sub.sides[Egress])
	if e.names.sweep(e.liveRules) {
		for _, st := range e.states {
			clear(st.flat) // what no table holds is named anew when it comes back
		}
	}
	return ingress, egress
}

func (e *Engine) liveRules(mark func(RuleID)) {
	for _, s := range e.states {
		for t := s.table; t != nil; t = t.Next {
			mark(t.Default)
			for _, entry := range t.Entries {
				mark(entry.Rule)
			}
		}
	}
}

func (e *Engine) subject(s Subject) *subject {
	key := s.key()
	sub := e.subjects[key]
	if sub == nil {
		e.forgetSubjects()
		sub = &subject{Subject: *s.clone(), stale: true}
		e.subjects[key] = sub
	}
	e.join(key, &sub.Subject)
	e.clock++
	sub.asked = e.clock
	if sub.stale {
		sub.stale = false
		sides := [2]*state{e.state(&sub.Subject, Egress), e.state(&sub.Subject, Ingress)}
		e.releaseStates(sub)
		sub.sides = sides
	}
	return sub
}

// clone is a copy that shares nothing, with its ports in order.
func (s *Subject) clone() *Subject {
	return &Subject{Labels: maps.Clone(s.Labels), Whole: s.Whole, Ports: UniquePorts(slices.Clone(s.Ports))}
}

func (s *Subject) key() string {
	return fmt.Sprintf("%t %v %s", s.Whole, s.Ports, s.Labels.Canonical())
}

// forgetSubjects makes room: the half that was not asked for longest goes.
func (e *Engine) forgetSubjects() {
	if len(e.subjects) < maxSubjects {
		return
	}
	keys := slices.SortedFunc(maps.Keys(e.subjects), func(a, b string) int { return cmp.Compare(e.subjects[a].asked, e.subjects[b].asked) })
	for _, k := range keys[:maxSubjects/2] {
		e.releaseStates(e.subjects[k])
		delete(e.subjects, k)
	}
}

func (e *Engine) releaseStates(sub *subject) {
	for d, st := range sub.sides {
		if sub.sides[d] = nil; st == nil {
			continue
		}
		if st.users--; st.users == 0 {
			e.forgetState(st)
			for _, r := range st.rules {
				delete(r.states, st)
			}
		}
	}
}

func (e *Engine) forgetState(st *state) {
	if e.states[st.key] == st {
		delete(e.states, st.key)
	}
}

// selecting returns the rules that are about a subject, in one order. given calls its function with each candidate.
func selecting(s *Subject, d Direction, given func(func(*rule))) []stated {
	var out []stated
	given(func(r *rule) {
		if r.Direction != d {
			return
		}
		a := r.Subject.ask(s.Labels, s.Whole)
		only := a == perhaps && r.Verdict != Deny
		if a == no || only && !r.Isolates {
			return
		}
		out = append(out, stated{rule: r, onlyIsolates: only || !r.speaks()})
	})
	slices.SortFunc(out, func(a, b stated) int {
		return cmp.Or(cmp.Compare(a.precedence, b.precedence), compareRules(a.rule, b.rule), cmp.Compare(a.serial, b.serial))
	})
	return out
}

// judged tells whether rules make a table.
func judged(rules []stated) bool {
	return slices.ContainsFunc(rules, func(r stated) bool { return r.Isolates || !r.onlyIsolates })
}

// state finds or makes what answers for a subject in one direction, and counts one more user of it.
func (e *Engine) state(s *Subject, d Direction) *state {
	rules := selecting(s, d, func(f func(*rule)) {
		for r := range e.rules[s.Labels[namespaceName]] {
			f(r)
		}
		if s.Labels[namespaceName] != "" {
			for r := range e.rules[""] {
				f(r)
			}
		}
	})
	if !judged(rules) {
		return nil
	}
	st := &state{direction: d, rules: rules, dirty: map[Peer]struct{}{}, flat: map[string][]cell{}}
	var key strings.Builder
	fmt.Fprint(&key, d)
	for _, r := range rules {
		fmt.Fprintf(&key, " %d%t", r.serial, r.onlyIsolates)
		if d != Ingress || r.onlyIsolates {
			continue
		}
		for _, p := range r.Ports {
			if p.Name != "" {
				st.ports = append(st.ports, portsNamed(s.Ports, p)...)
			}
		}
	}
	st.ports = UniquePorts(slices.Clone(st.ports))
	fmt.Fprint(&key, st.ports)
	st.key = key.String()
	if known := e.states[st.key]; known != nil {
		known.users++
		return known
	}
	st.users = 1
	e.states[st.key] = st
	for _, r := range rules {
		r.states[st] = struct{}{}
	}
	return st
}

// portsNamed are those of a pod's ports that a selector means.
func portsNamed(ports []NamedPort, p PortSelector) []NamedPort {
	var out []NamedPort
	for _, n := range ports {
		if n.Name == p.Name && n.Protocol == p.Protocol {
			out = append(out, n)
		}
	}
	return out
}

func compareNamedPorts(a, b NamedPort) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// table brings a state up to date.
func (e *Engine) table(st *state) *Table {
	switch {
	case st == nil:
		return nil
	case !st.built:
		e.build(st)
	case len(st.dirty) > 0:
		e.patch(st)
	}
	return st.table
}

// makeTiers sorts the rules of a state by tier; a tier behind one that denies by default is heard only after a Pass.
func (e *Engine) makeTiers(st *state) {
	st.tiers = nil
	for number := range Tier(tiers) {
		t := &tier{number: number, order: map[*rule]int{}, cells: map[Peer][]cell{}}
		var isolating []Origin
		passes := false
		for _, r := range st.rules {
			if r.Tier != number {
				continue
			}
			if r.Isolates {
				isolating = append(isolating, Origin{Ref: r.ref})
			}
			if !r.onlyIsolates {
				t.order[r.rule] = len(t.rules)
				t.rules = append(t.rules, r.rule)
				if r.AnyPeer || slices.ContainsFunc(r.Peers, func(p PeerSelector) bool { _, ok := p.(Entity); return ok }) {
					t.wide = append(t.wide, r.rule)
				}
				passes = passes || r.Verdict == Pass
			}
		}
		if len(isolating) > 0 {
			t.isolated = e.names.name(Provenance{Verdict: Deny, Direction: st.direction, Default: true, Origins: isolating})
		}
		if len(t.rules) > 0 || t.isolated != 0 {
			st.tiers = append(st.tiers, t)
		}
		if t.isolated != 0 && !passes {
			return
		}
	}
}

func (e *Engine) build(st *state) {
	e.makeTiers(st)
	for _, t := range st.tiers {
		claims := map[Peer][]claim{}
		for _, r := range t.rules {
			e.claimAll(st, r, func(p Peer, c claim) { claims[p] = append(claims[p], c) })
		}
		for p, cs := range claims {
			t.cells[p] = e.flatten(st, cs)
			t.count(t.cells[p], 1)
		}
		t.make(e.limits)
	}
	st.built = true
	clear(st.dirty)
	e.chain(st)
}

// patch does again what is said about the peers that changed. A table that somebody may hold is not changed.
func (e *Engine) patch(st *state) {
	for _, t := range st.tiers {
		changed := map[Peer][]cell{}
		for p := range st.dirty {
			var cs []claim
			for _, r := range e.rulesAbout(t, p) {
				if c, ok := e.portsOf(st, r, p); ok {
					cs = append(cs, c)
				}
			}
			cells := e.flatten(st, cs)
			if slices.EqualFunc(cells, t.cells[p], func(a, b cell) bool {
				return a.protocol == b.protocol && a.bits == b.bits && a.port == b.port && a.same(b.best) && a.id == b.id
			}) {
				continue
			}
			t.count(t.cells[p], -1)
			t.count(cells, 1)
			changed[p] = cells
		}
		if len(changed) > 0 {
			t.change(changed, e.limits)
		}
	}
	clear(st.dirty)
	e.chain(st)
}

func (c *cell) key(p Peer) Key {
	return Key{Peer: p, Protocol: c.protocol, Bits: c.bits, Port: c.port}
}

// ranged tells whether a cell names several ports.
func (c *cell) ranged() bool { return c.protocol != 0 && c.bits < 16 }

func (t *tier) count(cells []cell, sign int) {
	for i := range cells {
		if cells[i].ranged() {
			t.ranges += sign
		} else {
			t.singles += sign
		}
	}
}

func (t *tier) overflows(l Limits) bool {
	return l.Singles > 0 && t.singles > l.Singles || l.Ranges > 0 && t.ranges > l.Ranges
}

// make makes the table of all cells.
func (t *tier) make(l Limits) {
	t.sum = 0
	t.table = &Table{Entries: map[Key]Entry{}, Default: t.isolated, Overflows: t.overflows(l)}
	if t.table.Overflows {
		return
	}
	for p, cells := range t.cells {
		t.put(t.table.Entries, p, cells)
	}
}

// change makes the table in which some peers have other cells.
func (t *tier) change(changed map[Peer][]cell, l Limits) {
	whole := t.table.Overflows || t.overflows(l)
	if !whole {
		t.table = &Table{Entries: maps.Clone(t.table.Entries), Default: t.isolated}
	}
	for p, cells := range changed {
		if !whole {
			for _, c := range t.cells[p] {
				k := c.key(p)
				t.sum -= hashEntry(k, t.table.Entries[k])
				delete(t.table.Entries, k)
			}
			t.put(t.table.Entries, p, cells)
		}
		if t.cells[p] = cells; len(cells) == 0 {
			delete(t.cells, p)
		}
	}
	if whole {
		t.make(l)
	}
}

func (t *tier) put(entries map[Key]Entry, p Peer, cells []cell) {
	for i := range cells {
		c := &cells[i]
		k, entry := c.key(p), Entry{Verdict: c.verdict, Rule: c.id, Precedence: c.precedence}
		entries[k] = entry
		t.sum += hashEntry(k, entry)
	}
}

func (e *Engine) nameOf(d Direction, b best) RuleID {
	origins := make([]Origin, len(b.rules))
	for i, r := range b.rules {
		origins[i] = r.origin()
	}
	return e.names.name(Provenance{Verdict: b.verdict, Direction: d, Origins: origins})
}

// chain links the tables of the tiers, last first, and takes for each the one of equal content that somebody still holds.
func (e *Engine) chain(st *state) {
	var next *Table
	for _, t := range slices.Backward(st.tiers) {
		if t.table.Next != next {
			t.table = &Table{Entries: t.table.Entries, Default: t.isolated, Overflows: t.table.Overflows, Next: next}
		}
		t.table = e.intern(t.sum, t.table)
		next = t.table
	}
	st.table = next
}

func (e *Engine) intern(sum uint64, t *Table) *Table {
	sum += uint64(t.Default) * 0x9e3779b97f4a7c15
	var live []weak.Pointer[Table]
	for _, w := range e.interned[sum] {
		o := w.Value()
		if o == nil {
			continue
		}
		if o == t || o.Default == t.Default && o.Next == t.Next && o.Overflows == t.Overflows && maps.Equal(o.Entries, t.Entries) {
			return o
		}
		live = append(live, w)
	}
	e.interned[sum] = append(live, weak.Make(t))
	e.forgetTables()
	return t
}

// forgetTables drops the slots of tables that nobody holds any more.
func (e *Engine) forgetTables() {
	if len(e.interned) < 4*len(e.states)+1024 {
		return
	}
	for sum, ws := range e.interned {
		if !slices.ContainsFunc(ws, func(w weak.Pointer[Table]) bool { return w.Value() != nil }) {
			delete(e.interned, sum)
		}
	}
}

// hashEntry mixes an entry into 64 bits; the sum over a table does not depend on order, and can be kept up to date.
func hashEntry(k Key, v Entry) uint64 {
	a := uint64(k.Peer)<<32 | uint64(k.Protocol)<<24 | uint64(k.Bits)<<16 | uint64(k.Port)
	b := uint64(v.Rule)<<32 | uint64(v.Precedence)
	return mix(a ^ mix(b+uint64(v.Verdict)*0x9e3779b97f4a7c15))
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// flatten remembers: most peers are claimed by the same rules on the same ports.
func (e *Engine) flatten(st *state, cs []claim) []cell {
	if len(cs) == 0 {
		return nil
	}
	var key []byte
	for _, c := range cs {
		key = binary.AppendUvarint(key, c.rule.serial)
		if c.anyPort {
			key = append(key, 0)
			continue
		}
		key = binary.AppendUvarint(key, uint64(len(c.ranges))+1)
		for _, p := range c.ranges {
			key = append(key, p.Protocol)
			key = binary.BigEndian.AppendUint16(key, p.First)
			key = binary.BigEndian.AppendUint16(key, p.Last)
		}
	}
	cells, ok := st.flat[string(key)]
	if !ok {
		cells = flatten(cs)
		for i := range cells {
			cells[i].id = e.nameOf(st.direction, cells[i].best)
		}
		st.flat[string(key)] = cells
	}
	return cells
}

// claimAll calls f with what a rule says about each peer.
func (e *Engine) claimAll(st *state, r *rule, f func(Peer, claim)) {
	peers := map[Peer]struct{}{}
	if r.AnyPeer {
		peers[Anyone] = struct{}{}
		if _, ok := e.byName[r]; ok {
			for n, i := range e.idents {
				if len(i.ports) > 0 {
					peers[Peer(n)] = struct{}{}
				}
			}
		}
	} else {
		for _, s := range r.selectors {
			for n := range s.matches {
				peers[Peer(n)] = struct{}{}
			}
		}
		for _, b := range r.blocks {
			e.classes.within(b, func(p Peer) { peers[p] = struct{}{} })
		}
		for _, p := range r.Peers {
			if n, ok := p.(Entity); ok {
				peers[Peer(n)] = struct{}{}
			}
		}
	}
	for p := range peers {
		if c, ok := e.portsOf(st, r, p); ok {
			f(p, c)
		}
	}
}

// rulesAbout are the rules of a tier that are about a peer, in their order, without asking each.
func (e *Engine) rulesAbout(t *tier, p Peer) []*rule {
	var places []int
	found := func(r *rule) {
		if at, ok := t.order[r]; ok && e.isAbout(r, p) {
			places = append(places, at)
		}
	}
	// Those of a set that all tables share may be more than the tier has.
	among := func(set map[*rule]struct{}) {
		if len(set) <= len(t.rules) {
			for r := range set {
				found(r)
			}
			return
		}
		for _, r := range t.rules {
			if _, ok := set[r]; ok {
				found(r)
			}
		}
	}
	for _, r := range t.wide {
		found(r)
	}
	if prefix, ok := e.classes.holders[p]; ok {
		for around := range upwards(prefix, 0) {
			among(e.blocks[around])
		}
	}
	if i := e.idents[identity.Number(p)]; i != nil {
		e.selectors.matching(i, func(s *selector) { among(s.users) })
	}
	slices.Sort(places)
	var out []*rule
	for _, at := range slices.Compact(places) {
		out = append(out, t.rules[at])
	}
	return out
}

func (e *Engine) isAbout(r *rule, p Peer) bool {
	switch {
	case r.AnyPeer:
		if p == Anyone {
			return true
		}
		_, named := e.byName[r]
		i := e.idents[identity.Number(p)]
		return named && i != nil && len(i.ports) > 0
	case p&ClassBit != 0:
		prefix, ok := e.classes.holders[p]
		if !ok {
			return false
		}
		for around := range upwards(prefix, 0) {
			if slices.ContainsFunc(r.around[around], func(b *block) bool { return e.classes.lists(b, prefix) }) {
				return true
			}
		}
		return false
	}
	return slices.ContainsFunc(r.selectors, func(s *selector) bool { _, ok := s.matches[identity.Number(p)]; return ok }) ||
		slices.ContainsFunc(r.Peers, func(x PeerSelector) bool { n, ok := x.(Entity); return ok && Peer(n) == p })
}

// portsOf resolves the ports of a rule for a peer. On ingress a name is that of the subject's own port; on egress that of
// the peer's, which addresses and anyone do not have. False: no port is left.
func (e *Engine) portsOf(st *state, r *rule, p Peer) (claim, bool) {
	if r.AnyPort {
		// Whom the rule reaches for a port's name only has nothing more here.
		return claim{rule: r, anyPort: true}, true
	}
	c := claim{rule: r}
	var i *ident
	if p != Anyone && p&ClassBit == 0 {
		i = e.idents[identity.Number(p)]
	}
	for _, s := range r.Ports {
		switch {
		case s.Name == "":
			if !r.AnyPeer || p == Anyone {
				c.ranges = append(c.ranges, s)
			}
		case r.Direction == Ingress:
			c.ranges = append(c.ranges, numbered(portsNamed(st.ports, s))...)
		case i != nil:
			c.ranges = append(c.ranges, numbered(portsNamed(i.ports, s))...)
		}
	}
	return c, len(c.ranges) > 0
}

func numbered(ports []NamedPort) []PortSelector {
	var out []PortSelector
	for _, n := range ports {
		out = append(out, PortSelector{Protocol: n.Protocol, First: n.Port, Last: n.Port})
	}
	return out
}
