// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountReachesTheHost: two folders are one file system seen twice, as the host and a container with propagation
// see it. This process has a mount namespace of its own.
func TestMountReachesTheHost(t *testing.T) {
	needRoot(t)
	host, container := t.TempDir(), t.TempDir()
	inside := filepath.Join(container, "bpf")
	must(t, unix.Mount("tmpfs", host, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(host, unix.MNT_DETACH) })
	must(t, os.Mkdir(filepath.Join(host, "bpf"), 0o755))
	bind := func(propagation uintptr) {
		t.Helper()
		must(t, unix.Mount("", host, "", unix.MS_SHARED, ""))
		must(t, unix.Mount(host, container, "", unix.MS_BIND, ""))
		must(t, unix.Mount("", container, "", propagation, ""))
	}
	check := func(path string) error { return checkMount(path, unix.BPF_FS_MAGIC, ErrNoBPFFS) }

	for name, propagation := range map[string]uintptr{"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE} {
		bind(propagation)
		if made, err := MountBPFFS(inside); made || !errors.Is(err, ErrNotShared) {
			t.Errorf("%s: made %v, %v", name, made, err)
		}
		if !errors.Is(check(inside), ErrNoBPFFS) {
			t.Errorf("%s: the mount was left", name)
		}
		must(t, unix.Unmount(container, unix.MNT_DETACH))
	}

	bind(unix.MS_SHARED)
	if made, err := MountBPFFS(inside); !made || err != nil {
		t.Fatalf("made %v, %v", made, err)
	}
	must(t, check(filepath.Join(host, "bpf")))
	must(t, os.Mkdir(filepath.Join(inside, "pins"), 0o700))
	if made, err := MountBPFFS(inside); made || err != nil {
		t.Errorf("again: made %v, %v", made, err)
	}
	// The container ends: its mounts go with its namespace, which tells nobody.
	must(t, unix.Mount("", container, "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(t, unix.Unmount(container, unix.MNT_DETACH))
	if _, err := os.Stat(filepath.Join(host, "bpf", "pins")); err != nil {
		t.Errorf("what was pinned went with the container: %v", err)
	}
	if _, err := MountBPFFS(filepath.Join(host, "nothing")); !errors.Is(err, ErrNoBPFFS) {
		t.Errorf("a folder that is not there: %v", err)
	}
}
