// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// ErrNoRoom says that a policy does not fit beside what is in force.
var ErrNoRoom = errors.New("it does not fit")

// Limits are how much a node's kernel holds; 0 is no limit. What comes into force must leave as much free as it takes: so
// that a policy can be changed, old and new side by side, and no large one ever takes the room of the small.
type Limits struct {
	// Prefixes of all classes.
	Prefixes int
	// Singles and Ranges are entries of tables: those that name one port or none, and those that name several by the
	// upper bits of their numbers.
	Singles, Ranges int
}

// LeftOut is why a policy is not in force as it was last written.
type LeftOut struct {
	// Err wraps ErrNoRoom; or ErrBadRule, where an agent says so of a policy of which no rules can be made.
	Err error
	// Before: the version before is in force. Otherwise the policy only isolates, and allows nothing.
	Before bool
	// Nobody: it does not isolate either, for whom it selects cannot be told.
	Nobody bool
}

// String says what is so instead, and why.
func (l LeftOut) String() string {
	switch {
	case l.Before:
		return fmt.Sprintf("the version before stays in force, for %v", l.Err)
	case l.Nobody:
		return fmt.Sprintf("it selects no pod, for %v", l.Err)
	}
	return fmt.Sprintf("it isolates the pods that it selects and allows them nothing, for %v", l.Err)
}

// SetLimits says how much fits, from now on.
func (e *Engine) SetLimits(l Limits) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.limits = l
}

// Retain says for which subjects, and no others, tables are asked for: those of one node. Prefixes of policies that
// select none of them are no classes. To ask Tables for another subject adds it. An engine that is never told takes all
// policies for needed.
func (e *Engine) Retain(subjects []Subject) {
	e.mu.Lock()
	defer e.mu.Unlock()
	local := make(map[string]*Subject, len(subjects))
	for _, s := range subjects {
		local[s.key()] = s.clone()
	}
	same := e.local != nil && maps.EqualFunc(e.local, local, func(*Subject, *Subject) bool { return true })
	if e.local = local; same {
		return
	}
	for _, w := range e.inOrder() {
		if needed := e.needed(w); needed != w.needed {
			w.needed, w.joins = needed, needed
			e.advance(w)
		}
	}
}

// LeftOut are the policies that did not fit.
func (e *Engine) LeftOut() map[Ref]LeftOut {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[Ref]LeftOut{}
	for ref, w := range e.policies {
		if w.refused != nil {
			out[ref] = LeftOut{Err: w.refused, Before: !w.closed}
		}
	}
	return out
}

// inOrder are the policies in the order in which they became known: of those that do not fit together, the later ones
// are left out.
func (e *Engine) inOrder() []*written {
	return slices.SortedFunc(maps.Values(e.policies), func(a, b *written) int { return cmp.Compare(a.order, b.order) })
}

// needed tells whether the prefixes of a policy are of use on this node.
func (e *Engine) needed(w *written) bool {
	if e.local == nil || !slices.ContainsFunc(w.desired, func(r *rule) bool { return len(r.blocks) > 0 }) {
		return true
	}
	for _, s := range e.local {
		if selects(w.desired, s) {
			return true
		}
	}
	return false
}

// join makes the policies needed that select a subject which was not asked for before.
func (e *Engine) join(key string, s *Subject) {
	if e.local == nil || e.local[key] != nil {
		return
	}
	e.local[key] = s
	var joining []*written
	for _, w := range e.policies {
		if !w.needed && selects(w.desired, s) {
			joining = append(joining, w)
		}
	}
	slices.SortFunc(joining, func(a, b *written) int { return cmp.Compare(a.order, b.order) })
	for _, w := range joining {
		w.needed, w.joins = true, true
		e.advance(w)
	}
}

// fit tells why rules that are not counted yet do not fit.
func (e *Engine) fit(rules []*rule) error {
	if e.limits.Prefixes > 0 {
		more := map[netip.Prefix]struct{}{}
		for _, p := range prefixesOf(rules) {
			if _, ok := e.classes.numbers[p]; !ok {
				more[p] = struct{}{}
			}
		}
		if len(more) > 0 && len(e.classes.numbers)+2*len(more) > e.limits.Prefixes {
			return fmt.Errorf("%w: %d prefixes are new to this node, %d of %d are in use, and as many as come must stay free",
				ErrNoRoom, len(more), len(e.classes.numbers), e.limits.Prefixes)
		}
	}
	for _, d := range []Direction{Ingress, Egress} {
		singles, ranges := entriesOf(rules, d)
		for _, side := range []struct {
			what        string
			have, limit int
		}{{"single ports", singles, e.limits.Singles}, {"port ranges", ranges, e.limits.Ranges}} {
			if side.limit > 0 && 2*side.have > side.limit {
				return fmt.Errorf("%w: its %s rules are %d entries for %s or more, and a policy may have %d", ErrNoRoom, d, side.have, side.what, side.limit/2)
			}
		}
	}
	return nil
}

// entriesOf counts what rules put into a table by what they name themselves: addresses, and not the pods that they find.
func entriesOf(rules []*rule, d Direction) (singles, ranges int) {
	for _, r := range rules {
		if r.Direction != d || !r.speaks() {
			continue
		}
		peers := len(r.around)
		if r.AnyPeer {
			peers++
		}
		if peers == 0 {
			continue
		}
		one := claim{rule: r, anyPort: r.AnyPort}
		for _, p := range r.Ports {
			if p.Name == "" {
				one.ranges = append(one.ranges, p)
			}
		}
		for _, c := range flatten([]claim{one}) {
			if c.ranged() {
				ranges += peers
			} else {
				singles += peers
			}
		}
	}
	return singles, ranges
}

// closing is what stands for rules that do not fit and have no version before: nothing passes that they forbid.
func (e *Engine) closing(rules []*rule) []*rule {
	var out []*rule
	for _, r := range rules {
		if r.Verdict == 0 {
			out = append(out, r)
			continue
		}
		c := Rule{Tier: r.Tier, Priority: r.Priority, Isolates: r.Isolates, Subject: r.Subject, Direction: r.Direction, Path: r.Path}
		if r.Verdict == Deny || r.Verdict == Pass {
			c.Verdict, c.AnyPeer, c.AnyPort = Deny, true, true
		}
		if c.Verdict == 0 && !c.Isolates {
			continue
		}
		e.serial++
		out = append(out, &rule{Rule: c, ref: r.ref, serial: e.serial, precedence: c.precedence()})
	}
	return out
}

// advance brings a policy as far as the kernel can follow; true: tables or classes are others now, or will be.
//
// While the kernel cannot tell apart the prefixes of a new version, the old one stays. After a restart the old version is
// not known, and a pod that the policy had nothing to do with until now has none: to leave the policy out would be wider
// than it. Then it is in force at once, without the classes that may hold more addresses than it means. So it is where
// the version before allowed nothing.
func (e *Engine) advance(w *written) bool {
	target := w.desired
	if !w.needed {
		target = nil
	}
	was := w.refused
	if w.refused = e.reserve(w, target); w.refused != nil {
		if w.closed && slices.Equal(w.closedFor, target) || !w.closed && len(w.active) > 0 {
			return false
		}
		e.replace(w, e.closing(target))
		w.closed, w.closedFor, w.early, w.joins = true, target, false, false
		return true
	}
	if slices.Equal(target, w.active) {
		w.closed, w.closedFor, w.joins = false, nil, false
		return was != nil
	}
	ready := e.classes.ready(prefixesOf(target))
	atOnce := w.closed || len(w.active) == 0 && (!e.settled || w.joins)
	if !ready && !atOnce {
		return was != nil
	}
	e.replace(w, target)
	w.closed, w.closedFor, w.early, w.joins = false, nil, !ready, false
	return true
}

// reserve counts the prefixes of rules for a policy, in place of those that were.
func (e *Engine) reserve(w *written, rules []*rule) error {
	if slices.Equal(w.reserved, rules) {
		return nil
	}
	err := e.fit(rules)
	if err != nil {
		rules = nil
	}
	e.nameAll(rules)
	e.unnameAll(w.reserved)
	w.reserved = rules
	return err
}

// replace puts other rules of a policy in force.
func (e *Engine) replace(w *written, rules []*rule) {
	e.nameAll(rules)
	for _, r := range w.active {
		if !slices.Contains(rules, r) {
			e.remove(r)
		}
	}
	for _, r := range rules {
		if !slices.Contains(w.active, r) {
			e.insert(r)
		}
	}
	e.unnameAll(w.active)
	w.active = rules
}
