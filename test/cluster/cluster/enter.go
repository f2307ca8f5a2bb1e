// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
	"github.com/kube-cilium/kube-cilium/test/cluster/node"
)

// ErrNode says that the cluster has no node of this name.
var ErrNode = errors.New("no such node")

// Node finds a worker by name.
func (state *State) Node(name string) (Node, error) {
	for _, n := range state.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("%w: %s in cluster %s", ErrNode, name, state.Name)
}

// BecomeInNode replaces this program by a command that runs as a process of
// the node, in its cgroups and in all its namespaces.
func (state *State) BecomeInNode(name string, command, env []string) error {
	n, err := state.Node(name)
	if err != nil {
		return err
	}
	line, err := node.Join(state.Hierarchy, n.Cgroup, n.InitPID, command)
	if err != nil {
		return err
	}
	return become(line, env)
}

// BecomeInSpace replaces this program by a command inside a network namespace.
func BecomeInSpace(space string, command, env []string) error {
	return become(append([]string{"nsenter", "--net=" + netspace.Path(space), "--"}, command...), env)
}

func become(line, env []string) error {
	path, err := exec.LookPath(line[0])
	if err != nil {
		return err
	}
	return unix.Exec(path, line, env)
}

// InNode runs a command as a process of the node and waits for it, by a copy
// of this program: a process that has joined a cgroup stays there.
func (h *Host) InNode(ctx context.Context, state *State, n Node, command []string) error {
	self := filepath.Join(state.Dir, "cluster")
	cmd := exec.CommandContext(ctx, self, append([]string{"exec", "--cache", h.Cache, "--name", state.Name, n.Name, "--"}, command...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s in %s: %w: %s", filepath.Base(command[0]), n.Name, err, strings.TrimSpace(out.String()))
	}
	return nil
}
