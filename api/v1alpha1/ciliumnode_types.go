// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CiliumNodeSpec is what the operator decided for one node.
type CiliumNodeSpec struct {
	// podCIDRs are the prefixes whose addresses this node gives to its pods, canonical CIDR text, IPv4 first.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a CIDR without host bits, such as 10.0.0.0/8 or fd00::/48"
	// +kubebuilder:validation:XValidation:rule="self.filter(c, isCIDR(c)).all(a, self.filter(c, isCIDR(c)).exists_one(b, cidr(a).containsCIDR(b) || cidr(b).containsCIDR(a)))",message="prefixes of a node must not overlap"
	// +optional
	PodCIDRs []string `json:"podCIDRs,omitempty"`
}

// NodeAddressType says what an address of a node is for.
// +kubebuilder:validation:Enum=InternalIP;ExternalIP
type NodeAddressType string

const (
	// NodeInternalIP reaches the node from other nodes; the first of each family carries the tunnel.
	NodeInternalIP NodeAddressType = "InternalIP"
	// NodeExternalIP reaches the node from outside.
	NodeExternalIP NodeAddressType = "ExternalIP"
)

// NodeAddress is one address of a node's host network.
type NodeAddress struct {
	// type says what the address is for.
	Type NodeAddressType `json:"type"`
	// address is an IP address without a prefix length.
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an IP address"
	Address string `json:"address"`
}

// CiliumNodeStatus is what the node's agent says to the other agents. It changes rarely: all of them watch it.
type CiliumNodeStatus struct {
	// addresses of the host network.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Addresses []NodeAddress `json:"addresses,omitempty"`
	// bootID tells one boot of the machine from the next.
	// +kubebuilder:validation:MaxLength=64
	// +optional
	BootID string `json:"bootID,omitempty"`
	// conditions are Ready (written by the agent: it has acted on the prefixes) and PrefixesAssigned (written by the
	// operator). Each has its own writer, so both apply (server-side) only what is theirs.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// CiliumNode is one node as the other nodes see it: which prefixes are its own and where to send them. Spec is
// written by the operator, status by the agent. It is owned by the Node of the same name.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=cilium,shortName=cn
// +kubebuilder:printcolumn:name="Pod CIDRs",type=string,JSONPath=`.spec.podCIDRs`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.status.addresses[?(@.type=="InternalIP")].address`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CiliumNode struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   CiliumNodeSpec   `json:"spec,omitzero"`
	Status CiliumNodeStatus `json:"status,omitzero"`
}

// CiliumNodeList is a list of CiliumNode.
// +kubebuilder:object:root=true
type CiliumNodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CiliumNode `json:"items"`
}
