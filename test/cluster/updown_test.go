// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/test/cluster/cgroup"
	"github.com/kube-cilium/kube-cilium/test/cluster/cluster"
	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
)

// needRoot skips for a plain user and fails where every test has to run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getenv("KUBE_CILIUM_TEST_ROOT") != "1" {
		t.Skip("brings a real cluster up: needs root and KUBE_CILIUM_TEST_ROOT=1 (make test)")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root, and KUBE_CILIUM_TEST_ROOT=1 says that it must run")
	}
}

// tool is this program, built.
func tool(t *testing.T) func(args ...string) (string, error) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "cluster")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return func(args ...string) (string, error) {
		cmd := exec.Command(binary, args...)
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%s: %w\n%s%s", strings.Join(args, " "), err, out, errs.String())
		}
		return string(out), err
	}
}

// TestUpDown runs a pod with the reference bridge plugin on one worker, then
// looks for anything that down left behind.
func TestUpDown(t *testing.T) {
	needRoot(t)
	run := tool(t)
	const name = "test-updown"
	t.Cleanup(func() {
		if _, err := run("down", "--name", name); err != nil {
			t.Error(err)
		}
	})
	if _, err := run("up", "--name", name, "--workers", "1", "--cni", "bridge", "--uplinks", "2", "--cut-segments"); err != nil {
		t.Fatal(err)
	}
	state := readState(t, run, name)
	kubectl := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(state.Binaries["kubectl"], append([]string{"--kubeconfig", state.Kubeconfig}, args...)...)
		cmd.Env = append(os.Environ(), "KUBECACHEDIR="+state.KubectlCache())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	kubectl("run", "demo", "--image=docker.io/kube-cilium/demo:dev", "--image-pull-policy=Never")
	kubectl("wait", "--for=condition=Ready", "pod/demo", "--timeout=60s")
	if out := kubectl("exec", "demo", "--", "demo", "client", "--count=1", "http://localhost:8080"); !strings.Contains(out, "hostname: demo") {
		t.Errorf("the pod says %q", out)
	}
	for _, world := range state.Outside.World {
		if out, err := run("exec", "--name", name, "worker-1", "--", "ping", "-c1", "-W2", world.String()); err != nil {
			t.Errorf("world is not reached: %v\n%s", err, out)
		}
	}
	if err := reachable(state); err == nil {
		t.Error("the API server's address is reachable from the machine's own namespace")
	}
	if out, err := run("up", "--name", name, "--cni", "bridge"); err == nil || !strings.Contains(err.Error(), "is up already") {
		t.Errorf("up twice: %v\n%s", err, out)
	}
	if _, err := run("down", "--name", name); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, state)
}

// TestDownAfterUpWasCut kills up while it works, and takes down what there is.
func TestDownAfterUpWasCut(t *testing.T) {
	needRoot(t)
	run := tool(t)
	const name = "test-cut"
	t.Cleanup(func() {
		if _, err := run("down", "--name", name); err != nil {
			t.Error(err)
		}
	})
	if _, err := run("build"); err != nil {
		t.Fatal(err)
	}
	for _, after := range []string{"network", "control plane", "worker-1"} {
		cutUp(t, name, after)
		state := readState(t, run, name)
		if _, err := run("down", "--name", name); err != nil {
			t.Errorf("after %q: %v", after, err)
		}
		nothingLeft(t, state)
	}
	if _, err := run("down", "--name", name); err != nil {
		t.Errorf("down of what is down: %v", err)
	}
}

// cutUp starts up and kills it with SIGKILL once it says the words.
func cutUp(t *testing.T, name, words string) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "cluster")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // our own programs may have to be built first
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "up", "--name", name, "--workers", "1", "--cni", "none")
	progress, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	buffer := make([]byte, 256)
	for !strings.Contains(said.String(), "cluster "+name+": "+words) {
		n, err := progress.Read(buffer)
		said.Write(buffer[:n])
		if err != nil {
			t.Fatalf("up ended before %q:\n%s", words, said.String())
		}
	}
	cancel()
	_ = cmd.Wait()
}

func readState(t *testing.T, run func(...string) (string, error), name string) *cluster.State {
	t.Helper()
	out, err := run("status", "--name", name, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	state := &cluster.State{}
	if err := json.Unmarshal([]byte(out), state); err != nil {
		t.Fatal(err)
	}
	return state
}

// reachable dials the API server from here, where only unreachable routes lead to it.
func reachable(state *cluster.State) error {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(state.APIServers[0], "https://"), time.Second)
	if err == nil {
		conn.Close()
	}
	return err
}

// nothingLeft looks for processes, namespaces, cgroups, routes, mounts and files.
func nothingLeft(t *testing.T, state *cluster.State) {
	t.Helper()
	if left := netspace.List("kc-" + state.Name + "-"); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
	tree, err := cgroup.Find()
	if err != nil {
		t.Fatal(err)
	}
	for _, hierarchy := range tree {
		if _, err := os.Stat(filepath.Join(hierarchy.Dir, "kc-"+state.Name)); err == nil {
			t.Errorf("cgroup left in %s", hierarchy.Dir)
		}
	}
	guarded, err := netspace.Guarded()
	if err != nil {
		t.Fatal(err)
	}
	if p, found := state.Ranges.Overlaps(guarded); found {
		t.Errorf("route left to %s", p)
	}
	if _, err := os.Stat(state.Dir); err == nil {
		t.Errorf("folder left: %s", state.Dir)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, needle := range []string{state.Dir + "/", "/kc-" + state.Name + "-"} {
		if strings.Contains(string(mounts), needle) {
			t.Errorf("mount left: %s", needle)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range processes {
		if raw, err := os.ReadFile(file); err == nil && strings.Contains(string(raw), state.Dir+"/") {
			where, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup"))
			t.Errorf("process left: %s\nin %s", strings.ReplaceAll(string(raw), "\x00", " "), where)
		}
	}
}
