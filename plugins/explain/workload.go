// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// kinds of workloads by kubectl's words for them.
var kinds = map[string]string{
	"deploy": "Deployment", "deployment": "Deployment", "deployments": "Deployment",
	"rs": "ReplicaSet", "replicaset": "ReplicaSet", "replicasets": "ReplicaSet",
	"sts": "StatefulSet", "statefulset": "StatefulSet", "statefulsets": "StatefulSet",
	"ds": "DaemonSet", "daemonset": "DaemonSet", "daemonsets": "DaemonSet",
	"job": "Job", "jobs": "Job",
	"rc": "ReplicationController", "replicationcontroller": "ReplicationController", "replicationcontrollers": "ReplicationController",
}

// workload takes KIND/NAME apart, also with a group as `kubectl get -o name` writes it; kind is "" where it is none.
func workload(text string) (kind, name string) {
	word, name, _ := strings.Cut(text, "/")
	word, _, _ = strings.Cut(word, ".")
	return kinds[strings.ToLower(word)], name
}

// podOf is the pod that stands for a workload: policies select pods, and those of one workload have, but for a rollout,
// the same labels. It is a ready one where there is one, and always the same.
func (w *World) podOf(kind, namespace, name, asked string) (*party, error) {
	var pods []*corev1.Pod
	for i := range w.Pods {
		p := &w.Pods[i]
		done := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil
		if p.Namespace == namespace && owns(kind, name, p) && !done && (p.Spec.HostNetwork || len(p.Status.PodIPs) > 0) {
			pods = append(pods, p)
		}
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("%w: %s: there is no %s %s in namespace %s, or it has no pod with an address (kubectl get pods -n %s)", ErrQuestion, asked, kind, name, namespace, namespace)
	}
	chosen := slices.MinFunc(pods, func(a, b *corev1.Pod) int {
		if x, y := cluster.PodReady(a), cluster.PodReady(b); x != y {
			if x {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Name, b.Name)
	})
	out := w.partyOf(chosen)
	if len(pods) > 1 {
		out.standsFor = fmt.Sprintf("pod %s/%s stands for the %d pods of %s %s", namespace, chosen.Name, len(pods), kind, name)
	}
	return out, nil
}

// owns tells by the pod alone; the ReplicaSets of a Deployment have its name and the hash that their pods are labelled with.
func owns(kind, name string, p *corev1.Pod) bool {
	owner := metav1.GetControllerOf(p)
	if owner == nil {
		return false
	}
	if hash := p.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; kind == "Deployment" {
		return owner.Kind == "ReplicaSet" && hash != "" && owner.Name == name+"-"+hash
	}
	return owner.Kind == kind && owner.Name == name
}
