// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFirstDayTools runs on one cluster what somebody runs on the first day: is everybody reached who should be, where
// are policies in force and what do they decide, and an archive for somebody who helps.
func TestFirstDayTools(t *testing.T) {
	c := up(t, "tools", "--workers", "2", "--ip-family", "dual", "--cni", "ours")
	t.Run("connectivity", func(t *testing.T) { connectivityTest(t, c) })
	t.Run("interrupt", func(t *testing.T) { interruptedTest(t, c) })
	t.Run("policy", func(t *testing.T) { policyVerbs(t, c) })
	t.Run("sysdump", func(t *testing.T) { sysdumpWithoutSecrets(t, c) })
}

// cilium runs kubectl cilium and returns what it says on stdout; a failure fails the test.
func (c *cluster) cilium(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.plugin(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func connectivityTest(t *testing.T, c *cluster) {
	junit := filepath.Join(t.TempDir(), "connectivity.xml")
	t.Log("\n" + c.cilium(t, "connectivity", "test", "--junit", junit, "--color", "never"))
	text, err := os.ReadFile(junit)
	if err != nil || !bytes.Contains(text, []byte(`failures="0"`)) || bytes.Contains(text, []byte("<failure")) {
		t.Errorf("JUnit: %v\n%s", err, text)
	}
	c.noTestNamespaces(t)
}

func (c *cluster) noTestNamespaces(t testing.TB) {
	t.Helper()
	if left := c.kubectl(t, "get", "namespaces", "-o", "name"); strings.Contains(left, "cilium-test") {
		t.Errorf("left behind: %s", left)
	}
}

// interruptedTest ends a run in the middle: it takes everything away all the same. Meanwhile a second run refuses.
func interruptedTest(t *testing.T, c *cluster) {
	cmd := c.Client(t.Context(), filepath.Join(filepath.Dir(testClusterTool(t)), "kubectl-cilium"), "connectivity", "test")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	eventually(t, "the test's pods", time.Minute, func() error {
		out, err := c.Kubectl(t.Context(), nil, "-n", "cilium-test", "get", "pods", "-o", "name")
		if err == nil && out == "" {
			err = fmt.Errorf("no pod yet")
		}
		return err
	})
	if _, err := c.plugin(t.Context(), "connectivity", "test"); err == nil || !strings.Contains(err.Error(), "namespace/cilium-test exists already") {
		t.Errorf("a second run: %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || !strings.Contains(said.String(), "error: interrupted") {
		t.Errorf("%v\n%s", err, &said)
	}
	c.noTestNamespaces(t)
}

const toolsNamespace = "tools"

// policyVerbs: what explain says before a policy is applied, and after it is in force, is what packets do.
func policyVerbs(t *testing.T, c *cluster) {
	dir := proberDir(t)
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+toolsNamespace+"}\n---"+
		proberPod(toolsNamespace, "web", c.Nodes[1].Name, dir, false)+proberPod(toolsNamespace, "client", c.Nodes[0].Name, dir, false))
	c.waitReady(t, toolsNamespace, "web", "client")
	agrees := func(want string) {
		t.Helper()
		var said struct {
			Answers []struct {
				Verdict     string `json:"verdict"`
				NearestMiss string `json:"nearestMiss"`
			} `json:"answers"`
		}
		out := c.cilium(t, "policy", "explain", "-n", toolsNamespace, "--from", "client", "--to", "web", "--port", fmt.Sprint(proberPort), "-o", "json")
		if err := json.Unmarshal([]byte(out), &said); err != nil || len(said.Answers) != 1 || said.Answers[0].Verdict != want {
			t.Errorf("explain: %v, want %s\n%s", err, want, out)
		}
		for family, ip := range c.podIPs(t, toolsNamespace, "web") {
			r := c.ask(t, toolsNamespace, "client", []target{question("web", "tcp", ip, 64)}, 1)[0]
			if r.OK != (want == "allowed") {
				t.Errorf("explain says %s, and by IPv%s: %+v", want, family, r)
			}
		}
	}
	agrees("allowed")
	c.apply(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: tools, name: web}
spec:
  podSelector: {matchLabels: {pod: web}}
  ingress: [{from: [{podSelector: {matchLabels: {pod: nobody}}}]}]
`)
	out := c.cilium(t, "policy", "wait", "web", "-n", toolsNamespace, "--timeout", "30s")
	if !strings.Contains(out, "in force on 2/2 nodes") {
		t.Error(out)
	}
	agrees("denied")
	list := c.cilium(t, "policy", "list", "-n", toolsNamespace)
	if !strings.Contains(list, "2/2") || !strings.Contains(list, "spec.ingress[0].from[0] waits for pods with pod=nobody") {
		t.Error(list)
	}
	c.kubectl(t, "-n", toolsNamespace, "delete", "networkpolicy", "web")
	eventually(t, "web reached again", 30*time.Second, func() error {
		for _, ip := range c.podIPs(t, toolsNamespace, "web") {
			if r := c.ask(t, toolsNamespace, "client", []target{question("web", "tcp", ip, 64)}, 1)[0]; !r.OK {
				return fmt.Errorf("%+v", r)
			}
		}
		return nil
	})
}

// canaries are secrets in the places and shapes from which they have got into archives elsewhere: CVE-2023-29002,
// CVE-2024-37307, CVE-2026-41520.
var canaries = map[string]string{
	"secret": "canary-secret-horse", "configmap": "canary-configmap-horse", "env": "canary-env-horse", "annotation": "canary-annotation-horse",
	"argument": "canary-argument-horse", "log": "canary-log-horse", "log field": "canary-field-horse", "termination": "canary-termination-horse",
	"log token": "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLW9mLWNhbmFyeQ",
}

func sysdumpWithoutSecrets(t *testing.T, c *cluster) {
	worker := c.Nodes[0].Name
	c.apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {namespace: kube-cilium-system, name: canary}
stringData: {key: %s}
---
apiVersion: v1
kind: ConfigMap
metadata: {namespace: kube-cilium-system, name: canary}
data: {key: %s}
---
apiVersion: v1
kind: Pod
metadata: {namespace: default, name: canary, annotations: {example.com/token: %s}}
spec:
  nodeName: %s
  restartPolicy: Never
  containers:
  - name: app
    image: docker.io/kube-cilium/demo:dev
    args: [%s]
    env: [{name: PASSWORD, value: %s}]
    terminationMessagePolicy: FallbackToLogsOnError
`, canaries["secret"], canaries["configmap"], canaries["annotation"], worker, canaries["termination"]+"-"+canaries["argument"], canaries["env"]))
	eventually(t, "the application's last words", time.Minute, func() error {
		out, err := c.Kubectl(t.Context(), nil, "-n", "default", "get", "pod", "canary", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.message}")
		if err == nil && !strings.Contains(out, canaries["termination"]) {
			err = fmt.Errorf("it has not said it yet: %q", out)
		}
		return err
	})
	// What an agent might log one day.
	lines := fmt.Sprintf(`%s\nI0101 00:00:00.000000       1 x.go:1] "signing in" newField="%s" err="401 with Bearer %s"\n`,
		canaries["log"], canaries["log field"], canaries["log token"])
	if _, err := c.OnNode(t.Context(), worker, "sh", "-c",
		`for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/usr/bin/cilium-agent run' && printf '`+lines+`' >$p/fd/2; done; true`); err != nil {
		t.Fatal(err)
	}
	agent := strings.TrimSpace(c.kubectl(t, "-n", "kube-cilium-system", "get", "pods", "-l", "app.kubernetes.io/name=cilium-agent",
		"--field-selector", "spec.nodeName="+worker, "-o", "jsonpath={.items[0].metadata.name}"))
	eventually(t, "canaries in the log", 30*time.Second, func() error {
		out, err := c.Kubectl(t.Context(), nil, "-n", "kube-cilium-system", "logs", agent, "-c", "agent")
		if err == nil && (!strings.Contains(out, canaries["log"]) || !strings.Contains(out, canaries["log token"])) {
			err = fmt.Errorf("not there yet")
		}
		return err
	})
	archive := filepath.Join(t.TempDir(), "dump.tar.gz")
	c.cilium(t, "sysdump", "--output-file", archive)
	dir := t.TempDir()
	if out, err := exec.Command("tar", "xzf", archive, "--strip-components", "1", "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	all := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all[name] = string(text)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for name, text := range all {
		for where, canary := range canaries {
			if strings.Contains(text, canary) {
				t.Errorf("%s holds what was planted as %s", name, where)
			}
		}
	}
	if s := all["summary.txt"]; !strings.Contains(s, "Everything asked for could be had.") {
		t.Error(s)
	}
	flows := "" // a node may have none
	for _, n := range c.Nodes {
		name := "nodes/" + n.Name + "/flows.jsonl"
		if text, has := all[name]; !has {
			t.Errorf("there is no %s", name)
		} else if text != "" {
			flows = filepath.Join(dir, name)
		}
	}
	if out := c.hubble(t, "flows", "--input-file", flows, "-A", "--last", "3"); strings.Count(out, "\n") != 3 {
		t.Errorf("kubectl hubble reads of the archive's flows:\n%s", out)
	}
	log := "logs/" + agent + "-agent.log"
	for name, want := range map[string]string{
		log: `"signing in" newField=<left out> err=`, "objects/pods.yaml": "PASSWORD", "objects/ciliumnodereports.yaml": "DatapathReady",
		"nodes/" + worker + "/map-conntrack.json": "", "nodes/" + worker + "/cni.json": "cilium-cni",
		"objects/system/configmaps.yaml": "cilium-prefixes", "versions.json": "v1.",
	} {
		if text, has := all[name]; !has || !strings.Contains(text, want) {
			t.Errorf("%s: is there: %v, and should hold %q:\n%.2000s", name, has, want, text)
		}
	}
}
