// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/delta"
)

func (p Pod) addrs() []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Addr{p.IPv4, p.IPv6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

func (p Pod) device() device { return device{p.Interface, p.Ifindex} }

func (p Pod) endpoint() bpf.Endpoint {
	e := bpf.Endpoint{Ifindex: uint32(p.Ifindex), Identity: p.Identity, Id: p.ID}
	copy(e.Mac[:], p.MAC)
	copy(e.HostMac[:], p.HostMAC)
	return e
}

func (p Pod) entry() bpf.PodInterface {
	e := bpf.PodInterface{Ipv4: bpf.AddrFrom(p.IPv4), Ipv6: bpf.AddrFrom(p.IPv6), Identity: p.Identity, Id: p.ID}
	copy(e.Mac[:], p.MAC)
	copy(e.HostMac[:], p.HostMAC)
	return e
}

// check refuses what would damage another pod's entries.
func (p Pod) check(limit uint32) error {
	switch {
	case p.ID == 0 || uint32(p.ID) >= limit:
		return fmt.Errorf("pod interface %s: endpoint id %d is not between 1 and %d", p.Interface, p.ID, limit-1)
	case p.Interface == "" || p.Ifindex <= 0:
		return fmt.Errorf("endpoint %d: no interface", p.ID)
	case len(p.MAC) != 6 || len(p.HostMAC) != 6:
		return fmt.Errorf("endpoint %d: not an Ethernet address: %q, %q", p.ID, p.MAC, p.HostMAC)
	case len(p.addrs()) == 0:
		return fmt.Errorf("endpoint %d: no address", p.ID)
	}
	return nil
}

// SetPods makes the given pods the only ones: endpoints, interfaces, tables of unanswered flows; and, once Configure
// was called, their stubs, sysctls, routes and neighbours.
func (d *Datapath) SetPods(pods []Pod) error {
	defer d.stir()()
	d.wiring.Lock()
	defer d.wiring.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	wanted := map[uint16]Pod{}
	for _, p := range pods {
		if err := p.check(d.maxEndpoints()); err != nil {
			return err
		}
		if other, ok := wanted[p.ID]; ok {
			return fmt.Errorf("endpoint %d is given twice: %s and %s", p.ID, other.Interface, p.Interface)
		}
		wanted[p.ID] = p
	}
	for id := range wanted {
		if err := d.ensureUnanswered(id); err != nil {
			return err
		}
	}
	if err := d.writePods(wanted, true); err != nil {
		return err
	}
	d.noteDeparted(wanted)
	d.pods, d.podsKnown = wanted, true
	err := d.pruneUnanswered()
	if d.cfg == nil {
		return err
	}
	errs := append([]error{err}, d.repairPods()...)
	return errors.Join(append(errs, d.repairRoutes(true))...)
}

// AddPod adds or replaces one pod; when it returns without an error, the pod's datapath is complete. It answers
// ErrNotConfigured before Configure has succeeded. Calls for different pods go side by side: the kernel makes each
// wait for a grace period or two, in which every CPU must have been idle once.
func (d *Datapath) AddPod(pod Pod) error {
	defer d.stir()()
	d.wiring.RLock()
	defer d.wiring.RUnlock()
	if !d.configured() {
		return ErrNotConfigured
	}
	if err := pod.check(d.maxEndpoints()); err != nil {
		return err
	}
	if only, err := d.renumberPod(pod); only {
		return err
	}
	// Closed first: the stubs drop what comes from or for an interface that has no entry.
	if err := d.attachNewPod(pod); err != nil {
		return err
	}
	if err := d.ensureUnanswered(pod.ID); err != nil {
		return err
	}
	old, had, err := d.recordPod(pod)
	if err != nil {
		return err
	}
	if had && old.Ifindex != pod.Ifindex {
		if err := d.detachPod(old); err != nil {
			return err
		}
	}
	d.spareAfter(pod.ID)
	return d.wirePod(pod)
}

// renumberPod is for a pod that is there and has only got another identity, as every pod has whose labels were new to the
// cluster when it came: its entries are written, and nothing else is asked of the kernel while other pods come.
func (d *Datapath) renumberPod(pod Pod) (only bool, err error) {
	d.mu.Lock()
	as, had := d.pods[pod.ID]
	d.mu.Unlock()
	if !had || as.Identity == pod.Identity {
		return false, nil
	}
	as.Identity = pod.Identity
	if !reflect.DeepEqual(as, pod) {
		return false, nil
	}
	_, _, err = d.recordPod(pod)
	return true, err
}

func (d *Datapath) configured() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

// recordPod writes the pod's entries and gives the pod that had the id before.
func (d *Datapath) recordPod(pod Pod) (old Pod, had bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	wanted := maps.Clone(d.pods)
	if wanted == nil {
		wanted = map[uint16]Pod{}
	}
	old, had = wanted[pod.ID]
	wanted[pod.ID] = pod
	if err := d.writePods(wanted, d.podsKnown); err != nil {
		return old, had, err
	}
	d.noteDeparted(wanted)
	d.pods = wanted
	return old, had, nil
}

// RemovePod takes one pod away; one that is gone is no error. Its interface is the caller's to remove, better before
// than after: what is attached then goes with it. The table of unanswered flows stays for whoever comes next under
// the id, or until the collector's next round.
func (d *Datapath) RemovePod(id uint16) error {
	defer d.stir()()
	d.wiring.RLock()
	defer d.wiring.RUnlock()
	pod, had, err := d.forgetPod(id)
	if err != nil || !had {
		return err
	}
	return errors.Join(d.removePodRoutes(pod), d.detachPod(pod))
}

func (d *Datapath) forgetPod(id uint16) (pod Pod, had bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	wanted := maps.Clone(d.pods)
	if wanted == nil {
		wanted = map[uint16]Pod{}
	}
	pod, had = wanted[id]
	delete(wanted, id)
	if err := d.removeEntries(id); err != nil {
		return pod, had, err
	}
	d.noteDeparted(wanted)
	d.pods = wanted
	return pod, had, nil
}

// SetHostAddresses makes the given addresses the host's own.
func (d *Datapath) SetHostAddresses(addrs []netip.Addr) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	hosts := map[netip.Addr]bool{}
	for _, a := range addrs {
		hosts[a.Unmap().WithZone("")] = true
	}
	before := d.hosts
	d.hosts = hosts
	if err := d.writePods(d.pods, d.podsKnown); err != nil {
		d.hosts = before
		return err
	}
	return nil
}

// writePods writes endpoints and interfaces: first the interface, by which a pod speaks, then the address, by which it
// is spoken to. What we were not told about yet stays as it was adopted, unless it is of a pod that is told.
func (d *Datapath) writePods(pods map[uint16]Pod, all bool) error {
	actualEndpoints, err := d.endpoints.Actual()
	if err != nil {
		return err
	}
	actualInterfaces, err := d.interfaces.Actual()
	if err != nil {
		return err
	}
	endpoints := map[bpf.Addr]bpf.Endpoint{}
	interfaces := map[uint32]bpf.PodInterface{}
	for addr, e := range actualEndpoints {
		host := e.Flags&uint16(bpf.MapsEndpointFlagsENDPOINT_HOST) != 0
		_, told := pods[e.Id]
		if host && d.hosts == nil || !host && !all && !told {
			endpoints[addr] = e
		}
	}
	for index, e := range actualInterfaces {
		if _, told := pods[e.Id]; !all && !told {
			interfaces[index] = e
		}
	}
	for addr := range d.hosts {
		endpoints[bpf.AddrFrom(addr)] = bpf.Endpoint{
			Identity: uint32(bpf.MapsIdentityIDENTITY_HOST), Flags: uint16(bpf.MapsEndpointFlagsENDPOINT_HOST),
		}
	}
	for _, id := range slices.Sorted(maps.Keys(pods)) {
		p := pods[id]
		interfaces[uint32(p.Ifindex)] = p.entry()
		for _, a := range p.addrs() {
			endpoints[bpf.AddrFrom(a)] = p.endpoint()
		}
	}
	first, err := d.interfaces.Change(interfaces)
	if err != nil {
		return fmt.Errorf("set pods: %w", err)
	}
	second, err := d.endpoints.Change(endpoints)
	if err != nil {
		return fmt.Errorf("set pods: %w", err)
	}
	others := otherIdentities(actualEndpoints, endpoints, func(e bpf.Endpoint) uint32 { return e.Identity })
	if others {
		d.policy.writes++
	}
	d.policy.moved = d.policy.moved || !first.Empty() || !second.Empty()
	if err := delta.Apply(first, second); err != nil {
		return errors.Join(fmt.Errorf("set pods: %w", err), d.judgeAgain())
	}
	return d.judgeAgain()
}

// removeEntries deletes by the id, also what was adopted and never told.
func (d *Datapath) removeEntries(id uint16) error {
	endpoints, err := d.endpoints.Actual()
	if err != nil {
		return err
	}
	interfaces, err := d.interfaces.Actual()
	if err != nil {
		return err
	}
	var addrs []bpf.Addr
	for a, e := range endpoints {
		if e.Id == id && e.Flags&uint16(bpf.MapsEndpointFlagsENDPOINT_HOST) == 0 {
			addrs = append(addrs, a)
		}
	}
	var indices []uint32
	for i, e := range interfaces {
		if e.Id == id {
			indices = append(indices, i)
		}
	}
	if len(addrs) > 0 {
		d.policy.writes++
	}
	d.policy.moved = d.policy.moved || len(addrs)+len(indices) > 0
	err = d.endpoints.Delete(addrs...)
	if err == nil {
		err = d.interfaces.Delete(indices...)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("remove endpoint %d: %w", id, err), d.judgeAgain())
	}
	return d.judgeAgain()
}

// ExpectPod readies a new interface for AddPod. The kernel lets the first filter be put on a device a grace period
// later, and else waits for that with the lock of all devices, which every other pod wants that comes at the time. To
// leave this out is no error.
func (d *Datapath) ExpectPod(ifindex int) error {
	if err := netlink.QdiscAdd(clsactOn(device{index: ifindex})); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	return nil
}

// attachNewPod attaches to an interface that has nothing of ours as a rule, and asks only where it has.
func (d *Datapath) attachNewPod(p Pod) error {
	d.mu.Lock()
	old, had := d.pods[p.ID]
	d.mu.Unlock()
	if had && old.Ifindex == p.Ifindex || !d.attach.putNewFilters(podHooks, p.device()) {
		return d.attachPod(p)
	}
	return nil
}

func (d *Datapath) attachPod(p Pod) error {
	for _, hook := range podHooks {
		if err := d.attach.attach(hook, p.device()); err != nil {
			if errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("endpoint %d: %w: %w", p.ID, errNoHostEnd, err)
			}
			return err
		}
	}
	return nil
}

func (d *Datapath) detachPod(p Pod) error {
	var errs []error
	for _, hook := range podHooks {
		dev := p.device()
		if l, err := netlink.LinkByName(p.Interface); err != nil || l.Attrs().Index != p.Ifindex {
			dev.index = 0 // only the pin is left
		}
		errs = append(errs, d.attach.detach(hook, dev))
	}
	return errors.Join(errs...)
}

// wirePod gives the host's side of one pod its sysctls, its routes and its neighbours, and sets it up.
func (d *Datapath) wirePod(p Pod) error {
	if err := d.sysctl.apply(podSettings(p.Interface, p.IPv6.IsValid())); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: p.Ifindex}}); err != nil {
		return fmt.Errorf("set %s up: %w", p.Interface, err)
	}
	for _, r := range podRoutes(p) {
		if err := netlink.RouteReplace(r.netlink()); err != nil {
			return fmt.Errorf("route to %s: %w", r.prefix, err)
		}
	}
	for _, n := range podNeighbours(p) {
		if err := netlink.NeighSet(n.netlink()); err != nil {
			return fmt.Errorf("neighbour %s: %w", n.ip, err)
		}
	}
	return nil
}

func podRoutes(p Pod) []route {
	var out []route
	for _, a := range p.addrs() {
		out = append(out, route{prefix: hostPrefix(a), ifindex: p.Ifindex})
	}
	return out
}

func podNeighbours(p Pod) []neighbour {
	var out []neighbour
	for _, a := range p.addrs() {
		out = append(out, neighbour{ip: a, ifindex: p.Ifindex, mac: p.MAC})
	}
	return out
}

func (d *Datapath) removePodRoutes(p Pod) error {
	var errs []error
	for _, r := range podRoutes(p) {
		// Asked for with its device: another pod may have the address by now.
		if err := netlink.RouteDel(r.netlink()); err != nil && !vanished(err) {
			errs = append(errs, fmt.Errorf("delete route to %s: %w", r.prefix, err))
		}
	}
	for _, n := range podNeighbours(p) {
		if err := netlink.NeighDel(n.netlink()); err != nil && !errors.Is(err, unix.ENOENT) && !vanished(err) {
			errs = append(errs, fmt.Errorf("delete neighbour %s: %w", n.ip, err))
		}
	}
	return errors.Join(errs...)
}

// repairPods attaches what is not attached, sets what is not set. A pod whose interface is gone is passed over: its
// removal is on its way.
func (d *Datapath) repairPods() []error {
	var errs []error
	links, err := linkList()
	if err != nil {
		return []error{err}
	}
	there := map[int]netlink.Link{}
	for _, l := range links {
		there[l.Attrs().Index] = l
	}
	var devs []device
	var settings []setting
	var neighbours []neighbour
	for _, p := range d.pods {
		l, ok := there[p.Ifindex]
		if !ok || l.Attrs().Name != p.Interface {
			continue
		}
		devs = append(devs, p.device())
		if err := d.attachPod(p); err != nil && !isGone(p) {
			errs = append(errs, err)
		}
		settings = append(settings, podSettings(p.Interface, p.IPv6.IsValid())...)
		if l.Attrs().Flags&1 == 0 { // down
			if err := netlink.LinkSetUp(l); err != nil && !isGone(p) {
				errs = append(errs, fmt.Errorf("set %s up: %w", p.Interface, err))
			}
		}
		neighbours = append(neighbours, podNeighbours(p)...)
	}
	if d.podsKnown {
		errs = append(errs, d.attach.keepOnly(devs, podHooks...))
	}
	errs = append(errs, d.sysctl.apply(settings), repairNeighbours(neighbours))
	return errs
}

// isGone tells whether the pod's interface has gone since it was looked for.
func isGone(p Pod) bool {
	l, err := netlink.LinkByIndex(p.Ifindex)
	if err != nil {
		return vanished(err) || errors.As(err, &netlink.LinkNotFoundError{})
	}
	return l.Attrs().Name != p.Interface
}

func (d *Datapath) maxEndpoints() uint32 { return d.maps.open[bpf.MapsMapUnanswered].MaxEntries() }

// hostTableFactor is how many times larger than a pod's the host's table of unanswered flows is.
const hostTableFactor = 16

// ensureUnanswered makes the endpoint's table of unanswered flows be there, of the configured size. A table of
// another size is replaced by one that is filled from it.
func (d *Datapath) ensureUnanswered(id uint16) error {
	d.leaving.wait(id)
	outer := d.maps.open[bpf.MapsMapUnanswered]
	spec := d.unansweredSpec(id)
	old, err := innerMap(outer, id)
	if err != nil {
		return err
	}
	if id == 0 {
		// Every pod's masqueraded flows have their way back here until they are settled (bpf/lib/maps.h).
		spec.MaxEntries *= hostTableFactor
	}
	if old != nil {
		defer old.Close()
		if old.MaxEntries() == spec.MaxEntries || d.cfg == nil {
			return nil
		}
	}
	made, err := ebpf.NewMap(spec)
	if err != nil {
		return fmt.Errorf("make table of unanswered flows of endpoint %d: %w", id, err)
	}
	defer made.Close() // the outer map holds it
	if old != nil {
		if err := copyEntries(old, made, d.maps.batch, ebpf.UpdateAny, nil); err != nil {
			return fmt.Errorf("fill table of unanswered flows of endpoint %d: %w", id, err)
		}
	}
	if err := outer.Put(uint32(id), uint32(made.FD())); err != nil {
		return fmt.Errorf("set table of unanswered flows of endpoint %d: %w", id, err)
	}
	return nil
}

func (d *Datapath) unansweredSpec(id uint16) *ebpf.MapSpec {
	spec := d.maps.spec.Maps[bpf.MapsMapUnanswered].InnerMap.Copy()
	spec.Name = fmt.Sprintf("unanswered_%d", id)
	if d.cfg != nil && d.cfg.UnansweredPerEndpoint > 0 {
		spec.MaxEntries = d.cfg.UnansweredPerEndpoint
	}
	return spec
}

// innerMap is nil where the slot is empty.
func innerMap(outer *ebpf.Map, id uint16) (*ebpf.Map, error) {
	var inner uint32
	err := outer.Lookup(uint32(id), &inner)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find table of unanswered flows of endpoint %d: %w", id, err)
	}
	m, err := ebpf.NewMapFromID(ebpf.MapID(inner))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open table of unanswered flows of endpoint %d: %w", id, err)
	}
	return m, nil
}

func dropUnanswered(outer *ebpf.Map, id uint16) error {
	err := outer.Delete(uint32(id))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("drop table of unanswered flows of endpoint %d: %w", id, err)
	}
	return nil
}

// pruneUnanswered drops the tables of ids that are nobody's and not next in turn. Slot 0 is the host's.
func (d *Datapath) pruneUnanswered() error {
	var errs []error
	for _, id := range d.unansweredIDs() {
		if d.nobodys(id) {
			errs = append(errs, dropUnanswered(d.maps.open[bpf.MapsMapUnanswered], id))
		}
	}
	return errors.Join(errs...)
}

// leaving are the ids whose tables the collector takes away. To empty a slot the kernel waits until every program that
// runs has ended, some 30 ms where the processors have much to do; a new pod is to wait for its own at most.
type leaving struct {
	mu  sync.Mutex
	ids map[uint16]chan struct{} // closed when the table is gone
}

func (l *leaving) begin(id uint16) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil {
		l.ids = map[uint16]chan struct{}{}
	}
	l.ids[id] = make(chan struct{})
}

func (l *leaving) end(id uint16) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.ids[id])
	delete(l.ids, id)
}

func (l *leaving) wait(id uint16) {
	l.mu.Lock()
	gone := l.ids[id]
	l.mu.Unlock()
	if gone != nil {
		<-gone
	}
}

// leave begins to take away the table of an id that is nobody's, and tells whether it may. Not while a pod is on its way:
// it may have its table and no entry yet. One that comes after this waits for leaving.
func (d *Datapath) leave(id uint16) bool {
	d.mu.Lock() // held until it is decided: who waits for leaving may hold it
	defer d.mu.Unlock()
	if !d.podsKnown || d.closed || !d.nobodys(id) {
		return false
	}
	d.leaving.begin(id)
	if !d.churn.still() {
		d.leaving.end(id)
		return false
	}
	return true
}

func (d *Datapath) nobodys(id uint16) bool {
	_, ok := d.pods[id]
	return !ok && id != 0 && !d.spare.holds(id)
}

func (d *Datapath) unansweredIDs() []uint16 {
	outer := d.maps.open[bpf.MapsMapUnanswered]
	var out []uint16
	var inner uint32
	for id := range d.maxEndpoints() {
		if outer.Lookup(id, &inner) == nil {
			out = append(out, uint16(id))
		}
	}
	return out
}
