// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"errors"
	"maps"
	"testing"

	"pgregory.net/rapid"
)

var errBroken = errors.New("broken")

// memory is a store that counts writes, can fail after some of them, and calls after each.
type memory struct {
	entries map[int]int
	cap     int
	writes  int
	failIn  int // writes until failure; negative: never
	after   func()
}

func newMemory(entries map[int]int) *memory {
	return &memory{entries: maps.Clone(entries), cap: 1000, failIn: -1, after: func() {}}
}

func (m *memory) Load(visit func(int, int)) error {
	for k, v := range m.entries {
		visit(k, v)
	}
	return nil
}

func (m *memory) step() error {
	if m.failIn == 0 {
		m.failIn = -1
		return errBroken
	}
	m.failIn--
	m.writes++
	return nil
}

func (m *memory) Put(keys, values []int) error {
	for i, k := range keys {
		if err := m.step(); err != nil {
			return err
		}
		if _, ok := m.entries[k]; !ok && len(m.entries) >= m.cap {
			return errors.New("no room")
		}
		m.entries[k] = values[i]
		m.after()
	}
	return nil
}

func (m *memory) Delete(keys []int) error {
	for _, k := range keys {
		if err := m.step(); err != nil {
			return err
		}
		delete(m.entries, k)
		m.after()
	}
	return nil
}

func (m *memory) Cap() int { return m.cap }

func tables() *rapid.Generator[map[int]int] {
	return rapid.MapOfN(rapid.IntRange(0, 12), rapid.IntRange(0, 3), 0, 12)
}

func difference(a, b map[int]int) int {
	n := 0
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			n++
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			n++
		}
	}
	return n
}

func TestSetWritesOnlyTheDifference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := newMemory(tables().Draw(t, "found"))
		table := New(store)
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			wanted := tables().Draw(t, "wanted")
			want := difference(wanted, store.entries)
			store.writes = 0
			if err := table.Set(wanted); err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(store.entries, wanted) {
				t.Fatalf("store holds %v, wanted %v", store.entries, wanted)
			}
			if store.writes != want {
				t.Fatalf("%d writes for a difference of %d", store.writes, want)
			}
		}
	})
}

func TestSetHealsAfterFailedWrite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := newMemory(tables().Draw(t, "found"))
		table := New(store)
		wanted := tables().Draw(t, "wanted")
		store.failIn = rapid.IntRange(0, 8).Draw(t, "failIn")
		if err := table.Set(wanted); err != nil && !errors.Is(err, errBroken) {
			t.Fatal(err)
		}
		store.failIn = -1
		if err := table.Set(wanted); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(store.entries, wanted) {
			t.Fatalf("store holds %v, wanted %v", store.entries, wanted)
		}
	})
}

func TestSetFitsWhateverFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := newMemory(nil)
		store.entries = map[int]int{}
		store.cap = rapid.IntRange(0, 6).Draw(t, "cap")
		table := New(store)
		for range 4 {
			before := maps.Clone(store.entries)
			wanted := tables().Draw(t, "wanted")
			err := table.Set(wanted)
			switch {
			case len(wanted) > store.cap:
				if !errors.Is(err, ErrFull) || !maps.Equal(before, store.entries) {
					t.Fatalf("want ErrFull and no change, got %v and %v -> %v", err, before, store.entries)
				}
			case err != nil:
				t.Fatal(err)
			case !maps.Equal(store.entries, wanted):
				t.Fatalf("store holds %v, wanted %v", store.entries, wanted)
			}
		}
	})
}

// Table a's values are keys of table b: after each single write every value of a is found in b.
func TestApplyLeavesNoReferenceToNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pair := func(label string) (a, b map[int]int) {
			b = rapid.MapOfN(rapid.IntRange(0, 9), rapid.IntRange(0, 3), 1, 8).Draw(t, label+" referred")
			var keys []int
			for k := range 10 {
				if _, ok := b[k]; ok {
					keys = append(keys, k)
				}
			}
			return rapid.MapOfN(rapid.IntRange(0, 9), rapid.SampledFrom(keys), 0, 8).Draw(t, label+" referring"), b
		}
		a0, b0 := pair("before")
		a1, b1 := pair("after")
		storeA, storeB := newMemory(a0), newMemory(b0)
		check := func() {
			for k, ref := range storeA.entries {
				if _, ok := storeB.entries[ref]; !ok {
					t.Fatalf("entry %d refers to %d, which is not there", k, ref)
				}
			}
		}
		storeA.after, storeB.after = check, check
		changeA, err := New(storeA).Change(a1)
		if err != nil {
			t.Fatal(err)
		}
		changeB, err := New(storeB).Change(b1)
		if err != nil {
			t.Fatal(err)
		}
		if err := Apply(changeB, changeA); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(storeA.entries, a1) || !maps.Equal(storeB.entries, b1) {
			t.Fatal("not what was wanted")
		}
	})
}

func TestPutAndDeleteOne(t *testing.T) {
	store := newMemory(map[int]int{1: 1})
	store.cap = 2
	table := New(store)
	for range 2 { // the second time nothing is written
		if err := table.Put(2, 2); err != nil {
			t.Fatal(err)
		}
	}
	if store.writes != 1 {
		t.Errorf("%d writes, want 1", store.writes)
	}
	if err := table.Put(3, 3); !errors.Is(err, ErrFull) {
		t.Errorf("want ErrFull, got %v", err)
	}
	if err := table.Delete(1, 7); err != nil {
		t.Fatal(err)
	}
	if err := table.Put(3, 3); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(store.entries, map[int]int{2: 2, 3: 3}) {
		t.Errorf("store holds %v", store.entries)
	}
}
