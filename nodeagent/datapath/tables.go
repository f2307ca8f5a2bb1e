// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/delta"
	"github.com/kube-cilium/kube-cilium/internal/service"
)

func (p Peer) entry() bpf.Peer {
	return bpf.Peer{Node: bpf.AddrFrom(p.Node), Identity: p.Identity, Flags: p.Flags}
}

// SetPeers makes peers the whole table of exact addresses. A table that does not fit (delta.ErrFull) changes nothing.
func (d *Datapath) SetPeers(peers map[netip.Addr]Peer) error {
	wanted := make(map[bpf.Addr]bpf.Peer, len(peers))
	nodes := map[bpf.Addr]bool{}
	for addr, p := range peers {
		wanted[bpf.AddrFrom(addr)] = p.entry()
		if p.Flags&uint32(bpf.MapsPeerFlagsPEER_NODE) != 0 {
			nodes[bpf.AddrFrom(addr)] = true
		}
		if p.Node.IsValid() {
			nodes[bpf.AddrFrom(p.Node)] = true
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	change, err := d.peers.Change(wanted)
	if err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	known, err := d.peers.Actual()
	if err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	others := otherIdentities(known, wanted, func(p bpf.Peer) uint32 { return p.Identity })
	if others {
		d.policy.writes++
	}
	d.policy.moved = d.policy.moved || !change.Empty()
	// A peer refers to its node: the node comes first and goes last.
	if err := delta.Apply(&nodeStage{d.maps.open[bpf.MapsMapNodes], nodes}, change); err != nil {
		return errors.Join(fmt.Errorf("set peers: %w", err), d.judgeAgain())
	}
	return d.judgeAgain()
}

// otherIdentities tells whether an address is not any longer whose it was. Connections to it were judged as to the one
// before, so they have to be judged again. Of one that becomes known no verdict is kept (bpf/lib/policy.h).
func otherIdentities[K comparable, V any](before, after map[K]V, identity func(V) uint32) bool {
	for k, was := range before {
		if now, ok := after[k]; !ok || identity(now) != identity(was) {
			return true
		}
	}
	return false
}

// nodeStage makes the keys of the map of nodes the given ones. What a node's entry says belongs to the programs.
type nodeStage struct {
	table  *ebpf.Map
	wanted map[bpf.Addr]bool
}

func (s *nodeStage) Put() error {
	for addr := range s.wanted {
		if err := s.table.Update(addr, bpf.Node{}, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("node %s: %w", addr.IP(), err)
		}
	}
	return nil
}

func (s *nodeStage) Delete() error {
	var gone []bpf.Addr
	var addr bpf.Addr
	var node bpf.Node
	it := s.table.Iterate()
	for it.Next(&addr, &node) {
		if !s.wanted[addr] {
			gone = append(gone, addr)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	return deleteEntries(s.table, false, gone)
}

// SetPrefixes makes prefixes the whole table of prefixes.
func (d *Datapath) SetPrefixes(prefixes map[netip.Prefix]Peer) error {
	wanted := make(map[bpf.PrefixKey]bpf.Peer, len(prefixes))
	for prefix, p := range prefixes {
		wanted[bpf.PrefixKeyFrom(prefix)] = p.entry()
	}
	keepIPv4Apart(wanted, bpf.Peer{Identity: uint32(bpf.MapsIdentityIDENTITY_WORLD)})
	d.mu.Lock()
	defer d.mu.Unlock()
	change, err := d.prefixes.Change(wanted)
	if err != nil {
		return fmt.Errorf("set prefixes: %w", err)
	}
	if !change.Empty() {
		d.policy.writes++ // any prefix may change whose an address is
		d.policy.moved = true
	}
	if err := delta.Apply(change); err != nil {
		return errors.Join(fmt.Errorf("set prefixes: %w", err), d.judgeAgain())
	}
	return d.judgeAgain()
}

// keepIPv4Apart gives the IPv4 addresses, which are ::ffff:0:0/96 in every trie, an entry of their own where an IPv6
// prefix such as ::/0 would count for them too and none of IPv4 is as wide.
func keepIPv4Apart[V any](trie map[bpf.PrefixKey]V, none V) {
	mapped := bpf.PrefixKey{Prefixlen: 96, Addr: bpf.AddrFrom(netip.AddrFrom4([4]byte{}))}
	if _, ok := trie[mapped]; ok {
		return
	}
	for k := range trie {
		if k.Prefixlen < 96 && netip.PrefixFrom(netip.AddrFrom16(k.Addr.B), int(k.Prefixlen)).Contains(netip.AddrFrom16(mapped.Addr.B)) {
			trie[mapped] = none
			return
		}
	}
}

// networkOrder swaps a host order port as the maps want it.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

func serviceKey(a service.Address) bpf.ServiceKey {
	return bpf.ServiceKey{Addr: bpf.AddrFrom(a.IP), Port: networkOrder(a.Port), Proto: uint8(a.Protocol)}
}

// SetServices makes frontends the whole table of services. A frontend keeps the number under which the kernel has it,
// so that a restart writes only what differs; a new one gets the next, and none is soon given to another.
func (d *Datapath) SetServices(frontends []service.Frontend) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	actual, err := d.services.Actual()
	if err != nil {
		return fmt.Errorf("set services: %w", err)
	}
	services, backends, err := serviceTables(frontends, actual)
	if err != nil {
		return fmt.Errorf("set services: %w", err)
	}
	referred, err := d.backends.Change(backends)
	if err != nil {
		return fmt.Errorf("set backends: %w", err)
	}
	referring, err := d.services.Change(services)
	if err != nil {
		return fmt.Errorf("set services: %w", err)
	}
	if err := delta.Apply(referred, referring); err != nil {
		return fmt.Errorf("set services: %w", err)
	}
	return nil
}

// serviceTables is pure: the numbers come from actual, else from the order of the addresses.
func serviceTables(frontends []service.Frontend, actual map[bpf.ServiceKey]bpf.Service) (
	map[bpf.ServiceKey]bpf.Service, map[bpf.BackendKey]bpf.Backend, error,
) {
	next := uint32(0)
	for _, s := range actual {
		next = max(next, s.Id)
	}
	ordered := slices.Clone(frontends)
	slices.SortFunc(ordered, func(a, b service.Frontend) int {
		return cmp.Or(a.IP.Compare(b.IP), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	services := map[bpf.ServiceKey]bpf.Service{}
	backends := map[bpf.BackendKey]bpf.Backend{}
	for _, f := range ordered {
		if len(f.Backends) > math.MaxUint16 {
			return nil, nil, fmt.Errorf("service %s port %s: %d backends, at most %d", f.Service, f.PortName, len(f.Backends), math.MaxUint16)
		}
		key := serviceKey(f.Address)
		id := actual[key].Id
		if id == 0 {
			next++
			id = next
		}
		services[key] = bpf.Service{Id: id, Backends: uint16(len(f.Backends))}
		// The address is a service's on every other port too: what is not served there is refused, not routed.
		services[bpf.ServiceKey{Addr: bpf.AddrFrom(f.IP)}] = bpf.Service{}
		for slot, b := range f.Backends {
			backends[bpf.BackendKey{Service: id, Slot: uint16(slot)}] = bpf.Backend{
				Addr: bpf.AddrFrom(b.Addr()), Port: networkOrder(b.Port()),
			}
		}
	}
	return services, backends, nil
}

// SetRoutes makes routes the only routes to peers' prefixes; only routes of protocol 201 are touched. A route that the
// kernel refuses does not keep the others from being written.
func (d *Datapath) SetRoutes(routes []Route) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.routes, d.routesKnown = slices.Clone(routes), true
	if d.cfg == nil {
		return nil // Configure writes them: it makes the device that they lead to
	}
	return d.repairRoutes(false)
}

// repairRoutes brings the routes of our protocol to those of pods and peers that we were told. What we were not told
// of yet stays. Pods' routes are looked at only by who holds wiring for writing: else one that is being wired would
// seem broken.
func (d *Datapath) repairRoutes(pods bool) error {
	links, err := linkList()
	if err != nil {
		return err
	}
	podDevice := map[int]bool{}
	up := map[int]string{}
	for _, l := range links {
		podDevice[l.Attrs().Index] = IsPodDevice(l.Attrs().Name)
		up[l.Attrs().Index] = l.Attrs().Name
	}
	var wanted []route
	for _, p := range d.pods {
		if up[p.Ifindex] == p.Interface {
			podDevice[p.Ifindex] = true
			if pods {
				wanted = append(wanted, podRoutes(p)...)
			}
		}
	}
	var errs []error
	for _, r := range d.routes {
		one, err := d.peerRoute(r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		wanted = append(wanted, one)
	}
	errs = append(errs, repairRoutes(wanted, func(_ netip.Prefix, k netlink.Route) bool {
		if podDevice[k.LinkIndex] {
			return pods && d.podsKnown
		}
		return d.routesKnown
	}, func(ifindex int) bool { return podDevice[ifindex] }))
	return errors.Join(errs...)
}

func (d *Datapath) peerRoute(r Route) (route, error) {
	if r.Via.IsValid() {
		return route{prefix: r.Prefix, via: r.Via}, nil
	}
	if d.overlay.index == 0 {
		return route{}, fmt.Errorf("route to %s: no %s in native routing (give it a gateway)", r.Prefix, OverlayDevice)
	}
	src := d.cfg.NodeIPv4
	if r.Prefix.Addr().Is6() {
		src = d.cfg.NodeIPv6
	}
	// What the host sends is wrapped too; the device's own MTU is the underlay's.
	return route{prefix: r.Prefix, src: src, ifindex: d.overlay.index, mtu: d.podMTU}, nil
}
