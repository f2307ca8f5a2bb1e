// SPDX-License-Identifier: Apache-2.0

package ranges

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrIndex says that an index lies outside [1, Max].
var ErrIndex = errors.New("cluster index out of range")

// ErrFamily says that an address family is none of ipv4, ipv6, dual.
var ErrFamily = errors.New(`unknown IP family (one of "ipv4", "ipv6", "dual")`)

// Max is the largest index. It is bounded by the second octet: pods and
// services of all clusters share 10.101.0.0 to 10.200.255.255.
const Max = 50

// Family is the address family of a cluster, as a user spells it.
type Family string

// The families. In a dual cluster IPv4 is the first.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
	Dual Family = "dual"
)

// Has4 reports whether the cluster has IPv4 addresses.
func (f Family) Has4() bool { return f == IPv4 || f == Dual }

// Has6 reports whether the cluster has IPv6 addresses.
func (f Family) Has6() bool { return f == IPv6 || f == Dual }

// Host numbers inside a node network. A worker N has WorkerBase+N.
const (
	GatewayHost = 1
	WorkerBase  = 10
	OutsideHost = 200
	MaxWorkers  = OutsideHost - WorkerBase - 1
)

// Ranges are the prefixes of one cluster, one per family, IPv4 first.
type Ranges struct {
	// Nodes is the L2 network of control plane, workers and outside.
	Nodes []netip.Prefix `json:"nodes"`
	// Uplink2 is the second underlay, used with two uplinks.
	Uplink2 []netip.Prefix `json:"uplink2"`
	// Pods holds every pod address; a node has a /24 or a /64 of it.
	Pods []netip.Prefix `json:"pods"`
	// Services holds every ClusterIP.
	Services []netip.Prefix `json:"services"`
	// World lies behind the workers' default route: its hosts are never
	// on a worker's link.
	World []netip.Prefix `json:"world"`
}

// For returns the ranges of the cluster with this index.
func For(index int, family Family) (Ranges, error) {
	if index < 1 || index > Max {
		return Ranges{}, fmt.Errorf("%w: %d not in 1..%d", ErrIndex, index, Max)
	}
	if !family.Has4() && !family.Has6() {
		return Ranges{}, fmt.Errorf("%w: %q", ErrFamily, family)
	}
	var r Ranges
	if family.Has4() {
		x := byte(index)
		r.Nodes = append(r.Nodes, prefix4(172, 30, x, 24))
		r.Uplink2 = append(r.Uplink2, prefix4(172, 31, x, 24))
		r.Pods = append(r.Pods, prefix4(10, 100+x, 0, 16))
		r.Services = append(r.Services, prefix4(10, 150+x, 0, 16))
		r.World = append(r.World, prefix4(198, 18, x, 24))
	}
	if family.Has6() {
		// One ULA /48 a cluster. Pods are a /56: 256 nodes with a /64 each.
		// The API server takes no service range wider than /108.
		r.Nodes = append(r.Nodes, prefix6("fd6b:6375:%x::/64", index))
		r.Uplink2 = append(r.Uplink2, prefix6("fd6b:6375:%x:300::/64", index))
		r.Pods = append(r.Pods, prefix6("fd6b:6375:%x:100::/56", index))
		r.Services = append(r.Services, prefix6("fd6b:6375:%x:200::/108", index))
		r.World = append(r.World, prefix6("2001:db8:%x::/64", index))
	}
	return r, nil
}

func prefix4(a, b, c byte, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b, c, 0}), bits)
}

func prefix6(format string, index int) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf(format, index))
}

// All lists every prefix of the cluster.
func (r Ranges) All() []netip.Prefix {
	var all []netip.Prefix
	for _, list := range [][]netip.Prefix{r.Nodes, r.Uplink2, r.Pods, r.Services, r.World} {
		all = append(all, list...)
	}
	return all
}

// Host returns the address with this host number in each prefix.
func Host(in []netip.Prefix, number int) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(in))
	for _, p := range in {
		addrs = append(addrs, host(p, number))
	}
	return addrs
}

// On returns Host with each address carrying its network's length.
func On(in []netip.Prefix, number int) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(in))
	for _, p := range in {
		out = append(out, netip.PrefixFrom(host(p, number), p.Bits()))
	}
	return out
}

// host counts in the last two bytes, which every range of ours leaves free
// for at least one of them.
func host(p netip.Prefix, number int) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	n := len(raw)
	raw[n-1] += byte(number)
	raw[n-2] += byte(number >> 8)
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

// PodsOf returns the pod prefixes of worker N (from 1): a /24 and a /64.
func (r Ranges) PodsOf(worker int) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(r.Pods))
	for _, p := range r.Pods {
		raw := p.Addr().AsSlice()
		bits := 24
		if p.Addr().Is4() {
			raw[2] = byte(worker)
		} else {
			raw[7], bits = byte(worker), 64
		}
		addr, _ := netip.AddrFromSlice(raw)
		out = append(out, netip.PrefixFrom(addr, bits))
	}
	return out
}

// Overlaps reports the first of the cluster's prefixes that overlaps one of
// the others, which are the machine's own networks or another cluster's.
func (r Ranges) Overlaps(others []netip.Prefix) (netip.Prefix, bool) {
	for _, mine := range r.All() {
		for _, other := range others {
			if mine.Overlaps(other) {
				return mine, true
			}
		}
	}
	return netip.Prefix{}, false
}
