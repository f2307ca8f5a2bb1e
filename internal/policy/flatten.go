// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"slices"
)

// claim is what one rule says about one peer: its verdict on some ports.
type claim struct {
	rule *rule
	// anyPort, or ranges with numbers: names are resolved here.
	anyPort bool
	ranges  []PortSelector
}

// best is what stands first among the claims that cover a port: one precedence, one verdict, all rules that say so.
// The zero value means that nothing covers it.
type best struct {
	precedence uint32
	verdict    Verdict
	rules      []*rule
}

func (b best) none() bool { return b.verdict == 0 }

// same tells whether a port may as well inherit b from a shorter prefix.
func (b best) same(o best) bool { return b.precedence == o.precedence && b.verdict == o.verdict }

// cell is one entry for one peer.
type cell struct {
	protocol uint8
	bits     uint8
	port     uint16
	best
	id RuleID // of the rules of best
}

// flatten turns all claims about one peer into cells of which the most specific that covers a port says what stands
// first among the claims: ranges become prefixes, overlaps are resolved, and nothing is said twice.
func flatten(claims []claim) []cell {
	var everywhere bucket
	byProtocol := map[uint8][]claim{}
	for _, c := range claims {
		if c.anyPort {
			everywhere.add(c.rule)
			continue
		}
		seen := map[uint8]bool{}
		for _, p := range c.ranges {
			if !seen[p.Protocol] {
				seen[p.Protocol] = true
				byProtocol[p.Protocol] = append(byProtocol[p.Protocol], c)
			}
		}
	}
	var out []cell
	base := everywhere.best()
	if !base.none() {
		out = append(out, cell{best: base})
	}
	for protocol, cs := range byProtocol {
		out = flattenProtocol(out, protocol, cs, &everywhere, base)
	}
	slices.SortFunc(out, func(a, b cell) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.bits, b.bits), cmp.Compare(a.port, b.port))
	})
	return out
}

// stretch of ports for which one thing stands first. It ends where the next begins.
type stretch struct {
	first uint32
	best
}

func flattenProtocol(out []cell, protocol uint8, claims []claim, everywhere *bucket, base best) []cell {
	// Rules that are about every port of the protocol are what the others differ from.
	whole := everywhere.clone()
	type edge struct {
		at   uint32
		in   bool
		rule *rule
	}
	var edges []edge
	for _, c := range claims {
		for _, p := range c.ranges {
			switch {
			case p.Protocol != protocol:
			case p.First == 0 && p.Last == 65535:
				whole.add(c.rule)
			default:
				edges = append(edges, edge{uint32(p.First), true, c.rule}, edge{uint32(p.Last) + 1, false, c.rule})
			}
		}
	}
	inherited := base
	if w := whole.best(); !w.none() && !w.same(base) {
		out, inherited = append(out, cell{protocol: protocol, best: w}), w
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	open := whole
	stretches := []stretch{{0, open.best()}}
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			if edges[i].in {
				open.add(edges[i].rule)
			} else {
				open.remove(edges[i].rule)
			}
		}
		if at == 0 {
			stretches = stretches[:0]
		}
		now := open.best()
		if last := len(stretches) - 1; last >= 0 && now.same(stretches[last].best) && slices.Equal(now.rules, stretches[last].rules) {
			continue
		}
		if at <= 65535 {
			stretches = append(stretches, stretch{at, now})
		}
	}
	return prefixes(out, protocol, 0, 0, stretches, inherited)
}

// prefixes adds the cells for the ports whose upper bits are those of port. The first stretch begins at port or before.
func prefixes(out []cell, protocol, bits uint8, port uint32, in []stretch, inherited best) []cell {
	if len(in) == 1 {
		if b := in[0].best; !b.none() && !b.same(inherited) {
			out = append(out, cell{protocol: protocol, bits: bits, port: uint16(port), best: b})
		}
		return out
	}
	middle := port + 1<<(15-bits)
	// The stretch that holds middle begins there or before.
	i, found := slices.BinarySearchFunc(in, middle, func(s stretch, at uint32) int { return cmp.Compare(s.first, at) })
	upper := i
	if !found {
		upper--
	}
	out = prefixes(out, protocol, bits+1, port, in[:i], inherited)
	return prefixes(out, protocol, bits+1, middle, in[upper:], inherited)
}

// bucket is a set of rules, each as often as it was added, that knows which stand first.
type bucket struct {
	// counts: precedence -> rule -> how often. Rules of one precedence have one verdict.
	counts map[uint32]map[*rule]int
}

func (b *bucket) add(r *rule) {
	if b.counts == nil {
		b.counts = map[uint32]map[*rule]int{}
	}
	if b.counts[r.precedence] == nil {
		b.counts[r.precedence] = map[*rule]int{}
	}
	b.counts[r.precedence][r]++
}

func (b *bucket) remove(r *rule) {
	if b.counts[r.precedence][r]--; b.counts[r.precedence][r] == 0 {
		delete(b.counts[r.precedence], r)
	}
	if len(b.counts[r.precedence]) == 0 {
		delete(b.counts, r.precedence)
	}
}

func (b *bucket) clone() *bucket {
	out := &bucket{}
	for _, rules := range b.counts {
		for r, n := range rules {
			for range n {
				out.add(r)
			}
		}
	}
	return out
}

func (b *bucket) best() best {
	if len(b.counts) == 0 {
		return best{}
	}
	first := ^uint32(0)
	for p := range b.counts {
		first = min(first, p)
	}
	out := best{precedence: first}
	for r := range b.counts[first] {
		out.verdict = r.Verdict
		out.rules = append(out.rules, r)
	}
	slices.SortFunc(out.rules, compareRules)
	return out
}

// Lookup is how the kernel asks a table, tier by tier: for each peer the most specific key that covers the port, and
// among the peers the entry that stands first. Peers come as they are asked: the identity unless it is pending, the
// class, Anyone. Rule 0 with Allow means that nothing matched and nothing denies by default.
func (t *Table) Lookup(peers []Peer, protocol uint8, port uint16) Entry {
	for ; t != nil; t = t.Next {
		var hit Entry
		for _, p := range peers {
			if e, ok := t.one(p, protocol, port); ok && (hit.Verdict == 0 || e.Precedence < hit.Precedence) {
				hit = e
			}
		}
		switch {
		case hit.Verdict == Allow || hit.Verdict == Deny:
			return hit
		case hit.Verdict == 0 && t.Default != 0:
			return Entry{Verdict: Deny, Rule: t.Default}
		}
	}
	return Entry{Verdict: Allow}
}

func (t *Table) one(p Peer, protocol uint8, port uint16) (Entry, bool) {
	if protocol != 0 {
		for bits := 16; bits >= 0; bits-- {
			k := Key{Peer: p, Protocol: protocol, Bits: uint8(bits), Port: uint16(uint32(port) >> (16 - bits) << (16 - bits))}
			if e, ok := t.Entries[k]; ok {
				return e, true
			}
		}
	}
	e, ok := t.Entries[Key{Peer: p}]
	return e, ok
}
