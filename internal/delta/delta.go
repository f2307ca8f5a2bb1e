// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"errors"
	"fmt"
)

// ErrFull says that the wanted table does not fit; nothing was written.
var ErrFull = errors.New("table is full")

// Store is the table where it lives. Put and Delete are idempotent; after an error any part of the call may have been
// carried out.
type Store[K, V comparable] interface {
	// Load visits every entry.
	Load(visit func(K, V)) error
	// Put inserts or replaces; values[i] belongs to keys[i].
	Put(keys []K, values []V) error
	// Delete removes. Deleting what is already gone is not an error.
	Delete(keys []K) error
	// Cap is how many entries the store holds.
	Cap() int
}

// Table is a store and what is known to be in it. It is not safe for concurrent use.
type Table[K, V comparable] struct {
	store Store[K, V]
	// key -> value, as last read or written; nil: not known.
	actual map[K]V
}

// New makes a table that adopts what store holds.
func New[K, V comparable](store Store[K, V]) *Table[K, V] {
	return &Table[K, V]{store: store}
}

// Actual is what the store holds. The caller does not change it.
func (t *Table[K, V]) Actual() (map[K]V, error) {
	if t.actual != nil {
		return t.actual, nil
	}
	actual := map[K]V{}
	if err := t.store.Load(func(k K, v V) { actual[k] = v }); err != nil {
		return nil, err
	}
	t.actual = actual
	return actual, nil
}

// Forget drops what is known: the next use reads the store again.
func (t *Table[K, V]) Forget() { t.actual = nil }

// Set makes wanted the whole table.
func (t *Table[K, V]) Set(wanted map[K]V) error {
	c, err := t.Change(wanted)
	if err != nil {
		return err
	}
	return Apply(c)
}

// Put makes one entry be there.
func (t *Table[K, V]) Put(k K, v V) error {
	actual, err := t.Actual()
	if err != nil {
		return err
	}
	old, ok := actual[k]
	if ok && old == v {
		return nil
	}
	if !ok && len(actual) >= t.store.Cap() {
		return fmt.Errorf("%w: %d entries", ErrFull, len(actual))
	}
	return t.put([]K{k}, []V{v})
}

// Delete makes the entries be gone. It asks the store also for those that it does not know of.
func (t *Table[K, V]) Delete(keys ...K) error { return t.delete(keys) }

func (t *Table[K, V]) put(keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	if err := t.store.Put(keys, values); err != nil {
		t.Forget()
		return err
	}
	for i, k := range keys {
		if t.actual != nil {
			t.actual[k] = values[i]
		}
	}
	return nil
}

func (t *Table[K, V]) delete(keys []K) error {
	if len(keys) == 0 {
		return nil
	}
	if err := t.store.Delete(keys); err != nil {
		t.Forget()
		return err
	}
	for _, k := range keys {
		delete(t.actual, k)
	}
	return nil
}

// Change is the way from the actual table to a wanted one. It holds until the table changes otherwise.
type Change[K, V comparable] struct {
	table   *Table[K, V]
	inserts int
	keys    []K
	values  []V
	gone    []K
}

// Change compares. It returns ErrFull when wanted is larger than the store.
func (t *Table[K, V]) Change(wanted map[K]V) (*Change[K, V], error) {
	actual, err := t.Actual()
	if err != nil {
		return nil, err
	}
	if len(wanted) > t.store.Cap() {
		return nil, fmt.Errorf("%w: %d entries wanted, %d fit", ErrFull, len(wanted), t.store.Cap())
	}
	c := &Change[K, V]{table: t}
	for k, v := range wanted {
		old, ok := actual[k]
		if ok && old == v {
			continue
		}
		if !ok {
			c.inserts++
		}
		c.keys = append(c.keys, k)
		c.values = append(c.values, v)
	}
	for k := range actual {
		if _, ok := wanted[k]; !ok {
			c.gone = append(c.gone, k)
		}
	}
	return c, nil
}

// Empty is true when nothing is to be written.
func (c *Change[K, V]) Empty() bool { return len(c.keys) == 0 && len(c.gone) == 0 }

// Put writes what is new and what differs. Where old and new do not fit together, as many old entries as needed go first.
func (c *Change[K, V]) Put() error {
	if over := len(c.table.actual) + c.inserts - c.table.store.Cap(); over > 0 && over <= len(c.gone) {
		if err := c.table.delete(c.gone[:over]); err != nil {
			return err
		}
		c.gone = c.gone[over:]
	}
	return c.table.put(c.keys, c.values)
}

// Delete removes what is not wanted.
func (c *Change[K, V]) Delete() error { return c.table.delete(c.gone) }

// Stage is a Change of a table of any type.
type Stage interface {
	Put() error
	Delete() error
}

// Apply carries out the changes of tables that refer to one another, given with what is referred to first: puts in
// this order, then deletes in the reverse, so that no reader finds a reference to nothing. It stops at the first error.
func Apply(stages ...Stage) error {
	for _, s := range stages {
		if err := s.Put(); err != nil {
			return err
		}
	}
	for i := len(stages) - 1; i >= 0; i-- {
		if err := stages[i].Delete(); err != nil {
			return err
		}
	}
	return nil
}
