// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// InForce tells, before Open and without changing anything, whether programs that an earlier process left here judge
// packets: the slot of what pods send is filled, in whatever layout.
func InForce(bpffs string) bool {
	pins, err := os.ReadDir(Folder(bpffs))
	if err != nil {
		return false
	}
	for _, pin := range pins {
		if name, _, ok := ParsePinName(pin.Name()); !ok || name != bpf.MapsMapHooks {
			continue
		}
		slots, err := loadPinnedMap(filepath.Join(Folder(bpffs), pin.Name()))
		if err != nil {
			continue
		}
		var id uint32
		err = slots.Lookup(uint32(bpf.MapsHookHOOK_FROM_POD), &id)
		_ = slots.Close()
		if err == nil {
			return true
		}
	}
	return false
}

// Counters are the packets of each hook and reason, the non-zero ones.
func (d *Datapath) Counters() ([]Counter, error) {
	d.mu.Lock()
	metrics := d.maps.open[bpf.MapsMapMetrics]
	d.mu.Unlock()
	reasons := metrics.MaxEntries() / uint32(bpf.MapsHookHOOK_MAX)
	var out []Counter
	var perCPU []bpf.Counter
	for hook := range bpf.MapsHookHOOK_MAX {
		for reason := range bpf.MapsReasonREASON_MAX {
			if err := metrics.Lookup(uint32(hook)*reasons+uint32(reason), &perCPU); err != nil {
				return nil, fmt.Errorf("read metrics: %w", err)
			}
			c := Counter{Hook: hook, Reason: reason}
			for _, one := range perCPU {
				c.Packets += one.Packets
				c.Bytes += one.Bytes
			}
			if c.Packets > 0 {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

// Maps are the pinned maps, by name.
func (d *Datapath) Maps() []MapInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []MapInfo
	for _, l := range d.maps.layouts {
		m := d.maps.open[l.name]
		info := MapInfo{Name: l.name, Layout: l.version, Entries: d.fill(l.name), MaxEntries: int64(m.MaxEntries()), Bytes: memlock(m)}
		if l.name == bpf.MapsMapUnanswered {
			d.addUnanswered(&info)
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b MapInfo) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func memlock(m *ebpf.Map) int64 {
	info, err := m.Info()
	if err != nil {
		return 0
	}
	bytes, _ := info.Memlock()
	return int64(bytes)
}

// fill is known for what we write ourselves; for what programs write, from the collector's last round.
func (d *Datapath) fill(name string) int64 {
	count := func(n int, err error) int64 {
		if err != nil {
			return -1
		}
		return int64(n)
	}
	switch name {
	case bpf.MapsMapEndpoints:
		a, err := d.endpoints.Actual()
		return count(len(a), err)
	case bpf.MapsMapPodInterfaces:
		a, err := d.interfaces.Actual()
		return count(len(a), err)
	case bpf.MapsMapPeers:
		a, err := d.peers.Actual()
		return count(len(a), err)
	case bpf.MapsMapPrefixes:
		a, err := d.prefixes.Actual()
		return count(len(a), err)
	case bpf.MapsMapDevices:
		a, err := d.devices.Actual()
		return count(len(a), err)
	case bpf.MapsMapServices:
		a, err := d.services.Actual()
		return count(len(a), err)
	case bpf.MapsMapBackends:
		a, err := d.backends.Actual()
		return count(len(a), err)
	case bpf.MapsMapClasses:
		a, err := d.policy.classes.Actual()
		return count(len(a), err)
	case bpf.MapsMapVerdicts:
		err := d.policy.load()
		return count(d.policy.singles, err)
	case bpf.MapsMapVerdictRanges:
		err := d.policy.load()
		return count(d.policy.ranges, err)
	case bpf.MapsMapHooks:
		return int64(len(bpf.DevicePrograms()))
	case bpf.MapsMapNodes:
		return d.countKeys(name)
	}
	if n, ok := d.gc.filled(name); ok {
		return n
	}
	return -1 // an array is always full, and a ring buffer has no entries
}

func (d *Datapath) countKeys(name string) int64 {
	n := int64(0)
	var k bpf.Addr
	var v bpf.Node
	it := d.maps.open[name].Iterate()
	for it.Next(&k, &v) {
		n++
	}
	if it.Err() != nil {
		return -1
	}
	return n
}

// addUnanswered counts the tables as the entries, and their memory with the outer map's: they are all alike but while
// their size changes.
func (d *Datapath) addUnanswered(info *MapInfo) {
	ids := d.unansweredIDs()
	info.Entries = int64(len(ids))
	if len(ids) == 0 {
		return
	}
	// The host's table, in slot 0, is larger than the pods', which are all alike: two are looked at.
	count := map[int]int64{0: 1, len(ids) - 1: int64(len(ids) - 1)}
	for i, n := range count {
		inner, err := innerMap(d.maps.open[bpf.MapsMapUnanswered], ids[i])
		if err != nil || inner == nil {
			return
		}
		info.Bytes += n * memlock(inner)
		inner.Close()
	}
}

// Programs are the programs in force, by name.
func (d *Datapath) Programs() []ProgramInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []ProgramInfo
	hooks := d.maps.open[bpf.MapsMapHooks]
	about := map[programKey]programAbout{}
	for _, p := range bpf.DevicePrograms() {
		var id uint32
		if err := hooks.Lookup(uint32(p.Hook), &id); err != nil {
			continue
		}
		info := ProgramInfo{Name: p.Name, ID: id}
		info.Attach, info.Devices = d.attach.report(p.Hook)
		info.Tag = d.aboutProgram(about, programKey{id: id}, func() (*ebpf.ProgramInfo, error) { return programInfo(ebpf.ProgramID(id)) }).tag
		out = append(out, info)
	}
	for name := range d.attach.sockets {
		prog := d.progs.socket[name]
		it := d.aboutProgram(about, programKey{handle: prog}, prog.Info)
		out = append(out, ProgramInfo{Name: name, ID: it.id, Tag: it.tag, Attach: "cgroup", Devices: 1})
	}
	d.about = about
	slices.SortFunc(out, func(a, b ProgramInfo) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// programAbout is what never changes of a program. To ask for it the kernel is made to copy the instructions: all
// programs are some 30 ms of a busy node, in which no pod could be added.
type programAbout struct {
	id  uint32
	tag string
}

// programKey is the number of a program that lies in a slot, or the handle of one that is ours.
type programKey struct {
	id     uint32
	handle *ebpf.Program
}

// aboutProgram asks the kernel once for each program, and keeps in now what is still asked for.
func (d *Datapath) aboutProgram(now map[programKey]programAbout, key programKey, ask func() (*ebpf.ProgramInfo, error)) programAbout {
	it, ok := d.about[key]
	if !ok {
		info, err := ask()
		if err != nil {
			return it
		}
		id, _ := info.ID()
		it = programAbout{uint32(id), info.Tag}
	}
	now[key] = it
	return it
}

func programInfo(id ebpf.ProgramID) (*ebpf.ProgramInfo, error) {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	return prog.Info()
}

// Uplinks are the names of the devices that carry traffic off the node.
func (d *Datapath) Uplinks() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, u := range d.uplinks {
		out = append(out, u.name)
	}
	return out
}
