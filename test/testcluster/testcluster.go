// SPDX-License-Identifier: Apache-2.0

// Package testcluster drives a cluster that test/cluster brought up, through
// its command line: the end-to-end tests and the benchmarks stand on it.
package testcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Cluster is one running cluster, as `test-cluster status -o json` describes it.
type Cluster struct {
	Name       string `json:"name"`
	Kubeconfig string `json:"kubeconfig"`
	// Binaries are paths by name, kubectl among them.
	Binaries map[string]string `json:"binaries"`
	Nodes    []Node            `json:"nodes"`
	Outside  struct {
		Addresses []string `json:"addresses"`
		// World are addresses of outside that are reached through a router.
		World []string `json:"world"`
	} `json:"outside"`

	tool string
}

// Node is one worker.
type Node struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
}

// Up brings a cluster up with the test-cluster binary tool; flags are those of its verb up.
func Up(ctx context.Context, tool, name string, flags ...string) (*Cluster, error) {
	if _, err := Run(exec.CommandContext(ctx, tool, append([]string{"up", "--name", name}, flags...)...), nil); err != nil {
		return nil, err
	}
	return Find(ctx, tool, name)
}

// Down takes a cluster down, whole or half made.
func Down(tool, name string) error {
	_, err := Run(exec.Command(tool, "down", "--name", name), nil)
	return err
}

// Find reads the state of a cluster that is up.
func Find(ctx context.Context, tool, name string) (*Cluster, error) {
	out, err := Run(exec.CommandContext(ctx, tool, "status", "--name", name, "-o", "json"), nil)
	if err != nil {
		return nil, err
	}
	c := &Cluster{tool: tool}
	if err := json.Unmarshal([]byte(out), c); err != nil {
		return nil, fmt.Errorf("status of %s: %w\n%s", name, err, out)
	}
	return c, nil
}

// Client is a command of kubectl, or of a plugin, against the cluster. What it remembers of the API server goes with the
// cluster: the next one may have its port.
func (c *Cluster) Client(ctx context.Context, bin string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, bin, append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECACHEDIR="+filepath.Join(filepath.Dir(c.Kubeconfig), "kubectl-cache"))
	return cmd
}

// Kubectl runs kubectl against the cluster.
func (c *Cluster) Kubectl(ctx context.Context, stdin []byte, args ...string) (string, error) {
	return Run(c.Client(ctx, c.Binaries["kubectl"], args...), stdin)
}

// InPod runs a command in a pod.
func (c *Cluster) InPod(ctx context.Context, namespace, pod string, stdin []byte, args ...string) (string, error) {
	return c.Kubectl(ctx, stdin, append([]string{"-n", namespace, "exec", "-i", pod, "--"}, args...)...)
}

// NodeCommand is the command line that runs something in all of a node's namespaces.
func (c *Cluster) NodeCommand(node string, args ...string) []string {
	return append([]string{c.tool, "exec", "--name", c.Name, node, "--"}, args...)
}

// OnNode runs a command in all of a node's namespaces.
func (c *Cluster) OnNode(ctx context.Context, node string, args ...string) (string, error) {
	line := c.NodeCommand(node, args...)
	return Run(exec.CommandContext(ctx, line[0], line[1:]...), nil)
}

// OutsideCommand is the command line that runs something where the cluster ends.
func (c *Cluster) OutsideCommand(args ...string) []string {
	return append([]string{c.tool, "exec-outside", "--name", c.Name, "--"}, args...)
}

// OnOutside runs a command in the namespace that is no cluster member.
func (c *Cluster) OnOutside(ctx context.Context, stdin []byte, args ...string) (string, error) {
	line := c.OutsideCommand(args...)
	return Run(exec.CommandContext(ctx, line[0], line[1:]...), stdin)
}

// OnControlPlane runs a command in the control plane's network namespace.
func (c *Cluster) OnControlPlane(ctx context.Context, args ...string) (string, error) {
	return Run(exec.CommandContext(ctx, c.tool, append([]string{"exec-cp", "--name", c.Name, "--"}, args...)...), nil)
}

// Run runs a command and returns its stdout; the error holds what it printed.
func Run(cmd *exec.Cmd, stdin []byte) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}
