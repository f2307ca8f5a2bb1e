// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// chunk is how many entries one batch call carries: small enough for the agent's memory, large enough that the calls
// do not count.
const chunk = 1024

// mapStore is a hash or trie as a delta.Store. The map may be replaced by a larger one, so it is looked up by name.
type mapStore[K, V comparable] struct {
	maps *mapSet
	name string
}

func (s *mapStore[K, V]) table() *ebpf.Map { return s.maps.open[s.name] }

func (s *mapStore[K, V]) Cap() int { return int(s.table().MaxEntries()) }

// Load visits every entry; one that is changed meanwhile may be visited as it was or as it is.
func (s *mapStore[K, V]) Load(visit func(K, V)) error {
	if err := eachEntry(s.table(), s.maps.batch, func(k K, v V) bool { visit(k, v); return true }); err != nil {
		return fmt.Errorf("read map %s: %w", s.name, err)
	}
	return nil
}

func (s *mapStore[K, V]) Put(keys []K, values []V) error {
	for len(keys) > 0 {
		n := min(chunk, len(keys))
		if err := putEntries(s.table(), s.maps.batch, keys[:n], values[:n], ebpf.UpdateAny); err != nil {
			return fmt.Errorf("write map %s: %w", s.name, err)
		}
		keys, values = keys[n:], values[n:]
	}
	return nil
}

func (s *mapStore[K, V]) Delete(keys []K) error {
	for len(keys) > 0 {
		n := min(chunk, len(keys))
		if err := deleteEntries(s.table(), s.maps.batch, keys[:n]); err != nil {
			return fmt.Errorf("delete from map %s: %w", s.name, err)
		}
		keys = keys[n:]
	}
	return nil
}

// eachEntry visits until visit says no. Tries have batch calls only since Linux 5.13, others since 5.6.
func eachEntry[K, V any](m *ebpf.Map, batch bool, visit func(K, V) bool) error {
	if batch {
		err := eachBatched(m, visit)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		if !visit(k, v) {
			return nil
		}
	}
	return it.Err()
}

func eachBatched[K, V any](m *ebpf.Map, visit func(K, V) bool) error {
	size := min(chunk, int(m.MaxEntries()))
	var cursor ebpf.MapBatchCursor
	keys, values := make([]K, size), make([]V, size)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, errNoSpace) {
			// A hash bucket holds more than fits; the cursor has not moved.
			size *= 2
			keys, values = make([]K, size), make([]V, size)
			continue
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			if !visit(keys[i], values[i]) {
				return nil
			}
		}
		if err != nil { // the end
			return nil
		}
	}
}

func putEntries[K, V any](m *ebpf.Map, batch bool, keys []K, values []V, flags ebpf.MapUpdateFlags) error {
	if batch && len(keys) > 1 {
		_, err := m.BatchUpdate(keys, values, &ebpf.BatchOptions{ElemFlags: uint64(flags)})
		if err == nil {
			return nil
		}
		// Not supported, or one entry was refused: go on one by one, so that the error names the one.
	}
	for i := range keys {
		err := m.Update(keys[i], values[i], flags)
		if flags == ebpf.UpdateNoExist && errors.Is(err, ebpf.ErrKeyExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("entry %v: %w", keys[i], err)
		}
	}
	return nil
}

func deleteEntries[K any](m *ebpf.Map, batch bool, keys []K) error {
	for batch && len(keys) > 1 {
		n, err := m.BatchDelete(keys, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) || n >= len(keys) {
			break
		}
		keys = keys[n+1:] // stopped at one that was gone already
	}
	for _, k := range keys {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}
