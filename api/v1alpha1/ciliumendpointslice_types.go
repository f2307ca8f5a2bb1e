// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// MaxEndpointsPerSlice keeps a slice small, so that one pod's change rewrites little.
const MaxEndpointsPerSlice = 64

// MaxPortsPerEndpoint bounds the named ports of one pod in a slice: a full slice has to fit into the data store (1.5 MiB).
const MaxPortsPerEndpoint = 256

// SlicePort is a container port with a name.
type SlicePort struct {
	// name of the port.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=15
	Name string `json:"name"`
	// protocol of the port.
	// +kubebuilder:validation:Enum=TCP;UDP;SCTP
	Protocol string `json:"protocol"`
	// port number.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
}

// SliceEndpoint is the addresses of one pod and who it is.
type SliceEndpoint struct {
	// namespace of the pod.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// name of the pod.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// addresses of the pod.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +listType=atomic
	// +kubebuilder:validation:items:MaxLength=39
	// +kubebuilder:validation:items:XValidation:rule="isIP(self)",message="must be an IP address"
	Addresses []string `json:"addresses"`
	// identity is the number of a CiliumIdentity that the API server has confirmed.
	// +kubebuilder:validation:Minimum=256
	// +kubebuilder:validation:Maximum=16777215
	Identity int64 `json:"identity"`
	// ports are the pod's container ports that have a name: policies may use it.
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	// +optional
	Ports []SlicePort `json:"ports,omitempty"`
}

// CiliumEndpointSliceSpec is a part of the pods of one node.
type CiliumEndpointSliceSpec struct {
	// node that runs the pods. It never changes.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the node of a slice never changes"
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// endpoints of this slice.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Endpoints []SliceEndpoint `json:"endpoints,omitempty"`
}

// CiliumEndpointSlice tells the other agents which address has which identity on one node. An address counts only
// when it lies in a prefix of that node's CiliumNode. Spec is written by the node's agent; it is owned by the CiliumNode.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=cilium,shortName=ces
// +kubebuilder:selectablefield:JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CiliumEndpointSlice struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CiliumEndpointSliceSpec `json:"spec"`
}

// CiliumEndpointSliceList is a list of CiliumEndpointSlice.
// +kubebuilder:object:root=true
type CiliumEndpointSliceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CiliumEndpointSlice `json:"items"`
}
