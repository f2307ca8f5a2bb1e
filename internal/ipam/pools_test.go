// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func prefixes(text ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range text {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func texts(m map[string][]netip.Prefix) map[string]string {
	out := map[string]string{}
	for node, p := range m {
		out[node] = fmt.Sprint(p)
	}
	return out
}

func TestAssign(t *testing.T) {
	v4 := func(mask int, cidrs ...string) Pool { return Pool{CIDRs: prefixes(cidrs...), MaskSize: mask} }
	for _, row := range []struct {
		name     string
		demand   Demand
		want     map[string]string
		problems map[string]error
	}{
		{"both families, IPv4 first",
			Demand{Pools: []Pool{v4(120, "fd00::/112"), v4(24, "10.1.0.0/16")}, Nodes: []string{"b", "a"}},
			map[string]string{"a": "[10.1.0.0/24 fd00::/120]", "b": "[10.1.1.0/24 fd00::100/120]"}, nil},
		{"held stays, holes are filled",
			Demand{Pools: []Pool{v4(24, "10.1.0.0/16")}, Nodes: []string{"a", "b", "c"},
				Held: map[string][]netip.Prefix{"b": prefixes("10.1.1.0/24")}},
			map[string]string{"a": "[10.1.0.0/24]", "b": "[10.1.1.0/24]", "c": "[10.1.2.0/24]"}, nil},
		{"a second range is used when the first is full",
			Demand{Pools: []Pool{v4(24, "10.9.0.0/24", "10.1.0.0/24")}, Nodes: []string{"a", "b"}},
			map[string]string{"a": "[10.9.0.0/24]", "b": "[10.1.0.0/24]"}, nil},
		{"resting and avoided ranges are jumped over, also larger and smaller ones",
			Demand{Pools: []Pool{v4(24, "10.0.0.0/8")}, Nodes: []string{"a"},
				Resting: prefixes("10.0.0.0/24", "10.0.1.0/25"), Avoid: prefixes("10.0.2.0/23", "10.0.4.9/32", "10.1.0.0/16")},
			map[string]string{"a": "[10.0.5.0/24]"}, nil},
		{"a prefix of former pools is kept and not cut again",
			Demand{Pools: []Pool{v4(26, "10.1.0.0/24")}, Nodes: []string{"new", "old"},
				Held: map[string][]netip.Prefix{"old": prefixes("10.1.0.0/25")}},
			map[string]string{"new": "[10.1.0.128/26]", "old": "[10.1.0.0/25]"}, nil},
		{"exhausted",
			Demand{Pools: []Pool{v4(25, "10.1.0.0/24"), v4(120, "fd00::/112")}, Nodes: []string{"a", "b", "c"}},
			map[string]string{"a": "[10.1.0.0/25 fd00::/120]", "b": "[10.1.0.128/25 fd00::100/120]", "c": "[fd00::200/120]"},
			map[string]error{"c": ErrPoolExhausted}},
		{"exhausted while one rests",
			Demand{Pools: []Pool{v4(24, "10.1.0.0/24")}, Nodes: []string{"a"}, Resting: prefixes("10.1.0.0/24")},
			map[string]string{"a": "[]"}, map[string]error{"a": ErrPoolExhausted}},
		{"two nodes with one prefix: the first by name keeps it",
			Demand{Pools: []Pool{v4(24, "10.1.0.0/16")}, Nodes: []string{"a", "b"},
				Held: map[string][]netip.Prefix{"a": prefixes("10.1.0.0/24"), "b": prefixes("10.1.0.128/25")}},
			map[string]string{"a": "[10.1.0.0/24]", "b": "[10.1.1.0/24]"}, map[string]error{"b": ErrPrefixConflict}},
		{"who holds without being wanted keeps and gets nothing",
			Demand{Pools: []Pool{v4(24, "10.1.0.0/16")}, Held: map[string][]netip.Prefix{"a": nil, "b": prefixes("10.1.0.0/24")}},
			map[string]string{"a": "[]", "b": "[10.1.0.0/24]"}, nil},
		{"the whole address space, to its last prefix",
			Demand{Pools: []Pool{v4(1, "0.0.0.0/0")}, Nodes: []string{"a", "b", "c"}},
			map[string]string{"a": "[0.0.0.0/1]", "b": "[128.0.0.0/1]", "c": "[]"}, map[string]error{"c": ErrPoolExhausted}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := Assign(row.demand)
			if diff := cmp.Diff(row.want, texts(got.Prefixes)); diff != "" {
				t.Error(diff)
			}
			if len(got.Problems) != len(row.problems) {
				t.Errorf("problems: %v", got.Problems)
			}
			for node, want := range row.problems {
				if !errors.Is(got.Problems[node], want) {
					t.Errorf("problem of %s: %v, want %v", node, got.Problems[node], want)
				}
			}
		})
	}
}

// A small space, so that prefixes meet: 10.0.0.0/24 in pieces, and the same in IPv6.
func drawPrefix(t *rapid.T, label string) netip.Prefix {
	bits := rapid.IntRange(24, 30).Draw(t, label+" bits")
	last := rapid.Byte().Draw(t, label)
	if rapid.Bool().Draw(t, label+" v6") {
		a := netip.MustParseAddr("fd00::").As16()
		a[15] = last
		return netip.PrefixFrom(netip.AddrFrom16(a), bits+96).Masked()
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, last}), bits).Masked()
}

func drawDemand(t *rapid.T) Demand {
	d := Demand{Held: map[string][]netip.Prefix{}}
	list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix { return drawPrefix(t, "prefix") }), 0, 4)
	for _, v6 := range []bool{false, true} {
		var cidrs []netip.Prefix
		for _, p := range list.Draw(t, "pool") {
			if p.Addr().Is6() == v6 && !slices.ContainsFunc(cidrs, p.Overlaps) {
				cidrs = append(cidrs, p)
			}
		}
		mask := rapid.IntRange(25, 30).Draw(t, "mask")
		if v6 {
			mask += 96
		}
		d.Pools = append(d.Pools, Pool{CIDRs: cidrs, MaskSize: mask})
	}
	name := rapid.StringMatching("[a-h]")
	d.Nodes = rapid.SliceOfDistinct(name, rapid.ID[string]).Draw(t, "nodes")
	for _, node := range rapid.SliceOfDistinct(name, rapid.ID[string]).Draw(t, "holders") {
		d.Held[node] = list.Draw(t, "held")
	}
	d.Resting = list.Draw(t, "resting")
	d.Avoid = list.Draw(t, "avoid")
	return d
}

func TestAssignProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDemand(t)
		got := Assign(d)

		var all []netip.Prefix
		for node, list := range got.Prefixes {
			for _, p := range list {
				if i := slices.IndexFunc(all, p.Overlaps); i >= 0 {
					t.Fatalf("%s and %s overlap", p, all[i])
				}
				all = append(all, p)
				if slices.Contains(d.Held[node], p) {
					continue
				}
				if slices.ContainsFunc(slices.Concat(d.Resting, d.Avoid), p.Overlaps) {
					t.Fatalf("%s was given although it rests or is to be avoided", p)
				}
				for _, held := range d.Held {
					if slices.ContainsFunc(held, p.Overlaps) && !errors.Is(got.Problems[node], ErrPrefixConflict) && !held1(got, held, p) {
						t.Fatalf("%s was given although it is held", p)
					}
				}
			}
		}
		for node, held := range d.Held {
			for _, p := range held {
				if !slices.Contains(got.Prefixes[node], p) && !errors.Is(got.Problems[node], ErrPrefixConflict) {
					t.Fatalf("%s lost %s without a word", node, p)
				}
			}
		}
		// Nobody lacks what is free: look at every prefix of the pool, one by one.
		for _, node := range d.Nodes {
			for _, pool := range d.Pools {
				if len(pool.CIDRs) == 0 || slices.ContainsFunc(got.Prefixes[node], pool.sameFamily) {
					continue
				}
				if !errors.Is(got.Problems[node], ErrPoolExhausted) {
					t.Fatalf("%s lacks a prefix of %v without a word", node, pool)
				}
				busy := slices.Concat(all, d.Resting, d.Avoid)
				for _, c := range pool.CIDRs {
					for p := netip.PrefixFrom(c.Addr(), pool.MaskSize); pool.MaskSize >= c.Bits() && c.Contains(p.Addr()); p = netip.PrefixFrom(lastOf(p).Next(), pool.MaskSize) {
						if !slices.ContainsFunc(busy, p.Overlaps) {
							t.Fatalf("%s lacks a prefix of %v, but %s is free", node, pool, p)
						}
					}
				}
			}
		}

		// The order of what is asked for makes no difference.
		shuffled := d
		shuffled.Nodes = rapid.Permutation(d.Nodes).Draw(t, "order")
		shuffled.Resting = rapid.Permutation(d.Resting).Draw(t, "rest order")
		if diff := cmp.Diff(texts(got.Prefixes), texts(Assign(shuffled).Prefixes)); diff != "" {
			t.Fatalf("another order, another result: %s", diff)
		}
		// What was given is kept, also when the pools change to anything else.
		next := drawDemand(t)
		next.Held = maps.Clone(got.Prefixes)
		for node, list := range Assign(next).Prefixes {
			for _, p := range got.Prefixes[node] {
				if !slices.Contains(list, p) {
					t.Fatalf("%s lost %s when the pools changed", node, p)
				}
			}
		}
	})
}

// held1 tells whether a held prefix was itself lost to a conflict, so that its range was free to give.
func held1(got Assignment, held []netip.Prefix, p netip.Prefix) bool {
	for _, h := range held {
		if !h.Overlaps(p) {
			continue
		}
		for _, list := range got.Prefixes {
			if slices.Contains(list, h) {
				return false
			}
		}
	}
	return true
}

func BenchmarkAssign5000Nodes(b *testing.B) {
	d := Demand{Pools: []Pool{{CIDRs: prefixes("10.0.0.0/8"), MaskSize: 24}, {CIDRs: prefixes("fd00::/48"), MaskSize: 120}}}
	for i := range 5000 {
		d.Nodes = append(d.Nodes, fmt.Sprintf("node-%d", i))
	}
	for b.Loop() {
		Assign(d)
	}
}
