// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrStore says that the image store could not be filled.
var ErrStore = errors.New("image store was not filled")

// storeFilled marks a folder whose containerd subfolder is whole.
const storeFilled = "filled"

// FillStore imports the configuration's images into the containerd folder
// below its Dir, by a process like a node's own that ends when it is done.
func FillStore(ctx context.Context, self string, c Config) error {
	c.StoreOnly = true
	pid, err := Start(self, c)
	if err != nil {
		return err
	}
	for Alive(pid) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	if _, err := os.Stat(filepath.Join(c.Dir, storeFilled)); err != nil {
		log, _ := os.ReadFile(filepath.Join(c.Dir, "init.log"))
		return fmt.Errorf("%w: %s", ErrStore, strings.TrimSpace(string(log)))
	}
	return nil
}

// Alive reports whether the process exists and has not ended: one that nobody
// waited for is not alive.
func Alive(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return rest != "" && rest[0] != 'Z' && rest[0] != 'X'
}

// CloneStore gives a node an image store of its own within a moment: content
// and snapshots are never written again, so they are hard links; databases are
// copied. Both folders must lie on one file system.
func CloneStore(from, to string) error {
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		switch {
		case d.IsDir():
			return cloneDir(d, target)
		case strings.HasSuffix(path, ".db"):
			return copyFile(path, target)
		case d.Type().IsRegular(), d.Type()&fs.ModeSymlink != 0:
			return os.Link(path, target)
		}
		return nil // sockets and fifos of the containerd that filled the store
	})
	if err != nil {
		return fmt.Errorf("clone image store: %w", err)
	}
	return nil
}

func cloneDir(d fs.DirEntry, target string) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := os.Lchown(target, int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	return os.Chmod(target, info.Mode().Perm()|info.Mode()&(fs.ModeSticky|fs.ModeSetgid|fs.ModeSetuid))
}
