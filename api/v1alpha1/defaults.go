// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// What holds where CiliumConfig says nothing. The schema has the same as far as it can say it (a test compares them);
// these are for when there is no CiliumConfig at all.
const (
	// DefaultClusterName is one of the labels of every identity.
	DefaultClusterName = "default"
	// DefaultIPv4Pool is used when spec.ipam is absent, or there is no CiliumConfig.
	DefaultIPv4Pool = "10.0.0.0/8"
	// DefaultIPv4MaskSize is the prefix length of what a node gets of an IPv4 pool.
	DefaultIPv4MaskSize int32 = 24
	// DefaultIPv6MaskSize is the prefix length of what a node gets of an IPv6 pool.
	DefaultIPv6MaskSize int32 = 120
	// DefaultTunnelPort is the UDP port of VXLAN.
	DefaultTunnelPort int32 = 8472
	// DefaultConntrackMaxEntries is the size of a node's connection table.
	DefaultConntrackMaxEntries int32 = 262144
	// DefaultUnansweredPerEndpoint bounds the flows of one pod that nobody has answered yet.
	DefaultUnansweredPerEndpoint int32 = 1024
)

// EffectiveIPAM returns the pools with every default filled in, as a copy. The spec of a CiliumConfig that does not
// exist is the zero value.
func (s *CiliumConfigSpec) EffectiveIPAM() IPAMConfig {
	ipam := IPAMConfig{IPv4: &AddressPool{CIDRs: []string{DefaultIPv4Pool}}}
	if s.IPAM != nil {
		ipam = *s.IPAM.DeepCopy()
	}
	fill := func(p *AddressPool, mask int32) {
		if p != nil && p.MaskSize == nil {
			p.MaskSize = &mask
		}
	}
	fill(ipam.IPv4, DefaultIPv4MaskSize)
	fill(ipam.IPv6, DefaultIPv6MaskSize)
	return ipam
}
