// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
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
	// sorted holds the prefixes of numbers by address, then length, so that what lies inside a prefix is one stretch;
	// nil: to be made.
	sorted []netip.Prefix
}

func newClasses() classes {
	return classes{named: map[netip.Prefix]int{}, numbers: map[netip.Prefix]Peer{}, holders: map[Peer]netip.Prefix{}}
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
func (c *classes) within(b Block, f func(Peer)) {
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

// lists tells whether a rule with the block lists the class of a prefix. While the kernel does not know an Except yet, it
// takes those addresses for the class around, which is then left out as a whole.
func (c *classes) lists(b Block, p netip.Prefix) bool {
	return b.holds(p) && !slices.ContainsFunc(b.Except, func(e netip.Prefix) bool {
		return inside(e, p) && !c.ready([]netip.Prefix{e})
	})
}

// holds tells whether the block is about the class of a prefix. Each Except is a class of its own, so a class lies
// either inside one or outside of all.
func (b Block) holds(p netip.Prefix) bool {
	return inside(p, b.CIDR) && !slices.ContainsFunc(b.Except, func(e netip.Prefix) bool { return inside(p, e) })
}

// prefixes that a block names.
func (b Block) prefixes() []netip.Prefix { return append([]netip.Prefix{b.CIDR}, b.Except...) }
