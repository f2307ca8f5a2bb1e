// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

type clock struct{ now time.Time }

func newClock() *clock                   { return &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }
func (c *clock) read() time.Time         { return c.now }
func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

func mustAllocate(t *testing.T, a *Allocator, f Family, owner string) netip.Addr {
	t.Helper()
	addr, err := a.Allocate(f, owner)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestEdgesAreNeverGiven(t *testing.T) {
	for _, row := range []struct {
		prefix      string
		first, last string
		n           int
	}{
		{"10.1.2.0/24", "10.1.2.1", "10.1.2.254", 254},
		{"10.1.2.4/30", "10.1.2.5", "10.1.2.6", 2},
		{"10.1.2.4/31", "10.1.2.4", "10.1.2.5", 2},
		{"10.1.2.4/32", "10.1.2.4", "10.1.2.4", 1},
		{"fd00::100/120", "fd00::101", "fd00::1ff", 255},
		{"fd00::100/127", "fd00::100", "fd00::101", 2},
		{"fd00::5/128", "fd00::5", "fd00::5", 1},
	} {
		a := NewAllocator(newClock().read)
		p := netip.MustParsePrefix(row.prefix)
		a.SetPrefixes([]netip.Prefix{p})
		var got []netip.Addr
		for {
			addr, err := a.Allocate(FamilyOf(p.Addr()), fmt.Sprint(len(got)))
			if err != nil {
				if !errors.Is(err, ErrExhausted) {
					t.Errorf("%s: %v", p, err)
				}
				break
			}
			got = append(got, addr)
		}
		if len(got) != row.n || got[0].String() != row.first || got[len(got)-1].String() != row.last || !slices.IsSortedFunc(got, netip.Addr.Compare) {
			t.Errorf("%s gave %d addresses, %v to %v", p, len(got), got[0], got[len(got)-1])
		}
		if u := a.Usage()[0]; u.Total != int64(row.n) || u.Used != int64(row.n) {
			t.Errorf("%s: usage %+v", p, u)
		}
	}
}

func TestFreedAddressRests(t *testing.T) {
	c := newClock()
	a := NewAllocator(c.read)
	a.SetPrefixes(prefixes("10.0.0.0/30"))
	one := mustAllocate(t, a, IPv4, "one")
	mustAllocate(t, a, IPv4, "two")
	a.Release(one)
	a.Release(one)
	c.advance(AddressRest - time.Nanosecond)
	if addr, err := a.Allocate(IPv4, "three"); !errors.Is(err, ErrExhausted) {
		t.Fatalf("%v was given while it rested: %v", addr, err)
	}
	if err := a.Reserve(one, "three"); !errors.Is(err, ErrResting) {
		t.Errorf("reserved by another while it rested: %v", err)
	}
	if u := a.Usage()[0]; u.Used != 1 || u.Resting != 1 || u.Total != 2 {
		t.Errorf("usage %+v", u)
	}
	c.advance(time.Nanosecond)
	if addr := mustAllocate(t, a, IPv4, "three"); addr != one {
		t.Errorf("got %v after the rest, want %v", addr, one)
	}
}

func TestRestSurvivesARestart(t *testing.T) {
	c := newClock()
	a := NewAllocator(c.read)
	a.SetPrefixes(prefixes("10.0.0.0/30"))
	kept, freed := mustAllocate(t, a, IPv4, "kept"), mustAllocate(t, a, IPv4, "freed")
	a.Release(freed)

	b := NewAllocator(c.read)
	if err := b.Reserve(kept, "kept"); err != nil { // before the prefixes are known
		t.Fatal(err)
	}
	for addr, at := range a.Resting() {
		b.Rest(addr, at)
	}
	b.Rest(kept, c.now) // held: stays with its owner
	b.SetPrefixes(prefixes("10.0.0.0/30"))
	if addr, err := b.Allocate(IPv4, "x"); err == nil {
		t.Errorf("%v was given after a restart although it is held or rests", addr)
	}
	c.advance(AddressRest)
	if addr := mustAllocate(t, b, IPv4, "x"); addr != freed {
		t.Errorf("got %v", addr)
	}
}

func TestReserve(t *testing.T) {
	a := NewAllocator(newClock().read)
	addr := netip.MustParseAddr("192.0.2.7")
	for range 2 {
		if err := a.Reserve(addr, "web"); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Reserve(addr, "db"); !errors.Is(err, ErrTaken) {
		t.Errorf("got %v, want ErrTaken", err)
	}
	if err := a.Reserve(netip.Addr{}, "db"); err == nil {
		t.Error("an invalid address was reserved")
	}
	if owner, ok := a.Owner(addr); !ok || owner != "web" {
		t.Errorf("owner %q %v", owner, ok)
	}
}

func TestPrefixTakenAway(t *testing.T) {
	c := newClock()
	a := NewAllocator(c.read)
	a.SetPrefixes(prefixes("10.0.0.0/24"))
	old := mustAllocate(t, a, IPv4, "old")
	a.SetPrefixes(prefixes("10.0.1.0/24", "10.0.1.0/24"))
	if addr := mustAllocate(t, a, IPv4, "new"); addr.String() != "10.0.1.1" {
		t.Errorf("got %v from a prefix that is no longer ours", addr)
	}
	if u := a.Usage(); len(u) != 2 || !u[1].Retired || u[1].Used != 1 {
		t.Errorf("usage %+v", u)
	}
	a.Release(old)
	c.advance(AddressRest)
	if u := a.Usage(); len(u) != 1 {
		t.Errorf("usage %+v after the last address went", u)
	}
	if _, err := a.Allocate(IPv6, "x"); !errors.Is(err, ErrNoPrefix) {
		t.Errorf("got %v, want ErrNoPrefix", err)
	}
}

func TestLargePrefixIsQuick(t *testing.T) {
	a := NewAllocator(newClock().read)
	a.SetPrefixes(prefixes("fd00::/64"))
	for i := range 1000 {
		mustAllocate(t, a, IPv6, fmt.Sprint(i))
	}
	if u := a.Usage()[0]; u.Used != 1000 || u.Total != math.MaxInt64 {
		t.Errorf("usage %+v", u)
	}
}

// TestAllocatorAgainstModel walks at random and compares with the plainest possible model.
func TestAllocatorAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newClock()
		a := NewAllocator(c.read)
		pool := prefixes("10.0.0.0/29", "10.0.0.8/30", "fd00::/125")
		var current []netip.Prefix
		owners := map[netip.Addr]string{}
		freed := map[netip.Addr]time.Time{}
		rests := func(x netip.Addr) bool { f, ok := freed[x]; return ok && c.now.Sub(f) < AddressRest }
		next := 0
		anyAddr := rapid.Custom(func(t *rapid.T) netip.Addr {
			p := rapid.SampledFrom(pool).Draw(t, "prefix")
			x := p.Addr()
			for range rapid.IntRange(0, 7).Draw(t, "offset") {
				x = x.Next()
			}
			return x
		})
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				current = rapid.Permutation(pool).Draw(t, "pool")[:rapid.IntRange(0, len(pool)).Draw(t, "n")]
				a.SetPrefixes(current)
			},
			"allocate": func(t *rapid.T) {
				f := rapid.SampledFrom([]Family{IPv4, IPv6}).Draw(t, "family")
				next++
				owner := fmt.Sprint(next)
				var free []netip.Addr
				for _, p := range current {
					first, last := usable(p)
					for x := first; FamilyOf(x) == f; x = x.Next() {
						if _, held := owners[x]; !held && !rests(x) {
							free = append(free, x)
						}
						if x == last {
							break
						}
					}
				}
				got, err := a.Allocate(f, owner)
				if (err == nil) != (len(free) > 0) {
					t.Fatalf("free %v, got %v, %v", free, got, err)
				}
				if err == nil {
					if !slices.Contains(free, got) {
						t.Fatalf("%v was not free", got)
					}
					owners[got] = owner
					delete(freed, got)
				}
			},
			"release": func(t *rapid.T) {
				x := anyAddr.Draw(t, "address")
				if _, held := owners[x]; held {
					delete(owners, x)
					freed[x] = c.now
				}
				a.Release(x)
			},
			"reserve": func(t *rapid.T) {
				x := anyAddr.Draw(t, "address")
				next++
				owner := fmt.Sprint(next)
				_, held := owners[x]
				err := a.Reserve(x, owner)
				if (err == nil) != (!held && !rests(x)) {
					t.Fatalf("%v held %v rests %v: %v", x, held, rests(x), err)
				}
				if err == nil {
					owners[x] = owner
					delete(freed, x)
				}
			},
			"wait": func(t *rapid.T) { c.advance(time.Duration(rapid.IntRange(1, 40).Draw(t, "s")) * time.Second) },
			"": func(t *rapid.T) {
				for _, u := range a.Usage() {
					used, resting := int64(0), int64(0)
					for x := range owners {
						if u.Prefix.Contains(x) {
							used++
						}
					}
					for x := range freed {
						if u.Prefix.Contains(x) && rests(x) {
							resting++
						}
					}
					if u.Used != used || u.Resting != resting {
						t.Fatalf("%+v, want %d used, %d resting", u, used, resting)
					}
				}
			},
		})
	})
}
