// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"fmt"
	"reflect"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// batch is how many entries are asked for at once: at 112 bytes each, under half a megabyte.
const batch = 4096

// walk calls each for every entry of a map whose values are not per CPU. Complete is false when the map changed faster
// than it could be read, so that entries may be missing; none comes twice.
func walk(m *ebpf.Map, each func(key, value []byte) error) (complete bool, err error) {
	if m.Type() == ebpf.Hash || m.Type() == ebpf.LRUHash {
		err := walkBatches(m, each)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err == nil, err
		}
	}
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	seen := map[string]bool{}
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		if seen[string(key)] {
			continue // deleted and made again while we walked
		}
		seen[string(key)] = true
		if err := each(key, value); err != nil {
			return false, err
		}
	}
	err = entries.Err()
	if errors.Is(err, ebpf.ErrIterationAborted) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read map: %w", err)
	}
	return true, nil
}

// walkBatches reads whole buckets at a time (Linux 5.6), so that concurrent deletion cannot send it back to the start.
func walkBatches(m *ebpf.Map, each func(key, value []byte) error) error {
	var cursor ebpf.MapBatchCursor
	ks, vs := int(m.KeySize()), int(m.ValueSize())
	limit := int(m.MaxEntries())
	keys, values := newArrays(ks, min(batch, limit)), newArrays(vs, min(batch, limit))
	for {
		n, err := m.BatchLookup(&cursor, keys.slice, values.slice, nil)
		if errors.Is(err, unix.ENOSPC) && keys.n < limit {
			// One bucket alone is larger than the batch; the cursor has not moved.
			bigger := min(2*keys.n, limit)
			keys, values = newArrays(ks, bigger), newArrays(vs, bigger)
			continue
		}
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !done {
			return fmt.Errorf("read map: %w", err)
		}
		for i := range n {
			if err := each(keys.bytes[i*ks:(i+1)*ks], values.bytes[i*vs:(i+1)*vs]); err != nil {
				return err
			}
		}
		if done {
			return nil
		}
	}
}

// arrays is a []T for a T of a size known only now, as the library wants it, and the bytes behind it.
type arrays struct {
	slice any
	bytes []byte
	n     int
}

func newArrays(size, n int) arrays {
	v := reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(size, reflect.TypeFor[byte]())), n, n)
	return arrays{slice: v.Interface(), bytes: unsafe.Slice((*byte)(v.UnsafePointer()), n*size), n: n}
}
