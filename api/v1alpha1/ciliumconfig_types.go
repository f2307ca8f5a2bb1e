// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// RoutingMode is how a packet travels from node to node.
// +kubebuilder:validation:Enum=VXLAN;Native
type RoutingMode string

const (
	// RoutingVXLAN wraps pod traffic between nodes in VXLAN; the underlay sees node addresses only.
	RoutingVXLAN RoutingMode = "VXLAN"
	// RoutingNative sends pod packets as they are; the underlay must route pod prefixes, or all nodes share one L2.
	RoutingNative RoutingMode = "Native"
)

// Encapsulation is who builds the VXLAN header.
// +kubebuilder:validation:Enum=Auto;BPF;Device
type Encapsulation string

const (
	// EncapsulationAuto builds the header in eBPF where the kernel can and the underlay is IPv4, else in the device.
	EncapsulationAuto Encapsulation = "Auto"
	// EncapsulationBPF insists on the header built in eBPF.
	EncapsulationBPF Encapsulation = "BPF"
	// EncapsulationDevice leaves the header to the kernel's VXLAN device.
	EncapsulationDevice Encapsulation = "Device"
)

// KernelFeature is a kernel ability that the agent probes and can be told not to use.
// +kubebuilder:validation:Enum=TCX;RedirectPeer;RedirectNeigh;AdjustRoomEncap;SocketLoadBalancing;BatchOperations
type KernelFeature string

const (
	FeatureTCX                 KernelFeature = "TCX"
	FeatureRedirectPeer        KernelFeature = "RedirectPeer"
	FeatureRedirectNeigh       KernelFeature = "RedirectNeigh"
	FeatureAdjustRoomEncap     KernelFeature = "AdjustRoomEncap"
	FeatureSocketLoadBalancing KernelFeature = "SocketLoadBalancing"
	FeatureBatchOperations     KernelFeature = "BatchOperations"
)

// AddressPool is the ranges of one address family from which nodes get their prefixes. Ranges may be added and not
// taken away, and the size of a prefix stays: nodes hold prefixes cut from them.
// +kubebuilder:validation:XValidation:rule="self.cidrs.filter(c, isCIDR(c)).all(a, self.cidrs.filter(c, isCIDR(c)).exists_one(b, cidr(a).containsCIDR(b) || cidr(b).containsCIDR(a)))",fieldPath=".cidrs",message="ranges of a pool must not overlap"
// +kubebuilder:validation:XValidation:rule="oldSelf.cidrs.all(c, c in self.cidrs)",fieldPath=".cidrs",message="a range of a pool cannot be taken away: nodes hold prefixes of it"
type AddressPool struct {
	// cidrs are the ranges, in the order in which they are used up.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a CIDR without host bits, such as 10.0.0.0/8 or fd00::/48"
	CIDRs []string `json:"cidrs"`
	// maskSize is the prefix length of what one node gets: 24 for IPv4 and 120 for IPv6 unless said.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=126
	// +optional
	MaskSize *int32 `json:"maskSize,omitempty"`
}

// IPAMConfig is where pod addresses come from. At least one family is set; a family that was set stays.
// +kubebuilder:validation:XValidation:rule="has(self.ipv4) || has(self.ipv6)",message="set ipv4, ipv6 or both"
// +kubebuilder:validation:XValidation:rule="(has(self.ipv4) || !has(oldSelf.ipv4)) && (has(self.ipv6) || !has(oldSelf.ipv6))",message="an address family cannot be taken away: pods have its addresses"
type IPAMConfig struct {
	// ipv4 pool; absent means that pods have no IPv4 address.
	// +kubebuilder:validation:XValidation:rule="self.cidrs.filter(c, isCIDR(c)).all(c, cidr(c).ip().family() == 4)",fieldPath=".cidrs",message="must be IPv4 ranges"
	// +kubebuilder:validation:XValidation:rule="(has(self.maskSize) ? self.maskSize : 24) <= 30",fieldPath=".maskSize",message="a node's IPv4 prefix is /30 at the smallest"
	// +kubebuilder:validation:XValidation:rule="self.cidrs.filter(c, isCIDR(c)).all(c, cidr(c).prefixLength() <= (has(self.maskSize) ? self.maskSize : 24))",fieldPath=".maskSize",message="a node's prefix (24 unless said) must fit into every range of the pool"
	// +kubebuilder:validation:XValidation:rule="(has(self.maskSize) ? self.maskSize : 24) == (has(oldSelf.maskSize) ? oldSelf.maskSize : 24)",fieldPath=".maskSize",message="the size of a node's prefix cannot change"
	// +optional
	IPv4 *AddressPool `json:"ipv4,omitempty"`
	// ipv6 pool; absent means that pods have no IPv6 address.
	// +kubebuilder:validation:XValidation:rule="self.cidrs.filter(c, isCIDR(c)).all(c, cidr(c).ip().family() == 6)",fieldPath=".cidrs",message="must be IPv6 ranges"
	// +kubebuilder:validation:XValidation:rule="self.cidrs.filter(c, isCIDR(c)).all(c, cidr(c).prefixLength() <= (has(self.maskSize) ? self.maskSize : 120))",fieldPath=".maskSize",message="a node's prefix (120 unless said) must fit into every range of the pool"
	// +kubebuilder:validation:XValidation:rule="(has(self.maskSize) ? self.maskSize : 120) == (has(oldSelf.maskSize) ? oldSelf.maskSize : 120)",fieldPath=".maskSize",message="the size of a node's prefix cannot change"
	// +optional
	IPv6 *AddressPool `json:"ipv6,omitempty"`
}

// RoutingConfig is how packets travel between nodes.
type RoutingConfig struct {
	// mode is VXLAN unless said.
	// +kubebuilder:default=VXLAN
	// +optional
	Mode RoutingMode `json:"mode,omitempty"`
	// encapsulation chooses who builds the VXLAN header; Auto unless said.
	// +kubebuilder:default=Auto
	// +optional
	Encapsulation Encapsulation `json:"encapsulation,omitempty"`
	// tunnelPort is the UDP port of VXLAN; 8472 unless said.
	// +kubebuilder:default=8472
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	// +optional
	TunnelPort int32 `json:"tunnelPort,omitempty"`
	// directNodeRoutes, in Native mode, installs a route to each node's prefixes through the node's address;
	// true unless said. Nodes must share a network.
	// +kubebuilder:default=true
	// +optional
	DirectNodeRoutes *bool `json:"directNodeRoutes,omitempty"`
	// nativeCIDRs, in Native mode, are ranges besides the pools that are reached without masquerade.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a CIDR without host bits, such as 10.0.0.0/8 or fd00::/48"
	NativeCIDRs []string `json:"nativeCIDRs,omitempty"`
}

// MasqueradeConfig is how traffic that leaves the cluster gets the node's address.
type MasqueradeConfig struct {
	// ipv4 masquerades IPv4; true unless said.
	// +kubebuilder:default=true
	// +optional
	IPv4 *bool `json:"ipv4,omitempty"`
	// ipv6 masquerades IPv6; true unless said.
	// +kubebuilder:default=true
	// +optional
	IPv6 *bool `json:"ipv6,omitempty"`
	// excludeCIDRs are destinations that see the pod's own address.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a CIDR without host bits, such as 10.0.0.0/8 or fd00::/48"
	ExcludeCIDRs []string `json:"excludeCIDRs,omitempty"`
}

// ConntrackConfig sizes the connection table of a node.
type ConntrackConfig struct {
	// maxEntries of the table; 262144 unless said. A change takes effect with a new table that is filled from the old one.
	// +kubebuilder:default=262144
	// +kubebuilder:validation:Minimum=1024
	// +kubebuilder:validation:Maximum=16777216
	// +optional
	MaxEntries int32 `json:"maxEntries,omitempty"`
	// unansweredPerEndpoint bounds the flows of one pod that nobody has answered yet; 1024 unless said.
	// +kubebuilder:default=1024
	// +kubebuilder:validation:Minimum=128
	// +kubebuilder:validation:Maximum=65536
	// +optional
	UnansweredPerEndpoint int32 `json:"unansweredPerEndpoint,omitempty"`
}

// FlowReporting is which of the packets that pass the datapath tells the agent of. Drops are told with each.
// +kubebuilder:validation:Enum=Off;Default;EveryPacket
type FlowReporting string

const (
	// FlowReportingOff tells of drops alone: nothing passes that flows or their metrics would show.
	FlowReportingOff FlowReporting = "Off"
	// FlowReportingDefault tells of the first packet of a connection, of SYN, FIN and RST first seen in a direction,
	// and of one packet every few seconds while it lives.
	FlowReportingDefault FlowReporting = "Default"
	// FlowReportingEveryPacket tells of every packet of every connection: for a look at close quarters, not for always.
	FlowReportingEveryPacket FlowReporting = "EveryPacket"
)

// FlowsConfig is what nodes tell of the packets that they forward.
type FlowsConfig struct {
	// reporting is which packets that pass are reported, besides all drops: Default unless said. Off reports none;
	// Default the first of a connection, SYN, FIN and RST, and one every few seconds; EveryPacket all of them, which costs
	// much and turns the rings over quickly. A change is in force at once and disturbs no connection.
	// +kubebuilder:default=Default
	// +optional
	Reporting FlowReporting `json:"reporting,omitempty"`
}

// BigTCP is whether TCP hands segments of more than 64 KiB from device to device.
// +kubebuilder:validation:Enum=Auto;Off
type BigTCP string

const (
	// BigTCPAuto does on nodes that route natively and whose uplinks all take such segments.
	BigTCPAuto BigTCP = "Auto"
	// BigTCPOff stays at 64 KiB.
	BigTCPOff BigTCP = "Off"
)

// CiliumConfigSpec is every setting of the cluster's network.
// +kubebuilder:validation:XValidation:rule="has(self.ipam) || !has(oldSelf.ipam)",fieldPath=".ipam",message="pools cannot be taken away: nodes hold prefixes of them"
type CiliumConfigSpec struct {
	// clusterName appears in flows; "default" unless said.
	// +kubebuilder:default=default
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +optional
	ClusterName string `json:"clusterName,omitempty"`
	// ipam is where pod addresses come from: IPv4 10.0.0.0/8 in /24 unless said.
	// +optional
	IPAM *IPAMConfig `json:"ipam,omitempty"`
	// routing is how packets travel between nodes.
	// +kubebuilder:default={}
	// +optional
	Routing RoutingConfig `json:"routing,omitzero"`
	// masquerade is how traffic leaves the cluster.
	// +kubebuilder:default={}
	// +optional
	Masquerade MasqueradeConfig `json:"masquerade,omitzero"`
	// conntrack sizes the connection table.
	// +kubebuilder:default={}
	// +optional
	Conntrack ConntrackConfig `json:"conntrack,omitzero"`
	// flows is what nodes tell of the packets that they forward.
	// +kubebuilder:default={}
	// +optional
	Flows FlowsConfig `json:"flows,omitzero"`
	// devices are the uplinks, by name or by a pattern with a trailing *. Empty means: found from the default
	// routes and the node's addresses.
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	// +kubebuilder:validation:items:MaxLength=16
	// +kubebuilder:validation:items:Pattern=`^[^/\s*]{1,15}\*?$`
	// +optional
	Devices []string `json:"devices,omitempty"`
	// mtu of the underlay in bytes; 0 means the smallest of the uplinks.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	// +kubebuilder:validation:XValidation:rule="self == 0 || self >= 1280",message="must be 0 (the smallest of the uplinks) or at least 1280"
	// +optional
	MTU int32 `json:"mtu,omitempty"`
	// bigTCP is whether pods' TCP streams go in segments of up to 196608 bytes instead of 64 KiB, which costs less work
	// a byte: Off unless said. Auto does it on a node that routes natively (routing.mode) and whose uplinks all
	// take such segments. A change is in force at once, and connections go on.
	// +kubebuilder:default=Off
	// +optional
	BigTCP BigTCP `json:"bigTCP,omitempty"`
	// forbiddenKernelFeatures are not used even where the kernel has them; the fallback is.
	// +kubebuilder:validation:MaxItems=16
	// +listType=set
	// +optional
	ForbiddenKernelFeatures []KernelFeature `json:"forbiddenKernelFeatures,omitempty"`
}

// CiliumConfigStatus is what came of the settings.
type CiliumConfigStatus struct {
	// observedGeneration is the generation that the conditions speak of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// nodesReady counts nodes whose agent carries out this generation and is ready.
	// +optional
	NodesReady int32 `json:"nodesReady"`
	// nodesTotal counts the nodes of the cluster.
	// +optional
	NodesTotal int32 `json:"nodesTotal"`
	// nodes is "ready/total", for people.
	// +optional
	Nodes string `json:"nodes,omitempty"`
	// conditions are Ready, Reconciling, Stalled, PrefixesAssigned and PoolsApart.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// CiliumConfig holds every setting of the cluster's network. One object, named "default", is honoured; without it
// the defaults hold. Spec is written by people, status by the operator.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=cilium,shortName=ciliumcfg
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="the one CiliumConfig is named default"
// +kubebuilder:printcolumn:name="Nodes",type=string,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="Routing",type=string,JSONPath=`.spec.routing.mode`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CiliumConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:default={}
	Spec   CiliumConfigSpec   `json:"spec,omitzero"`
	Status CiliumConfigStatus `json:"status,omitzero"`
}

// CiliumConfigList is a list of CiliumConfig.
// +kubebuilder:object:root=true
type CiliumConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CiliumConfig `json:"items"`
}
