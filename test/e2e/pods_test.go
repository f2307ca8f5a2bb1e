// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
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

// target and result are the prober's, see prober/check.go.
type target struct {
	Name  string `json:"name"`
	Proto string `json:"proto"`
	Addr  string `json:"addr"`
	Port  int    `json:"port"`
	Size  int    `json:"size"`
}

type result struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Error    string `json:"error"`
	Answer   string `json:"answer"`
	Attempts int    `json:"attempts"`
}

// ask has a pod check targets.
func (c *cluster) ask(t testing.TB, namespace, pod string, targets []target, attempts int) []result {
	t.Helper()
	in, _ := json.Marshal(targets)
	out, err := c.InPod(t.Context(), namespace, pod, in, "/prober/prober", "check", "-attempts", fmt.Sprint(attempts), "-timeout", "3s")
	if err != nil {
		t.Fatal(err)
	}
	return parseResults(t, out)
}

// answers waits until every address answers the client: a Service's backends are known a moment after its pods.
func (c *cluster) answers(t testing.TB, namespace string, to map[string]string) {
	t.Helper()
	var targets []target
	for name, addr := range to {
		targets = append(targets, target{Name: name, Proto: "tcp", Addr: addr, Port: proberPort, Size: 1})
	}
	for _, r := range c.ask(t, namespace, "client", targets, 10) {
		if !r.OK {
			t.Fatalf("%s does not answer before anything was done: %s", r.Name, r.Error)
		}
	}
}

func parseResults(t testing.TB, out string) []result {
	t.Helper()
	var results []result
	if err := json.Unmarshal([]byte(out), &results); err != nil {
		t.Fatalf("prober said %q: %v", out, err)
	}
	return results
}
