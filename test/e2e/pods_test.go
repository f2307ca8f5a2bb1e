// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/kube-cilium/kube-cilium/internal/probe"
)

const proberPort = 8080

// proberService is the Service "both" of the pods "same" and "other". It chooses no others: a pod that asks itself is
// another test.
func proberService(namespace string) string {
	return `
apiVersion: v1
kind: Service
metadata: {namespace: ` + namespace + `, name: both}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {served: both}
  ports:
  - {name: tcp, port: 8080, protocol: TCP}
  - {name: udp, port: 8080, protocol: UDP}
---
`
}

// proberPod is a pod that serves the prober on one node.
func proberPod(namespace, name, node, dir string, hostNetwork bool) string {
	served := "no"
	if name == "same" || name == "other" {
		served = "both"
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: %s, labels: {app: prober, pod: %s, served: %q}}
spec:
  nodeName: %s
  hostNetwork: %v
  terminationGracePeriodSeconds: 0
  containers:
  - name: prober
    image: registry.k8s.io/e2e-test-images/agnhost:2.66.1
    imagePullPolicy: IfNotPresent
    command: [/prober/prober, serve, -port, "%d"]
    securityContext: {capabilities: {add: [NET_ADMIN]}} # for its own receive buffers
    readinessProbe: {tcpSocket: {port: %d}, periodSeconds: 1}
    volumeMounts: [{name: prober, mountPath: /prober, readOnly: true}]
  volumes: [{name: prober, hostPath: {path: %s, type: Directory}}]
---
`, namespace, name, name, served, node, hostNetwork, proberPort, proberPort, dir)
}

func (c *cluster) waitReady(t testing.TB, namespace string, pods ...string) {
	t.Helper()
	args := []string{"-n", namespace, "wait", "--for=condition=Ready", "--timeout=90s"}
	for _, p := range pods {
		args = append(args, "pod/"+p)
	}
	if out, err := c.Kubectl(t.Context(), nil, args...); err != nil {
		describe, _ := c.Kubectl(t.Context(), nil, "-n", namespace, "describe", "pods")
		t.Fatalf("%v\n%s\n%s", err, out, describe)
	}
}

// podIPs gives a pod's addresses by family, "4" and "6".
func (c *cluster) podIPs(t testing.TB, namespace, pod string) map[string]string {
	t.Helper()
	return byFamily(strings.Fields(c.kubectl(t, "-n", namespace, "get", "pod", pod, "-o", "jsonpath={.status.podIPs[*].ip}")))
}

func (c *cluster) serviceIPs(t testing.TB, namespace, service string) map[string]string {
	t.Helper()
	return byFamily(strings.Fields(c.kubectl(t, "-n", namespace, "get", "service", service, "-o", "jsonpath={.spec.clusterIPs[*]}")))
}

func byFamily(ips []string) map[string]string {
	m := map[string]string{}
	for _, ip := range ips {
		family := "4"
		if strings.Contains(ip, ":") {
			family = "6"
		}
		if m[family] == "" {
			m[family] = ip
		}
	}
	return m
}

// target is a question with the name that the test has for it.
type target struct {
	Name string
	probe.Target
}

type result struct {
	Name string
	probe.Result
}

// question asks an address for so many bytes back.
func question(name, protocol, address string, size int) target {
	t := target{name, probe.Target{Protocol: protocol, Host: address, Size: size}}
	if protocol != probe.ICMP {
		t.Port = proberPort
	}
	return t
}

// check asks all targets with a prober that somebody runs.
func check(t testing.TB, targets []target, attempts int, prober func(stdin []byte, args ...string) (string, error)) []result {
	t.Helper()
	asked := make([]probe.Target, len(targets))
	for i := range targets {
		asked[i] = targets[i].Target
	}
	in, err := json.Marshal(asked)
	if err != nil {
		t.Fatal(err)
	}
	out, err := prober(in, "check", "-attempts", fmt.Sprint(attempts), "-timeout", "3s")
	if err != nil {
		t.Fatal(err)
	}
	var answers []probe.Result
	if err := json.Unmarshal([]byte(out), &answers); err != nil || len(answers) != len(targets) {
		t.Fatalf("prober said %q: %v", out, err)
	}
	results := make([]result, len(targets))
	for i := range targets {
		results[i] = result{targets[i].Name, answers[i]}
	}
	return results
}

// ask has a pod check targets.
func (c *cluster) ask(t testing.TB, namespace, pod string, targets []target, attempts int) []result {
	t.Helper()
	return check(t, targets, attempts, func(in []byte, args ...string) (string, error) {
		return c.InPod(t.Context(), namespace, pod, in, append([]string{"/prober/prober"}, args...)...)
	})
}

// answers waits until every address answers the client: a Service's backends are known a moment after its pods.
func (c *cluster) answers(t testing.TB, namespace string, to map[string]string) {
	t.Helper()
	var targets []target
	for name, addr := range to {
		targets = append(targets, question(name, probe.TCP, addr, 0))
	}
	for _, r := range c.ask(t, namespace, "client", targets, 10) {
		if !r.OK {
			t.Fatalf("%s does not answer before anything was done: %s", r.Name, r.Error)
		}
	}
}
