// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// EndpointState is how far a pod's network has come.
// +kubebuilder:validation:Enum=Creating;Ready;Terminating;Failed
type EndpointState string

const (
	EndpointCreating    EndpointState = "Creating"
	EndpointReady       EndpointState = "Ready"
	EndpointTerminating EndpointState = "Terminating"
	EndpointFailed      EndpointState = "Failed"
)

// EndpointIdentity is who a pod is to policy.
type EndpointIdentity struct {
	// id is the number of the CiliumIdentity; 0 while pending.
	// +optional
	ID int64 `json:"id,omitempty"`
	// pending is true until the API server has confirmed the identity.
	// +optional
	Pending bool `json:"pending,omitempty"`
	// labels that make the identity, source:key=value, sorted.
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	// +optional
	Labels []string `json:"labels,omitempty"`
}

// CiliumEndpointStatus is one pod's network on its node.
type CiliumEndpointStatus struct {
	// id of the endpoint, unique on its node.
	// +optional
	ID int64 `json:"id,omitempty"`
	// node that runs the pod.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Node string `json:"node,omitempty"`
	// podUID tells a pod from its namesakes.
	// +optional
	PodUID string `json:"podUID,omitempty"`
	// state of the endpoint.
	// +optional
	State EndpointState `json:"state,omitempty"`
	// identity of the pod.
	// +optional
	Identity EndpointIdentity `json:"identity,omitzero"`
	// addresses of the pod, IPv4 first.
	// +kubebuilder:validation:MaxItems=8
	// +listType=atomic
	// +kubebuilder:validation:items:MaxLength=39
	// +kubebuilder:validation:items:XValidation:rule="isIP(self)",message="must be an IP address"
	// +optional
	Addresses []string `json:"addresses,omitempty"`
	// interface is the host's end of the pod's veth pair.
	// +optional
	Interface string `json:"interface,omitempty"`
	// conditions hold Ready.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// CiliumEndpoint is one pod's network, for people; no agent watches it. Status is written by the pod's agent; it is
// owned by the Pod of the same name and namespace and carries LabelNode, which never changes.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,categories=cilium,shortName=cep
// +kubebuilder:selectablefield:JSONPath=`.status.node`
// +kubebuilder:printcolumn:name="Identity",type=integer,JSONPath=`.status.identity.id`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.status.addresses`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.node`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="ID",type=integer,JSONPath=`.status.id`,priority=1
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CiliumEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Status CiliumEndpointStatus `json:"status,omitzero"`
}

// CiliumEndpointList is a list of CiliumEndpoint.
// +kubebuilder:object:root=true
type CiliumEndpointList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CiliumEndpoint `json:"items"`
}
