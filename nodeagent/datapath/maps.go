// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
)

const errNoSpace = unix.ENOSPC

// pinFolder is the folder of all our pins, below the bpf file system.
const pinFolder = "kube-cilium"

// mapSet is the pinned maps. Names in bpffs hold no dots: the kernel refuses them.
type mapSet struct {
	folder  string
	spec    *ebpf.CollectionSpec
	layouts []layout
	open    map[string]*ebpf.Map
	// batch calls may be used.
	batch bool
	// stale are maps that were replaced; they are read once more and unpinned when no program uses them any longer.
	stale []replaced
}

// replaced is a map that another has taken the place of.
type replaced struct {
	old *ebpf.Map
	// oldPin is removed in the end; or newPin takes the name of pin.
	oldPin, newPin, pin string
	// with is the name in open.
	with    string
	keep    keep
	convert convert
}

// openMaps adopts what is pinned in folder and makes what is not. Of a map whose layout another release changed the
// entries are carried over. What has a layout that we cannot read is left alone: it belongs to a newer release.
func openMaps(folder string, layouts []layout) (*mapSet, error) {
	spec, err := bpf.LoadMaps()
	if err != nil {
		return nil, fmt.Errorf("read maps' object: %w", err)
	}
	spec.Variables = nil
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("make pin folder: %w", err)
	}
	m := &mapSet{folder: folder, spec: spec, layouts: layouts, open: map[string]*ebpf.Map{}, batch: true}
	for _, l := range layouts {
		if err := m.openOne(l); err != nil {
			m.close()
			return nil, err
		}
	}
	return m, nil
}

func (m *mapSet) pin(l layout) string { return filepath.Join(m.folder, PinName(l.name, l.version)) }

// pinMode is what the pin of a map or link has while nobody opens it. The inspect container is root without CAP_DAC_OVERRIDE and sees
// the pins through a read-only mount, where it cannot change their mode: so it can read maps, and neither write one
// nor take a program off. (A
// read-only mount alone does not stop it: BPF_OBJ_GET asks the file's mode and not the mount.)
const pinMode = 0o440

// lockPins gives every pin of a map or link its mode: an agent that died while it opened one left it writable. A
// program's pin keeps its own: nothing can be written to a program, and to open it the kernel asks for both rights.
func lockPins(folder string) error {
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "programs":
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		return os.Chmod(path, pinMode)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set the mode of pins: %w", err)
	}
	return nil
}

func pinMap(m *ebpf.Map, pin string) error {
	if err := m.Pin(pin); err != nil {
		return err
	}
	return os.Chmod(pin, pinMode)
}

// loadPinnedMap opens a pin for writing; fs.ErrNotExist where there is none.
func loadPinnedMap(pin string) (*ebpf.Map, error) {
	if err := os.Chmod(pin, 0o600); err != nil {
		return nil, err
	}
	m, err := ebpf.LoadPinnedMap(pin, nil)
	return m, errors.Join(err, os.Chmod(pin, pinMode))
}

func pinLink(l link.Link, pin string) error {
	if err := l.Pin(pin); err != nil {
		return err
	}
	return os.Chmod(pin, pinMode)
}

// loadPinnedLink opens a pinned link; fs.ErrNotExist where there is none.
func loadPinnedLink(pin string) (link.Link, error) {
	if err := os.Chmod(pin, 0o600); err != nil {
		return nil, err
	}
	l, err := link.LoadPinnedLink(pin, nil)
	return l, errors.Join(err, os.Chmod(pin, pinMode))
}

func (m *mapSet) openOne(l layout) error {
	spec, ok := m.spec.Maps[l.name]
	if !ok {
		return fmt.Errorf("map %s: not in the maps' object", l.name)
	}
	spec.Pinning = ebpf.PinNone
	found, err := loadPinnedMap(m.pin(l))
	switch {
	case err == nil:
		// The size is Configure's to change.
		like := spec.Copy()
		like.MaxEntries = found.MaxEntries()
		if err := like.Compatible(found); err != nil {
			found.Close()
			return fmt.Errorf("map %s: %w: %w (an older build left it; run kubectl cilium uninstall on this node)",
				l.name, ErrNewerLayout, err)
		}
		m.open[l.name] = found
		// Two layouts side by side: an agent died while it changed over.
		return m.carryOver(l, found, ebpf.UpdateNoExist)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open pinned map %s: %w", l.name, err)
	}
	made, err := ebpf.NewMap(spec)
	if err != nil {
		return fmt.Errorf("make map %s: %w", l.name, err)
	}
	if err := m.carryOver(l, made, ebpf.UpdateAny); err != nil {
		made.Close()
		return err
	}
	if l.fill != nil {
		if err := l.fill(m, made); err != nil {
			made.Close()
			return fmt.Errorf("fill map %s: %w", l.name, err)
		}
	}
	if err := pinMap(made, m.pin(l)); err != nil {
		made.Close()
		return fmt.Errorf("pin map %s: %w", l.name, err)
	}
	m.open[l.name] = made
	return nil
}

// carryOver fills a map from the same map of another layout.
func (m *mapSet) carryOver(l layout, made *ebpf.Map, flags ebpf.MapUpdateFlags) error {
	for version, conv := range l.reads {
		pin := filepath.Join(m.folder, PinName(l.name, version))
		old, err := loadPinnedMap(pin)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open pinned map %s of layout %d: %w", l.name, version, err)
		}
		if l.keep == keepEntries {
			if err := m.copyFirst(l, old, made, flags, conv); err != nil {
				old.Close()
				return fmt.Errorf("carry map %s over from layout %d: %w", l.name, version, err)
			}
		}
		m.stale = append(m.stale, replaced{old: old, oldPin: pin, with: l.name, keep: l.keep, convert: conv})
	}
	return nil
}

// resize puts a map of another size in the place of the pinned one, filled from it. The programs go on with the old
// one until they are loaded again; then finish copies what they have written since.
func (m *mapSet) resize(l layout, entries uint32) error {
	old := m.open[l.name]
	if entries == 0 || old.MaxEntries() == entries {
		return nil
	}
	spec := m.spec.Maps[l.name].Copy()
	spec.MaxEntries = entries
	made, err := ebpf.NewMap(spec)
	if err != nil {
		return fmt.Errorf("make map %s of %d entries: %w", l.name, entries, err)
	}
	if l.keep == keepEntries {
		if err := m.copyFirst(l, old, made, ebpf.UpdateAny, nil); err != nil {
			made.Close()
			return fmt.Errorf("fill map %s of %d entries: %w", l.name, entries, err)
		}
	}
	// The old one keeps the name until the programs use the new one: whoever starts in between finds what is in use.
	next := m.pin(l) + "_new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		made.Close()
		return fmt.Errorf("clear pin of map %s: %w", l.name, err)
	}
	if err := pinMap(made, next); err != nil {
		made.Close()
		return fmt.Errorf("pin map %s: %w", l.name, err)
	}
	m.open[l.name] = made
	m.stale = append(m.stale, replaced{old: old, newPin: next, pin: m.pin(l), with: l.name, keep: l.keep})
	return nil
}

// copyFirst copies a map's entries while programs go on writing to the old one.
func (m *mapSet) copyFirst(l layout, from, to *ebpf.Map, flags ebpf.MapUpdateFlags, conv convert) error {
	if l.name == bpf.MapsMapConntrack {
		if err := m.holdAdvances(); err != nil {
			return err
		}
	}
	return copyEntries(from, to, m.batch, flags, conv)
}

// copyRest copies what programs wrote since. What they wrote to the new one stays.
func (m *mapSet) copyRest(r replaced) error {
	if r.keep != keepEntries {
		return nil
	}
	if err := copyEntries(r.old, m.open[r.with], m.batch, ebpf.UpdateNoExist, r.convert); err != nil {
		return fmt.Errorf("carry the rest of map %s over: %w", r.with, err)
	}
	return nil
}

// carryMore copies what programs wrote since the first copy, just before they change over: until finish nobody looks
// into the old maps for the rest. What began meanwhile is in the small tables, for a minute more.
func (m *mapSet) carryMore() error {
	if err := m.holdAdvances(); err != nil {
		return err
	}
	for _, r := range m.stale {
		if err := m.copyRest(r); err != nil {
			return err
		}
	}
	return nil
}

// changesOver tells whether programs use another map of the name until they are loaded again.
func (m *mapSet) changesOver(name string) bool {
	return slices.ContainsFunc(m.stale, func(r replaced) bool { return r.with == name })
}

// finish is called when no program uses replaced maps any longer. advance is a pod's in the table of all.
func (m *mapSet) finish(advance uint32) error {
	var errs []error
	held := m.changesOver(bpf.MapsMapConntrack)
	for _, r := range m.stale {
		if r.newPin != "" {
			// Gone where a Configure after it made yet another size: that one's has taken its place.
			if err := os.Rename(r.newPin, r.pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("pin map %s: %w", r.with, err))
			}
		}
		errs = append(errs, m.copyRest(r))
		if r.oldPin != "" {
			if err := os.Remove(r.oldPin); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("unpin old map %s: %w", r.with, err))
			}
		}
		errs = append(errs, r.old.Close())
	}
	m.stale = nil
	if held {
		errs = append(errs, m.grantAdvances(advance))
	}
	return errors.Join(errs...)
}

// writeSettings changes a part of the live record; its callers hold Datapath.mu.
func (m *mapSet) writeSettings(change func(*bpf.Settings)) error {
	record := m.open[bpf.MapsMapLiveSettings]
	var was bpf.Settings
	if err := record.Lookup(uint32(0), &was); err != nil {
		return fmt.Errorf("read live settings: %w", err)
	}
	s := was
	if change(&s); s == was {
		return nil
	}
	if err := record.Put(uint32(0), s); err != nil {
		return fmt.Errorf("write live settings: %w", err)
	}
	return nil
}

func (m *mapSet) close() error {
	var errs []error
	for _, one := range m.open {
		errs = append(errs, one.Close())
	}
	for _, r := range m.stale {
		errs = append(errs, r.old.Close())
	}
	return errors.Join(errs...)
}

// copyEntries copies as bytes, through conv if there is one. A full target keeps what came first; an LRU drops its oldest.
func copyEntries(from, to *ebpf.Map, batch bool, flags ebpf.MapUpdateFlags, conv convert) error {
	if perCPU(from.Type()) {
		return copyPerCPU(from, to)
	}
	if batch && conv == nil {
		err := copyBatched(from, to, flags)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	var k, v []byte
	it := from.Iterate()
	for it.Next(&k, &v) {
		if conv != nil {
			var ok bool
			if k, v, ok = conv(k, v); !ok {
				continue
			}
		}
		if err := putEntries(to, false, [][]byte{k}, [][]byte{v}, flags); errors.Is(err, unix.E2BIG) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return it.Err()
}

func perCPU(t ebpf.MapType) bool {
	return t == ebpf.PerCPUArray || t == ebpf.PerCPUHash || t == ebpf.LRUCPUHash
}

func copyPerCPU(from, to *ebpf.Map) error {
	var k []byte
	var v [][]byte
	it := from.Iterate()
	for it.Next(&k, &v) {
		if err := to.Put(k, v); err != nil && !errors.Is(err, unix.E2BIG) {
			return err
		}
	}
	return it.Err()
}

// copyBatched makes slices of byte arrays of the maps' sizes: the batch calls want elements of fixed size.
func copyBatched(from, to *ebpf.Map, flags ebpf.MapUpdateFlags) error {
	array := func(size uint32) reflect.Type {
		return reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]()))
	}
	size := min(4*chunk, int(from.MaxEntries()))
	keys := reflect.MakeSlice(array(from.KeySize()), size, size)
	values := reflect.MakeSlice(array(from.ValueSize()), size, size)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := from.BatchLookup(&cursor, keys.Interface(), values.Interface(), nil)
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return err
		}
		if err := putRange(to, keys, values, n, flags); errors.Is(err, unix.E2BIG) {
			return nil
		} else if err != nil {
			return err
		}
		if end {
			return nil
		}
	}
}

func putRange(to *ebpf.Map, keys, values reflect.Value, n int, flags ebpf.MapUpdateFlags) error {
	if n == 0 {
		return nil
	}
	if flags == ebpf.UpdateAny {
		_, err := to.BatchUpdate(keys.Slice(0, n).Interface(), values.Slice(0, n).Interface(), nil)
		return err
	}
	for i := range n {
		k, v := keys.Index(i).Slice(0, keys.Index(i).Len()).Bytes(), values.Index(i).Slice(0, values.Index(i).Len()).Bytes()
		if err := to.Update(k, v, flags); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return err
		}
	}
	return nil
}
