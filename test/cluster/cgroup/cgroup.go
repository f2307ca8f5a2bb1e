// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNone says that no cgroup hierarchy is mounted on this machine.
var ErrNone = errors.New("no cgroup hierarchy is mounted (mount cgroup2 at /sys/fs/cgroup)")

// ErrBusy says that processes outlived their SIGKILL for longer than waited.
var ErrBusy = errors.New("processes remain")

// leaf holds the processes of a cgroup2 that hands controllers on: there, a
// cgroup with children under control may hold no process itself.
const leaf = "init"

// Hierarchy is one mounted cgroup tree.
type Hierarchy struct {
	// Dir is where the machine has it, e.g. /sys/fs/cgroup/memory.
	Dir string `json:"dir"`
	// Options mounts the same hierarchy again, e.g. "memory" or
	// "none,name=systemd"; empty for cgroup2.
	Options string `json:"options,omitempty"`
}

// V2 reports whether this is cgroup2.
func (h Hierarchy) V2() bool { return h.Options == "" }

// Tree is all hierarchies of a machine.
type Tree []Hierarchy

// controllersV1 are the mount options of a v1 hierarchy that name what it controls.
var controllersV1 = []string{
	"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
	"net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc",
}

// Find reads which hierarchies this machine has.
func Find() (Tree, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cgroup mounts: %w", err)
	}
	defer f.Close()
	var tree Tree
	seen := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		h, ok := parse(lines.Text())
		if !ok || seen[h.Options] {
			continue // the first mount of a hierarchy is the machine's
		}
		seen[h.Options] = true
		tree = append(tree, h)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cgroup mounts: %w", err)
	}
	if len(tree) == 0 {
		return nil, ErrNone
	}
	return tree, nil
}

// parse reads a line of mountinfo: "ID PARENT DEV ROOT DIR OPTIONS [TAGS] - TYPE SOURCE SUPER".
func parse(line string) (Hierarchy, bool) {
	left, right, ok := strings.Cut(line, " - ")
	before, after := strings.Fields(left), strings.Fields(right)
	if !ok || len(before) < 5 || len(after) < 3 {
		return Hierarchy{}, false
	}
	h := Hierarchy{Dir: before[4]}
	switch after[0] {
	case "cgroup2":
		return h, true
	case "cgroup":
	default:
		return Hierarchy{}, false
	}
	var options []string
	for option := range strings.SplitSeq(after[2], ",") {
		if slices.Contains(controllersV1, option) {
			options = append(options, option)
		}
		if strings.HasPrefix(option, "name=") {
			options = append(options, "none", option)
		}
	}
	h.Options = strings.Join(options, ",")
	return h, h.Options != ""
}

// V2 returns the directory of cgroup2, or "" where there is none.
func (t Tree) V2() string {
	for _, h := range t {
		if h.V2() {
			return h.Dir
		}
	}
	return ""
}

// Unified reports whether cgroup2 is all there is, so that it has the controllers.
func (t Tree) Unified() bool { return len(t) == 1 && t[0].V2() }

// Make makes the cgroup at path in every hierarchy. One that is there is fine.
func (t Tree) Make(path string) error {
	for _, h := range t {
		dir := h.Dir
		for part := range strings.SplitSeq(path, "/") {
			if t.Unified() {
				if err := delegate(dir); err != nil {
					return err
				}
			}
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("cgroup: %w", err)
			}
			if err := fillCpuset(h, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// fillCpuset copies cpus and mems from above: a v1 cpuset starts empty, and
// an empty one takes no process (ENOSPC).
func fillCpuset(h Hierarchy, dir string) error {
	if !slices.Contains(strings.Split(h.Options, ","), "cpuset") {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		above, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), above, 0o644); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0o644); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

// delegate hands every controller of a cgroup2 directory to its children.
func delegate(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	for controller := range strings.FieldsSeq(string(raw)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("cgroup: hand on %s: %w", controller, err)
		}
	}
	return nil
}

// Delegate makes room for a kubelet in the cgroup whose root is dir, on a
// machine with cgroup2 alone: the calling process moves into a leaf, then the
// controllers are handed on.
func Delegate(dir string) error {
	inner := filepath.Join(dir, leaf)
	if err := os.Mkdir(inner, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	if err := enter(inner, 0); err != nil {
		return err
	}
	return delegate(dir)
}

// Enter moves a process into the cgroup at path, in every hierarchy. PID 0 is the caller.
func (t Tree) Enter(path string, pid int) error {
	for _, h := range t {
		dir := filepath.Join(h.Dir, path)
		if inner := filepath.Join(dir, leaf); t.Unified() && exists(inner) {
			dir = inner
		}
		if err := enter(dir, pid); err != nil {
			return err
		}
	}
	return nil
}

// RunCommand is the hidden subcommand of the program that calls Become.
const RunCommand = "cgroup-run"

// Become moves this program into the cgroup at path, in every hierarchy, and then replaces it by a command. Where the
// cgroup is gone it returns an error: the command never runs outside.
func Become(path string, command []string) error {
	tree, err := Find()
	if err != nil {
		return err
	}
	if err := tree.Enter(path, 0); err != nil {
		return err
	}
	if err := unix.Exec(command[0], command, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", command[0], err)
	}
	return nil
}

func enter(dir string, pid int) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	return nil
}

// Processes lists who is in the cgroup at path or below, in any hierarchy.
func (t Tree) Processes(path string) []int {
	var pids []int
	for _, h := range t {
		_ = filepath.WalkDir(filepath.Join(h.Dir, path), func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // gone while we walked
			}
			raw, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
			for field := range strings.FieldsSeq(string(raw)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// Remove ends every process in the cgroup at path and below, then removes the
// directories. A cgroup that is not there is fine. The error is ErrBusy when
// a process is still there as ctx ends.
func (t Tree) Remove(ctx context.Context, path string) error {
	for {
		pids := t.Processes(path)
		for _, pid := range pids {
			if pid != os.Getpid() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		err := t.rmdir(path)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s: %w: %v: %w", path, ErrBusy, pids, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// rmdir removes bottom up. Removing while a process exits answers EBUSY.
func (t Tree) rmdir(path string) error {
	var failed error
	for _, h := range t {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(h.Dir, path), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = err
			}
		}
	}
	return failed
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
