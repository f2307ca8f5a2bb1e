// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// FeatureOutcome is what a probe of the kernel said.
// +kubebuilder:validation:Enum=Supported;Unsupported;Unknown;Forbidden
type FeatureOutcome string

const (
	FeatureSupported   FeatureOutcome = "Supported"
	FeatureUnsupported FeatureOutcome = "Unsupported"
	FeatureUnknown     FeatureOutcome = "Unknown"
	FeatureForbidden   FeatureOutcome = "Forbidden"
)

// FeatureReport is one probed kernel feature.
type FeatureReport struct {
	// name of the feature.
	Name string `json:"name"`
	// outcome of the probe.
	Outcome FeatureOutcome `json:"outcome"`
	// using says what the datapath does with it, or which fallback it uses.
	// +optional
	Using string `json:"using,omitempty"`
	// message is the probe's error, if any.
	// +optional
	Message string `json:"message,omitempty"`
}

// KernelReport is what the agent found the kernel to be.
type KernelReport struct {
	// release as uname -r prints it.
	// +optional
	Release string `json:"release,omitempty"`
	// features probed, by name.
	// +listType=map
	// +listMapKey=name
	// +optional
	Features []FeatureReport `json:"features,omitempty"`
}

// ProgramReport is one eBPF program in force.
type ProgramReport struct {
	// name of the hook, such as from_pod.
	Name string `json:"name"`
	// attach says how: tcx, clsact or cgroup; "clsact, tcx" while some pods have moved from one to the other.
	Attach string `json:"attach"`
	// devices counts the interfaces or cgroups that it is attached to.
	Devices int32 `json:"devices"`
	// tag is the kernel's hash of the program's instructions.
	// +optional
	Tag string `json:"tag,omitempty"`
}

// MapReport is one eBPF map.
type MapReport struct {
	// name of the map.
	Name string `json:"name"`
	// entries in use; -1 where the kernel cannot tell cheaply.
	Entries int64 `json:"entries"`
	// maxEntries of the map.
	MaxEntries int64 `json:"maxEntries"`
	// bytes of kernel memory.
	Bytes int64 `json:"bytes"`
}

// IPAMReport is how many addresses of the node's prefixes are in use.
type IPAMReport struct {
	// prefix in CIDR text.
	Prefix string `json:"prefix"`
	// used addresses.
	Used int64 `json:"used"`
	// resting addresses, freed less than a minute ago.
	Resting int64 `json:"resting"`
	// total addresses that the prefix can give.
	Total int64 `json:"total"`
}

// PacketCounter counts packets that ended with one reason at one hook since the node's datapath was made.
type PacketCounter struct {
	// hook where the packet ended.
	Hook string `json:"hook"`
	// reason, as in flows and metrics.
	Reason string `json:"reason"`
	// dropped is true when the packet went nowhere.
	Dropped bool `json:"dropped"`
	// packets so far.
	Packets int64 `json:"packets"`
	// bytes so far.
	Bytes int64 `json:"bytes"`
}

// MaxPolicyExceptions bounds the exceptions that one kind's progress names.
const MaxPolicyExceptions = 64

// PolicyException is one policy that is not in force as it stands.
type PolicyException struct {
	// namespace of the policy; empty for kinds of the whole cluster.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// name of the policy.
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// reason in one word.
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason"`
	// message says what is in force instead, and what to do.
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Message string `json:"message,omitempty"`
}

// PolicyProgress is how far one kind of policy is in force on the node.
type PolicyProgress struct {
	// kind of the policies, as kubectl names it.
	// +kubebuilder:validation:MaxLength=63
	Kind string `json:"kind"`
	// inForce is the resourceVersion up to which every change of a policy of the kind is in force here, but for the
	// exceptions. Compare it as a number with the policy's own.
	// +kubebuilder:validation:MaxLength=32
	// +optional
	InForce string `json:"inForce,omitempty"`
	// count of the policies that the node knows.
	Count int32 `json:"count"`
	// exceptions are policies of which a part is not in force, such as tables that do not fit; the first 64.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Exceptions []PolicyException `json:"exceptions,omitempty"`
}

// HealthOutcome is what one way of asking a node said.
type HealthOutcome struct {
	// reachable is true when the last probe was answered.
	Reachable bool `json:"reachable"`
	// latencyMicros is how long the last answer took, in microseconds.
	// +optional
	LatencyMicros int64 `json:"latencyMicros,omitempty"`
	// failingSince is when the first probe without an answer was sent; absent while reachable.
	// +optional
	FailingSince *metav1.Time `json:"failingSince,omitempty"`
}

// HealthProbe is how this node reaches one address of another.
type HealthProbe struct {
	// node that was asked.
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// address that was asked.
	// +kubebuilder:validation:MaxLength=39
	Address string `json:"address"`
	// icmp is an echo request.
	// +optional
	ICMP HealthOutcome `json:"icmp,omitzero"`
	// tcp is a connection to the agent there.
	// +optional
	TCP HealthOutcome `json:"tcp,omitzero"`
}

// FlowCounters count what the agent read from the datapath's ring buffer since it started.
type FlowCounters struct {
	// seen records.
	Seen int64 `json:"seen"`
	// lost records: the ring was full, or a record could not be read.
	Lost int64 `json:"lost"`
}

// CiliumNodeReportStatus is what one agent says to people and to the operator.
type CiliumNodeReportStatus struct {
	// observedConfigGeneration is the generation of the CiliumConfig in force here; 0 means the defaults.
	// +optional
	ObservedConfigGeneration int64 `json:"observedConfigGeneration,omitempty"`
	// observedNodes is the resourceVersion up to which this node has acted on every change of a CiliumNode. The
	// operator lets a freed prefix rest until all live agents are past its deletion.
	// +kubebuilder:validation:MaxLength=32
	// +optional
	ObservedNodes string `json:"observedNodes,omitempty"`
	// agentVersion that wrote this.
	// +optional
	AgentVersion string `json:"agentVersion,omitempty"`
	// bootID of the machine.
	// +optional
	BootID string `json:"bootID,omitempty"`
	// routing in force, such as "VXLAN (header in eBPF)".
	// +optional
	Routing string `json:"routing,omitempty"`
	// masquerade in force, such as "IPv4, IPv6 on eth0".
	// +optional
	Masquerade string `json:"masquerade,omitempty"`
	// devices that carry traffic off the node.
	// +listType=atomic
	// +optional
	Devices []string `json:"devices,omitempty"`
	// podMTU in bytes.
	// +optional
	PodMTU int32 `json:"podMTU,omitempty"`
	// endpoints on this node.
	// +optional
	Endpoints int32 `json:"endpoints"`
	// kernel that the agent found.
	// +optional
	Kernel KernelReport `json:"kernel,omitzero"`
	// programs in force.
	// +listType=map
	// +listMapKey=name
	// +optional
	Programs []ProgramReport `json:"programs,omitempty"`
	// maps in use.
	// +listType=map
	// +listMapKey=name
	// +optional
	Maps []MapReport `json:"maps,omitempty"`
	// ipam is the use of each prefix.
	// +listType=map
	// +listMapKey=prefix
	// +optional
	IPAM []IPAMReport `json:"ipam,omitempty"`
	// drops counts dropped packets by hook and reason, the non-zero ones.
	// +kubebuilder:validation:MaxItems=512
	// +listType=atomic
	// +optional
	Drops []PacketCounter `json:"drops,omitempty"`
	// policies says for each kind of policy how far it is in force here.
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=kind
	// +optional
	Policies []PolicyProgress `json:"policies,omitempty"`
	// health is how this node reaches the others.
	// +kubebuilder:validation:MaxItems=4096
	// +listType=map
	// +listMapKey=node
	// +listMapKey=address
	// +optional
	Health []HealthProbe `json:"health,omitempty"`
	// flows counts what the datapath told the agent.
	// +optional
	Flows FlowCounters `json:"flows,omitzero"`
	// flowReporting is which of the packets that pass are reported here, as in CiliumConfig's flows.reporting.
	// +optional
	FlowReporting FlowReporting `json:"flowReporting,omitempty"`
	// conditions are Ready, KernelSupported, DatapathReady, CNIConfigured, PolicyEnforced, NodesReachable, FlowsServed.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// CiliumNodeReport is what one agent says of its node to people and to the operator: conditions, kernel, programs,
// maps, counters. No agent watches it. Status is written by the agent; it is owned by the CiliumNode of the same name.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=cilium,shortName=cnr
// +kubebuilder:printcolumn:name="Endpoints",type=integer,JSONPath=`.status.endpoints`
// +kubebuilder:printcolumn:name="Routing",type=string,JSONPath=`.status.routing`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1
// +kubebuilder:printcolumn:name="Kernel",type=string,JSONPath=`.status.kernel.release`,priority=1
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.agentVersion`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CiliumNodeReport struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Status CiliumNodeReportStatus `json:"status,omitzero"`
}

// CiliumNodeReportList is a list of CiliumNodeReport.
// +kubebuilder:object:root=true
type CiliumNodeReportList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CiliumNodeReport `json:"items"`
}
