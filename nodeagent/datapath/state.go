// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net"
	"net/netip"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// Config is what the programs are loaded with. A change loads them again and flips the slots.
type Config struct {
	// NodeIPv4 and NodeIPv6 are this node's addresses on the underlay; invalid where it has none of the family.
	NodeIPv4, NodeIPv6 netip.Addr
	Mode               v1alpha1.RoutingMode
	Encapsulation      v1alpha1.Encapsulation
	// TunnelPort is the UDP port of VXLAN, host order.
	TunnelPort     uint16
	MasqueradeIPv4 bool
	MasqueradeIPv6 bool
	// Devices are the uplinks' names.
	Devices []string
	// MTU of the underlay in bytes; 0: the smallest of the uplinks.
	MTU                   int
	ConntrackMax          uint32
	UnansweredPerEndpoint uint32
	// Forbidden features count as unsupported.
	Forbidden []v1alpha1.KernelFeature
}

// Pod is one pod interface on this node. It is immutable: to change it, set a new one under the same ID.
type Pod struct {
	// ID of the endpoint, 1 to bpf MAX_ENDPOINTS - 1, unique on the node.
	ID uint16
	// Interface is the name of the host's end; Ifindex its number.
	Interface string
	Ifindex   int
	// MAC is the pod's end, HostMAC the host's.
	MAC, HostMAC net.HardwareAddr
	IPv4, IPv6   netip.Addr
	// Identity is a confirmed number or the pending one.
	Identity uint32
}

// Peer is who an address or a prefix is and where it lives; the flags are bpf's.
type Peer struct {
	// Node is the underlay address of the node that holds it; invalid: nobody's.
	Node     netip.Addr
	Identity uint32
	Flags    uint32
}
