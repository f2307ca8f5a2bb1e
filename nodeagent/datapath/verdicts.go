// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/delta"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// policyWriter owns the maps of policy. Datapath.mu guards it.
type policyWriter struct {
	maps    *mapSet
	classes *delta.Table[bpf.PrefixKey, uint32]
	slots   *policySlots // nil until load
	// id -> the slot as it is in the kernel, where it is not zero.
	pods map[uint16]bpf.Policy
	// id -> table, of what is in the kernel, whoever refers to it.
	tables map[uint16]*verdictTable
	// content -> tables of it, of what is in the kernel.
	byContent map[uint64][]*verdictTable
	// The engine's pointers of now -> the table of that content; so a table is compared once.
	byPointer map[*policy.Table]*verdictTable
	// ids that got their policy alone and that no SetPolicy was told of since.
	fresh map[uint16]bool
	last  uint16 // table id given out last
	// entries in each map
	singles, ranges int
	seed            maphash.Seed
	// writes counts changes of what verdicts are made of since the generation moved on. It begins with 1: whoever was here
	// before may have died in between.
	writes int
	// moved tells of changes of endpoints, interfaces, peers and prefixes since settings.addresses moved on. True at first,
	// for the same reason.
	moved bool
}

// verdictTable is the entries of one table; id 0: not in the kernel.
type verdictTable struct {
	id      uint16
	entries map[policy.Key]policy.Entry
	sum     uint64
	// flags are those of bpf's policy_flags that say what is in it.
	flags uint16
	// singles are its entries in the map `verdicts`, ranges those in `verdict_ranges`.
	singles, ranges int
	// overflows: it never fits, and its entries are not here.
	overflows bool
	// retired counts how often it lost its last reference.
	retired int
	idle    bool
}

func newPolicyWriter(m *mapSet) policyWriter {
	return policyWriter{maps: m, writes: 1, moved: true, classes: delta.New(&mapStore[bpf.PrefixKey, uint32]{m, bpf.MapsMapClasses}), seed: maphash.MakeSeed()}
}

// isRange tells in which map a key lives.
func isRange(k policy.Key) bool { return k.Protocol != 0 && k.Bits < 16 }

func (w *policyWriter) newTable(entries map[policy.Key]policy.Entry) *verdictTable {
	t := &verdictTable{entries: entries}
	precedences := map[uint32]bool{}
	set := func(f bpf.MapsPolicyFlags) { t.flags |= uint16(f) }
	for k, e := range entries {
		t.sum += maphash.Comparable(w.seed, struct {
			k policy.Key
			e policy.Entry
		}{k, e})
		precedences[e.Precedence] = true
		switch {
		case isRange(k):
			t.ranges++
			set(bpf.MapsPolicyFlagsPOLICY_RANGES)
		case k.Protocol == 0:
			t.singles++
			set(bpf.MapsPolicyFlagsPOLICY_PROTOCOLS)
		default:
			t.singles++
			set(bpf.MapsPolicyFlagsPOLICY_PORTS)
		}
		switch {
		case k.Peer == policy.Anyone:
			set(bpf.MapsPolicyFlagsPOLICY_ANYONE)
		case k.Peer&policy.ClassBit != 0:
			set(bpf.MapsPolicyFlagsPOLICY_CLASSES)
		default:
			set(bpf.MapsPolicyFlagsPOLICY_IDENTITIES)
			if e.Verdict == policy.Deny {
				set(bpf.MapsPolicyFlagsPOLICY_DENIES)
			}
		}
	}
	if len(precedences) == 1 {
		set(bpf.MapsPolicyFlagsPOLICY_ONE_PRECEDENCE)
	}
	return t
}

// load reads back what is pinned, once.
func (w *policyWriter) load() error {
	if w.slots != nil {
		return nil
	}
	slots, err := mapPolicySlots(w.maps.open[bpf.MapsMapPolicies])
	if err != nil {
		return err
	}
	contents := map[uint16]map[policy.Key]policy.Entry{}
	add := func(k bpf.VerdictKey, bits uint8, v bpf.VerdictEntry) {
		if contents[k.Table] == nil {
			contents[k.Table] = map[policy.Key]policy.Entry{}
		}
		contents[k.Table][policy.Key{Peer: policy.Peer(k.Peer), Protocol: k.Proto, Bits: bits, Port: networkOrder(k.Port)}] =
			policy.Entry{Verdict: policy.Verdict(v.Verdict), Rule: policy.RuleID(v.Rule), Precedence: v.Precedence}
	}
	err = eachEntry(w.maps.open[bpf.MapsMapVerdicts], w.maps.batch, func(k bpf.VerdictKey, v bpf.VerdictEntry) bool {
		bits := uint8(16)
		if k.Proto == 0 {
			bits = 0
		}
		add(k, bits, v)
		return true
	})
	if err == nil {
		err = eachEntry(w.maps.open[bpf.MapsMapVerdictRanges], w.maps.batch, func(k bpf.VerdictRangeKey, v bpf.VerdictEntry) bool {
			add(k.Key, uint8(k.Prefixlen-bpf.VerdictRangeBits), v)
			return true
		})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("read verdict tables: %w", err), slots.close())
	}
	w.pods, w.tables, w.byContent = map[uint16]bpf.Policy{}, map[uint16]*verdictTable{}, map[uint64][]*verdictTable{}
	w.byPointer, w.fresh = map[*policy.Table]*verdictTable{}, map[uint16]bool{}
	w.singles, w.ranges = 0, 0
	for id, entries := range contents {
		t := w.newTable(entries)
		t.id = id
		w.remember(t)
		w.last = max(w.last, id)
	}
	for id := range slots.len() {
		if s := slots.get(uint16(id)); s != (bpf.Policy{}) {
			w.pods[uint16(id)] = s
		}
	}
	w.slots = slots
	return nil
}

func (w *policyWriter) remember(t *verdictTable) {
	w.tables[t.id] = t
	w.byContent[t.sum] = append(w.byContent[t.sum], t)
	w.singles += t.singles
	w.ranges += t.ranges
}

func (w *policyWriter) forget(t *verdictTable) {
	delete(w.tables, t.id)
	w.byContent[t.sum] = slices.DeleteFunc(w.byContent[t.sum], func(o *verdictTable) bool { return o == t })
	if len(w.byContent[t.sum]) == 0 {
		delete(w.byContent, t.sum)
	}
	w.singles -= t.singles
	w.ranges -= t.ranges
}

// intern gives the one verdictTable of t's content: that of the kernel, or one that write will put there. nil: there is
// no table to ask.
func (w *policyWriter) intern(t *policy.Table) *verdictTable {
	if t == nil || len(t.Entries) == 0 && !t.Overflows {
		return nil
	}
	if known := w.byPointer[t]; known != nil && (known.id == 0 || w.tables[known.id] == known) {
		return known
	}
	made := w.newTable(t.Entries)
	if made.overflows = t.Overflows; t.Overflows {
		w.byPointer[t] = made
		return made
	}
	for _, other := range w.byContent[made.sum] {
		if maps.Equal(other.entries, made.entries) {
			w.byPointer[t] = other
			return other
		}
	}
	for _, other := range w.byPointer {
		if other.id == 0 && other.sum == made.sum && maps.Equal(other.entries, made.entries) {
			w.byPointer[t] = other
			return other
		}
	}
	w.byPointer[t] = made
	return made
}

// forgetPointers keeps the pointers of tables that are in use.
func (w *policyWriter) forgetPointers(pods map[uint16]PodPolicy) {
	used := map[*policy.Table]*verdictTable{}
	for _, p := range pods {
		for _, t := range []*policy.Table{p.Ingress, p.Egress} {
			if known := w.byPointer[t]; known != nil {
				used[t] = known
			}
		}
	}
	w.byPointer = used
}

// put writes a slot, a word for each direction.
func (w *policyWriter) put(id uint16, slot bpf.Policy) {
	if w.pods[id] == slot {
		return
	}
	w.slots.put(id, slot)
	w.writes++
	if slot == (bpf.Policy{}) {
		delete(w.pods, id)
	} else {
		w.pods[id] = slot
	}
}

// room tells why so many entries more do not fit. What comes must leave as much free as it takes, so that large tables
// never take the room of small ones, and a table can be changed: old and new stand side by side.
func (w *policyWriter) room(singles, ranges int) error {
	for _, m := range []struct {
		name      string
		now, more int
	}{{bpf.MapsMapVerdicts, w.singles, singles}, {bpf.MapsMapVerdictRanges, w.ranges, ranges}} {
		if limit := int(w.maps.open[m.name].MaxEntries()); m.more > 0 && m.now+2*m.more > limit {
			return fmt.Errorf("%w: %d entries more than the %d in use, map %s holds %d, and as many must stay free as are added", ErrPolicyFull, m.more, m.now, m.name, limit)
		}
	}
	return nil
}

// write puts a table into the kernel, whole or not at all. Nobody refers to it yet.
func (w *policyWriter) write(t *verdictTable) error {
	if t == nil || t.id != 0 {
		return nil
	}
	if t.overflows {
		return fmt.Errorf("%w: the table has more entries than the map holds", ErrPolicyFull)
	}
	if err := w.room(t.singles, t.ranges); err != nil {
		return err
	}
	id := w.last
	for range 1 << 16 {
		if id++; id != 0 && w.tables[id] == nil {
			break
		}
	}
	if id == 0 || w.tables[id] != nil {
		return fmt.Errorf("%w: every number of a table is in use", ErrPolicyFull)
	}
	keys := slices.Collect(maps.Keys(t.entries))
	if err := w.putVerdicts(id, keys, t.entries); err != nil {
		return errors.Join(asFull(err), w.deleteVerdicts(id, keys))
	}
	w.last, t.id, t.idle = id, id, true
	w.remember(t)
	return nil
}

// asFull: the kernel's own ways to say that there is no room.
func asFull(err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("%w: %w", ErrPolicyFull, err)
	}
	return err
}

// change makes a table in the kernel become another one where it is; false: it cannot, and is as it was. That is safe
// when only whole identities come or go: a packet asks for one identity, and for its entries from the most specific on.
// So the specific come first and go last, and each packet sees what was before or what will be.
func (w *policyWriter) change(now, next *verdictTable) bool {
	if now.flags != next.flags || next.overflows {
		return false
	}
	var come, leave []policy.Key
	before, after := map[policy.Peer]bool{}, map[policy.Peer]bool{}
	for k, e := range next.entries {
		if old, ok := now.entries[k]; !ok {
			come = append(come, k)
		} else if old != e {
			return false
		}
		after[k.Peer] = true
	}
	for k := range now.entries {
		if _, ok := next.entries[k]; !ok {
			leave = append(leave, k)
		}
		before[k.Peer] = true
	}
	partly := func(other map[policy.Peer]bool) func(policy.Key) bool {
		return func(k policy.Key) bool {
			return k.Peer == policy.Anyone || k.Peer&policy.ClassBit != 0 || other[k.Peer]
		}
	}
	if slices.ContainsFunc(come, partly(before)) || slices.ContainsFunc(leave, partly(after)) {
		return false
	}
	// Where old and new do not fit side by side, the change is no larger than what a new table would be.
	if w.room(next.singles-now.singles, next.ranges-now.ranges) != nil {
		return false
	}
	specificLast := func(a, b policy.Key) int { return cmp.Compare(specificity(a), specificity(b)) }
	slices.SortFunc(leave, specificLast)
	slices.SortFunc(come, specificLast)
	slices.Reverse(come)
	err := w.deleteVerdicts(now.id, leave)
	if err == nil {
		err = w.putVerdicts(now.id, come, next.entries)
	}
	if err != nil {
		// Back again. Should that fail too, the table is no longer what anybody wants, and the next change replaces it.
		slices.Reverse(come)
		slices.Reverse(leave)
		if errors.Join(w.deleteVerdicts(now.id, come), w.putVerdicts(now.id, leave, now.entries)) != nil {
			w.forget(now)
			now.entries, now.sum = map[policy.Key]policy.Entry{}, 0
			w.remember(now)
		}
		return false
	}
	w.writes += len(come) + len(leave)
	w.forget(now)
	next.id = now.id
	w.remember(next)
	return true
}

// specificity orders the keys of one peer: the kernel asks for the larger first.
func specificity(k policy.Key) int {
	if k.Protocol == 0 {
		return 0
	}
	return 1 + int(k.Bits)
}

// putVerdicts writes in the order of keys, as far as programs can tell: runs of one map go together.
func (w *policyWriter) putVerdicts(table uint16, keys []policy.Key, entries map[policy.Key]policy.Entry) error {
	return eachRun(keys, func(run []policy.Key, ranges bool) error {
		values := make([]bpf.VerdictEntry, len(run))
		for i, k := range run {
			e := entries[k]
			values[i] = bpf.VerdictEntry{Rule: uint32(e.Rule), Precedence: e.Precedence, Verdict: uint8(e.Verdict)}
		}
		if ranges {
			return (&mapStore[bpf.VerdictRangeKey, bpf.VerdictEntry]{w.maps, bpf.MapsMapVerdictRanges}).Put(rangeKeys(table, run), values)
		}
		return (&mapStore[bpf.VerdictKey, bpf.VerdictEntry]{w.maps, bpf.MapsMapVerdicts}).Put(singleKeys(table, run), values)
	})
}

func (w *policyWriter) deleteVerdicts(table uint16, keys []policy.Key) error {
	return eachRun(keys, func(run []policy.Key, ranges bool) error {
		if ranges {
			return (&mapStore[bpf.VerdictRangeKey, bpf.VerdictEntry]{w.maps, bpf.MapsMapVerdictRanges}).Delete(rangeKeys(table, run))
		}
		return (&mapStore[bpf.VerdictKey, bpf.VerdictEntry]{w.maps, bpf.MapsMapVerdicts}).Delete(singleKeys(table, run))
	})
}

func eachRun(keys []policy.Key, do func(run []policy.Key, ranges bool) error) error {
	for len(keys) > 0 {
		n := 1
		for n < len(keys) && isRange(keys[n]) == isRange(keys[0]) {
			n++
		}
		if err := do(keys[:n], isRange(keys[0])); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func singleKey(table uint16, k policy.Key) bpf.VerdictKey {
	return bpf.VerdictKey{Table: table, Proto: k.Protocol, Peer: uint32(k.Peer), Port: networkOrder(k.Port)}
}

func singleKeys(table uint16, keys []policy.Key) []bpf.VerdictKey {
	out := make([]bpf.VerdictKey, len(keys))
	for i, k := range keys {
		out[i] = singleKey(table, k)
	}
	return out
}

func rangeKeys(table uint16, keys []policy.Key) []bpf.VerdictRangeKey {
	out := make([]bpf.VerdictRangeKey, len(keys))
	for i, k := range keys {
		out[i] = bpf.VerdictRangeKey{Prefixlen: bpf.VerdictRangeBits + uint32(k.Bits), Key: singleKey(table, k)}
	}
	return out
}

// retiredTable is a table at the time when nobody referred to it.
type retiredTable struct {
	table *verdictTable
	since int
}

// unreferenced are the tables in the kernel that no slot names. Before load it is none: nothing is swept that was not told.
func (w *policyWriter) unreferenced() []retiredTable {
	used := map[uint16]bool{}
	for _, slot := range w.pods {
		for _, side := range sides {
			used[slot.Side[side].Table] = true
		}
	}
	var out []retiredTable
	for id, t := range w.tables {
		if used[id] {
			t.idle = false
			continue
		}
		if !t.idle {
			t.idle = true
			t.retired++
		}
		out = append(out, retiredTable{t, t.retired})
	}
	return out
}

// drop removes tables that nobody has referred to since they were found, and that no program asks any longer.
func (w *policyWriter) drop(retired []retiredTable) error {
	still := map[retiredTable]bool{}
	for _, r := range w.unreferenced() {
		still[r] = true
	}
	var errs []error
	for _, r := range retired {
		if !still[r] || w.tables[r.table.id] != r.table {
			continue
		}
		keys := slices.Collect(maps.Keys(r.table.entries))
		if err := w.deleteVerdicts(r.table.id, keys); err != nil {
			errs = append(errs, fmt.Errorf("remove verdict table %d: %w", r.table.id, err))
			continue
		}
		w.forget(r.table)
		r.table.id = 0
	}
	return errors.Join(errs...)
}

// makeRoom drops what nobody refers to, now.
func (w *policyWriter) makeRoom() error {
	retired := w.unreferenced()
	if len(retired) == 0 {
		return nil
	}
	if err := waitForPrograms(); err != nil {
		return err
	}
	return w.drop(retired)
}

// membarrierGlobal waits until every CPU has passed a point where no program runs (synchronize_rcu, Linux 4.3).
const membarrierGlobal = 1

// waitForPrograms returns when every program that was running has ended.
func waitForPrograms() error {
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	if errno == 0 {
		return nil
	}
	// A kernel with nohz_full CPUs refuses. To empty a slot of a map of maps waits for the same.
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1,
		InnerMap: &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1},
	})
	if err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	defer m.Close()
	inner, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	defer inner.Close()
	if err := m.Put(uint32(0), uint32(inner.FD())); err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	return nil
}

// policySlots is the map `policies`, mapped into memory: update calls copy bytes in no promised order, and a program
// that read half a slot would ask the wrong table.
type policySlots struct{ memory []byte }

const (
	policySize = int(unsafe.Sizeof(bpf.Policy{}))
	sideSize   = int(unsafe.Sizeof(bpf.PolicySide{}))
)

func mapPolicySlots(m *ebpf.Map) (*policySlots, error) {
	memory, err := unix.Mmap(m.FD(), 0, int(m.MaxEntries())*policySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map policies into memory: %w", err)
	}
	return &policySlots{memory}, nil
}

func (s *policySlots) close() error { return unix.Munmap(s.memory) }

func (s *policySlots) len() uint32 { return uint32(len(s.memory) / policySize) }

func (s *policySlots) word(id uint16, side policy.Direction) *uint64 {
	return (*uint64)(unsafe.Pointer(&s.memory[int(id)*policySize+int(side)*sideSize]))
}

func (s *policySlots) get(id uint16) bpf.Policy {
	var out bpf.Policy
	for _, side := range sides {
		word := atomic.LoadUint64(s.word(id, side))
		out.Side[side] = *(*bpf.PolicySide)(unsafe.Pointer(&word))
	}
	return out
}

func (s *policySlots) put(id uint16, p bpf.Policy) {
	for _, side := range sides {
		// In memory of its own: a struct on its own may lie where no word may.
		var word uint64
		*(*bpf.PolicySide)(unsafe.Pointer(&word)) = p.Side[side]
		atomic.StoreUint64(s.word(id, side), word)
	}
}
