// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/kube-cilium/kube-cilium/test/cluster/cgroup"
	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
)

// Hidden subcommands of the program, by which it becomes another process.
const (
	LaunchCommand = "node-launch"
	InitCommand   = "node-init"
)

// Start runs the launcher of a node, which leaves the node's first process
// behind, and returns the PID of that process on the machine.
//
// The launcher is a process of its own because a cgroup namespace is rooted
// where its maker stands: the cgroups are entered first, then the node cloned.
func Start(self string, c Config) (int, error) {
	if err := c.Hierarchy.Make(c.Cgroup); err != nil {
		return 0, fmt.Errorf("node %s: %w", c.Name, err)
	}
	if err := c.Write(); err != nil {
		return 0, err
	}
	cmd := exec.Command(self, LaunchCommand, c.Dir)
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("launch node %s: %w%s", c.Name, err, stderr(err))
	}
	var pid int
	if _, err := fmt.Sscan(string(out), &pid); err != nil {
		return 0, fmt.Errorf("launch node %s: %w", c.Name, err)
	}
	return pid, nil
}

func stderr(err error) string {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return ": " + string(exit.Stderr)
	}
	return ""
}

// Launch is the launcher: it enters the node's cgroups and network namespace,
// clones the node's first process and prints its PID.
func Launch(dir string) error {
	c, err := Read(dir)
	if err != nil {
		return err
	}
	if err := c.Hierarchy.Enter(c.Cgroup, 0); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "init.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, InitCommand, dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC |
			syscall.CLONE_NEWCGROUP,
	}
	if err := netspace.Do(c.Space, cmd.Start); err != nil {
		return err
	}
	fmt.Println(cmd.Process.Pid)
	return nil
}

// Join moves the calling process into the node's cgroups, so that what it
// becomes next is treated as a process of the node (also by programs attached
// to the node's cgroup2 directory), and returns the command that enters its namespaces.
func Join(tree cgroup.Tree, path string, pid int, command []string) ([]string, error) {
	if err := tree.Enter(path, 0); err != nil {
		return nil, err
	}
	return append([]string{"nsenter", "--target", fmt.Sprint(pid), "--all", "--"}, command...), nil
}
