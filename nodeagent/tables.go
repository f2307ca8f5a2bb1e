// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

const (
	peerTunnel       = uint32(bpf.MapsPeerFlagsPEER_TUNNEL)
	peerNative       = uint32(bpf.MapsPeerFlagsPEER_NATIVE)
	peerNode         = uint32(bpf.MapsPeerFlagsPEER_NODE)
	peerCluster      = uint32(bpf.MapsPeerFlagsPEER_CLUSTER)
	peerLocal        = uint32(bpf.MapsPeerFlagsPEER_LOCAL)
	peerDirect       = uint32(bpf.MapsPeerFlagsPEER_DIRECT)
	peerNoMasquerade = uint32(bpf.MapsPeerFlagsPEER_NO_MASQUERADE)
)

// world is everything that decides this node's tables.
type world struct {
	// self is this node's name.
	self   string
	spec   v1alpha1.CiliumConfigSpec
	nodes  []v1alpha1.CiliumNode
	slices []v1alpha1.CiliumEndpointSlice
}

// tables are what the datapath is to hold.
type tables struct {
	peers    map[netip.Addr]datapath.Peer
	prefixes map[netip.Prefix]datapath.Peer
	routes   []datapath.Route
	// own are this node's prefixes, in the order in which the operator gave them.
	own []netip.Prefix
}

// makeTables is a function of the objects alone: neither their order nor what came before matters. What refers to
// something missing is left out until it comes; what contradicts another object loses to the name that sorts first.
func makeTables(w world) tables {
	t := tables{peers: map[netip.Addr]datapath.Peer{}, prefixes: map[netip.Prefix]datapath.Peer{}}
	pools := poolsOf(w.spec)
	outside(w.spec, pools, t.prefixes)
	for _, p := range pools {
		t.prefixes[p] = datapath.Peer{Identity: uint32(identity.Pending), Flags: peerCluster}
	}

	nodes := slices.Clone(w.nodes)
	slices.SortFunc(nodes, func(a, b v1alpha1.CiliumNode) int { return cmp.Compare(a.Name, b.Name) })
	owners := owners{}
	ways := map[string]way{}
	var mine []netip.Addr
	for _, n := range nodes {
		if n.Name == w.self {
			mine = addressesOf(n)
		}
	}
	for _, n := range nodes {
		ways[n.Name] = wayTo(n, w.spec)
		for _, p := range prefixesOf(n) {
			if !owners.add(p, n.Name) {
				continue // another node has it
			}
			if n.Name == w.self {
				t.own = append(t.own, p)
				t.prefixes[p] = datapath.Peer{Identity: uint32(identity.Pending), Flags: peerCluster | peerLocal}
				continue
			}
			peer := ways[n.Name].peer(p.Addr(), identity.Pending)
			t.prefixes[p] = peer
			if r, ok := ways[n.Name].route(p, peer); ok {
				t.routes = append(t.routes, r)
			}
		}
	}
	hosts := hostNetworks(w.spec, pools, nodes, owners)
	for _, p := range hosts {
		if _, ok := t.prefixes[p]; !ok {
			t.prefixes[p] = datapath.Peer{Identity: uint32(identity.World)}
		}
	}
	// Of those who say that they have one address, the node that was there first is believed: its agent cannot change that.
	first := slices.Clone(nodes)
	slices.SortStableFunc(first, func(a, b v1alpha1.CiliumNode) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	for _, n := range first {
		if n.Name == w.self {
			continue
		}
		for _, a := range addressesOf(n) {
			if _, taken := t.peers[a]; taken || slices.Contains(mine, a) || contains(pools, a) && !contains(hosts, a) || owners.of(a) != "" {
				continue // who says that it has another's address is not believed
			}
			// What its host sends us through the tunnel comes from its underlay address, whatever the family inside.
			peer := ways[n.Name].peer(a, identity.RemoteNode)
			peer.Flags = peerNode
			if !peer.Node.IsValid() {
				peer.Node = a
			}
			t.peers[a] = peer
		}
	}

	list := slices.Clone(w.slices)
	slices.SortFunc(list, func(a, b v1alpha1.CiliumEndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range list {
		if s.Spec.Node == w.self {
			continue
		}
		for _, e := range s.Spec.Endpoints {
			n := identity.Number(e.Identity)
			if e.Identity < 0 || e.Identity > int64(identity.Max) || !n.Allocated() {
				continue
			}
			for _, text := range e.Addresses {
				a, err := netip.ParseAddr(text)
				// An address counts only from the node whose prefix holds it.
				if a = a.Unmap(); err != nil || owners.of(a) != s.Spec.Node {
					continue
				}
				if _, taken := t.peers[a]; !taken {
					t.peers[a] = ways[s.Spec.Node].peer(a, n)
				}
			}
		}
	}
	slices.SortFunc(t.routes, func(a, b datapath.Route) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return t
}

// hostNetworks are the networks of the nodes in the default pool, which nobody chose: no node gets a prefix there, and
// what lives in them is the world's. An address that lies in a node's prefix is no host's, whoever says so.
func hostNetworks(spec v1alpha1.CiliumConfigSpec, pools []netip.Prefix, nodes []v1alpha1.CiliumNode, owners owners) []netip.Prefix {
	if spec.IPAM != nil {
		return nil
	}
	var out []netip.Prefix
	for _, n := range nodes {
		for _, a := range addressesOf(n) {
			if p := ipam.HostRange(a, true); contains(pools, a) && owners.of(a) == "" && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// outside enters the ranges beyond the cluster that are treated apart. What lies in a pool is the cluster's whatever
// they say.
func outside(spec v1alpha1.CiliumConfigSpec, pools []netip.Prefix, out map[netip.Prefix]datapath.Peer) {
	add := func(cidrs []string, flag uint32) {
		for _, text := range cidrs {
			p, err := netip.ParsePrefix(text)
			if p = p.Masked(); err != nil || slices.ContainsFunc(pools, func(pool netip.Prefix) bool {
				return pool.Bits() <= p.Bits() && pool.Contains(p.Addr())
			}) {
				continue
			}
			out[p] = datapath.Peer{Identity: uint32(identity.World), Flags: out[p].Flags | flag}
		}
	}
	add(spec.Masquerade.ExcludeCIDRs, peerNoMasquerade)
	if modeOf(spec) == v1alpha1.RoutingNative {
		add(spec.Routing.NativeCIDRs, peerNative)
	}
}

// way is how packets reach the pods of a node.
type way struct {
	flags uint32
	// ipv4 and ipv6 are where to send packets of that family; invalid: nowhere.
	ipv4, ipv6 netip.Addr
	// direct: the node shares our network and routes lead straight to it.
	direct bool
}

func wayTo(n v1alpha1.CiliumNode, spec v1alpha1.CiliumConfigSpec) way {
	ipv4, ipv6 := underlayOf(n)
	if modeOf(spec) == v1alpha1.RoutingNative {
		direct := spec.Routing.DirectNodeRoutes == nil || *spec.Routing.DirectNodeRoutes
		flags := peerNative | peerCluster
		if direct {
			flags |= peerDirect
		}
		return way{flags: flags, ipv4: ipv4, ipv6: ipv6, direct: direct}
	}
	// A tunnel carries both families; it goes by IPv4 where there is one, since only that header is built in eBPF.
	over := ipv4
	if !over.IsValid() {
		over = ipv6
	}
	return way{flags: peerTunnel | peerCluster, ipv4: over, ipv6: over}
}

func (w way) peer(a netip.Addr, n identity.Number) datapath.Peer {
	node := w.ipv6
	if a.Is4() {
		node = w.ipv4
	}
	if !node.IsValid() {
		return datapath.Peer{Identity: uint32(n), Flags: peerCluster} // known and out of reach: dropped, never masqueraded
	}
	return datapath.Peer{Node: node, Identity: uint32(n), Flags: w.flags}
}

func (w way) route(p netip.Prefix, peer datapath.Peer) (datapath.Route, bool) {
	switch {
	case !peer.Node.IsValid():
		return datapath.Route{}, false
	case w.flags&peerTunnel != 0:
		return datapath.Route{Prefix: p}, true
	}
	return datapath.Route{Prefix: p, Via: peer.Node}, w.direct
}

// owners tells which node's prefix holds an address: the longest one that does.
type owners map[netip.Prefix]string

func (o owners) add(p netip.Prefix, node string) bool {
	if has, taken := o[p]; taken {
		return has == node
	}
	o[p] = node
	return true
}

func (o owners) of(a netip.Addr) string {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if p, err := a.Prefix(bits); err == nil {
			if node, ok := o[p]; ok {
				return node
			}
		}
	}
	return ""
}

// poolsOf are the ranges from which nodes get their prefixes.
func poolsOf(spec v1alpha1.CiliumConfigSpec) []netip.Prefix {
	ipam := spec.EffectiveIPAM()
	var out []netip.Prefix
	for _, pool := range []*v1alpha1.AddressPool{ipam.IPv4, ipam.IPv6} {
		if pool == nil {
			continue
		}
		for _, text := range pool.CIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

// families are those of which pods get an address.
func families(spec v1alpha1.CiliumConfigSpec) (ipv4, ipv6 bool) {
	ipam := spec.EffectiveIPAM()
	return ipam.IPv4 != nil, ipam.IPv6 != nil
}

func modeOf(spec v1alpha1.CiliumConfigSpec) v1alpha1.RoutingMode {
	return cmp.Or(spec.Routing.Mode, v1alpha1.RoutingVXLAN)
}

// prefixesOf are those that a node was given, without repetitions.
func prefixesOf(n v1alpha1.CiliumNode) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil && !slices.Contains(out, p.Masked()) {
			out = append(out, p.Masked())
		}
	}
	return out
}

func addressesOf(n v1alpha1.CiliumNode) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && !slices.Contains(out, ip.Unmap()) {
			out = append(out, ip.Unmap())
		}
	}
	return out
}

// underlayOf is the first internal address of each family.
func underlayOf(n v1alpha1.CiliumNode) (ipv4, ipv6 netip.Addr) {
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if err != nil || a.Type != v1alpha1.NodeInternalIP {
			continue
		}
		switch ip = ip.Unmap(); {
		case ip.Is4() && !ipv4.IsValid():
			ipv4 = ip
		case ip.Is6() && !ipv6.IsValid():
			ipv6 = ip
		}
	}
	return ipv4, ipv6
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
