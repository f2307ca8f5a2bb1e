// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cluster is one running cluster, as `test-cluster status -o json` describes it.
type cluster struct {
	Name       string `json:"name"`
	Kubeconfig string `json:"kubeconfig"`
	// Binaries are paths by name, kubectl among them.
	Binaries map[string]string `json:"binaries"`
	Nodes    []node            `json:"nodes"`
	Outside    struct {
		Netns     string   `json:"netns"`
		Addresses []string `json:"addresses"`
		World     []string `json:"world"`
	} `json:"outside"`
}

type node struct {
	Name      string   `json:"name"`
	Netns     string   `json:"netns"`
	Addresses []string `json:"addresses"`
}

// needRoot skips for a plain user and fails where every test has to run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getenv("KUBE_CILIUM_TEST_ROOT") == "1" {
		if os.Geteuid() != 0 {
			t.Fatal("needs root, and KUBE_CILIUM_TEST_ROOT=1 says that it must run")
		}
		return
	}
	t.Skip("brings a real cluster up: needs root and KUBE_CILIUM_TEST_ROOT=1 (make test-e2e)")
}

func testCluster(t testing.TB) string {
	t.Helper()
	bin := os.Getenv("TEST_CLUSTER")
	if bin == "" {
		t.Fatal("TEST_CLUSTER must name the test-cluster binary (make test-e2e sets it)")
	}
	return bin
}

// up brings a cluster up and takes it down when the test ends.
func up(t *testing.T, name string, flags ...string) *cluster {
	t.Helper()
	needRoot(t)
	t.Cleanup(func() {
		if os.Getenv("KEEP_CLUSTER") == "" {
			if out, err := exec.Command(testCluster(t), "down", "--name", name).CombinedOutput(); err != nil {
				t.Errorf("down %s: %v\n%s", name, err, out)
			}
		}
	})
	args := append([]string{"up", "--name", name}, flags...)
	if out, err := exec.Command(testCluster(t), args...).CombinedOutput(); err != nil {
		t.Fatalf("test-cluster %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return find(t, name)
}

func find(t testing.TB, name string) *cluster {
	t.Helper()
	out, err := exec.Command(testCluster(t), "status", "--name", name, "-o", "json").Output()
	if err != nil {
		t.Fatalf("status %s: %v", name, err)
	}
	c := &cluster{}
	if err := json.Unmarshal(out, c); err != nil {
		t.Fatalf("status %s: %v\n%s", name, err, out)
	}
	return c
}

// kubectl runs kubectl and returns its output; a failure fails the test.
func (c *cluster) kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.tryKubectl(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *cluster) tryKubectl(ctx context.Context, stdin []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.Binaries["kubectl"], append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	return run(cmd, stdin)
}

// apply applies YAML.
func (c *cluster) apply(t testing.TB, yaml string) {
	t.Helper()
	if _, err := c.tryKubectl(t.Context(), []byte(yaml), "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, yaml)
	}
}

// inPod runs a command in a pod.
func (c *cluster) inPod(ctx context.Context, namespace, pod string, stdin []byte, args ...string) (string, error) {
	return c.tryKubectl(ctx, stdin, append([]string{"-n", namespace, "exec", "-i", pod, "--"}, args...)...)
}

// outside runs a command in the namespace that is no cluster member.
func (c *cluster) outside(ctx context.Context, t testing.TB, stdin []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, testCluster(t), append([]string{"exec-outside", "--name", c.Name, "--"}, args...)...)
	return run(cmd, stdin)
}

// onNode runs a command in all of a node's namespaces.
func (c *cluster) onNode(ctx context.Context, t testing.TB, node string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, testCluster(t), append([]string{"exec", "--name", c.Name, node, "--"}, args...)...)
	return run(cmd, nil)
}

func run(cmd *exec.Cmd, stdin []byte) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// eventually polls f until it says nil, and fails the test with its last error otherwise.
func eventually(t testing.TB, what string, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// proberDir is where the prober binary lies on this machine; nodes see this machine's files at the same path.
func proberDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(filepath.Dir(testCluster(t)), "prober")
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "prober"), "./prober")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the prober: %v\n%s", err, out)
	}
	return dir
}
