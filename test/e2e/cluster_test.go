// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/test/testcluster"
)

// cluster is a running cluster whose commands fail the test.
type cluster struct {
	*testcluster.Cluster
	// dropped are the drop counters from when it was up.
	dropped map[string]int64
	// endTurn lets the next test begin. It may be called twice.
	endTurn func()
}

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

// turn is held by the test that runs; those that call upBeside run beside it.
var turn = make(chan struct{}, 1)

// up brings a cluster up when it is this test's turn, and takes it down when the test ends; KEEP_CLUSTER=1 leaves it
// for a look. Tests take turns, in no order: two cores are few. One that only waits from some time on says so by endTurn.
func up(t *testing.T, name string, flags ...string) *cluster {
	t.Helper()
	needRoot(t)
	t.Parallel()
	turn <- struct{}{}
	end := sync.OnceFunc(func() { <-turn })
	t.Cleanup(end)
	c := bring(t, name, flags...)
	c.endTurn = end
	return c
}

// upBeside is up for a test that does little for a long time: it waits for no turn.
func upBeside(t *testing.T, name string, flags ...string) *cluster {
	t.Helper()
	needRoot(t)
	t.Parallel()
	return bring(t, name, flags...)
}

func bring(t *testing.T, name string, flags ...string) *cluster {
	t.Helper()
	tool := testClusterTool(t)
	c := &cluster{}
	t.Cleanup(func() {
		if t.Failed() && c.Cluster != nil {
			c.evidence(t)
		}
		if t.Failed() {
			remember(t, "failed: its output is above")
		}
		if os.Getenv("KEEP_CLUSTER") == "" {
			if err := testcluster.Down(tool, name); err != nil {
				t.Error(err)
			}
		}
	})
	var err error
	if c.Cluster, err = testcluster.Up(t.Context(), tool, name, flags...); err != nil {
		t.Fatal(err)
	}
	c.dropped = c.drops(t)
	return c
}

// lastWords are what is printed when every test has ended: which expectation failed, where nothing comes after it.
var lastWords struct {
	sync.Mutex
	lines []string
}

// fault is t.Errorf that is said again at the very end.
func fault(t testing.TB, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	remember(t, text)
	t.Error(text)
}

func remember(t testing.TB, text string) {
	lastWords.Lock()
	defer lastWords.Unlock()
	lastWords.lines = append(lastWords.lines, t.Name()+": "+text)
}

func TestMain(m *testing.M) {
	code := m.Run()
	if len(lastWords.lines) > 0 {
		fmt.Printf("\nWhat failed:\n  %s\n", strings.Join(lastWords.lines, "\n  "))
	}
	os.Exit(code)
}

// evidence shows what the cluster has to say about a failure, before it goes.
func (c *cluster) evidence(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var all strings.Builder
	show := func(title string, out string, err error) {
		fmt.Fprintf(&all, "--- %s\n%s", title, out)
		if err != nil && out == "" {
			fmt.Fprintf(&all, "%v\n", err)
		}
	}
	out, err := c.plugin(ctx, "status", "--verbose")
	show("kubectl cilium status", out, err)
	out, err = c.Kubectl(ctx, nil, "-n", systemNamespace, "logs", "-l", "app.kubernetes.io/name=cilium-agent", "-c", "agent", "--tail=40", "--prefix")
	show("agents' last lines", out, err)
	for _, n := range c.Nodes {
		out, err := c.OnNode(ctx, n.Name, "sh", "-c", "ip -br link; ip route; ip -6 route")
		show("devices and routes of "+n.Name, out, err)
	}
	out, err = c.Kubectl(ctx, nil, "get", "pods", "-A", "-o", "wide")
	show("pods", out, err)
	t.Logf("evidence:\n%s", all.String())
	now, err := c.readDrops(ctx)
	if err != nil {
		t.Logf("drop counters: %v", err)
	}
	if grew := newDrops(c.dropped, now); len(grew) > 0 {
		t.Logf("drop counters that grew since the cluster was up:\n  %s", strings.Join(grew, "\n  "))
	}
}

// plugin runs kubectl cilium.
func (c *cluster) plugin(ctx context.Context, args ...string) (string, error) {
	bin := filepath.Join(filepath.Dir(os.Getenv("TEST_CLUSTER")), "kubectl-cilium")
	return testcluster.Run(c.Client(ctx, bin, args...), nil)
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
			fault(t, "%s: not within %s: %v", what, within, err)
			t.FailNow()
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// buildProber builds the prober, once for all tests.
var buildProber = sync.OnceValues(func() (dir string, err error) {
	dir = filepath.Join(filepath.Dir(os.Getenv("TEST_CLUSTER")), "prober")
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "prober"), "./prober")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the prober: %w\n%s", err, out)
	}
	return dir, nil
})

// proberDir is where the prober binary lies on this machine; nodes see this machine's files at the same path.
func proberDir(t testing.TB) string {
	t.Helper()
	dir, err := buildProber()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
