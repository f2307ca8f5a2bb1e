// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net"
	"net/netip"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
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
	// BigTCP is Off unless said.
	BigTCP v1alpha1.BigTCP
	// FlowReporting is Default unless said. A change of it alone touches no program.
	FlowReporting v1alpha1.FlowReporting
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

// Route leads to a prefix of another node.
type Route struct {
	Prefix netip.Prefix
	// Via is the node's address in native mode. Invalid: through the VXLAN device.
	Via netip.Addr
}

// Outcome is what a probe of the kernel said.
type Outcome string

const (
	Supported   Outcome = "Supported"
	Unsupported Outcome = "Unsupported"
	Unknown     Outcome = "Unknown"
	Forbidden   Outcome = "Forbidden"
)

// Feature is one probed kernel feature.
type Feature struct {
	Name    string
	Outcome Outcome
	// Using says what the datapath does with it, or which fallback it uses.
	Using string
	// Err is the probe's, nil when the kernel has the feature.
	Err error
}

// Counter is the packets that ended with one reason at one hook, over all CPUs, since the map was made.
type Counter struct {
	Hook           bpf.Hook
	Reason         bpf.Reason
	Packets, Bytes uint64
}

// MapInfo is one pinned map.
type MapInfo struct {
	Name string
	// Layout of key and value; the pin is named NAME_vLAYOUT.
	Layout int
	// Entries in use; -1 where the kernel cannot tell.
	Entries    int64
	MaxEntries int64
	// Bytes of kernel memory.
	Bytes int64
}

// ProgramInfo is one program in force.
type ProgramInfo struct {
	// Name of the hook, such as from_pod.
	Name string
	// Attach is tcx, clsact or cgroup; "clsact, tcx" while some pods have moved over and some have not.
	Attach string
	// Devices counts the interfaces or cgroups that it is attached to.
	Devices int
	// Tag is the kernel's hash of the instructions.
	Tag string
	ID  uint32
}
