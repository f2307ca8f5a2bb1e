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

// MaxRecentDrops is how many kinds of drops an endpoint remembers.
const MaxRecentDrops = 8

// DirectionPolicy is what policy says of one direction of a pod's connections.
type DirectionPolicy struct {
	// enforced is true when a policy selects the pod in this direction; else everything passes.
	Enforced bool `json:"enforced"`
	// policies that select the pod in this direction, as "kind namespace/name"; the first 64.
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=384
	// +listType=atomic
	// +optional
	Policies []string `json:"policies,omitempty"`
	// entries of the verdict table in the kernel.
	// +optional
	Entries int32 `json:"entries,omitempty"`
}

// EndpointPolicy is the policy in force for a pod.
type EndpointPolicy struct {
	// ingress of the pod: connections to it.
	// +optional
	Ingress DirectionPolicy `json:"ingress,omitzero"`
	// egress of the pod: connections that it opens.
	// +optional
	Egress DirectionPolicy `json:"egress,omitzero"`
}

// EndpointDrop is packets of a pod that went nowhere, all of one kind.
type EndpointDrop struct {
	// time of the last one.
	Time metav1.Time `json:"time"`
	// reason, as in flows.
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason"`
	// direction as the pod sees it.
	// +kubebuilder:validation:Enum=Ingress;Egress
	// +optional
	Direction string `json:"direction,omitempty"`
	// peer is namespace/name of the other pod, or an address.
	// +kubebuilder:validation:MaxLength=320
	// +optional
	Peer string `json:"peer,omitempty"`
	// protocol, such as TCP.
	// +kubebuilder:validation:MaxLength=16
	// +optional
	Protocol string `json:"protocol,omitempty"`
	// port of the destination; 0 where the protocol has none.
	// +optional
	Port int32 `json:"port,omitempty"`
	// policies that denied it, as "kind namespace/name".
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=384
	// +listType=atomic
	// +optional
	Policies []string `json:"policies,omitempty"`
	// count of such packets that the agent was told of since it started.
	Count int64 `json:"count"`
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
	// policy in force for the pod.
	// +optional
	Policy EndpointPolicy `json:"policy,omitzero"`
	// recentDrops are the last packets of the pod that went nowhere, the latest first.
	// +kubebuilder:validation:MaxItems=8
	// +listType=atomic
	// +optional
	RecentDrops []EndpointDrop `json:"recentDrops,omitempty"`
	// conditions hold Ready and PolicyEnforced.
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
