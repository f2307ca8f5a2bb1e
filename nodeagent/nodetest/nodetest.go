// SPDX-License-Identifier: Apache-2.0

// Package nodetest gives a test a node of its own: network and mount namespaces, an uplink, a bpf file system and a
// cgroup, and pods' network namespaces. Only tests import it. Everything vanishes with the test's process.
package nodetest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

const inside = "KUBE_CILIUM_TEST_INSIDE"

// The process's first thread never ends: a goroutine that took it into a pod's namespace would keep that for good.
func init() { runtime.LockOSThread() }

// Main runs a package's tests in namespaces of their own where that is permitted. Call it from TestMain.
func Main(m *testing.M) {
	if os.Getenv(inside) != "" {
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil: // not permitted here: the tests themselves say so
		os.Exit(m.Run())
	}
	os.Exit(0)
}

// settle makes the mounts private and gives named namespaces a folder of their own.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run/netns: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// NeedRoot skips the test, or fails it where KUBE_CILIUM_TEST_ROOT=1 forbids skipping, unless Main gave it a node.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) != "" {
		return
	}
	const why = "needs root and a network namespace of its own (make test)"
	if os.Getenv("KUBE_CILIUM_TEST_ROOT") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// The node's addresses on its uplink.
var (
	NodeIPv4 = netip.MustParseAddr("198.18.0.1")
	NodeIPv6 = netip.MustParseAddr("2001:db8:18::1")
)

// Node is one node with a datapath in force.
type Node struct {
	Options  datapath.Options
	Config   datapath.Config
	Datapath *datapath.Datapath
	t        testing.TB
}

// New makes a node for VXLAN with both families.
func New(t testing.TB) *Node {
	t.Helper()
	NeedRoot(t)
	n := &Node{t: t, Options: datapath.Options{BPFFS: mountBPFFS(t), CgroupRoot: makeCgroup(t), ProcSysNet: "/proc/sys/net"}}
	if tt, ok := t.(*testing.T); ok {
		n.Options.Log = testr.New(tt)
	}
	n.uplink()
	n.Config = datapath.Config{
		NodeIPv4: NodeIPv4, NodeIPv6: NodeIPv6, Mode: v1alpha1.RoutingVXLAN, Encapsulation: v1alpha1.EncapsulationAuto,
		TunnelPort: 8472, MasqueradeIPv4: true, MasqueradeIPv6: true, ConntrackMax: 4096, UnansweredPerEndpoint: 128,
	}
	n.Restart()
	t.Cleanup(func() {
		_ = n.Datapath.Close()
		if err := datapath.Uninstall(n.Options); err != nil {
			t.Errorf("uninstall: %v", err)
		}
	})
	return n
}

// Restart is what a new agent does: it opens what is pinned.
func (n *Node) Restart() {
	n.t.Helper()
	if n.Datapath != nil {
		Must(n.t, n.Datapath.Close())
	}
	d, err := datapath.Open(n.Options)
	Must(n.t, err)
	n.Datapath = d
	hosts := []netip.Addr{NodeIPv4, NodeIPv6}
	Must(n.t, d.SetHostAddresses(hosts))
	Must(n.t, d.Configure(n.t.Context(), n.Config))
}

func (n *Node) uplink() {
	t := n.t
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	Must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "out0", PeerTxQLen: -1}))
	for _, name := range []string{"up0", "out0"} {
		l, err := netlink.LinkByName(name)
		Must(t, err)
		Must(t, netlink.LinkSetUp(l))
	}
	up, err := netlink.LinkByName("up0")
	Must(t, err)
	t.Cleanup(func() { _ = netlink.LinkDel(up) })
	for _, p := range []string{NodeIPv4.String() + "/24", NodeIPv6.String() + "/64"} {
		a, err := netlink.ParseAddr(p)
		Must(t, err)
		a.Flags = unix.IFA_F_NODAD
		Must(t, netlink.AddrAdd(up, a))
	}
	// Out of it all; an API server of a test asks for a default route to find its own address.
	Must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.ParseIP("198.18.0.2")}))
}

// Pod is the network namespace of a pod that has no interface yet but the loopback.
type Pod struct {
	Path string
	File *os.File
}

// NewPod makes a namespace below /run/netns and takes it away when the test ends.
func (n *Node) NewPod(name string) *Pod {
	n.t.Helper()
	p := &Pod{Path: filepath.Join("/run/netns", name)}
	f, err := os.Create(p.Path)
	Must(n.t, err)
	Must(n.t, f.Close())
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, the namespace stays by its mount
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", p.Path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	Must(n.t, <-done)
	p.File, err = os.Open(p.Path)
	Must(n.t, err)
	n.t.Cleanup(p.Remove)
	return p
}

// Remove takes the namespace away, as a runtime does before a late DEL.
func (p *Pod) Remove() {
	_ = p.File.Close()
	_ = unix.Unmount(p.Path, unix.MNT_DETACH)
	_ = os.Remove(p.Path)
}

// Inside calls f inside the pod's network namespace: sockets that it makes stay there.
func (p *Pod) Inside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(p.File.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// Run runs a program inside the pod and returns what it printed.
func (p *Pod) Run(name string, args ...string) (string, error) {
	cmd := exec.Command("nsenter", append([]string{"--net=" + p.Path, name}, args...)...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Here runs a program in the node's own namespace.
func Here(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func mountBPFFS(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	Must(t, unix.Mount("bpf", dir, "bpf", 0, "mode=0700"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func makeCgroup(t testing.TB) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
			continue
		}
		dir, err := os.MkdirTemp(root, "kube-cilium-test-")
		Must(t, err)
		t.Cleanup(func() {
			for range 50 {
				if err = os.Remove(dir); err == nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Errorf("remove cgroup: %v", err)
		})
		return dir
	}
	t.Fatal("no cgroup2 mount")
	return ""
}

// Must ends the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
