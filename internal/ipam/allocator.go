// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"
)

var (
	// ErrNoPrefix means that the node has no prefix of the family; it may heal when the operator assigns one.
	ErrNoPrefix = errors.New("node has no prefix of this family")
	// ErrExhausted means that every address is used or resting; it may heal when a pod goes or a rest ends.
	ErrExhausted = errors.New("no free address")
	// ErrTaken means that another owner holds the address.
	ErrTaken = errors.New("address is taken")
	// ErrResting means that the address was freed by another owner less than AddressRest ago.
	ErrResting = errors.New("address is resting")
)

// AddressRest is how long a freed address is given to nobody: long enough for the other agents to hear of it and for
// the conversations of its last owner to end.
const AddressRest = 60 * time.Second

// Family is an IP version.
type Family uint8

const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// FamilyOf tells the family of a valid address. An IPv4 address in IPv6 form counts as IPv6.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Usage is how full one prefix is. Total leaves out the addresses that are never given (see Allocator) and stops at
// the largest int64.
type Usage struct {
	Prefix  netip.Prefix
	Used    int64
	Resting int64
	Total   int64
	// Retired is true for a prefix that SetPrefixes no longer named: it gives nothing more and goes with its last address.
	Retired bool
}

type rest struct {
	owner string
	freed time.Time
}

// Allocator gives the addresses of one node's prefixes to owners. It never gives the first address of a prefix
// (network, or subnet-router anycast, RFC 4291 2.6.1) nor the last of an IPv4 prefix (broadcast); a prefix of one or
// two addresses is used whole. Addresses are given in rising order from where the last was given, so that a freed
// one comes back as late as possible. All methods may be called from several goroutines.
type Allocator struct {
	clock func() time.Time

	mu       sync.Mutex
	prefixes []netip.Prefix              // in the order of use
	retired  map[netip.Prefix]bool       // no longer ours, but addresses in it are still held
	last     map[netip.Prefix]netip.Addr // prefix -> address given last
	used     map[netip.Addr]string       // address -> owner
	resting  map[netip.Addr]rest
}

// NewAllocator makes an Allocator without prefixes. The clock is time.Now outside tests.
func NewAllocator(clock func() time.Time) *Allocator {
	return &Allocator{
		clock:   clock,
		retired: map[netip.Prefix]bool{},
		last:    map[netip.Prefix]netip.Addr{},
		used:    map[netip.Addr]string{},
		resting: map[netip.Addr]rest{},
	}
}

// SetPrefixes replaces the prefixes. Addresses already given stay with their owners, also outside the new prefixes:
// a running pod is never renumbered. Invalid prefixes and repetitions are left out.
func (a *Allocator) SetPrefixes(prefixes []netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if p = p.Masked(); p.IsValid() && !slices.Contains(now, p) {
			now = append(now, p)
		}
	}
	for _, p := range a.prefixes {
		if !slices.Contains(now, p) {
			a.retired[p] = true
		}
	}
	for _, p := range now {
		delete(a.retired, p)
	}
	a.prefixes = now
	maps.DeleteFunc(a.last, func(p netip.Prefix, _ netip.Addr) bool { return !slices.Contains(now, p) })
}

// Prefixes returns those of the last SetPrefixes.
func (a *Allocator) Prefixes() []netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.prefixes)
}

// Allocate gives a free address of the family to the owner. An owner may hold several. It returns ErrNoPrefix or
// ErrExhausted.
func (a *Allocator) Allocate(family Family, owner string) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wake()
	var full []netip.Prefix
	for _, p := range a.prefixes {
		if FamilyOf(p.Addr()) != family {
			continue
		}
		if addr, ok := a.free(p); ok {
			a.used[addr] = owner
			a.last[p] = addr
			return addr, nil
		}
		full = append(full, p)
	}
	if len(full) == 0 {
		return netip.Addr{}, fmt.Errorf("%w: %s", ErrNoPrefix, family)
	}
	used, resting := 0, 0
	for _, p := range full {
		u, r := a.count(p)
		used, resting = used+u, resting+r
	}
	return netip.Addr{}, fmt.Errorf("%w in %v: %d used, %d resting for up to %v", ErrExhausted, full, used, resting, AddressRest)
}

// free finds the next address after the one given last. It looks at no more addresses than are held, plus one.
func (a *Allocator) free(p netip.Prefix) (netip.Addr, bool) {
	first, last := usable(p)
	addr := first
	if l, ok := a.last[p]; ok && l != last {
		addr = l.Next()
	}
	steps := int64(len(a.used)+len(a.resting)) + 1
	for range min(steps, total(p)) {
		_, used := a.used[addr]
		_, resting := a.resting[addr]
		if !used && !resting {
			return addr, true
		}
		if addr == last {
			addr = first
		} else {
			addr = addr.Next()
		}
	}
	return netip.Addr{}, false
}

// Reserve gives a certain address to the owner: how a restarted agent takes up what its pods already have. It accepts
// addresses outside the prefixes, also before the first SetPrefixes, and repeated reservations by one owner. It
// returns ErrTaken or ErrResting.
func (a *Allocator) Reserve(addr netip.Addr, owner string) error {
	if !addr.IsValid() {
		return fmt.Errorf("reserve for %s: invalid address", owner)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wake()
	if holder, ok := a.used[addr]; ok {
		if holder == owner {
			return nil
		}
		return fmt.Errorf("%w: %s by %s", ErrTaken, addr, holder)
	}
	if r, ok := a.resting[addr]; ok && r.owner != owner {
		return fmt.Errorf("%w: %s after %s", ErrResting, addr, r.owner)
	}
	delete(a.resting, addr)
	a.used[addr] = owner
	return nil
}

// Release frees an address, which then rests. Releasing what nobody holds does nothing.
func (a *Allocator) Release(addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	owner, ok := a.used[addr]
	if !ok {
		return
	}
	delete(a.used, addr)
	a.resting[addr] = rest{owner: owner, freed: a.clock()}
}

// Owner tells who holds an address.
func (a *Allocator) Owner(addr netip.Addr) (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	owner, ok := a.used[addr]
	return owner, ok
}

// Resting returns the addresses at rest and when they were freed, for an agent that keeps them over its restart.
func (a *Allocator) Resting() map[netip.Addr]time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wake()
	out := make(map[netip.Addr]time.Time, len(a.resting))
	for addr, r := range a.resting {
		out[addr] = r.freed
	}
	return out
}

// Rest puts back what Resting returned before a restart. A held address is left alone.
func (a *Allocator) Rest(addr netip.Addr, freed time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.clock(); freed.After(now) {
		freed = now // the wall clock was set back while the agent was away
	}
	if _, held := a.used[addr]; !held && addr.IsValid() {
		a.resting[addr] = rest{freed: freed}
	}
}

// Usage reports each prefix in the order of use, then retired ones that still hold addresses.
func (a *Allocator) Usage() []Usage {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wake()
	out := make([]Usage, 0, len(a.prefixes)+len(a.retired))
	for _, p := range a.prefixes {
		used, resting := a.count(p)
		out = append(out, Usage{Prefix: p, Used: int64(used), Resting: int64(resting), Total: total(p)})
	}
	for _, p := range slices.SortedFunc(maps.Keys(a.retired), comparePrefixes) {
		used, resting := a.count(p)
		if used+resting == 0 {
			delete(a.retired, p)
			continue
		}
		out = append(out, Usage{Prefix: p, Used: int64(used), Resting: int64(resting), Total: total(p), Retired: true})
	}
	return out
}

func (a *Allocator) count(p netip.Prefix) (used, resting int) {
	for addr := range a.used {
		if p.Contains(addr) {
			used++
		}
	}
	for addr := range a.resting {
		if p.Contains(addr) {
			resting++
		}
	}
	return used, resting
}

// wake forgets the rests that are over.
func (a *Allocator) wake() {
	now := a.clock()
	maps.DeleteFunc(a.resting, func(_ netip.Addr, r rest) bool { return now.Sub(r.freed) >= AddressRest })
}

// usable returns the first and the last address that a prefix gives.
func usable(p netip.Prefix) (first, last netip.Addr) {
	first, last = p.Addr(), lastOf(p)
	if p.Addr().BitLen()-p.Bits() <= 1 {
		return first, last
	}
	first = first.Next()
	if p.Addr().Is4() {
		last = last.Prev()
	}
	return first, last
}

func total(p netip.Prefix) int64 {
	host := p.Addr().BitLen() - p.Bits()
	switch {
	case host <= 1:
		return int64(1) << host
	case host >= 63:
		return math.MaxInt64
	case p.Addr().Is4():
		return int64(1)<<host - 2
	default:
		return int64(1)<<host - 1
	}
}

// lastOf returns the highest address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
