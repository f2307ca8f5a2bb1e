// SPDX-License-Identifier: Apache-2.0

package datapath

import (
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
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// A filter of ours on clsact is recognised by its name; preference and handle are fixed so that it can be replaced.
const (
	filterPrefix     = "kube-cilium:"
	filterPreference = 50
	filterHandle     = 0xc1
)

// attacher ties stubs to devices and socket programs to the cgroup. A link is pinned as HOOK_DEVICE and outlives the
// agent; what is there is adopted, and what is new is attached before what is old goes.
type attacher struct {
	folder string
	progs  *programs
	// tcx: links, else filters on clsact.
	tcx bool
	// mu guards the maps below: pods are attached side by side.
	mu sync.Mutex
	// hook -> device -> how. What we know to be attached.
	attached map[bpf.Hook]map[string]attachment
	// hooks whose filters on all devices were looked through.
	scanned map[bpf.Hook]bool
	// cgroup hook's name -> how.
	sockets map[string]string
}

// The ways of attaching to a device, as they are reported.
const (
	tcx    = "tcx"
	clsact = "clsact"
)

type attachment struct {
	index int
	how   string
}

// device is an interface as the hooks on it are named.
type device struct {
	name  string
	index int
}

// side of a device on which a hook lies: what a pod sends comes in at the host's end.
func side(hook bpf.Hook) (ebpf.AttachType, uint32) {
	switch hook {
	case bpf.MapsHookHOOK_FROM_POD, bpf.MapsHookHOOK_FROM_NETDEV, bpf.MapsHookHOOK_FROM_OVERLAY:
		return ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS
	}
	return ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS
}

func hookName(hook bpf.Hook) string {
	for _, p := range bpf.DevicePrograms() {
		if p.Hook == hook {
			return p.Name
		}
	}
	return fmt.Sprint(uint32(hook))
}

// The kernel allows no dot in a pin's name; the per cent sign that stands in its place is escaped too.
var (
	escapeDevice   = strings.NewReplacer("%", "%25", ".", "%2e")
	unescapeDevice = strings.NewReplacer("%25", "%", "%2e", ".")
)

func (a *attacher) pin(hook bpf.Hook, dev string) string {
	return filepath.Join(a.folder, hookName(hook)+"_"+escapeDevice.Replace(dev))
}

// attach makes the hook's stub be on the device by the way that is in force, and takes the other way off.
func (a *attacher) attach(hook bpf.Hook, dev device) error {
	how, put := a.way(hook, dev), a.toFilter
	if how == tcx {
		put = a.toLink
	}
	if err := put(hook, dev); err != nil {
		return fmt.Errorf("attach %s to %s by %s: %w", hookName(hook), dev.name, how, err)
	}
	a.note(hook, dev, how)
	return nil
}

func (a *attacher) note(hook bpf.Hook, dev device, how string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.attached[hook] == nil {
		a.attached[hook] = map[string]attachment{}
	}
	a.attached[hook][dev.name] = attachment{dev.index, how}
}

// devices are those that the hook is attached to, and how.
func (a *attacher) devices(hook bpf.Hook) map[string]attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.attached[hook])
}

// report says how many devices the hook is attached to, and how: by the ways that are in use, or by the one that
// would be where there is no device.
func (a *attacher) report(hook bpf.Hook) (how string, devices int) {
	ways := map[string]bool{}
	on := a.devices(hook)
	for _, at := range on {
		ways[at.how] = true
	}
	if len(ways) == 0 {
		ways[a.way(hook, device{})] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(ways)), ", "), len(on)
}

// linked tells whether what the pod at this interface sends is judged by a link.
func (a *attacher) linked(ifindex int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, at := range a.attached[bpf.MapsHookHOOK_FROM_POD] {
		if at.index == ifindex {
			return at.how == tcx
		}
	}
	return false
}

// way is how the hook is to be attached by the present configuration: by a TCX link where the kernel has it. To attach
// one the kernel holds the lock of all devices for a grace period, and ADD is not to wait for that; so a pod begins
// with filters, and what it sends moves over later (movePods). What the host sends it does not pay for that.
func (a *attacher) way(hook bpf.Hook, dev device) string {
	switch {
	case !a.tcx, hook == bpf.MapsHookHOOK_TO_POD:
		return clsact
	case hook == bpf.MapsHookHOOK_FROM_POD && !a.linkIsOn(hook, dev):
		return clsact
	}
	return tcx
}

func (a *attacher) linkIsOn(hook bpf.Hook, dev device) bool {
	at, _ := side(hook)
	return linkIsOn(a.pin(hook, dev.name), at, dev.index)
}

// isOn tells whether the hook is on the device by either way. The filter is looked for first: when a pod moves over, it
// goes after the link has come.
func (a *attacher) isOn(hook bpf.Hook, dev device) (bool, error) {
	filters, err := ourFilters(hook, dev)
	return len(filters) > 0 || err == nil && a.linkIsOn(hook, dev), err
}

// putLink makes the program be on the device by a pinned link, in the place of the one that is.
func (a *attacher) putLink(hook bpf.Hook, dev device, prog *ebpf.Program) error {
	at, _ := side(hook)
	pin := a.pin(hook, dev.name)
	adopted, err := a.adoptLink(pin, at, dev.index, prog)
	if err != nil || adopted {
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: dev.index, Program: prog, Attach: at, Anchor: link.Head()})
	if err != nil {
		return err
	}
	defer l.Close()
	// A pin that is still there is of a device that is gone.
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin old link: %w", err)
	}
	if err := pinLink(l, pin); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

// adoptLink is true when the pinned link is on the device; its program is made prog in place.
func (a *attacher) adoptLink(pin string, at ebpf.AttachType, ifindex int, prog *ebpf.Program) (bool, error) {
	l, info, err := openLink(pin)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer l.Close()
	if !isAt(info, at, ifindex) {
		return false, nil
	}
	return true, updateLink(l, info, prog)
}

func openLink(pin string) (link.Link, *link.Info, error) {
	l, err := loadPinnedLink(pin)
	if err != nil {
		return nil, nil, fmt.Errorf("open pinned link: %w", err)
	}
	info, err := l.Info()
	if err != nil {
		l.Close()
		return nil, nil, fmt.Errorf("pinned link: %w", err)
	}
	return l, info, nil
}

func isAt(info *link.Info, at ebpf.AttachType, ifindex int) bool {
	on := info.TCX()
	return on != nil && int(on.Ifindex) == ifindex && ebpf.AttachType(on.AttachType) == at
}

func updateLink(l link.Link, info *link.Info, prog *ebpf.Program) error {
	want, err := prog.Info()
	if err != nil {
		return fmt.Errorf("program: %w", err)
	}
	if id, _ := want.ID(); id == info.Program {
		return nil
	}
	if err := l.Update(prog); err != nil {
		return fmt.Errorf("update link: %w", err)
	}
	return nil
}

func (a *attacher) detachTCX(hook bpf.Hook, dev device) error {
	return removeLink(a.pin(hook, dev.name))
}

// removeLink detaches (Linux 5.9) and unpins. Without the first the kernel would detach some time after the last
// reference has gone, and a filter in its place would run beside it until then.
func removeLink(path string) error {
	l, err := loadPinnedLink(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link: %w", err)
	}
	defer l.Close()
	// A link whose device is gone is detached already; an older kernel detaches when the pin goes.
	if err := l.Detach(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("detach: %w", err)
	}
	return removePin(path)
}

// removePin is for a link that is not on its device any longer.
func removePin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// putFilter makes the program be on the device by a filter on clsact, in the place of the one that is.
func (a *attacher) putFilter(hook bpf.Hook, dev device, prog *ebpf.Program) error {
	info, err := prog.Info()
	if err != nil {
		return err
	}
	id, _ := info.ID()
	filters, err := ourFilters(hook, dev)
	if err != nil {
		return err
	}
	if len(filters) == 1 && filters[0].Id == int(id) && filters[0].DirectAction {
		return nil
	}
	if err := netlink.QdiscAdd(clsactOn(dev)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	// The same preference and handle: the kernel swaps the program, and no packet passes between.
	if err := netlink.FilterReplace(filterOn(hook, dev, prog.FD())); err != nil {
		return fmt.Errorf("put filter: %w", err)
	}
	return nil
}

// putNewFilters attaches hooks to a device that was readied for them, in one write each. false: they have to be attached
// one by one, after a look at what is there.
func (a *attacher) putNewFilters(hooks []bpf.Hook, dev device) bool {
	for _, hook := range hooks {
		if a.way(hook, dev) != clsact || a.linkIsOn(hook, dev) || netlink.FilterReplace(filterOn(hook, dev, a.progs.stubs[hook].FD())) != nil {
			return false
		}
	}
	for _, hook := range hooks {
		if a.detachTCX(hook, dev) != nil { // a pin may be left of a device that is gone
			return false
		}
		a.note(hook, dev, clsact)
	}
	return true
}

func clsactOn(dev device) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: dev.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func filterOn(hook bpf.Hook, dev device, fd int) *netlink.BpfFilter {
	_, parent := side(hook)
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: dev.index, Parent: parent,
			Handle: filterHandle, Priority: filterPreference, Protocol: unix.ETH_P_ALL,
		},
		Fd: fd, Name: filterPrefix + hookName(hook), DirectAction: true,
	}
}

// ourFilters are the hook's filters of ours on the device, by name.
func ourFilters(hook bpf.Hook, dev device) ([]*netlink.BpfFilter, error) {
	_, parent := side(hook)
	return filtersNamed(dev, parent, func(name string) bool { return name == filterPrefix+hookName(hook) })
}

func filtersNamed(dev device, parent uint32, match func(string) bool) ([]*netlink.BpfFilter, error) {
	all, err := netlink.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: dev.index}}, parent)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) { // gone, or no such qdisc
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	var ours []*netlink.BpfFilter
	for _, f := range all {
		if b, ok := f.(*netlink.BpfFilter); ok && match(b.Name) {
			ours = append(ours, b)
		}
	}
	return ours, nil
}

func (a *attacher) detachFilter(hook bpf.Hook, dev device) error {
	filters, err := ourFilters(hook, dev)
	if err != nil {
		return err
	}
	return deleteFilters(filters)
}

func deleteFilters(filters []*netlink.BpfFilter) error {
	for _, f := range filters {
		if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete filter: %w", err)
		}
	}
	return nil
}

// detach takes the hook off a device, whichever way it is attached. A device that is gone is no error. The qdisc
// stays: somebody else may use it by now, and an empty one does nothing.
func (a *attacher) detach(hook bpf.Hook, dev device) error {
	err := a.detachTCX(hook, dev)
	if dev.index != 0 {
		err = errors.Join(err, a.detachFilter(hook, dev))
	}
	a.mu.Lock()
	delete(a.attached[hook], dev.name)
	a.mu.Unlock()
	if err != nil {
		return fmt.Errorf("take %s off %s: %w", hookName(hook), dev.name, err)
	}
	return nil
}

// adoptRenamed gives pinned links of the hook on devices that were renamed their new names, so that such a device is
// not attached to twice.
func (a *attacher) adoptRenamed(hook bpf.Hook, devs []device) error {
	pinned, err := a.pinned(hook)
	if err != nil {
		return err
	}
	at, _ := side(hook)
	for _, dev := range devs {
		if slices.Contains(pinned, dev.name) {
			continue
		}
		for _, name := range pinned {
			if linkIsOn(a.pin(hook, name), at, dev.index) {
				if err := os.Rename(a.pin(hook, name), a.pin(hook, dev.name)); err != nil {
					return fmt.Errorf("rename link of %s: %w", dev.name, err)
				}
			}
		}
	}
	return nil
}

func linkIsOn(pin string, at ebpf.AttachType, ifindex int) bool {
	l, info, err := openLink(pin)
	if err != nil {
		return false
	}
	defer l.Close()
	return isAt(info, at, ifindex)
}

// pinned are the devices of the hook's pinned links.
func (a *attacher) pinned(hook bpf.Hook) ([]string, error) {
	entries, err := os.ReadDir(a.folder)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []string
	for _, e := range entries {
		if dev, ok := strings.CutPrefix(e.Name(), hookName(hook)+"_"); ok {
			out = append(out, unescapeDevice.Replace(dev))
		}
	}
	return out, nil
}

// keepOnly takes the hooks off every device but those given. Devices that are gone leave pins behind; they go too.
func (a *attacher) keepOnly(devs []device, hooks ...bpf.Hook) error {
	links, err := linkList()
	if err != nil {
		return err
	}
	index := map[string]int{}
	for _, l := range links {
		index[l.Attrs().Name] = l.Attrs().Index
	}
	keep := map[string]bool{}
	for _, d := range devs {
		keep[d.name] = true
	}
	var errs []error
	for _, hook := range hooks {
		pinned, err := a.pinned(hook)
		if err != nil {
			return err
		}
		names := append(pinned, slices.Collect(maps.Keys(a.devices(hook)))...)
		for _, l := range links {
			if keep[l.Attrs().Name] || a.scanned[hook] {
				continue
			}
			// Filters of a process before us are known to the kernel only; afterwards we know.
			fs, err := ourFilters(hook, device{l.Attrs().Name, l.Attrs().Index})
			if err != nil {
				errs = append(errs, err)
			}
			if len(fs) > 0 {
				names = append(names, l.Attrs().Name)
			}
		}
		a.scanned[hook] = true
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if !keep[name] {
				errs = append(errs, a.detach(hook, device{name, index[name]}))
			}
		}
	}
	return errors.Join(errs...)
}

// attachSockets makes the cgroup's programs the given ones, each in the place of its predecessor.
func (a *attacher) attachSockets(cgroup string) error {
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		return fmt.Errorf("cgroup %s: %w", cgroup, err)
	}
	for name, at := range bpf.SocketPrograms() {
		if err := a.attachSocket(name, at, cgroup, st.Ino); err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", name, cgroup, err)
		}
		a.sockets[name] = "cgroup"
	}
	return nil
}

func (a *attacher) attachSocket(name string, at ebpf.AttachType, cgroup string, cgroupID uint64) error {
	prog := a.progs.socket[name]
	pin := filepath.Join(a.folder, name)
	old, err := loadPinnedLink(pin)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open pinned link: %w", err)
	}
	if err == nil {
		defer old.Close()
		info, err := old.Info()
		if err != nil {
			return fmt.Errorf("pinned link: %w", err)
		}
		if cg := info.Cgroup(); cg != nil && cg.CgroupId == cgroupID {
			return updateLink(old, info, prog)
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: at, Program: prog})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := removePin(pin); err != nil { // of another cgroup; old holds it until we return
		return fmt.Errorf("unpin old link: %w", err)
	}
	if err := pinLink(l, pin); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

func (a *attacher) detachSockets() error {
	var errs []error
	for name := range bpf.SocketPrograms() {
		errs = append(errs, removeLink(filepath.Join(a.folder, name)))
		delete(a.sockets, name)
	}
	return errors.Join(errs...)
}
