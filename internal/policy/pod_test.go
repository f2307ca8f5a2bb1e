// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

func TestFromPod(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	port := func(name string, protocol corev1.Protocol, number int32) corev1.Container {
		return corev1.Container{Ports: []corev1.ContainerPort{{Name: name, Protocol: protocol, ContainerPort: number}}}
	}
	sidecar := port("metrics", "UDP", 9000)
	sidecar.RestartPolicy = &always
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "web-0", Labels: map[string]string{"app": "web", "pod-template-hash": "abc"}},
		Spec: corev1.PodSpec{
			ServiceAccountName: "robot",
			Containers:         []corev1.Container{port("web", "", 8080), port("", "TCP", 1), port("odd", "ICMP", 2), port("web", "TCP", 8080), port("admin", "SCTP", 99)},
			InitContainers:     []corev1.Container{port("gone", "TCP", 80), sidecar},
		},
	}
	p, err := FromPod(pod, map[string]string{"team": "x"}, "default", identity.DefaultFilter())
	if err != nil {
		t.Fatal(err)
	}
	if want := []NamedPort{{"admin", 132, 99}, {"metrics", 17, 9000}, {"web", 6, 8080}}; !slices.Equal(p.Ports, want) {
		t.Errorf("ports %v, want %v", p.Ports, want)
	}
	if _, ok := p.Labels["k8s:pod-template-hash"]; ok || p.Labels["k8s:app"] != "web" || p.Labels["k8s:io.cilium.k8s.namespace.labels.team"] != "x" {
		t.Errorf("labels %v", p.Labels)
	}
	if s := p.Subject(); !s.Whole || s.Labels["k8s:pod-template-hash"] != "abc" || s.Labels["k8s:io.cilium.k8s.policy.serviceaccount"] != "robot" {
		t.Errorf("subject %+v", s)
	}

	// Too many labels in all, not too many of those that make an identity: that is what its policies select it by.
	for i := range identity.MaxLabels {
		pod.Labels[fmt.Sprintf("batch.kubernetes.io/job-completion-index-%d", i)] = ""
	}
	p, err = FromPod(pod, nil, "default", identity.DefaultFilter())
	if s := p.Subject(); err != nil || s.Whole || s.Labels["k8s:app"] != "web" || len(s.Ports) != 3 {
		t.Errorf("subject %+v, %v", s, err)
	}
	if p, err := FromPod(pod, nil, "default", identity.Filter{}); !errors.Is(err, identity.ErrTooManyLabels) || p.Labels != nil || len(p.Ports) != 3 {
		t.Errorf("more labels than an identity holds: %+v, %v", p, err)
	}
}
