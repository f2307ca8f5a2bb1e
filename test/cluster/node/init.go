// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/test/cluster/cgroup"
	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
)

// ErrRuntime says that containerd did not answer in time.
var ErrRuntime = errors.New("containerd does not answer (see containerd.log in the node's log folder)")

const runtimeSocket = "/run/containerd/containerd.sock"

// Init is the first process of a node. It returns only on an error.
func Init(dir string) error {
	c, err := Read(dir)
	if err != nil {
		return err
	}
	if err := prepare(c); err != nil {
		return err
	}
	// containerd looks for the shim and for runc on the PATH.
	path := filepath.Dir(c.Binaries["containerd"]) + ":" + filepath.Dir(c.Binaries["runc"]) +
		":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	s := newSupervisor("/var/log", []string{"PATH=" + path, "HOME=/root", "LANG=C.UTF-8"})
	if c.StoreOnly {
		return fillStore(s, c)
	}
	if err := s.keep("containerd", c.Binaries["containerd"]); err != nil {
		return err
	}
	if err := importImages(s, c); err != nil {
		return err
	}
	if err := s.keep("kubelet", c.Binaries["kubelet"], "--config="+kubeletConfig,
		"--kubeconfig="+filepath.Join(c.PKI, c.Name+".kubeconfig"), "--hostname-override="+c.Name,
		"--node-ip="+join(c.Addresses), "--v=2"); err != nil {
		return err
	}
	if c.KubeProxy != "" {
		if err := s.keep("kube-proxy", c.Binaries["kube-proxy"], "--config="+proxyConfig, "--v=2"); err != nil {
			return err
		}
	}
	select {}
}

// fillStore imports the images, ends containerd so that its databases are
// whole, and marks the store as filled.
func fillStore(s *supervisor, c Config) error {
	runtime, err := s.start("containerd", c.Binaries["containerd"])
	if err != nil {
		return err
	}
	if err := importImages(s, c); err != nil {
		return err
	}
	if err := unix.Kill(runtime.pid, unix.SIGTERM); err != nil {
		return err
	}
	<-runtime.ended
	return os.WriteFile(filepath.Join(c.Dir, storeFilled), nil, 0o644)
}

func importImages(s *supervisor, c Config) error {
	if err := waitRuntime(); err != nil {
		return err
	}
	for _, archive := range c.Images {
		if err := s.run("import", append([]string{c.Binaries["ctr"]}, ImportArgs(archive)...)...); err != nil {
			return fmt.Errorf("import %s: %w", filepath.Base(archive), err)
		}
	}
	return nil
}

// ImportArgs is ctr's line that imports an archive for the kubelet.
func ImportArgs(archive string) []string {
	return []string{"--namespace", "k8s.io", "images", "import", "--local", archive}
}

func prepare(c Config) error {
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := enterRoot(c); err != nil {
		return err
	}
	if err := pinSysctls(); err != nil {
		return err
	}
	if c.Hierarchy.Unified() {
		if err := cgroup.Delegate("/sys/fs/cgroup"); err != nil {
			return err
		}
	}
	// What an administrator sets before installing Kubernetes, and no more.
	if err := netspace.Sysctl(map[string]string{
		"net/ipv4/ip_forward":             "1",
		"net/ipv4/conf/all/rp_filter":     "0",
		"net/ipv4/conf/default/rp_filter": "0",
		"net/ipv6/conf/all/forwarding":    "1",
	}); err != nil {
		return err
	}
	return writeFiles(c)
}

func waitRuntime() error {
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		if conn, err := net.Dial("unix", runtimeSocket); err == nil {
			return conn.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return ErrRuntime
}
