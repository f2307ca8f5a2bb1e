// SPDX-License-Identifier: Apache-2.0

package bpf

import "net/netip"

// Short names of the generated types.
type (
	Addr            = MapsAddr
	Backend         = MapsBackend
	BackendKey      = MapsBackendKey
	Conn            = MapsConn
	Advance         = MapsAdvance
	Counter         = MapsCounter
	Device          = MapsDevice
	Endpoint        = MapsEndpoint
	Event           = MapsEvent
	FlowKey         = MapsFlowKey
	Fragment        = MapsFragment
	FragmentKey     = MapsFragmentKey
	Judgement       = MapsJudgement
	Node            = MapsNode
	Peer            = MapsPeer
	PodInterface    = MapsPodInterface
	Policy          = MapsPolicy
	PolicySide      = MapsPolicySide
	PrefixKey       = MapsPrefixKey
	Reason          = MapsReason
	Hook            = MapsHook
	Service         = MapsService
	ServiceKey      = MapsServiceKey
	ServiceName     = MapsServiceName
	ServiceNameKey  = MapsServiceNameKey
	Settings        = MapsSettings
	DropBudget      = MapsDropBudget
	VerdictEntry    = MapsVerdictEntry
	VerdictKey      = MapsVerdictKey
	VerdictRangeKey = MapsVerdictRangeKey
	YoungConn       = MapsYoungConn
)

// The two defines of bpf/lib/types.h that the agent needs too; TestVerdictKey compares them with the header.
const (
	PeerClassBit     = 1 << 31
	VerdictRangeBits = 64
)

// AddrFrom gives the 16-byte form of ip, IPv4 as ::ffff:a.b.c.d; the zero Addr for the zero netip.Addr.
func AddrFrom(ip netip.Addr) Addr {
	if !ip.IsValid() {
		return Addr{}
	}
	return Addr{B: ip.As16()}
}

// IP is the inverse of AddrFrom: IPv4 comes back as IPv4, all zeroes as the zero netip.Addr.
func (a MapsAddr) IP() netip.Addr {
	if a.B == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.B).Unmap()
}

// PrefixKeyFrom gives the trie key of p: the prefix length counts in the 16-byte form, IPv4 /24 is 120.
func PrefixKeyFrom(p netip.Prefix) PrefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return PrefixKey{Prefixlen: uint32(bits), Addr: AddrFrom(p.Masked().Addr())}
}

// Prefix is the inverse of PrefixKeyFrom.
func (k MapsPrefixKey) Prefix() netip.Prefix {
	ip := netip.AddrFrom16(k.Addr.B)
	if ip.Is4In6() && k.Prefixlen >= 96 {
		return netip.PrefixFrom(ip.Unmap(), int(k.Prefixlen)-96)
	}
	return netip.PrefixFrom(ip, int(k.Prefixlen))
}

// PrefixAndMask gives p as an address and the mask of its bits, both in the 16-byte form; two zero Addrs for the zero
// netip.Prefix.
func PrefixAndMask(p netip.Prefix) (prefix, mask Addr) {
	if !p.IsValid() {
		return Addr{}, Addr{}
	}
	k := PrefixKeyFrom(p)
	for i := range k.Prefixlen {
		mask.B[i/8] |= 0x80 >> (i % 8)
	}
	return k.Addr, mask
}
