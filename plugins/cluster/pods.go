// SPDX-License-Identifier: Apache-2.0

package cluster

import corev1 "k8s.io/api/core/v1"

// PodCondition is the pod's condition of a kind; nil where it has none.
func PodCondition(p *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == kind {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// PodReady tells whether the pod answers, by the kubelet's word.
func PodReady(p *corev1.Pod) bool {
	c := PodCondition(p, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}
