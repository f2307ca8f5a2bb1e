// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CiliumNodeSpec is what the operator decided for one node.
type CiliumNodeSpec struct {
	// podCIDRs are the prefixes whose addresses this node gives to its pods, canonical CIDR text, IPv4 first.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
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
	// +optional
	BootID string `json:"bootID,omitempty"`
	// conditions are Ready (the agent has acted on the prefixes) and PrefixesAssigned.
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
