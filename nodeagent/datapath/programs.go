// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// programs are the programs in force: one in each slot of the map `hooks`, one stub for each hook on a device, and
// those of the cgroup. Each is pinned as NAME_HASH, where the hash is that of its instructions, its constants and the
// maps that it was loaded with: what a pin of that name holds is what loading again would give, so it is adopted.
type programs struct {
	folder string
	maps   *mapSet
	// hook -> the program that is attached to devices.
	stubs map[bpf.Hook]*ebpf.Program
	// cgroup hook's name -> program; nil values never.
	socket map[string]*ebpf.Program
	// hook's name -> pin, while older pins may be there.
	socketPins map[string]string
	// mu guards handovers, which are loaded when first needed.
	mu        sync.Mutex
	handovers map[bpf.Hook]handover
	// what the programs were loaded with; nil: load again.
	loaded, socketLoaded constants
}

// constants are the variables of bpf/lib/config.h by name.
type constants map[string]any

// collection is one object, ready to be loaded.
type collection struct {
	spec *ebpf.CollectionSpec
	maps *mapSet
}

// prepare sets the constants that the object has and points its maps at ours.
func prepare(load func() (*ebpf.CollectionSpec, error), consts constants, m *mapSet) (*collection, error) {
	spec, err := load()
	if err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	for name, value := range consts {
		v, ok := spec.Variables[name]
		if !ok {
			continue // the object does not look at it
		}
		if err := v.Set(value); err != nil {
			return nil, fmt.Errorf("set constant %s: %w", name, err)
		}
	}
	for name, ours := range m.open {
		if s, ok := spec.Maps[name]; ok {
			s.MaxEntries = ours.MaxEntries()
			s.Pinning = ebpf.PinNone
		}
	}
	return &collection{spec: spec, maps: m}, nil
}

// hash names one program of the collection.
func (c *collection) hash(name string) (string, error) {
	spec, ok := c.spec.Programs[name]
	if !ok {
		return "", fmt.Errorf("no program %s in the object", name)
	}
	tag, err := spec.Tag() //nolint:staticcheck // compared with our own of other builds, never with the kernel's
	if err != nil {
		return "", fmt.Errorf("hash instructions: %w", err)
	}
	h := sha256.New()
	fmt.Fprintln(h, tag)
	for _, v := range slices.Sorted(maps.Keys(c.spec.Variables)) {
		fmt.Fprintf(h, "%s %x\n", v, c.spec.Variables[v].Value)
	}
	for _, n := range slices.Sorted(maps.Keys(c.spec.Maps)) {
		ours, ok := c.maps.open[n]
		if !ok {
			continue
		}
		info, err := ours.Info()
		if err != nil {
			return "", fmt.Errorf("map %s: %w", n, err)
		}
		id, _ := info.ID()
		fmt.Fprintln(h, n, id)
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// load gives the programs of the collection to the kernel. They are closed by the caller.
func (c *collection) load() (map[string]*ebpf.Program, error) {
	replacements := map[string]*ebpf.Map{}
	for name, ours := range c.maps.open {
		if _, ok := c.spec.Maps[name]; ok {
			replacements[name] = ours
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(c.spec, ebpf.CollectionOptions{MapReplacements: replacements})
	if err != nil {
		return nil, err
	}
	progs := coll.Programs
	coll.Programs = nil
	coll.Close()
	return progs, nil
}

// adopt gives for each name the pinned program of its hash, loading and pinning those that are not there.
func (p *programs) adopt(c *collection, pins map[string]string) (map[string]*ebpf.Program, error) {
	out := map[string]*ebpf.Program{}
	var fresh map[string]*ebpf.Program
	fail := func(err error) (map[string]*ebpf.Program, error) {
		closeAll(out)
		closeAll(fresh)
		return nil, err
	}
	for name, pin := range pins {
		path := filepath.Join(p.folder, pin)
		prog, err := ebpf.LoadPinnedProgram(path, nil)
		if err == nil {
			out[name] = prog
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fail(fmt.Errorf("open pinned program %s: %w", pin, err))
		}
		if fresh == nil {
			if fresh, err = c.load(); err != nil {
				return fail(fmt.Errorf("load %s: %w", name, err))
			}
		}
		prog = fresh[name]
		if prog == nil {
			return fail(fmt.Errorf("load %s: not in the object", name))
		}
		delete(fresh, name)
		out[name] = prog
		if err := prog.Pin(path); err != nil {
			return fail(fmt.Errorf("pin program %s: %w", pin, err))
		}
	}
	closeAll(fresh)
	return out, nil
}

func closeAll[K comparable](progs map[K]*ebpf.Program) {
	for _, p := range progs {
		p.Close()
	}
}

// loadStubs makes or adopts the stub of each hook on a device.
func (p *programs) loadStubs() error {
	if p.stubs != nil {
		return nil
	}
	stubs := map[bpf.Hook]*ebpf.Program{}
	pins := map[string]string{}
	for _, target := range bpf.DevicePrograms() {
		c, err := prepare(bpf.LoadStub, constants{"hook": uint32(target.Hook)}, p.maps)
		if err != nil {
			closeAll(stubs)
			return fmt.Errorf("stub of %s: %w", target.Name, err)
		}
		hash, err := c.hash("stub")
		if err == nil {
			var got map[string]*ebpf.Program
			pins[target.Name] = stubPrefix(target.Name) + hash
			if got, err = p.adopt(c, map[string]string{"stub": pins[target.Name]}); err == nil {
				stubs[target.Hook] = got["stub"]
			}
		}
		if err != nil {
			closeAll(stubs)
			return fmt.Errorf("stub of %s: %w", target.Name, err)
		}
	}
	p.stubs = stubs
	// What another build's stub is attached to holds it, until this one takes its place.
	for name, pin := range pins {
		if err := p.unpinOthers(stubPrefix(name), pin); err != nil {
			return err
		}
	}
	return nil
}

func stubPrefix(hook string) string { return "stub_" + hook + "_" }

// flip brings the programs of every slot to consts: all are loaded before the first slot is written, so that a program
// that the kernel refuses changes nothing. It is a no-op when they are in force already.
func (p *programs) flip(consts constants) error {
	if p.loaded != nil && maps.Equal(p.loaded, consts) {
		return nil
	}
	type change struct {
		slot bpf.Hook
		name string
		prog *ebpf.Program
		pin  string
	}
	var changes []change
	defer func() {
		for _, c := range changes {
			c.prog.Close()
		}
	}()
	for _, target := range bpf.DevicePrograms() {
		c, err := prepare(target.Load, consts, p.maps)
		if err != nil {
			return fmt.Errorf("program %s: %w", target.Name, err)
		}
		hash, err := c.hash(target.Name)
		if err != nil {
			return fmt.Errorf("program %s: %w", target.Name, err)
		}
		pin := target.Name + "_" + hash
		got, err := p.adopt(c, map[string]string{target.Name: pin})
		if err != nil {
			return err
		}
		changes = append(changes, change{target.Hook, target.Name, got[target.Name], pin})
	}
	hooks := p.maps.open[bpf.MapsMapHooks]
	if !p.maps.changesOver(bpf.MapsMapConntrack) {
		// Programs of before may have known no advances.
		if err := p.maps.grantAdvances(consts["advance_size"].(uint32)); err != nil {
			return err
		}
	} else {
		if err := p.maps.carryMore(); err != nil {
			return err
		}
		// What comes from outside first: only from_netdev can look into both tables, and until the others are changed
		// they write into the old one.
		slices.SortStableFunc(changes, func(a, b change) int { return cmp.Compare(fromOutside(b.slot), fromOutside(a.slot)) })
		if err := p.keepBefore(); err != nil {
			return fmt.Errorf("keep from_netdev for connections of the old table: %w", err)
		}
	}
	for _, c := range changes {
		info, err := c.prog.Info()
		if err != nil {
			return fmt.Errorf("program %s: %w", c.name, err)
		}
		id, _ := info.ID()
		var current uint32
		if err := hooks.Lookup(uint32(c.slot), &current); err == nil && current == uint32(id) {
			continue
		}
		if err := hooks.Put(uint32(c.slot), uint32(c.prog.FD())); err != nil {
			return fmt.Errorf("put %s in force: %w", c.name, err)
		}
	}
	for _, c := range changes {
		if err := p.unpinOthers(c.name+"_", c.pin); err != nil {
			return err
		}
	}
	p.loaded = maps.Clone(consts)
	return nil
}

func fromOutside(slot bpf.Hook) int {
	if slot == bpf.MapsHookHOOK_FROM_NETDEV {
		return 1
	}
	return 0
}

// keepBefore lets the new from_netdev ask the one in force, which reads the old conntrack, about what it does not know.
func (p *programs) keepBefore() error {
	hooks := p.maps.open[bpf.MapsMapHooks]
	if hooks.MaxEntries() <= uint32(bpf.MapsHookSLOT_BEFORE) {
		return nil // made by a build that had no such slot
	}
	var id uint32
	if err := hooks.Lookup(uint32(bpf.MapsHookHOOK_FROM_NETDEV), &id); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	before, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return err
	}
	defer before.Close()
	return hooks.Put(uint32(bpf.MapsHookSLOT_BEFORE), uint32(before.FD()))
}

// forgetBefore is called when the new tables hold all that the old ones do.
func (p *programs) forgetBefore() error {
	hooks := p.maps.open[bpf.MapsMapHooks]
	err := hooks.Delete(uint32(bpf.MapsHookSLOT_BEFORE))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) && hooks.MaxEntries() > uint32(bpf.MapsHookSLOT_BEFORE) {
		return fmt.Errorf("let the from_netdev of before go: %w", err)
	}
	return nil
}

// loadSocket makes or adopts the programs of the cgroup. It is a no-op when they were loaded with consts already.
func (p *programs) loadSocket(consts constants) error {
	if p.socket != nil && maps.Equal(p.socketLoaded, consts) {
		return nil
	}
	c, err := prepare(bpf.LoadSock, consts, p.maps)
	if err != nil {
		return fmt.Errorf("socket programs: %w", err)
	}
	pins := map[string]string{}
	for name := range bpf.SocketPrograms() {
		hash, err := c.hash(name)
		if err != nil {
			return fmt.Errorf("socket program %s: %w", name, err)
		}
		pins[name] = name + "_" + hash
	}
	got, err := p.adopt(c, pins)
	if err != nil {
		return fmt.Errorf("socket programs: %w", err)
	}
	closeAll(p.socket)
	p.socket, p.socketPins, p.socketLoaded = got, pins, maps.Clone(consts)
	return nil
}

// unpinOldSocket is called when the present programs are attached.
func (p *programs) unpinOldSocket() error {
	for name, pin := range p.socketPins {
		if err := p.unpinOthers(name+"_", pin); err != nil {
			return err
		}
	}
	p.socketPins = nil
	return nil
}

// forget makes the next flip load again: a map was replaced.
func (p *programs) forget() { p.loaded, p.socketLoaded = nil, nil }

// unpinOthers removes the pins with prefix but the one named keep: what is in force holds its program by itself.
func (p *programs) unpinOthers(prefix, keep string) error {
	entries, err := os.ReadDir(p.folder)
	if err != nil {
		return fmt.Errorf("list programs: %w", err)
	}
	for _, e := range entries {
		hash, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || e.Name() == keep || len(hash) != 16 {
			continue
		}
		if err := os.Remove(filepath.Join(p.folder, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unpin program %s: %w", e.Name(), err)
		}
	}
	return nil
}

func (p *programs) close() {
	closeAll(p.stubs)
	closeAll(p.socket)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.handovers {
		h.close()
	}
	p.stubs, p.socket, p.handovers = nil, nil, nil
}
