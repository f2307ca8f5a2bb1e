// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/kube-cilium/kube-cilium/test/cluster/node"
)

// pid finds a process of the control plane by its program's name, or 0.
func (state *State) pid(name string) int {
	for _, pid := range state.Hierarchy.Processes(state.cgroup("cp")) {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if program, _, _ := strings.Cut(string(raw), "\x00"); err == nil && filepath.Base(program) == name {
			return pid
		}
	}
	return 0
}

// Describe prints a cluster for people.
func (state *State) Describe(ctx context.Context, out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "Cluster\t%s (%s, cni %s, kube-proxy %s)\n", state.Name, state.Phase, state.CNI, state.KubeProxy)
	fmt.Fprintf(w, "Kubeconfig\t%s\n", state.Kubeconfig)
	fmt.Fprintf(w, "API server\t%s\tthrough 127.0.0.1:%d\n", strings.Join(state.APIServers, " "), state.ForwarderPort)
	fmt.Fprintf(w, "Pods\t%s\n", list(state.Ranges.Pods))
	fmt.Fprintf(w, "Services\t%s\n", list(state.Ranges.Services))
	fmt.Fprintf(w, "Outside\t%s\tworld %s\n", list(state.Outside.Addresses), list(state.Outside.World))
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		fmt.Fprintf(w, "%s\t%s\n", name, running(state.pid(name)))
	}
	for _, n := range state.Nodes {
		fmt.Fprintf(w, "%s\t%s\t%s\n", n.Name, running(n.InitPID), list(n.Addresses))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if state.pid("kube-apiserver") == 0 {
		return nil
	}
	pods, err := state.kubectl(ctx, "", "get", "nodes,pods", "--all-namespaces", "--output=wide", "--request-timeout=5s")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "\n%s", pods)
	return err
}

func running(pid int) string {
	if pid == 0 || !node.Alive(pid) {
		return "not running"
	}
	return fmt.Sprintf("running, PID %d", pid)
}
