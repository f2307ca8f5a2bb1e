// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-logr/logr/testr"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

func newInstall(t *testing.T) *Install {
	t.Helper()
	i := &Install{
		Plugin: filepath.Join(t.TempDir(), "plugin"), BinDir: filepath.Join(t.TempDir(), "bin"), ConfDir: filepath.Join(t.TempDir(), "net.d"),
		SocketDir: cni.DefaultSocketDir, StateDir: cni.DefaultStateDir, Log: testr.New(t), device: func(string) bool { return false },
	}
	nodetest.Must(t, os.WriteFile(i.Plugin, []byte("the plugin"), 0o700))
	return i
}

func (i *Install) expectWhole(t *testing.T) {
	t.Helper()
	bin, conf := filepath.Join(i.BinDir, "cilium-cni"), filepath.Join(i.ConfDir, ConfName)
	want, err := os.ReadFile(i.Plugin)
	nodetest.Must(t, err)
	if got, err := os.ReadFile(bin); err != nil || string(got) != string(want) {
		t.Errorf("binary %q, %v", got, err)
	}
	// CVE-2024-33522: an installer left its binary with the SUID bit.
	if m := modeOfFile(bin); m != 0o755 {
		t.Errorf("the binary has mode %v", m)
	}
	if m := modeOfFile(conf); m != 0o600 {
		t.Errorf("the configuration has mode %v", m)
	}
	data, err := os.ReadFile(conf)
	nodetest.Must(t, err)
	var list struct {
		CNIVersion, Name string
		CNIVersions      []string
		Plugins          []json.RawMessage
	}
	nodetest.Must(t, json.Unmarshal(data, &list))
	if list.Name != cni.NetworkName || len(list.Plugins) != 1 || len(list.CNIVersions) != 4 {
		t.Errorf("%s", data)
	}
	for _, dir := range []string{i.BinDir, i.ConfDir} {
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("%s holds %v", dir, entries)
		}
	}
}

func TestInstallPutsItselfBack(t *testing.T) {
	i := newInstall(t)
	bin, conf := filepath.Join(i.BinDir, "cilium-cni"), filepath.Join(i.ConfDir, ConfName)
	for name, harm := range map[string]func() error{
		"first":        func() error { return nil },
		"no binary":    func() error { return os.Remove(bin) },
		"no conf":      func() error { return os.Remove(conf) },
		"other binary": func() error { return os.WriteFile(bin, []byte("another!!!"), 0o755) },
		"suid":         func() error { return os.Chmod(bin, 0o755|fs.ModeSetuid) },
		"writable":     func() error { return os.Chmod(bin, 0o777) },
		"link":         func() error { return errors.Join(os.Remove(bin), os.Symlink("/bin/true", bin)) },
		"other conf":   func() error { return os.WriteFile(conf, []byte("{}"), 0o600) },
		"open conf":    func() error { return os.Chmod(conf, 0o644) },
		"leftover": func() error {
			return errors.Join(os.Remove(bin), os.WriteFile(filepath.Join(i.BinDir, ".cilium-cni.123"), nil, 0o600))
		},
		"upgrade": func() error { i.was = nil; return os.WriteFile(i.Plugin, []byte("a newer plugin"), 0o700) },
	} {
		nodetest.Must(t, i.ensure())
		nodetest.Must(t, harm())
		nodetest.Must(t, i.ensure())
		t.Run(name, i.expectWhole)
	}
}

func TestInstallRefusesBesideAnotherCNI(t *testing.T) {
	i := newInstall(t)
	nodetest.Must(t, i.ensure())
	other := filepath.Join(i.ConfDir, "00-other.conflist")
	nodetest.Must(t, os.WriteFile(other, []byte("{}"), 0o600))
	if err := i.ensure(); !errors.Is(err, errOtherCNI) {
		t.Errorf("a configuration before ours: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("it was touched: %v", err)
	}
	nodetest.Must(t, os.Rename(other, filepath.Join(i.ConfDir, "10-other.conflist")))
	nodetest.Must(t, i.ensure())
	i.device = func(name string) bool { return name == "cilium_host" }
	if err := i.ensure(); !errors.Is(err, errOtherCNI) {
		t.Errorf("a live datapath: %v", err)
	}
	i.device = func(string) bool { return false }
	nodetest.Must(t, i.ensure())
}

// cilium #30609, #16669: an agent that ended took its configuration along, the node became
// NotReady and its pods were evicted.
func TestConfigurationStaysWhenTheAgentEnds_30609(t *testing.T) {
	i := newInstall(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	waitFor(t, "the installation", func() error {
		if ok, err := i.Installed(); !ok {
			return fmt.Errorf("not installed: %w", err)
		}
		return nil
	})
	cancel()
	nodetest.Must(t, <-done)
	i.expectWhole(t)
}
