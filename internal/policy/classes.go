// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"slices"
)

// classes cuts the addresses into classes: the class of an address is the longest prefix, of those that policies name,
// that holds it. Prefixes that no policy names any more are still in tables for as long as the kernel knows them.
type classes struct {
	// named: prefix -> how many rules name it, the old version of a policy that waits included
	named map[netip.Prefix]int
	// known is what the kernel knows; nil until somebody tells.
	known   map[netip.Prefix]struct{}
	numbers map[netip.Prefix]Peer
	holders map[Peer]netip.Prefix
	// changes counts what makes known or numbers another set; never 0.
	changes uint64
	// sorted holds the prefixes of numbers by address, then length, so that what lies inside a prefix is one stretch;
	// nil: to be made.
	sorted []netip.Prefix
}

func newClasses() classes {
	return classes{changes: 1, named: map[netip.Prefix]int{}, numbers: map[netip.Prefix]Peer{}, holders: map[Peer]netip.Prefix{}}
}

// name returns true when the prefix is new.
func (c *classes) name(p netip.Prefix) bool {
	c.named[p]++
	return c.add(p)
}

// unname returns true when the prefix is gone.
func (c *classes) unname(p netip.Prefix) bool {
	if c.named[p]--; c.named[p] == 0 {
		delete(c.named, p)
	}
	return c.drop(p)
}

func (c *classes) add(p netip.Prefix) bool {
	if _, ok := c.numbers[p]; ok {
		return false
	}
	for attempt := uint32(0); ; attempt++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", attempt, p))
		n := ClassBit | Peer(binary.BigEndian.Uint32(sum[:]))
		if _, taken := c.holders[n]; taken {
			continue
		}
		c.numbers[p], c.holders[n], c.sorted = n, p, nil
		c.changes++
		return true
	}
}

// drop forgets the number of a prefix that nobody names and the kernel does not know.
func (c *classes) drop(p netip.Prefix) bool {
	if _, known := c.known[p]; known || c.named[p] > 0 {
		return false
	}
	delete(c.holders, c.numbers[p])
	delete(c.numbers, p)
	c.sorted = nil
	c.changes++
	return true
}

// ready tells whether the kernel knows all prefixes; it does as long as nobody says otherwise.
func (c *classes) ready(prefixes []netip.Prefix) bool {
	if c.known == nil {
		return true
	}
	for _, p := range prefixes {
		if _, ok := c.known[p]; !ok {
			return false
		}
	}
	return true
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// within calls f with the class of each prefix inside a block.
func (c *classes) within(b *block, f func(Peer)) {
	if c.sorted == nil {
		c.sorted = make([]netip.Prefix, 0, len(c.numbers))
		for p := range c.numbers {
			c.sorted = append(c.sorted, p)
		}
		slices.SortFunc(c.sorted, comparePrefixes)
	}
	at, _ := slices.BinarySearchFunc(c.sorted, b.CIDR, comparePrefixes)
	for _, p := range c.sorted[at:] {
		if !inside(p, b.CIDR) {
			return
		}
		if c.lists(b, p) {
			f(c.numbers[p])
		}
	}
}

// lists tells whether a rule with the block lists the class of a prefix inside it. While the kernel does not know an
// Except yet, it takes those addresses for the class around, which is then left out as a whole.
func (c *classes) lists(b *block, p netip.Prefix) bool {
	if b.excepts(p) {
		return false
	}
	_, blurred := c.blurred(b)[p]
	return !blurred
}

// blurred are the prefixes with a class that have an Except inside that the kernel does not know.
func (c *classes) blurred(b *block) map[netip.Prefix]struct{} {
	if b.asOf == c.changes {
		return b.blurred
	}
	b.asOf, b.blurred = c.changes, nil
	for _, e := range b.Except {
		if c.ready([]netip.Prefix{e}) {
			continue
		}
		for around := range upwards(e, b.CIDR.Bits()) {
			if _, ok := c.numbers[around]; ok {
				if b.blurred == nil {
					b.blurred = map[netip.Prefix]struct{}{}
				}
				b.blurred[around] = struct{}{}
			}
		}
	}
	return b.blurred
}

// upwards are the prefixes around p that are at least as long as shortest, p first.
func upwards(p netip.Prefix, shortest int) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for bits := p.Bits(); bits >= shortest; bits-- {
			if around, err := p.Addr().Prefix(bits); err != nil || !yield(around) {
				return
			}
		}
	}
}

// block is a Block that is asked for one prefix in a time that does not grow with the number of exceptions.
type block struct {
	Block
	// except and the lengths that occur in it; nil before the first question: most policies are about no pod of this node.
	except  map[netip.Prefix]struct{}
	lengths []int
	// blurred as of classes.changes.
	blurred map[netip.Prefix]struct{}
	asOf    uint64
}

func (b *block) index() {
	b.except = make(map[netip.Prefix]struct{}, len(b.Except))
	for _, e := range b.Except {
		b.except[e] = struct{}{}
		if !slices.Contains(b.lengths, e.Bits()) {
			b.lengths = append(b.lengths, e.Bits())
		}
	}
}

// excepts tells whether a prefix lies inside an Except. Each is a class of its own, so a class lies either inside one or
// outside of all.
func (b *block) excepts(p netip.Prefix) bool {
	if b.except == nil {
		b.index()
	}
	return slices.ContainsFunc(b.lengths, func(bits int) bool {
		if bits > p.Bits() {
			return false
		}
		around, err := p.Addr().Prefix(bits)
		if err != nil {
			return false
		}
		_, ok := b.except[around]
		return ok
	})
}
