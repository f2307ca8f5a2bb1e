// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// enterRoot builds the node's root file system and makes it the root. On the
// way in, "/" is the machine's, in a mount namespace that is already ours.
func enterRoot(c Config) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root, err := overlay(c.Dir)
	if err != nil {
		return err
	}
	if err := mountKernel(root, c); err != nil {
		return err
	}
	// Where the machine may have something of its own, a node starts empty.
	for _, dir := range []string{"/run", "/etc/cni", "/opt/cni", "/etc/containerd", "/etc/kubernetes", "/var/lib/cni"} {
		if err := mount("tmpfs", "tmpfs", root+dir, 0, "mode=755"); err != nil {
			return err
		}
	}
	// On disk: snapshots of containers cannot lie on an overlay themselves.
	for inside, outside := range map[string]string{"/var/lib/containerd": "containerd", "/var/lib/kubelet": "kubelet", "/var/log": "log"} {
		if err := bind(filepath.Join(c.Dir, outside), root+inside); err != nil {
			return err
		}
	}
	for _, dir := range c.Shared {
		if err := bind(dir, root+dir); err != nil {
			return err
		}
	}
	return pivot(root)
}

// overlay mounts the machine's root under a writable layer in memory. The
// layer must not lie inside what it covers.
func overlay(dir string) (string, error) {
	memory := filepath.Join(dir, "overlay")
	if err := mount("tmpfs", "tmpfs", memory, 0, "size=2g,mode=755"); err != nil {
		return "", err
	}
	upper, work, root := memory+"/upper", memory+"/work", memory+"/root"
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", err
		}
	}
	return root, mount("overlay", "overlay", root, 0, "lowerdir=/,upperdir="+upper+",workdir="+work)
}

// mountKernel mounts what the kernel shows: processes, devices of this network
// namespace, cgroups from the node's own down, an empty bpffs.
func mountKernel(root string, c Config) error {
	if err := mount("proc", "proc", root+"/proc", 0, ""); err != nil {
		return err
	}
	if err := mount("sysfs", "sysfs", root+"/sys", 0, ""); err != nil {
		return err
	}
	if err := mountCgroups(root+"/sys/fs/cgroup", c); err != nil {
		return err
	}
	if err := mount("bpf", "bpf", root+"/sys/fs/bpf", 0, "mode=700"); err != nil {
		return err
	}
	if err := mount("tracefs", "tracefs", root+"/sys/kernel/tracing", 0, ""); err != nil {
		return err
	}
	if err := unix.Mount("/dev", root+"/dev", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	return nil
}

func mountCgroups(to string, c Config) error {
	if c.Hierarchy.Unified() {
		return mount("cgroup2", "cgroup2", to, 0, "")
	}
	if err := mount("tmpfs", "tmpfs", to, 0, "mode=755"); err != nil {
		return err
	}
	for _, h := range c.Hierarchy {
		kind := "cgroup"
		if h.V2() {
			kind = "cgroup2"
		}
		if err := mount(kind, kind, filepath.Join(to, filepath.Base(h.Dir)), 0, h.Options); err != nil {
			return err
		}
	}
	return nil
}

func pivot(root string) error {
	old := root + "/oldroot"
	if err := os.MkdirAll(old, 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/oldroot", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount old root: %w", err)
	}
	if err := os.Remove("/oldroot"); err != nil {
		return err
	}
	// A DaemonSet with Bidirectional mounts needs the root shared.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

// pinnedSysctls are what a kubelet would set for the whole machine. It only
// writes where it finds another value, so it is shown the one it wants.
var pinnedSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// pinSysctls binds a file with the wanted value over each of them.
func pinSysctls() error {
	const dir = "/run/sysctl"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, value := range pinnedSysctls {
		shown := filepath.Join(dir, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(shown, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(shown, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
	}
	return nil
}

func mount(source, kind, to string, flags uintptr, options string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, to, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", kind, to, err)
	}
	return nil
}

func bind(from, to string) error {
	if err := os.MkdirAll(from, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", to, err)
	}
	return nil
}
