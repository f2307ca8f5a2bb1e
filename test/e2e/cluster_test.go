// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/test/testcluster"
)

// cluster is a running cluster whose commands fail the test.
type cluster struct{ *testcluster.Cluster }

type node = testcluster.Node

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

func testClusterTool(t testing.TB) string {
	t.Helper()
	bin := os.Getenv("TEST_CLUSTER")
	if bin == "" {
		t.Fatal("TEST_CLUSTER must name the test-cluster binary (make test-e2e sets it)")
	}
	return bin
}

// up brings a cluster up and takes it down when the test ends; KEEP_CLUSTER=1 leaves it for a look.
func up(t *testing.T, name string, flags ...string) *cluster {
	t.Helper()
	needRoot(t)
	tool := testClusterTool(t)
	t.Cleanup(func() {
		if os.Getenv("KEEP_CLUSTER") == "" {
			if err := testcluster.Down(tool, name); err != nil {
				t.Error(err)
			}
		}
	})
	c, err := testcluster.Up(t.Context(), tool, name, flags...)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{c}
}

// kubectl runs kubectl and returns its output; a failure fails the test.
func (c *cluster) kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply applies YAML.
func (c *cluster) apply(t testing.TB, yaml string) {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), []byte(yaml), "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, yaml)
	}
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
	dir := filepath.Join(filepath.Dir(testClusterTool(t)), "prober")
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "prober"), "./prober")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the prober: %v\n%s", err, out)
	}
	return dir
}
