// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"net/netip"

	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// Who has an address. It is shared by every event that names it and never changed.
type Who struct {
	// Namespace and Pod of a pod.
	Namespace, Pod string
	// Workloads that made the pod, where the node knows its owner.
	Workloads []Workload
	// Node whose own address it is; empty for a pod's.
	Node string
	// ServiceNamespace and Service of a Service's address.
	ServiceNamespace, Service string
}

// Workload is what made a pod, such as a Deployment.
type Workload struct{ Kind, Name string }

// String is namespace/name of the pod, the name of the node, or namespace/name of the Service.
func (w *Who) String() string {
	switch {
	case w == nil:
		return ""
	case w.Pod != "":
		return w.Namespace + "/" + w.Pod
	case w.Node != "":
		return w.Node
	}
	return w.ServiceNamespace + "/" + w.Service
}

// Names tell who and what the numbers in events are. They may be asked from several goroutines, often, and never wait
// for anybody.
type Names interface {
	// Address gives who has an address now; nil where nobody in the cluster has it, or it is not known yet.
	Address(netip.Addr) *Who
	// Labels of an identity as source:key=value, in one order; nil where it is not known. They may be kept and are not
	// changed: a number stands for one label set.
	Labels(identity uint32) []string
	// Rule gives what a rule stands for, also for a while after it has gone.
	Rule(id uint32) (policy.Provenance, bool)
}
