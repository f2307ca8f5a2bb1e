// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// Pod is what policies know of a pod: its own and those of others. Whoever answers for the cluster's policies makes it
// here, or answers of another pod than the one that packets meet.
type Pod struct {
	// Labels are those of its identity: by them the policies of others know it.
	Labels identity.Labels
	// Whole are all its labels: by them its own policies select it. Nil where they are too many; Labels have to do.
	Whole identity.Labels
	// Ports are its container ports that have a name.
	Ports []NamedPort
}

// FromPod makes what policies know of a pod from the object, the labels of its namespace and the name of the cluster. It
// returns identity.ErrTooManyLabels, and then all but the labels.
func FromPod(pod *corev1.Pod, namespace map[string]string, cluster string, f identity.Filter) (Pod, error) {
	w := identity.Workload{
		Namespace: pod.Namespace, Labels: pod.Labels, NamespaceLabels: namespace,
		ServiceAccount: pod.Spec.ServiceAccountName, Cluster: cluster,
	}
	p := Pod{Ports: NamedPorts(pod)}
	var err error
	if p.Labels, err = identity.ForPod(w, f); err != nil {
		return p, err
	}
	if p.Whole, err = identity.ForPod(w, identity.Filter{}); errors.Is(err, identity.ErrTooManyLabels) {
		err = nil
	}
	return p, err
}

// Subject is the pod as its own policies see it.
func (p Pod) Subject() Subject {
	if p.Whole == nil {
		return Subject{Labels: p.Labels, Ports: p.Ports}
	}
	return Subject{Labels: p.Whole, Whole: true, Ports: p.Ports}
}

// NamedPorts are a pod's container ports that have a name, sorted.
func NamedPorts(pod *corev1.Pod) []NamedPort {
	var out []NamedPort
	add := func(c corev1.Container) {
		for _, port := range c.Ports {
			if number := ProtocolNumber(port.Protocol); port.Name != "" && number != 0 && port.ContainerPort > 0 && port.ContainerPort <= 65535 {
				out = append(out, NamedPort{Name: port.Name, Protocol: number, Port: uint16(port.ContainerPort)})
			}
		}
	}
	for _, c := range pod.Spec.Containers {
		add(c)
	}
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c) // a sidecar serves as long as the others
		}
	}
	return UniquePorts(out)
}

// UniquePorts sorts list in place and leaves each port once.
func UniquePorts(list []NamedPort) []NamedPort {
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, compareNamedPorts)
	return slices.Compact(list)
}

// ProtocolNumber is IANA's number of a protocol that has ports, TCP where none is said; 0 for another.
func ProtocolNumber(p corev1.Protocol) uint8 {
	switch cmp.Or(p, corev1.ProtocolTCP) {
	case corev1.ProtocolTCP:
		return protocolTCP
	case corev1.ProtocolUDP:
		return protocolUDP
	case corev1.ProtocolSCTP:
		return protocolSCTP
	}
	return 0
}
