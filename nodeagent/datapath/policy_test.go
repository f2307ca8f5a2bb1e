// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// allows is a table that lets each peer in on TCP 80, and the first also everywhere over UDP.
func allows(rule policy.RuleID, peers ...policy.Peer) *policy.Table {
	t := &policy.Table{Entries: map[policy.Key]policy.Entry{}, Default: 99}
	for _, p := range peers {
		t.Entries[policy.Key{Peer: p, Protocol: 6, Bits: 16, Port: 80}] = policy.Entry{Verdict: policy.Allow, Rule: rule, Precedence: 8}
		t.Entries[policy.Key{Peer: p, Protocol: 17}] = policy.Entry{Verdict: policy.Allow, Rule: rule, Precedence: 8}
	}
	return t
}

func generation(t *testing.T, d *Datapath) uint32 {
	t.Helper()
	var s bpf.Settings
	must(t, d.maps.open[bpf.MapsMapLiveSettings].Lookup(uint32(0), &s))
	return s.Generation
}

// kernelTables reads what the kernel holds, past the writer's memory.
func kernelTables(t *testing.T, d *Datapath) (map[uint16]bpf.Policy, map[uint16]map[policy.Key]policy.Entry) {
	t.Helper()
	w := newPolicyWriter(d.maps)
	must(t, w.load())
	defer func() { must(t, w.slots.close()) }()
	tables := map[uint16]map[policy.Key]policy.Entry{}
	for id, table := range w.tables {
		tables[id] = table.entries
	}
	return w.pods, tables
}

// holds checks that a pod's direction has this table in the kernel.
func holds(t *testing.T, d *Datapath, id uint16, side policy.Direction, want *policy.Table) uint16 {
	t.Helper()
	pods, tables := kernelTables(t, d)
	slot := pods[id].Side[side]
	switch {
	case want == nil:
		if slot.Flags != uint16(bpf.MapsPolicyFlagsPOLICY_NONE) {
			t.Errorf("endpoint %d %s: %+v, want it open", id, side, slot)
		}
	case slot.DefaultRule != uint32(want.Default) || !maps.Equal(tables[slot.Table], want.Entries):
		t.Errorf("endpoint %d %s: %+v with\n%v, want\n%v", id, side, slot, tables[slot.Table], want.Entries)
	}
	return slot.Table
}

func set(t *testing.T, d *Datapath, pods map[uint16]PodPolicy) {
	t.Helper()
	failed, err := d.SetPolicy(pods, nil)
	must(t, err)
	if len(failed) > 0 {
		t.Fatal(failed)
	}
}

func TestPolicyTablesAreShared(t *testing.T) {
	d := newFixture(t).open()
	one, alike, other := allows(1, 300, 301), allows(1, 300, 301), allows(2, 300)
	set(t, d, map[uint16]PodPolicy{1: {Ingress: one}, 2: {Ingress: alike, Egress: other}, 3: {}})
	if a, b := holds(t, d, 1, policy.Ingress, one), holds(t, d, 2, policy.Ingress, one); a != b {
		t.Errorf("equal tables are %d and %d", a, b)
	}
	holds(t, d, 2, policy.Egress, other)
	holds(t, d, 1, policy.Egress, nil)
	holds(t, d, 3, policy.Ingress, nil)
	if _, tables := kernelTables(t, d); len(tables) != 2 {
		t.Errorf("%d tables in the kernel", len(tables))
	}
	// Nothing differs: nothing is written.
	at := generation(t, d)
	set(t, d, map[uint16]PodPolicy{1: {Ingress: alike}, 2: {Ingress: one, Egress: other}, 3: {}})
	if now := generation(t, d); now != at {
		t.Errorf("generation %d after %d and no change", now, at)
	}
	// What nobody refers to any longer goes.
	set(t, d, map[uint16]PodPolicy{1: {Ingress: one}, 2: {Ingress: one}, 3: {}})
	if _, tables := kernelTables(t, d); len(tables) != 1 || generation(t, d) != at+1 {
		t.Errorf("%d tables, generation %d", len(tables), generation(t, d))
	}
	// An id that is nobody's is closed with the whole table, one that is dropped at once.
	must(t, d.SetPods(nil))
	set(t, d, map[uint16]PodPolicy{1: {}})
	must(t, d.DropPodPolicy(1))
	if pods, tables := kernelTables(t, d); len(pods) != 0 || len(tables) != 0 {
		t.Errorf("left: %v %v", pods, tables)
	}
}

func TestPolicyInPlace(t *testing.T) {
	d := newFixture(t).open()
	before := allows(1, 300, 301)
	set(t, d, map[uint16]PodPolicy{1: {Ingress: before}, 2: {Ingress: before}})
	number := holds(t, d, 1, policy.Ingress, before)
	for _, c := range []struct {
		name  string
		pods  map[uint16]PodPolicy
		place bool
	}{
		{"a peer more", map[uint16]PodPolicy{1: {Ingress: allows(1, 300, 301, 302)}, 2: {Ingress: allows(1, 300, 301, 302)}}, true},
		{"peers less and another", map[uint16]PodPolicy{1: {Ingress: allows(1, 301, 303)}, 2: {Ingress: allows(1, 301, 303)}}, true},
		{"everybody: identities and everyone are asked by one packet", map[uint16]PodPolicy{
			1: {Ingress: allows(1, 301, 303, policy.Anyone)}, 2: {Ingress: allows(1, 301, 303, policy.Anyone)}}, false},
		{"the table goes on, for another pod", map[uint16]PodPolicy{
			1: {Ingress: allows(1, 301, 303, 305, policy.Anyone)}, 2: {Egress: allows(1, 301, 303, policy.Anyone), Ingress: allows(1, 301, 303, 305, policy.Anyone)}}, false},
		{"an entry changed", map[uint16]PodPolicy{1: {Ingress: allows(5, 301, 303)}, 2: {Ingress: allows(5, 301, 303)}}, false},
		{"one pod of two", map[uint16]PodPolicy{1: {Ingress: allows(5, 301)}, 2: {Ingress: allows(5, 301, 303)}}, false},
	} {
		set(t, d, c.pods)
		now := holds(t, d, 1, policy.Ingress, c.pods[1].Ingress)
		holds(t, d, 2, policy.Ingress, c.pods[2].Ingress)
		if (now == number) != c.place {
			t.Errorf("%s: table %d after %d", c.name, now, number)
		}
		number = now
	}
	if _, tables := kernelTables(t, d); len(tables) != 2 {
		t.Errorf("%d tables in the kernel", len(tables))
	}
}

// A restart finds what is pinned by its content and writes none of it; before it is told, nothing is swept.
func TestPolicyRestart(t *testing.T) {
	f := newFixture(t)
	d := f.open()
	table := allows(1, 300, 301, policy.ClassBit|7)
	classes := map[netip.Prefix]policy.Peer{netip.MustParsePrefix("10.0.0.0/8"): policy.ClassBit | 7}
	if failed, err := d.SetPolicy(map[uint16]PodPolicy{1: {Ingress: table}}, classes); err != nil || len(failed) > 0 {
		t.Fatal(failed, err)
	}
	// An agent that died while it wrote: a table that nobody refers to.
	must(t, d.maps.open[bpf.MapsMapVerdicts].Put(bpf.VerdictKey{Table: 40, Peer: 7}, bpf.VerdictEntry{Verdict: 1}))
	at := generation(t, d)
	must(t, d.Close())

	d = f.open()
	must(t, d.SetPodPolicy(2, PodPolicy{Egress: allows(3, 300)}))
	holds(t, d, 1, policy.Ingress, table)
	if _, tables := kernelTables(t, d); len(tables) != 3 {
		t.Errorf("%d tables before the first SetPolicy", len(tables))
	}
	if generation(t, d) != at {
		t.Errorf("a new pod's policy moved the generation")
	}
	pods := map[uint16]PodPolicy{1: {Ingress: allows(1, 300, 301, policy.ClassBit|7)}, 2: {Egress: allows(3, 300)}}
	if failed, err := d.SetPolicy(pods, classes); err != nil || len(failed) > 0 {
		t.Fatal(failed, err)
	}
	// The agent may have died after it wrote a table and before it said so: what was judged in between is judged again.
	for range 2 {
		if generation(t, d) != at+1 {
			t.Errorf("generation %d after %d", generation(t, d), at)
		}
		if failed, err := d.SetPolicy(pods, classes); err != nil || len(failed) > 0 {
			t.Fatal(failed, err)
		}
	}
	if _, tables := kernelTables(t, d); len(tables) != 2 {
		t.Errorf("%d tables after the first SetPolicy", len(tables))
	}
}

// A table is written whole or not at all: who had one keeps it, who had none is closed, and room heals it.
func TestPolicyFull(t *testing.T) {
	f := newFixture(t)
	d := f.open()
	small := allows(1, 300)
	set(t, d, map[uint16]PodPolicy{1: {Ingress: small}})
	limit := int(d.maps.open[bpf.MapsMapVerdicts].MaxEntries())
	many := func(n int, rule policy.RuleID) *policy.Table {
		t := &policy.Table{Entries: map[policy.Key]policy.Entry{}, Default: 5}
		for i := range n {
			t.Entries[policy.Key{Peer: policy.Peer(1000 + i)}] = policy.Entry{Verdict: policy.Allow, Rule: rule, Precedence: 1}
		}
		return t
	}
	huge := many(limit+1, 4)
	failed, err := d.SetPolicy(map[uint16]PodPolicy{1: {Ingress: huge}, 2: {Egress: huge}, 3: {Egress: small}}, nil)
	must(t, err)
	if len(failed) != 2 || !errors.Is(failed[1], ErrPolicyFull) || !errors.Is(failed[2], ErrPolicyFull) {
		t.Fatalf("failed: %v", failed)
	}
	holds(t, d, 1, policy.Ingress, small)
	holds(t, d, 3, policy.Egress, small)
	pods, tables := kernelTables(t, d)
	if pods[2].Side[policy.Egress] != (bpf.PolicySide{}) || len(tables) != 1 {
		t.Errorf("slot %+v, %d tables", pods[2], len(tables))
	}
	if err := d.SetPodPolicy(4, PodPolicy{Egress: huge}); !errors.Is(err, ErrPolicyFull) {
		t.Errorf("a new pod: %v", err)
	}
	if pods, _ := kernelTables(t, d); pods[4] != (bpf.Policy{}) {
		t.Errorf("a new pod without a table is not closed: %+v", pods[4])
	}
	// What takes the place of a table that goes fits, though not both at once: as much must stay free as comes.
	half := many(limit*2/5, 6)
	set(t, d, map[uint16]PodPolicy{1: {Ingress: half}, 2: {}, 3: {}})
	other := many(limit*2/5, 7)
	failed, err = d.SetPolicy(map[uint16]PodPolicy{1: {Ingress: other}, 2: {}, 3: {}}, nil)
	must(t, err)
	if !errors.Is(failed[1], ErrPolicyFull) {
		t.Errorf("two tables of two fifths: %v", failed)
	}
	// Small tables find room beside a large one.
	beside := allows(8, 301)
	failed, err = d.SetPolicy(map[uint16]PodPolicy{1: {Ingress: other}, 2: {Ingress: beside}, 3: {}}, nil)
	must(t, err)
	if failed[2] != nil || failed[1] == nil {
		t.Errorf("%v", failed)
	}
	holds(t, d, 2, policy.Ingress, beside)
	set(t, d, map[uint16]PodPolicy{1: {Ingress: small}, 2: {Egress: other}, 3: {}})
	holds(t, d, 2, policy.Egress, other)
	// One that says itself that it is too large is not tried, and what its entries allowed before stays.
	failed, err = d.SetPolicy(map[uint16]PodPolicy{1: {Ingress: small}, 2: {Egress: &policy.Table{Default: 5, Overflows: true}}, 3: {}}, nil)
	must(t, err)
	if len(failed) != 1 || !errors.Is(failed[2], ErrPolicyFull) {
		t.Errorf("%v", failed)
	}
	holds(t, d, 2, policy.Egress, other)
	if l := d.PolicyLimits(); l.Singles != limit || l.Prefixes == 0 || l.Ranges == 0 {
		t.Errorf("%+v", l)
	}
}

// An upgrade from a release that knew no policy: pods that it wired stay open until they are told of, others are closed.
func TestPolicyOfPodsFromBefore(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p := f.addPod(d, 5)
	must(t, d.Close())
	for _, name := range []string{bpf.MapsMapPolicies, bpf.MapsMapVerdicts, bpf.MapsMapVerdictRanges, bpf.MapsMapClasses} {
		m, err := ebpf.LoadPinnedMap(fmt.Sprintf("%s/%s", f.opts.folder(), PinName(name, 1)), &ebpf.LoadPinOptions{ReadOnly: true})
		must(t, err)
		must(t, m.Unpin())
		must(t, m.Close())
	}
	d = f.open()
	pods, _ := kernelTables(t, d)
	if len(pods) != 1 {
		t.Errorf("slots %v", pods)
	}
	holds(t, d, p.ID, policy.Ingress, nil)
	holds(t, d, p.ID, policy.Egress, nil)
}

// IPv4 addresses are ::ffff:0:0/96 in the tries: ::/0 once allowed every IPv4 address too.
func TestIPv6PrefixesAreNotForIPv4(t *testing.T) {
	for _, c := range []struct {
		prefixes []string
		class4   uint32 // of 192.0.2.1
	}{
		{[]string{"::/0"}, 0},
		{[]string{"::/64", "0.0.0.0/0"}, 2},
		{[]string{"2001:db8::/32"}, 99},
		{[]string{"::/0", "192.0.2.0/24"}, 2},
	} {
		t.Run(strings.Join(c.prefixes, " "), func(t *testing.T) {
			d := newFixture(t).open()
			classes := map[netip.Prefix]policy.Peer{}
			for i, p := range c.prefixes {
				classes[netip.MustParsePrefix(p)] = policy.ClassBit | policy.Peer(i+1)
			}
			if _, err := d.SetPolicy(nil, classes); err != nil {
				t.Fatal(err)
			}
			if back, err := d.Classes(); err != nil || !maps.Equal(back, classes) {
				t.Errorf("read back %v, %v; want %v", back, err, classes)
			}
			got := uint32(99 | bpf.PeerClassBit)
			err := d.maps.open[bpf.MapsMapClasses].Lookup(bpf.PrefixKey{Prefixlen: 128, Addr: bpf.AddrFrom(netip.MustParseAddr("192.0.2.1"))}, &got)
			if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Fatal(err)
			}
			if got&^bpf.PeerClassBit != c.class4 {
				t.Errorf("%v: 192.0.2.1 is of class %d, want %d", c.prefixes, got&^bpf.PeerClassBit, c.class4)
			}
		})
	}
}

// TestAddressesMoveOn: programs remember who has which address until this number changes (bpf/lib/known.h), so every
// change of these tables must be followed by another, and only that.
func TestAddressesMoveOn(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	pod := f.pod(9)
	number := func() uint32 {
		t.Helper()
		var s bpf.Settings
		must(t, d.maps.open[bpf.MapsMapLiveSettings].Lookup(uint32(0), &s))
		return s.Addresses
	}
	far, host := netip.MustParseAddr("10.0.9.9"), netip.MustParseAddr("172.30.0.99")
	for _, step := range []struct {
		name   string
		change func() error
	}{
		{"peers", func() error { return d.SetPeers(map[netip.Addr]Peer{far: {Identity: 77}}) }},
		{"another identity", func() error { return d.SetPeers(map[netip.Addr]Peer{far: {Identity: 78}}) }},
		{"another node", func() error { return d.SetPeers(map[netip.Addr]Peer{far: {Identity: 78, Node: host}}) }},
		{"no peers", func() error { return d.SetPeers(nil) }},
		{"prefixes", func() error {
			return d.SetPrefixes(map[netip.Prefix]Peer{netip.MustParsePrefix("10.0.0.0/16"): {Identity: 5}})
		}},
		{"no prefixes", func() error { return d.SetPrefixes(nil) }},
		{"a pod", func() error { return d.AddPod(pod) }},
		{"no pod", func() error { return d.RemovePod(pod.ID) }},
		{"host addresses", func() error { return d.SetHostAddresses([]netip.Addr{host}) }},
		{"no host addresses", func() error { return d.SetHostAddresses(nil) }},
	} {
		before := number()
		must(t, step.change())
		after := number()
		if after == before {
			t.Errorf("%s: the number stays %d", step.name, before)
		}
		must(t, step.change())
		if again := number(); again != after {
			t.Errorf("%s once more: the number went from %d to %d", step.name, after, again)
		}
	}
}
