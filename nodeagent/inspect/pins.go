// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/internal/maptable"
)

var (
	// ErrNothingPinned means that no datapath of ours was ever made on this node, or that bpffs is not mounted.
	ErrNothingPinned = errors.New("no map is pinned")
	// ErrNoMap means that no map of that name is pinned.
	ErrNoMap = errors.New("no such map")
)

// PinDir is where the agent pins, below the mount point of bpffs.
const PinDir = "kube-cilium"

// pin is one map in bpffs: NAME_vLAYOUT.
type pin struct {
	name   string
	layout int
	path   string
}

var pinName = regexp.MustCompile(`^(.+)_v([0-9]{1,6})$`)

// readPins lists the maps under bpffs, by name, newest layout first.
func readPins(bpffs string) ([]pin, error) {
	dir := filepath.Join(bpffs, PinDir)
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s (is bpffs mounted, and has the agent ever been ready on this node?)", ErrNothingPinned, dir)
	}
	if err != nil {
		return nil, err
	}
	var pins []pin
	for _, f := range files {
		if m := pinName.FindStringSubmatch(f.Name()); m != nil && !f.IsDir() {
			layout, _ := strconv.Atoi(m[2])
			pins = append(pins, pin{name: m[1], layout: layout, path: filepath.Join(dir, f.Name())})
		}
	}
	if len(pins) == 0 {
		return nil, fmt.Errorf("%w in %s (has the agent ever been ready on this node?)", ErrNothingPinned, dir)
	}
	slices.SortFunc(pins, func(a, b pin) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(b.layout, a.layout))
	})
	return pins, nil
}

// findPin gives the map of that name with the newest layout, or of exactly NAME_vLAYOUT.
func findPin(bpffs, name string) (pin, error) {
	pins, err := readPins(bpffs)
	if err != nil {
		return pin{}, err
	}
	for _, p := range pins {
		if p.name == name || filepath.Base(p.path) == name {
			return p, nil
		}
	}
	return pin{}, fmt.Errorf("%w: %q", ErrNoMap, name)
}

// open opens for reading only: the kernel refuses a write through this descriptor.
func (p pin) open() (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(p.path, &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("open map %s: %w (kernels before 5.19 need CAP_BPF for this where kernel.unprivileged_bpf_disabled is set)", p.name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", p.name, err)
	}
	return m, nil
}

// info describes the map; what cannot be told is in Error.
func (p pin) info() maptable.Info {
	out := maptable.Info{Name: p.name, Layout: p.layout, Entries: -1}
	m, err := p.open()
	if err != nil {
		out.Error = err.Error()
		return out
	}
	defer m.Close()
	out.Type, out.KeySize, out.ValueSize, out.MaxEntries = m.Type().String(), m.KeySize(), m.ValueSize(), int64(m.MaxEntries())
	if info, err := m.Info(); err == nil {
		if bytes, ok := info.Memlock(); ok {
			out.Bytes = int64(bytes)
		}
	}
	if !counted(m.Type()) {
		return out
	}
	n := int64(0)
	if _, err := walk(m, func(_, _ []byte) error { n++; return nil }); err != nil {
		out.Error = err.Error()
		return out
	}
	out.Entries = n
	return out
}

// counted says for which types the number of entries means something: an array is always full.
func counted(t ebpf.MapType) bool {
	switch t {
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie, ebpf.HashOfMaps, ebpf.ProgramArray, ebpf.ArrayOfMaps:
		return true
	}
	return false
}
