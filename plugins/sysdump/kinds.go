// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// kind is one list of objects and what of each may be told.
type kind struct {
	schema.GroupVersionKind
	// file in the archive, without its ending.
	file string
	// namespace alone is looked at; "" is the whole cluster.
	namespace string
	allowed   fields
	// adjust decides on what depends on the object itself.
	adjust func(object, kept map[string]any)
	// names alone are kept, where there are any.
	names []string
	// optional kinds may be missing from the cluster.
	optional bool
}

func gvk(group, version, name string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: group, Version: version, Kind: name}
}

func ours(name, file string) kind {
	// Made of addresses, numbers, names and sentences of our own.
	return kind{GroupVersionKind: v1alpha1.GroupVersion.WithKind(name), file: file, allowed: allow("spec.** status.**"), optional: true}
}

// template is what may be told of pods and of workloads' templates. Commands, arguments, values of environment variables
// and headers of probes are where people put passwords: they are left out, also of our own pods.
func template(prefix string) fields {
	p := func(names string) string {
		out := ""
		for name := range strings.FieldsSeq(names) {
			out += " " + prefix + name
		}
		return out
	}
	container := func(list string) string {
		return p(list+".name") + p(list+".image") + p(list+".imagePullPolicy") + p(list+".ports.**") + p(list+".resources.**") +
			p(list+".env.name") + p(list+".securityContext.**") + p(list+".volumeMounts.name") + p(list+".volumeMounts.mountPath") +
			p(list+".volumeMounts.readOnly") + p(list+".volumeMounts.mountPropagation") + p(list+".restartPolicy") +
			p(list+".readinessProbe.tcpSocket.**") + p(list+".livenessProbe.tcpSocket.**") +
			p(list+".readinessProbe.httpGet.port") + p(list+".livenessProbe.httpGet.port")
	}
	return allow(container("containers") + container("initContainers") +
		p(`nodeName nodeSelector.** hostNetwork hostPID dnsPolicy dnsConfig.** restartPolicy serviceAccountName priorityClassName
		schedulerName tolerations.** affinity.** topologySpreadConstraints.** terminationGracePeriodSeconds readinessGates.**
		securityContext.** os.** hostname subdomain overhead.**
		volumes.name volumes.hostPath.** volumes.configMap.name volumes.secret.secretName volumes.emptyDir.** volumes.persistentVolumeClaim.claimName`))
}

// podStatus leaves out what containers said when they ended: that is the application's own.
const podStatus = `status.phase status.reason status.conditions.** status.hostIP status.hostIPs.** status.podIP status.podIPs.** status.startTime
	status.qosClass status.nominatedNodeName ` + containerStatus + initContainerStatus

const (
	containerStatus = ` status.containerStatuses.name status.containerStatuses.ready status.containerStatuses.started
	status.containerStatuses.restartCount status.containerStatuses.image status.containerStatuses.imageID
	status.containerStatuses.state.running.** status.containerStatuses.state.waiting.reason
	status.containerStatuses.state.terminated.reason status.containerStatuses.state.terminated.exitCode
	status.containerStatuses.state.terminated.signal status.containerStatuses.state.terminated.startedAt
	status.containerStatuses.state.terminated.finishedAt status.containerStatuses.lastState.terminated.reason
	status.containerStatuses.lastState.terminated.exitCode status.containerStatuses.lastState.terminated.startedAt
	status.containerStatuses.lastState.terminated.finishedAt `
	initContainerStatus = ` status.initContainerStatuses.name status.initContainerStatuses.ready
	status.initContainerStatuses.restartCount status.initContainerStatuses.image
	status.initContainerStatuses.state.running.** status.initContainerStatuses.state.waiting.reason
	status.initContainerStatuses.state.terminated.reason status.initContainerStatuses.state.terminated.exitCode `
)

const workload = `spec.replicas spec.selector.** spec.strategy.** spec.updateStrategy.** spec.minReadySeconds status.** `

// safeReasons are events whose sentences are of kubelet, the scheduler and the controllers. What a probe or a hook of the
// application said stands under others, and is left out.
var safeReasons = keys(`Scheduled FailedScheduling Preempted Pulled Pulling Created Started Killing BackOff NetworkNotReady
	FailedCreatePodSandBox FailedKillPod SandboxChanged NodeReady NodeNotReady RegisteredNode RemovingNode NodeHasSufficientMemory
	NodeHasDiskPressure TaintManagerEviction SuccessfulCreate SuccessfulDelete FailedCreate FailedDelete ScalingReplicaSet
	LeaderElection Starting`)

// kinds are all that an archive holds of the API server. Secrets are not among them and are never read.
func kinds() []kind {
	system := cluster.Namespace
	eventNote := func(object, kept map[string]any) {
		reason, _ := object["reason"].(string)
		about, _ := object["regarding"].(map[string]any)
		group, _ := about["apiVersion"].(string)
		if safeReasons[reason] || group == v1alpha1.GroupVersion.String() {
			if note, ok := object["note"].(string); ok {
				kept["note"] = Scrub(note)
			}
		}
	}
	return []kind{
		ours("CiliumConfig", "ciliumconfigs"), ours("CiliumNode", "ciliumnodes"), ours("CiliumNodeReport", "ciliumnodereports"),
		ours("CiliumEndpoint", "ciliumendpoints"), ours("CiliumEndpointSlice", "ciliumendpointslices"), ours("CiliumIdentity", "ciliumidentities"),
		{GroupVersionKind: gvk("", "v1", "Node"), file: "nodes", allowed: allow(`spec.podCIDR spec.podCIDRs spec.taints.** spec.unschedulable
			status.addresses.** status.conditions.** status.nodeInfo.** status.capacity.** status.allocatable.**`)},
		{GroupVersionKind: gvk("", "v1", "Namespace"), file: "namespaces", allowed: allow("status.phase")},
		{GroupVersionKind: gvk("", "v1", "Pod"), file: "pods", allowed: merge(template("spec."), allow(podStatus))},
		{GroupVersionKind: gvk("", "v1", "Service"), file: "services", allowed: allow("spec.** status.**")},
		{GroupVersionKind: gvk("discovery.k8s.io", "v1", "EndpointSlice"), file: "endpointslices", allowed: allow("addressType endpoints.** ports.**")},
		{GroupVersionKind: gvk("networking.k8s.io", "v1", "NetworkPolicy"), file: "networkpolicies", allowed: allow("spec.**")},
		{GroupVersionKind: gvk("networking.k8s.io", "v1", "ServiceCIDR"), file: "servicecidrs", allowed: allow("spec.** status.**"), optional: true},
		{GroupVersionKind: gvk("events.k8s.io", "v1", "Event"), file: "events", adjust: eventNote, allowed: allow(`eventTime type reason action
			regarding.** related.** reportingController reportingInstance series.** deprecatedCount deprecatedFirstTimestamp deprecatedLastTimestamp deprecatedSource.**`)},
		{GroupVersionKind: gvk("apps", "v1", "DaemonSet"), file: "system/daemonsets", namespace: system, allowed: merge(allow(workload), template("spec.template.spec."))},
		{GroupVersionKind: gvk("apps", "v1", "Deployment"), file: "system/deployments", namespace: system, allowed: merge(allow(workload), template("spec.template.spec."))},
		{GroupVersionKind: gvk("apps", "v1", "ReplicaSet"), file: "system/replicasets", namespace: system, allowed: allow("spec.replicas status.**")},
		{GroupVersionKind: gvk("apps", "v1", "ControllerRevision"), file: "system/controllerrevisions", namespace: system, allowed: allow("revision")},
		{GroupVersionKind: gvk("coordination.k8s.io", "v1", "Lease"), file: "system/leases", namespace: system, allowed: allow("spec.**")},
		// Of ours the data, of all others nothing but that they are there.
		{GroupVersionKind: gvk("", "v1", "ConfigMap"), file: "system/configmaps", namespace: system, names: []string{"cilium-prefixes", "cilium-api-servers"}, allowed: allow("data.**")},
		{GroupVersionKind: gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"), file: "system/customresourcedefinitions",
			allowed: allow("spec.group spec.scope spec.names.kind spec.versions.name spec.versions.served spec.versions.storage status.conditions.** status.storedVersions")},
		{GroupVersionKind: gvk("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding"), file: "system/admissionpolicybindings",
			allowed: allow("spec.policyName spec.validationActions")},
	}
}

// merge is both trees in one.
func merge(trees ...fields) fields {
	out := fields{}
	for _, t := range trees {
		for name, below := range t {
			out[name] = merge(out[name], below)
		}
	}
	return out
}
