// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestConfigSurvivesItsFile(t *testing.T) {
	c := Config{Name: "worker-1", Number: 1, Dir: t.TempDir(), Addresses: []netip.Addr{netip.MustParseAddr("fd00::1")}}
	if err := c.Write(); err != nil {
		t.Fatal(err)
	}
	back, err := Read(c.Dir)
	if err != nil || back.Name != c.Name || back.Addresses[0] != c.Addresses[0] {
		t.Errorf("%+v, %v", back, err)
	}
	if _, err := Read(t.TempDir()); err == nil {
		t.Error("read a node that is not there")
	}
}

func TestStoreCloneSharesContentNotDatabases(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "clone")
	for path, text := range map[string]string{"content/blob": "immutable", "meta/meta.db": "written"} {
		path = filepath.Join(from, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("blob", filepath.Join(from, "content/link")); err != nil {
		t.Fatal(err)
	}
	if err := CloneStore(from, to); err != nil {
		t.Fatal(err)
	}
	if inode(t, from, "content/blob") != inode(t, to, "content/blob") {
		t.Error("content is copied, not linked")
	}
	if inode(t, from, "meta/meta.db") == inode(t, to, "meta/meta.db") {
		t.Error("two nodes would write one database")
	}
	if target, err := os.Readlink(filepath.Join(to, "content/link")); err != nil || target != "blob" {
		t.Errorf("link to %q, %v", target, err)
	}
}

func inode(t *testing.T, folder, path string) uint64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(folder, path))
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func TestKubeletConfigIsYAML(t *testing.T) {
	raw, err := yaml.Marshal(kubeletObject(Config{Name: "worker-1", PKI: "/pki", ClusterDNS: []netip.Addr{netip.MustParseAddr("10.151.0.10")}}))
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		ClusterDNS  []string `json:"clusterDNS"`
		TLSCertFile string   `json:"tlsCertFile"`
	}
	if err := yaml.Unmarshal(raw, &back); err != nil || back.ClusterDNS[0] != "10.151.0.10" || back.TLSCertFile != "/pki/worker-1.crt" {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestAliveKnowsTheLivingOnly(t *testing.T) {
	if !Alive(os.Getpid()) {
		t.Error("this process is dead")
	}
	child, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	pid := child.Pid
	if _, err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if Alive(pid) {
		t.Error("a process that was waited for is alive")
	}
}
