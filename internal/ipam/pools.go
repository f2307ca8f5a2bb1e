// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sort"
)

var (
	// ErrPoolExhausted means that no prefix is left for a node; it may heal when a range is added, a node goes or a
	// rest ends.
	ErrPoolExhausted = errors.New("pool is exhausted")
	// ErrPrefixConflict means that a node holds a prefix that another node holds too; the node loses it.
	ErrPrefixConflict = errors.New("prefix is held by another node")
)

// Pool is the ranges of one family, in the order of use, and the length of the prefix that a node gets.
type Pool struct {
	CIDRs    []netip.Prefix
	MaskSize int
}

// Demand is everything that decides who holds which prefix.
type Demand struct {
	// Pools, at most one a family.
	Pools []Pool
	// Held is node -> the prefixes that it has. A node keeps them also when the pools no longer contain them: pods have
	// their addresses.
	Held map[string][]netip.Prefix
	// Resting prefixes were freed and are given to nobody yet.
	Resting []netip.Prefix
	// Avoid are ranges that belong to something else: services, hosts.
	Avoid []netip.Prefix
	// Nodes that are to have a prefix of each pool's family.
	Nodes []string
}

// Assignment is the answer to a Demand.
type Assignment struct {
	// Prefixes is node -> all its prefixes, IPv4 first; a node has an entry if it is in Demand.Nodes or Demand.Held.
	Prefixes map[string][]netip.Prefix
	// Problems is node -> what it lacks, ErrPoolExhausted or ErrPrefixConflict.
	Problems map[string]error
}

// Assign gives each node a prefix of each family that it has none of: the lowest free one of the first range that has
// one. It depends on nothing but the demand; of two nodes that hold overlapping prefixes the first by name keeps them.
func Assign(d Demand) Assignment {
	out := Assignment{Prefixes: map[string][]netip.Prefix{}, Problems: map[string]error{}}
	complain := func(node string, err error) { out.Problems[node] = errors.Join(out.Problems[node], err) }

	var taken spans
	for _, node := range slices.Sorted(maps.Keys(d.Held)) {
		out.Prefixes[node] = nil
		for _, p := range d.Held[node] {
			if p = p.Masked(); !p.IsValid() {
				continue
			}
			if taken.overlaps(spanOf(p)) {
				complain(node, fmt.Errorf("%w: %s", ErrPrefixConflict, p))
				continue
			}
			taken.add(spanOf(p))
			out.Prefixes[node] = append(out.Prefixes[node], p)
		}
	}
	held := slices.Clone(taken)
	for _, p := range slices.Concat(d.Resting, d.Avoid) {
		if p.IsValid() {
			taken.add(spanOf(p.Masked()))
		}
	}

	for _, node := range slices.Sorted(slices.Values(d.Nodes)) {
		have := out.Prefixes[node]
		for _, pool := range d.Pools {
			if len(pool.CIDRs) == 0 || slices.ContainsFunc(have, pool.sameFamily) {
				continue
			}
			p, ok := pool.cut(taken)
			if !ok {
				complain(node, fmt.Errorf("%w: no free /%d in %v%s", ErrPoolExhausted, pool.MaskSize, pool.CIDRs, pool.restingNote(d.Resting, held)))
				continue
			}
			taken.add(spanOf(p))
			have = append(have, p)
		}
		slices.SortStableFunc(have, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
		out.Prefixes[node] = have
	}
	return out
}

func (pool Pool) sameFamily(p netip.Prefix) bool {
	return FamilyOf(p.Addr()) == FamilyOf(pool.CIDRs[0].Addr())
}

// cut finds the lowest free prefix. It jumps from one taken span to the next and never walks single prefixes.
func (pool Pool) cut(taken spans) (netip.Prefix, bool) {
	for _, c := range pool.CIDRs {
		if !c.IsValid() || pool.MaskSize < c.Bits() || pool.MaskSize > c.Addr().BitLen() {
			continue
		}
		try := netip.PrefixFrom(c.Masked().Addr(), pool.MaskSize)
		for c.Contains(try.Addr()) {
			s := spanOf(try)
			i := taken.search(s)
			if i == len(taken) || s.last.Less(taken[i].first) {
				return try, true
			}
			// The next candidate follows the one that holds the end of what is in the way.
			end := lastOf(netip.PrefixFrom(taken[i].last, pool.MaskSize).Masked())
			next := end.Next()
			if !next.IsValid() {
				break
			}
			try = netip.PrefixFrom(next, pool.MaskSize)
		}
	}
	return netip.Prefix{}, false
}

// restingNote tells a person that waiting may help.
func (pool Pool) restingNote(resting []netip.Prefix, held spans) string {
	n := 0
	for _, p := range resting {
		if p.IsValid() && slices.ContainsFunc(pool.CIDRs, p.Overlaps) && !held.overlaps(spanOf(p.Masked())) {
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d resting)", n)
}

// span is the addresses from first to last, both of one family.
type span struct{ first, last netip.Addr }

func spanOf(p netip.Prefix) span { return span{p.Addr(), lastOf(p)} }

// HostRange is what the address of a host takes from the pods' pool. The default pool was chosen by nobody and likely
// holds the network of the nodes: there it is the /16 around the address, and what lives in it beside the nodes is
// reached as ever. From a pool that a person wrote it is the address alone.
func HostRange(host netip.Addr, defaultPool bool) netip.Prefix {
	bits := host.BitLen()
	if defaultPool && host.Is4() {
		bits = 16
	}
	return netip.PrefixFrom(host, bits).Masked()
}

// spans is sorted, and no two touch or overlap.
type spans []span

// search returns the first span that ends at or after the start of s.
func (l spans) search(s span) int {
	return sort.Search(len(l), func(i int) bool { return !l[i].last.Less(s.first) })
}

func (l spans) overlaps(s span) bool {
	i := l.search(s)
	return i < len(l) && !s.last.Less(l[i].first)
}

func (l *spans) add(s span) {
	i := l.search(s)
	if i > 0 && (*l)[i-1].last.Next() == s.first {
		i--
	}
	j := i
	for ; j < len(*l); j++ {
		t := (*l)[j]
		if s.last.Less(t.first) && s.last.Next() != t.first {
			break
		}
		if t.first.Less(s.first) {
			s.first = t.first
		}
		if s.last.Less(t.last) {
			s.last = t.last
		}
	}
	*l = slices.Replace(*l, i, j, s)
}
