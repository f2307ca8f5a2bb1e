// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Condition types, as kstatus reads them. Ready is present from the first write.
const (
	// ConditionReady is True when the object's purpose is fulfilled.
	ConditionReady = "Ready"
	// ConditionReconciling is True while a newer generation is being carried out.
	ConditionReconciling = "Reconciling"
	// ConditionStalled is True when only a change by a person can help.
	ConditionStalled = "Stalled"
	// ConditionPrefixesAssigned is False on a CiliumNode or CiliumConfig when a pool is exhausted.
	ConditionPrefixesAssigned = "PrefixesAssigned"
	// ConditionPoolsApart is False on a CiliumConfig with a pool that holds an address of a node: what else is in the
	// nodes' own network is nobody's there, and pods do not reach it.
	ConditionPoolsApart = "PoolsApart"
	// ConditionDatapathReady is True on a CiliumNodeReport once programs and maps are in force.
	ConditionDatapathReady = "DatapathReady"
	// ConditionKernelSupported is False on a CiliumNodeReport when the kernel lacks what has no fallback.
	ConditionKernelSupported = "KernelSupported"
	// ConditionCNIConfigured is True on a CiliumNodeReport once kubelet can call the plugin.
	ConditionCNIConfigured = "CNIConfigured"
	// ConditionPolicyEnforced of CiliumNodeReport and CiliumEndpoint: the tables of every policy that concerns it are in
	// the kernel.
	ConditionPolicyEnforced = "PolicyEnforced"
	// ConditionNodesReachable is False on a CiliumNodeReport while most other nodes answer none of the node's probes.
	ConditionNodesReachable = "NodesReachable"
	// ConditionFlowsServed is False on a CiliumNodeReport whose agent cannot serve flows; the network does not depend on it.
	ConditionFlowsServed = "FlowsServed"
)

// ReasonOtherCNI is the reason of Ready=False on a CiliumNodeReport whose agent leaves the node alone, because another
// network's datapath lives there.
const ReasonOtherCNI = "OtherCNI"

// ReasonRepairFailing is the reason of DatapathReady=True on a CiliumNodeReport while something of the datapath, such as
// a route or a sysctl, cannot be made what it should be, or an uplink takes less than the configured MTU: programs and
// maps are in force, and the message says what is not.
const ReasonRepairFailing = "RepairFailing"

// Reasons of DatapathReady=False that stand until a person repairs the node: its agent lives and tries on, and no pod
// can be served before.
const (
	ReasonNoBPFFS           = "NoBPFFileSystem"
	ReasonNoCgroup2         = "NoCgroup2"
	ReasonMissingCapability = "MissingCapability"
	ReasonKernelTooOld      = "KernelTooOld"
	ReasonNewerLayout       = "NewerLayout"
	ReasonNodeNameTooLong   = "NodeNameTooLong"
)

const (
	// ConfigName is the name of the one CiliumConfig that is honoured.
	ConfigName = "default"
	// TaintAgentNotReady keeps pods off a node whose datapath has never been ready.
	TaintAgentNotReady = "node.kube-cilium.io/agent-not-ready"
	// AgentLeaseNamespace holds one Lease per node, named AgentLeasePrefix + node name, renewed by its agent.
	AgentLeaseNamespace = "kube-cilium-system"
	// AgentLeasePrefix begins the name of an agent's Lease.
	AgentLeasePrefix = "cilium-agent-"
	// LabelNode names the node on objects that an agent writes for it.
	LabelNode = "kube-cilium.io/node"
)

// Who may read flows from an agent: bearers of a token for the ServiceAccount HubbleServiceAccount of the agent's
// namespace, made for HubbleAudience.
const (
	HubbleServiceAccount = "hubble-flows"
	HubbleAudience       = "kube-cilium-hubble"
	HubbleUser           = "system:serviceaccount:" + AgentLeaseNamespace + ":" + HubbleServiceAccount
	// HubblePort of an agent, on its node's loopback address.
	HubblePort = 4244
)

// Field managers of server-side apply, one per writer.
const (
	AgentFieldManager    = "cilium-agent"
	OperatorFieldManager = "cilium-operator"
)
