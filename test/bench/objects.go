// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// slots are the programs of one set of objects on one node, by their slot of `hooks`.
type slots struct {
	hooks    *ebpf.Map
	programs map[bpf.Hook]*ebpf.Program
}

func (s slots) put() error {
	for slot, p := range s.programs {
		if err := s.hooks.Put(uint32(slot), uint32(p.FD())); err != nil {
			return fmt.Errorf("put a program into slot %d: %w", slot, err)
		}
	}
	return nil
}

func (s slots) close() {
	for _, p := range s.programs {
		_ = p.Close()
	}
}

// nodePrograms are what the agent of a node has in force, and the maps and constants that it loaded them with.
type nodePrograms struct {
	slots
	maps   map[string]*ebpf.Map
	consts map[bpf.Hook]map[string][]byte
}

// programsOf reads what is in force on a node.
func (o *ours) programsOf(ctx context.Context, node string) (*nodePrograms, error) {
	pid, err := o.agentPID(ctx, node)
	if err != nil {
		return nil, err
	}
	pins, err := filepath.Glob(filepath.Join(pinFolder(pid), "*_v*"))
	if err != nil {
		return nil, err
	}
	n := &nodePrograms{maps: map[string]*ebpf.Map{}, consts: map[bpf.Hook]map[string][]byte{}}
	for _, pin := range pins {
		name, _, _ := strings.Cut(filepath.Base(pin), "_v")
		if m, err := ebpf.LoadPinnedMap(pin, nil); err == nil {
			n.maps[name] = m
		}
	}
	n.slots = slots{hooks: n.maps[bpf.MapsMapHooks], programs: map[bpf.Hook]*ebpf.Program{}}
	if n.hooks == nil {
		return nil, fmt.Errorf("no programs are pinned on %s", node)
	}
	for _, p := range bpf.DevicePrograms() {
		var id uint32
		if err := n.hooks.Lookup(uint32(p.Hook), &id); err != nil {
			return nil, fmt.Errorf("%s of %s: %w", p.Name, node, err)
		}
		prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", p.Name, node, err)
		}
		n.programs[p.Hook] = prog
		if n.consts[p.Hook], err = constantsOf(prog, p.Load); err != nil {
			return nil, fmt.Errorf("constants of %s of %s: %w", p.Name, node, err)
		}
	}
	return n, nil
}

// constantsOf reads the constants of a program in force, which is of this build: load says where each lies.
func constantsOf(prog *ebpf.Program, load func() (*ebpf.CollectionSpec, error)) (map[string][]byte, error) {
	spec, err := load()
	if err != nil {
		return nil, err
	}
	info, err := prog.Info()
	if err != nil {
		return nil, err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, err
		}
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return nil, err
		}
		if !strings.HasSuffix(info.Name, ".rodata") {
			continue
		}
		section, err := m.LookupBytes(uint32(0))
		if err != nil {
			return nil, err
		}
		consts := map[string][]byte{}
		for name, v := range spec.Variables {
			if end := int(v.Offset + v.Size()); v.Constant() && end <= len(section) {
				consts[name] = section[v.Offset:end]
			}
		}
		return consts, nil
	}
	return nil, errors.New("it has none")
}

// load gives the kernel the objects of dir, as bpf2go names them, on the maps and with the constants in force.
func (n *nodePrograms) load(dir string) (slots, error) {
	s := slots{hooks: n.hooks, programs: map[bpf.Hook]*ebpf.Program{}}
	for _, p := range bpf.DevicePrograms() {
		file := filepath.Join(dir, strings.ReplaceAll(p.Name, "_", "")+"_bpfel.o")
		spec, err := ebpf.LoadCollectionSpec(file)
		if err == nil {
			err = bpf.GiveDesks(spec)
		}
		if err != nil {
			return s, err
		}
		for name, value := range n.consts[p.Hook] {
			if v := spec.Variables[name]; v != nil {
				if err := v.Set(value); err != nil {
					return s, fmt.Errorf("%s: constant %s: %w", file, name, err)
				}
			}
		}
		replacements := map[string]*ebpf.Map{}
		for name, m := range n.maps {
			if spec.Maps[name] != nil {
				spec.Maps[name].MaxEntries = m.MaxEntries()
				spec.Maps[name].Pinning = ebpf.PinNone
				replacements[name] = m
			}
		}
		all, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
		if err != nil {
			return s, fmt.Errorf("%s: %w", file, err)
		}
		s.programs[p.Hook] = all.DetachProgram(p.Name)
		all.Close()
	}
	return s, nil
}

// objectFigures compares the programs of this build with those of other objects in one cluster: before each slice the
// ones that it is about are put into the slots of both nodes. Nothing else differs, not even where tables lie in memory,
// so it sees 1 % of crr where two clusters see 3 (buildFigures). Maps must be the same: objects of other tables are not
// loaded. The same objects given twice tell how far to trust it.
func objectFigures(ctx context.Context, log io.Writer, o options) (figures []Figure, err error) {
	c, err := bringUp(ctx, o.testCluster, o.cluster, "")
	if err != nil {
		return nil, err
	}
	defer c.close()
	if o.part("cross") {
		if err := c.wire(ctx); err != nil {
			return nil, err
		}
	}
	compare := func(name, server string) error {
		to := c.pods[server]
		one := shape{name: name, client: c.pods["client"], server: to, dst: to.ips["4"]}
		shapes, done, err := c.turns(ctx, one, strings.Split(o.objects, ","))
		defer done()
		if err != nil {
			return err
		}
		f, err := measure(ctx, log, name, shapes, name, strings.Split(o.kinds, ","), o.rounds, o.millis, nil)
		for _, f := range f {
			fmt.Fprintln(log, line(f))
		}
		figures = append(figures, f...)
		return err
	}
	if o.part("same") {
		if err := compare("same node", "same"); err != nil {
			return nil, err
		}
	}
	for _, mode := range []string{"VXLAN", "Native"} {
		if !o.part("cross") {
			break
		}
		if err := c.configure(ctx, `{"spec":{"routing":{"mode":"`+mode+`"}}}`); err != nil {
			return nil, err
		}
		if err := compare("two nodes, "+mode, "other"); err != nil {
			return nil, err
		}
	}
	return figures, nil
}

// turns makes of one shape a shape for the programs in force and one for the objects of each folder. done puts the
// programs of the agents back.
func (o *ours) turns(ctx context.Context, one shape, dirs []string) (shapes []shape, done func(), err error) {
	sets := make([][]slots, len(dirs)+1)
	put := func(set []slots) error {
		for _, s := range set {
			if err := s.put(); err != nil {
				return err
			}
		}
		return nil
	}
	done = func() {
		_ = put(sets[0])
		for _, set := range sets {
			for _, s := range set {
				s.close()
			}
		}
	}
	for _, node := range o.Nodes {
		n, err := o.programsOf(ctx, node.Name)
		if err != nil {
			return nil, done, err
		}
		sets[0] = append(sets[0], n.slots)
		for i, dir := range dirs {
			s, err := n.load(dir)
			sets[i+1] = append(sets[i+1], s)
			if err != nil {
				return nil, done, err
			}
		}
	}
	for i, set := range sets {
		s := one
		if i > 0 {
			s.name = fmt.Sprintf("%s, %d: %s", one.name, i, dirs[i-1])
		}
		s.before = func() error { return put(set) }
		shapes = append(shapes, s)
	}
	return shapes, done, nil
}
