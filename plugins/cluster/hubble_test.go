// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Agents were always asked on the usual port, wherever they had been told to serve.
func TestHubblePort(t *testing.T) {
	env := func(v string) []corev1.EnvVar { return []corev1.EnvVar{{Name: "HUBBLE_ADDRESS", Value: v}} }
	for _, tt := range []struct {
		name  string
		agent corev1.Container
		want  int
		err   string
	}{
		{"as usual", corev1.Container{Args: []string{"run"}}, 4244, ""},
		{"environment", corev1.Container{Env: env("127.0.0.1:4245")}, 4245, ""},
		{"argument", corev1.Container{Args: []string{"run", "--hubble-address=[::1]:4246"}, Env: env("127.0.0.1:4245")}, 4246, ""},
		{"argument in two words", corev1.Container{Command: []string{"cilium-agent", "run", "--hubble-address", "localhost:4247"}}, 4247, ""},
		{"nowhere", corev1.Container{Args: []string{"run", "--hubble-address=0"}}, 0, "serve no flows"},
		{"nonsense", corev1.Container{Env: env("4244")}, 0, "names no port"},
		{"no number", corev1.Container{Env: env("127.0.0.1:hubble")}, 0, "names no port"},
	} {
		tt.agent.Name = AgentContainer
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "other", Env: env("127.0.0.1:1")}, tt.agent}}}
		got, err := hubblePort(pod)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %d, %v", tt.name, got, err)
		}
	}
}
