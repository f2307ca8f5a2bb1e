// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotShared means that a mount would be seen by this container alone and end with it.
var ErrNotShared = errors.New("the mount does not reach the host (mount the folder with mountPropagation Bidirectional, and on the host: mount --make-rshared /sys)")

// MountBPFFS mounts the bpf file system at path where none is, so that the host and whoever comes later see it; made
// tells whether it had to. It needs CAP_SYS_ADMIN, and returns ErrNotShared, with nothing mounted, where the host would
// not see it.
func MountBPFFS(path string) (made bool, err error) {
	err = checkMount(path, unix.BPF_FS_MAGIC, ErrNoBPFFS)
	if err == nil {
		return false, nil
	}
	if _, serr := os.Stat(path); serr != nil { // the kernel makes the folder
		return false, err
	}
	if err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return false, fmt.Errorf("mount bpf at %s: %w", path, err)
	}
	shared, err := isShared(path)
	if err == nil && !shared {
		err = fmt.Errorf("mount bpf at %s: %w", path, ErrNotShared)
	}
	if err != nil {
		return false, errors.Join(err, unix.Unmount(path, unix.MNT_DETACH))
	}
	return true, nil
}

// isShared tells whether what happens to the uppermost mount at path also happens elsewhere (proc(5), mountinfo: the
// optional fields between the sixth and a single dash).
func isShared(path string) (bool, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	shared, found := false, false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 7 || fields[4] != path {
			continue
		}
		shared, found = false, true
		for _, o := range fields[6:] {
			if o == "-" {
				break
			}
			shared = shared || strings.HasPrefix(o, "shared:")
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("read mounts: %w", err)
	}
	if !found {
		return false, fmt.Errorf("%s is not among the mounts", path)
	}
	return shared, nil
}
