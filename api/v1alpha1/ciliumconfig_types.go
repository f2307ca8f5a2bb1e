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

// AddressPool is the ranges of one address family from which nodes get their prefixes.
type AddressPool struct {
	// cidrs are the ranges, in the order in which they are used up.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	CIDRs []string `json:"cidrs"`
	// maskSize is the prefix length of what one node gets: 24 for IPv4 and 120 for IPv6 unless said.
	// +optional
	MaskSize *int32 `json:"maskSize,omitempty"`
}

// IPAMConfig is where pod addresses come from. At least one family is set.
type IPAMConfig struct {
	// ipv4 pool; absent means that pods have no IPv4 address.
	// +optional
	IPv4 *AddressPool `json:"ipv4,omitempty"`
	// ipv6 pool; absent means that pods have no IPv6 address.
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

// CiliumConfigSpec is every setting of the cluster's network.
type CiliumConfigSpec struct {
	// clusterName appears in flows; "default" unless said.
	// +kubebuilder:default=default
	// +kubebuilder:validation:MaxLength=32
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
	// devices are the uplinks, by name or by a pattern with a trailing *. Empty means: found from the default
	// routes and the node's addresses.
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	// +optional
	Devices []string `json:"devices,omitempty"`
	// mtu of the underlay in bytes; 0 means the smallest of the uplinks.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	// +optional
	MTU int32 `json:"mtu,omitempty"`
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
	// conditions are Ready, Reconciling, Stalled and PrefixesAssigned.
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
