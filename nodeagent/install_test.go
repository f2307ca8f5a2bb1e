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
		SocketDir: cni.DefaultSocketDir, StateDir: cni.DefaultStateDir, Log: testr.New(t), devices: func() ([]string, error) { return nil, nil },
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
	const ours = `{"name": "kube-cilium", "plugins": [{"type": "cilium-cni"}]}`
	for _, row := range []struct {
		name string
		// files are other configurations, name -> content.
		files   map[string]string
		devices []string
		// been: our configuration is there, from before a reboot.
		been, refused bool
	}{
		{"nothing", nil, []string{"lo", "eth0", "eni0", "calico0", "kc0123456789ab", "veth12345678"}, false, false},
		{"a configuration before ours", map[string]string{"00-other.conflist": "{}"}, nil, true, true},
		{"one that comes after and nobody knows", map[string]string{"10-other.conflist": "{}"}, nil, false, false},
		{"upstream's, which comes before", map[string]string{"05-cilium.conflist": `{"name": "cilium", "plugins": [{"type": "cilium-cni"}]}`}, nil, true, true},
		{"kindnet's", map[string]string{"10-kindnet.conflist": "{}"}, nil, false, true},
		{"kindnet's, left from before we came", map[string]string{"10-kindnet.conflist": "{}"}, nil, true, false},
		{"AWS's", map[string]string{"10-aws.conflist": "{}"}, nil, false, true},
		{"Calico's", map[string]string{"10-calico.conflist": "{}"}, nil, false, true},
		{"flannel's", map[string]string{"10-flannel.conflist": "{}"}, nil, false, true},
		{"upstream's devices", nil, []string{"lo", "cilium_host"}, true, true},
		{"a pod of Calico", nil, []string{"cali0123456789a"}, true, true},
		{"a pod of AWS", nil, []string{"eni0123456789a"}, true, true},
		{"a pod of AWS with a network of its own", nil, []string{"vlan.eth.2"}, true, true},
		{"a pod of Azure", nil, []string{"azv1234567"}, true, true},
		{"flannel on VXLAN 7", nil, []string{"flannel.7"}, true, true},
		{"Multus that calls us", map[string]string{"00-multus.conf": `{"name": "multus-cni-network", "type": "multus", "delegates": [` + ours + `]}`}, nil, false, false},
		{"Multus that asks its daemon", map[string]string{"00-multus.conf": `{"name": "multus-cni-network", "type": "multus-shim"}`}, nil, false, false},
		{"Multus in a list", map[string]string{"00-multus.conflist": `{"name": "m", "plugins": [{"type": "multus-shim"}]}`}, nil, true, false},
		{"Multus that calls another", map[string]string{"00-multus.conf": `{"type": "multus", "delegates": [{"name": "cbr0", "type": "bridge"}]}`}, nil, true, true},
		{"Multus that calls upstream", map[string]string{"00-multus.conf": `{"type": "multus", "delegates": [{"name": "cilium", "plugins": [{"type": "cilium-cni"}]}]}`}, nil, true, true},
		{"half a file", map[string]string{"00-multus.conf": `{"type": "mul`}, nil, true, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			i := newInstall(t)
			if row.been {
				nodetest.Must(t, i.ensure())
			}
			nodetest.Must(t, os.MkdirAll(i.ConfDir, 0o755))
			for name, content := range row.files {
				nodetest.Must(t, os.WriteFile(filepath.Join(i.ConfDir, name), []byte(content), 0o600))
			}
			i.devices = func() ([]string, error) { return row.devices, nil }
			if err := i.ensure(); errors.Is(err, errOtherCNI) != row.refused || err != nil && !row.refused {
				t.Errorf("got %v", err)
			}
			for name, content := range row.files {
				if got, err := os.ReadFile(filepath.Join(i.ConfDir, name)); err != nil || string(got) != content {
					t.Errorf("%s was touched: %q, %v", name, got, err)
				}
			}
		})
	}
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
