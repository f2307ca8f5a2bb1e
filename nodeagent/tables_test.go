// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

func ciliumNode(name, ipv4, ipv6 string, prefixes ...string) v1alpha1.CiliumNode {
	n := v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.CiliumNodeSpec{PodCIDRs: prefixes}}
	for _, a := range []string{ipv4, ipv6} {
		if a != "" {
			n.Status.Addresses = append(n.Status.Addresses, v1alpha1.NodeAddress{Type: v1alpha1.NodeInternalIP, Address: a})
		}
	}
	return n
}

func slice(name, node string, endpoints ...v1alpha1.SliceEndpoint) v1alpha1.CiliumEndpointSlice {
	return v1alpha1.CiliumEndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.CiliumEndpointSliceSpec{Node: node, Endpoints: endpoints}}
}

func pod(name string, id int64, addresses ...string) v1alpha1.SliceEndpoint {
	return v1alpha1.SliceEndpoint{Namespace: "default", Name: name, Identity: id, Addresses: addresses}
}

func dualSpec() v1alpha1.CiliumConfigSpec {
	return v1alpha1.CiliumConfigSpec{IPAM: &v1alpha1.IPAMConfig{
		IPv4: &v1alpha1.AddressPool{CIDRs: []string{"10.1.0.0/16"}}, IPv6: &v1alpha1.AddressPool{CIDRs: []string{"fd00::/56"}},
	}}
}

// A node that joins, or its agent, cannot take the address of another by its name.
func TestAnAddressIsOfTheNodeThatWasThereFirst(t *testing.T) {
	at := func(n v1alpha1.CiliumNode, second int64) v1alpha1.CiliumNode {
		n.CreationTimestamp = metav1.Unix(second, 0)
		return n
	}
	me := at(ciliumNode("me", "192.0.2.1", "", "10.1.0.0/24"), 1)
	thief := at(ciliumNode("a-thief", "192.0.2.7", "2001:db8::7", "10.1.7.0/24"), 3)
	victim := at(ciliumNode("victim", "192.0.2.2", "2001:db8::2", "10.1.2.0/24"), 2)
	for _, a := range []string{"192.0.2.2", "2001:db8::2", "10.1.2.9", "192.0.2.1"} {
		thief.Status.Addresses = append(thief.Status.Addresses, v1alpha1.NodeAddress{Type: v1alpha1.NodeInternalIP, Address: a})
	}
	for _, nodes := range [][]v1alpha1.CiliumNode{{me, thief, victim}, {victim, thief, me}} {
		got := makeTables(world{self: "me", spec: dualSpec(), nodes: nodes, slices: []v1alpha1.CiliumEndpointSlice{slice("a-thief-1", "a-thief", pod("p", 300, "10.1.2.5"))}})
		for address, want := range map[string]string{"192.0.2.2": "192.0.2.2", "2001:db8::2": "192.0.2.2", "192.0.2.7": "192.0.2.7"} {
			if p := got.peers[netip.MustParseAddr(address)]; p.Node != netip.MustParseAddr(want) || p.Flags != node {
				t.Errorf("%s is of %+v, want %s", address, p, want)
			}
		}
		for _, address := range []string{"10.1.2.9", "10.1.2.5", "192.0.2.1"} {
			if p, ok := got.peers[netip.MustParseAddr(address)]; ok {
				t.Errorf("%s is of %+v", address, p)
			}
		}
	}
}

// text makes tables comparable by eye.
func text(t tables) map[string]string {
	out := map[string]string{}
	line := func(p datapath.Peer) string {
		node := "-"
		if p.Node.IsValid() {
			node = p.Node.String()
		}
		return fmt.Sprintf("%s %d %x", node, p.Identity, p.Flags)
	}
	for a, p := range t.peers {
		out[a.String()] = line(p)
	}
	for a, p := range t.prefixes {
		out[a.String()] = line(p)
	}
	for _, r := range t.routes {
		out["route "+r.Prefix.String()] = r.Via.String()
	}
	for _, p := range t.own {
		out["own "+p.String()] = ""
	}
	return out
}

// Flags as they are written in the tables below.
const (
	tunnel  = peerTunnel | peerCluster
	native  = peerNative | peerCluster | peerDirect
	cluster = peerCluster
	local   = peerCluster | peerLocal
	node    = peerNode
)

// state is objects and the table that they make.
type state struct {
	name string
	spec func() v1alpha1.CiliumConfigSpec
	ns   []v1alpha1.CiliumNode
	ss   []v1alpha1.CiliumEndpointSlice
	want map[string]string
}

func flags(f uint32) string { return fmt.Sprintf("%x", f) }

func states() []state {
	me := ciliumNode("me", "192.0.2.1", "2001:db8::1", "10.1.0.0/24", "fd00::/64")
	b := ciliumNode("b", "192.0.2.2", "2001:db8::2", "10.1.1.0/24", "fd00:0:0:1::/64")
	pools := map[string]string{"10.1.0.0/16": "- 127 " + flags(cluster), "fd00::/56": "- 127 " + flags(cluster)}
	own := map[string]string{
		"10.1.0.0/24": "- 127 " + flags(local), "fd00::/64": "- 127 " + flags(local), "own 10.1.0.0/24": "", "own fd00::/64": "",
	}
	other := map[string]string{
		"10.1.1.0/24": "192.0.2.2 127 " + flags(tunnel), "fd00:0:0:1::/64": "192.0.2.2 127 " + flags(tunnel),
		"192.0.2.2": "192.0.2.2 6 " + flags(node), "2001:db8::2": "192.0.2.2 6 " + flags(node),
		"route 10.1.1.0/24": "invalid IP", "route fd00:0:0:1::/64": "invalid IP",
	}
	nativeSpec := func() v1alpha1.CiliumConfigSpec {
		s := dualSpec()
		s.Routing = v1alpha1.RoutingConfig{Mode: v1alpha1.RoutingNative, NativeCIDRs: []string{"172.16.0.0/12", "bad"}}
		s.Masquerade.ExcludeCIDRs = []string{"172.16.0.0/12", "10.1.7.0/24", "203.0.113.0/24"}
		return s
	}
	return []state{
		{"nothing", dualSpec, nil, nil, pools},
		{"defaults", func() v1alpha1.CiliumConfigSpec { return v1alpha1.CiliumConfigSpec{} }, nil, nil, map[string]string{"10.0.0.0/8": "- 127 " + flags(cluster)}},
		{"myself", dualSpec, []v1alpha1.CiliumNode{me}, nil, merge(pools, own)},
		{"two nodes", dualSpec, []v1alpha1.CiliumNode{me, b}, nil, merge(pools, own, other)},
		{"a slice before its node", dualSpec, []v1alpha1.CiliumNode{me}, []v1alpha1.CiliumEndpointSlice{slice("b-1", "b", pod("p", 300, "10.1.1.5"))}, merge(pools, own)},
		{"two nodes with pods", dualSpec, []v1alpha1.CiliumNode{me, b}, []v1alpha1.CiliumEndpointSlice{
			slice("b-1", "b", pod("p", 300, "10.1.1.5", "fd00:0:0:1::5")),
			slice("me-1", "me", pod("q", 301, "10.1.0.5")),
		}, merge(pools, own, other, map[string]string{"10.1.1.5": "192.0.2.2 300 " + flags(tunnel), "fd00:0:0:1::5": "192.0.2.2 300 " + flags(tunnel)})},
		{"claims beyond its prefix", dualSpec, []v1alpha1.CiliumNode{me, b}, []v1alpha1.CiliumEndpointSlice{
			slice("b-1", "b", pod("thief", 300, "10.1.0.5", "10.1.2.5", "192.0.2.1", "8.8.8.8", "nonsense"), pod("reserved", 1, "10.1.1.6"), pod("huge", 1<<24, "10.1.1.7")),
		}, merge(pools, own, other)},
		{"a node without an address", dualSpec, []v1alpha1.CiliumNode{me, ciliumNode("b", "", "", "10.1.1.0/24")}, []v1alpha1.CiliumEndpointSlice{
			slice("b-1", "b", pod("p", 300, "10.1.1.5")),
		}, merge(pools, own, map[string]string{"10.1.1.0/24": "- 127 " + flags(cluster), "10.1.1.5": "- 300 " + flags(cluster)})},
		{"a node that says it is me", dualSpec, []v1alpha1.CiliumNode{me, ciliumNode("b", "192.0.2.1", "10.1.0.9")}, nil, merge(pools, own)},
		{"two nodes with one prefix", dualSpec, []v1alpha1.CiliumNode{me, ciliumNode("c", "192.0.2.3", "", "10.1.1.0/24"), b}, []v1alpha1.CiliumEndpointSlice{
			slice("c-1", "c", pod("p", 300, "10.1.1.5")),
		}, merge(pools, own, other, map[string]string{"192.0.2.3": "192.0.2.3 6 " + flags(node)})},
		{"a kept address moved here", dualSpec, []v1alpha1.CiliumNode{ciliumNode("me", "192.0.2.1", "2001:db8::1", "10.1.0.0/24", "fd00::/64", "10.1.1.5/32"), b}, []v1alpha1.CiliumEndpointSlice{
			slice("b-1", "b", pod("p", 300, "10.1.1.5"), pod("q", 300, "10.1.1.6")),
		}, merge(pools, own, other, map[string]string{"10.1.1.5/32": "- 127 " + flags(local), "own 10.1.1.5/32": "", "10.1.1.6": "192.0.2.2 300 " + flags(tunnel)})},
		{"native", nativeSpec, []v1alpha1.CiliumNode{me, b}, []v1alpha1.CiliumEndpointSlice{slice("b-1", "b", pod("p", 300, "10.1.1.5", "fd00:0:0:1::5"))}, merge(pools, own, map[string]string{
			"10.1.1.0/24": "192.0.2.2 127 " + flags(native), "fd00:0:0:1::/64": "2001:db8::2 127 " + flags(native),
			"192.0.2.2": "192.0.2.2 6 " + flags(node), "2001:db8::2": "2001:db8::2 6 " + flags(node),
			"route 10.1.1.0/24": "192.0.2.2", "route fd00:0:0:1::/64": "2001:db8::2",
			"10.1.1.5": "192.0.2.2 300 " + flags(native), "fd00:0:0:1::5": "2001:db8::2 300 " + flags(native),
			"172.16.0.0/12": "- 2 " + flags(peerNative|peerNoMasquerade), "203.0.113.0/24": "- 2 " + flags(peerNoMasquerade),
		})},
		{"IPv6 underlay", dualSpec, []v1alpha1.CiliumNode{me, ciliumNode("b", "", "2001:db8::2", "10.1.1.0/24")}, nil, merge(pools, own, map[string]string{
			"10.1.1.0/24": "2001:db8::2 127 " + flags(tunnel), "2001:db8::2": "2001:db8::2 6 " + flags(node), "route 10.1.1.0/24": "invalid IP",
		})},
	}
}

func merge(ms ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range ms {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// Any walk over the states lands on the last one's table, whatever the order of the objects.
func TestTables(t *testing.T) {
	for _, s := range states() {
		t.Run(s.name, func(t *testing.T) {
			for _, reversed := range []bool{false, true} {
				w := world{self: "me", spec: s.spec(), nodes: slices.Clone(s.ns), slices: slices.Clone(s.ss)}
				if reversed {
					slices.Reverse(w.nodes)
					slices.Reverse(w.slices)
				}
				if got := text(makeTables(w)); !reflect.DeepEqual(got, s.want) {
					t.Errorf("reversed %v: %s", reversed, difference(got, s.want))
				}
			}
		})
	}
}

// In the default pool, which nobody chose, the networks of the nodes stay what they are: a pod reaches the other nodes
// and what else lives there. Whose address lies in a node's prefix is no host.
func TestNodesInTheDefaultPool(t *testing.T) {
	me := ciliumNode("me", "10.1.0.7", "", "10.0.0.0/24")
	other := ciliumNode("other", "10.1.200.7", "", "10.0.1.0/24")
	far := ciliumNode("far", "10.9.1.1", "2001:db8::9", "10.0.2.0/24")
	liar := ciliumNode("liar", "10.0.1.9", "", "10.0.3.0/24")
	const none = "- 2 0"
	want := map[string]string{"10.0.0.0/8": "- 127 8", "10.1.0.0/16": none, "10.9.0.0/16": none}
	w := world{self: "me", nodes: []v1alpha1.CiliumNode{me, other, far, liar}}
	got := makeTables(w)
	for key, want := range want {
		if is := text(got)[key]; is != want {
			t.Errorf("%s: got %q, want %q", key, is, want)
		}
	}
	for p := range got.prefixes {
		if p.Bits() == 16 && want[p.String()] == "" {
			t.Errorf("%v is the nodes' own", p)
		}
	}
	for address, is := range map[string]bool{"10.1.200.7": true, "10.9.1.1": true, "2001:db8::9": true, "10.0.1.9": false, "10.1.0.7": false} {
		if p, ok := got.peers[netip.MustParseAddr(address)]; ok != is || ok && p.Flags != peerNode {
			t.Errorf("%s: %v, %+v", address, ok, p)
		}
	}

	// In a pool that a person wrote all is the cluster's, and nobody is believed to have an address of it.
	w.spec.IPAM = &v1alpha1.IPAMConfig{IPv4: &v1alpha1.AddressPool{CIDRs: []string{"10.0.0.0/8"}}}
	got = makeTables(w)
	if _, ok := got.prefixes[netip.MustParsePrefix("10.1.0.0/16")]; ok {
		t.Error("the nodes' network is taken out of a pool that a person wrote")
	}
	if p, ok := got.peers[netip.MustParseAddr("10.1.200.7")]; ok {
		t.Errorf("a node is believed to have an address of the pool: %+v", p)
	}
}

func difference(got, want map[string]string) (out string) {
	for k, v := range got {
		if w, ok := want[k]; !ok || w != v {
			out += fmt.Sprintf("\n  %s: got %q, want %q (%v)", k, v, w, ok)
		}
	}
	for k, v := range want {
		if _, ok := got[k]; !ok {
			out += fmt.Sprintf("\n  %s: missing, want %q", k, v)
		}
	}
	return out
}

// What no object says must hold for all: an address of a pod is known only from the node whose prefix holds it, the
// order of objects does not matter, and this node's own addresses are nobody else's.
func TestTablesOfRandomWorlds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world{self: "n0", spec: dualSpec()}
		for i := range rapid.IntRange(1, 5).Draw(t, "nodes") {
			var prefixes []string
			for range rapid.IntRange(0, 3).Draw(t, "prefixes") {
				prefixes = append(prefixes, fmt.Sprintf("10.1.%d.0/%d", rapid.IntRange(0, 5).Draw(t, "third"), rapid.SampledFrom([]int{24, 28, 32}).Draw(t, "bits")))
			}
			w.nodes = append(w.nodes, ciliumNode(fmt.Sprintf("n%d", i), fmt.Sprintf("192.0.2.%d", rapid.IntRange(1, 4).Draw(t, "address")), "", prefixes...))
		}
		for i := range rapid.IntRange(0, 6).Draw(t, "slices") {
			s := slice(fmt.Sprintf("s%d", i), fmt.Sprintf("n%d", rapid.IntRange(0, 6).Draw(t, "of")))
			for range rapid.IntRange(0, 4).Draw(t, "pods") {
				a := fmt.Sprintf("10.1.%d.%d", rapid.IntRange(0, 5).Draw(t, "c"), rapid.IntRange(0, 20).Draw(t, "d"))
				s.Spec.Endpoints = append(s.Spec.Endpoints, pod("p", rapid.Int64Range(250, 260).Draw(t, "identity"), a))
			}
			w.slices = append(w.slices, s)
		}
		got := makeTables(w)
		shuffled := world{self: w.self, spec: w.spec, nodes: rapid.Permutation(w.nodes).Draw(t, "n"), slices: rapid.Permutation(w.slices).Draw(t, "s")}
		if other := makeTables(shuffled); !reflect.DeepEqual(got, other) {
			t.Fatalf("the order counts:%s", difference(text(got), text(other)))
		}
		for a, p := range got.peers {
			if p.Flags&peerNode != 0 {
				continue
			}
			if p.Identity < 256 {
				t.Fatalf("%s has the reserved identity %d", a, p.Identity)
			}
			if contains(got.own, a) && longest(got, a) {
				t.Fatalf("%s is this node's own", a)
			}
		}
	})
}

// longest tells whether the longest prefix that holds a is this node's.
func longest(t tables, a netip.Addr) bool {
	best, mine := -1, false
	for p := range t.prefixes {
		if p.Contains(a) && p.Bits() > best {
			best, mine = p.Bits(), slices.Contains(t.own, p)
		}
	}
	return mine
}

func BenchmarkTables(b *testing.B) {
	w := world{self: "n0", spec: dualSpec()}
	for i := range 200 {
		name := fmt.Sprintf("n%d", i)
		w.nodes = append(w.nodes, ciliumNode(name, fmt.Sprintf("192.0.2.%d", i+1), "", fmt.Sprintf("10.1.%d.0/24", i)))
		s := slice(name+"-1", name)
		for j := range 64 {
			s.Spec.Endpoints = append(s.Spec.Endpoints, pod("p", 300, fmt.Sprintf("10.1.%d.%d", i, j+1)))
		}
		w.slices = append(w.slices, s)
	}
	for b.Loop() {
		makeTables(w)
	}
}

// The agent had its own idea of what holds without a CiliumConfig; it is the operator's, who gives the prefixes.
func TestWithoutConfigTheAgentUsesTheAPIsDefaults(t *testing.T) {
	var none v1alpha1.CiliumConfigSpec
	if got := poolsOf(none); len(got) != 1 || got[0].String() != v1alpha1.DefaultIPv4Pool {
		t.Errorf("pools %v", got)
	}
	if ipv4, ipv6 := families(none); !ipv4 || ipv6 {
		t.Errorf("families %v, %v", ipv4, ipv6)
	}
	c := configFor(none, ciliumNode("a", "192.0.2.1", ""))
	if int32(c.TunnelPort) != v1alpha1.DefaultTunnelPort || int32(c.ConntrackMax) != v1alpha1.DefaultConntrackMaxEntries ||
		int32(c.UnansweredPerEndpoint) != v1alpha1.DefaultUnansweredPerEndpoint || c.Encapsulation != v1alpha1.EncapsulationAuto {
		t.Errorf("%+v", c)
	}
	none.IPAM = &v1alpha1.IPAMConfig{IPv6: &v1alpha1.AddressPool{CIDRs: []string{"fd00::/48"}}}
	if ipv4, ipv6 := families(none); ipv4 || !ipv6 {
		t.Errorf("families of IPv6 alone: %v, %v", ipv4, ipv6)
	}
}
