// SPDX-License-Identifier: Apache-2.0

package netspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// dir is where iproute2 looks for named namespaces too.
const dir = "/run/netns"

// Path returns the file of the named namespace.
func Path(name string) string { return filepath.Join(dir, name) }

// Make makes a named namespace with its loopback up.
func Make(name string) error {
	if err := shareFolder(); err != nil {
		return err
	}
	return inThread(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("network namespace %s: %w", name, err)
		}
		defer ns.Close()
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("network namespace %s: %w", name, err)
		}
		return netlink.LinkSetUp(lo)
	})
}

// shareFolder makes the folder of names a mount that others see, as whoever makes the first name has to. Left to the next
// who makes one (`ip netns add`), that mount would lie over our names, and nobody could remove them. For the same reason
// nothing is done where there are names already.
func shareFolder() error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	// The lock that iproute2 takes too: of two that mount at once, one would cover the other's names.
	folder, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	defer folder.Close()
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	share := func() error { return unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // no mount yet
		if names, err := folder.Readdirnames(1); len(names) > 0 || err != io.EOF {
			return nil
		}
		if err = unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	return nil
}

// Remove removes a named namespace. One that is not there is fine.
func Remove(name string) error {
	path := Path(name)
	// The name may be mounted more than once after a run that was cut short.
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	switch err := os.Remove(path); {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("network namespace: %w (somebody's mount lies over the name: umount %s, and once more)", err, dir)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("network namespace: %w", err)
	}
	return nil
}

// List returns the names that begin with prefix.
func List(prefix string) []string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names
}

// Do runs act inside the namespace. A process that act starts stays there.
func Do(name string, act func() error) error {
	return inThread(func() error {
		if err := enter(name); err != nil {
			return err
		}
		return act()
	})
}

// Dial connects from inside the namespace, to an address literal: a name
// would be resolved, and a second family tried, on another thread.
func Dial(ctx context.Context, name, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := Do(name, func() error {
		dialer := net.Dialer{FallbackDelay: -1}
		var err error
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// inThread runs act on a thread of its own. The thread is never unlocked, so
// it dies with the goroutine and no other code runs in its namespace.
func inThread(act func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- act()
	}()
	return <-done
}

func enter(name string) error {
	fd, err := os.Open(Path(name))
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer fd.Close()
	if err := unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	return nil
}

// Sysctl writes values under /proc/sys, in the namespace of the calling
// thread: use it inside Do. What this kernel does not have is passed over.
func Sysctl(values map[string]string) error {
	for key, value := range values {
		err := writeSysctl(key, value)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sysctl: %w", err)
		}
	}
	return nil
}

// writeSysctl opens the file on this very thread: /proc/sys/net shows the
// namespace of whoever looks it up.
func writeSysctl(key, value string) error {
	fd, err := unix.Open("/proc/sys/"+key, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: key, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &fs.PathError{Op: "write", Path: key, Err: err}
	}
	return nil
}
