// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/kube-cilium/kube-cilium/cni"
)

// errOtherCNI means that another CNI makes this node's network. Nothing is touched until a person takes it away.
var errOtherCNI = errors.New("another CNI is live on this node (take it away from this node first, then we go on by ourselves)")

// ConfName is the name of our configuration file. It never changes: two versions of it would be two networks.
const ConfName = "05-kube-cilium.conflist"

// installCheck is how often the files are looked at.
const installCheck = 5 * time.Second

// liveDevices match interfaces that only another CNI's running datapath has: its own, and the host's ends of its pods'.
var liveDevices = regexp.MustCompile(`^(` + strings.Join([]string{
	`cilium_(host|net|vxlan|geneve|wg0)|lxc_health|lxc[0-9a-f]{12}`,
	`flannel\.[0-9]+|flannel-v6\.[0-9]+|flannel-wg(-v6)?|cni0`,
	`vxlan\.calico|vxlan-v6\.calico|wireguard\.cali|wg-v6\.cali|cali[0-9a-f]{11}`,
	`weave|vethwe-bridge|antrea-(gw|tun)0|kube-bridge|ovn-k8s-mp[0-9]+`,
	`eni[0-9a-f]{11}|vlan\.eth\.[0-9]+|pod-id-link0`, // AWS VPC CNI
	`azure0|azv[0-9a-f]{7,11}`,                       // Azure CNI
	`gke[0-9a-f]{11}`,
}, "|") + `)$`)

// knownConfs match configurations of CNIs that may leave no interface to know them by, such as kindnet.
var knownConfs = regexp.MustCompile(`^[0-9]+-(aws|azure|kindnet|calico|canal|flannel|weave|antrea|kuberouter|ovn-kubernetes|cilium|gke-ptp)\.(conf|conflist|json)$`)

// Install puts the plugin and its configuration where the container runtime looks, and puts them back when somebody
// overwrites or removes them. Both stay when the agent ends: the plugin queues what it is asked meanwhile.
type Install struct {
	// Plugin is our copy of the binary.
	Plugin string
	// BinDir and ConfDir are the runtime's, as the agent sees them.
	BinDir, ConfDir string
	// SocketDir and StateDir are named in the configuration where they are not the plugin's defaults.
	SocketDir, StateDir string
	Log                 logr.Logger

	// devices names the node's interfaces; nil: ask the kernel.
	devices func() ([]string, error)

	mu  sync.Mutex
	err error
	set bool
	was os.FileInfo // of the installed binary when it was last compared
}

// Run keeps the files in place until ctx ends.
func (i *Install) Run(ctx context.Context) error {
	for {
		err := i.ensure()
		i.mu.Lock()
		if err != nil && (i.err == nil || i.err.Error() != err.Error()) {
			i.Log.Error(err, "the CNI configuration is not in place")
		}
		i.err, i.set = err, err == nil
		i.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(installCheck):
		}
	}
}

// Installed tells whether the runtime can call the plugin, and if not why.
func (i *Install) Installed() (bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.set, i.err
}

// Blocked returns errOtherCNI when another CNI is live here.
func (i *Install) Blocked() error {
	devices := i.devices
	if devices == nil {
		devices = deviceNames
	}
	names, err := devices()
	if err != nil {
		return err
	}
	for _, name := range names {
		if liveDevices.MatchString(name) {
			return fmt.Errorf("%w: interface %s", errOtherCNI, name)
		}
	}
	entries, err := os.ReadDir(i.ConfDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("CNI configurations: %w", err)
	}
	been := slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == ConfName })
	for _, e := range entries {
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		path := filepath.Join(i.ConfDir, e.Name())
		// The runtime takes the first by name; what comes after ours is never used. Before ours is there it is.
		if e.Name() < ConfName && !callsUs(path) {
			return fmt.Errorf("%w: %s comes before %s", errOtherCNI, path, ConfName)
		}
		if e.Name() > ConfName && !been && knownConfs.MatchString(e.Name()) {
			return fmt.Errorf("%w: %s", errOtherCNI, path)
		}
	}
	return nil
}

// callsUs tells whether a configuration is that of Multus, which makes no network of its own, and what it calls is not
// somebody else: what it wrote down before a reboot is our configuration, and its newer form asks a daemon.
func callsUs(path string) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	type plugin struct{ Name, Type string }
	type list struct {
		plugin
		Plugins []plugin
	}
	var conf struct {
		list
		Delegates []list
	}
	if err := json.Unmarshal(data, &conf); err != nil {
		return false
	}
	for _, p := range append(conf.Plugins, conf.plugin) {
		if p.Type != "" && p.Type != "multus" && p.Type != "multus-shim" {
			return false
		}
	}
	for _, d := range conf.Delegates {
		ours := func(p plugin) bool { return p.Type == cni.PluginType }
		if d.Name != cni.NetworkName || !ours(d.plugin) && !slices.ContainsFunc(d.Plugins, ours) {
			return false
		}
	}
	return conf.Type != "" || len(conf.Plugins) > 0
}

func deviceNames() ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("interfaces of this host: %w", err)
	}
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	return names, nil
}

// ensure puts the binary before the configuration that names it.
func (i *Install) ensure() error {
	if err := i.Blocked(); err != nil {
		return err
	}
	if err := i.ensureBinary(); err != nil {
		return fmt.Errorf("install the plugin: %w", err)
	}
	want, err := i.conf()
	if err != nil {
		return err
	}
	path := filepath.Join(i.ConfDir, ConfName)
	have, err := os.ReadFile(path)
	if err == nil && bytes.Equal(have, want) && modeOfFile(path) == 0o600 {
		return nil
	}
	if err := os.MkdirAll(i.ConfDir, 0o755); err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	cni.RemoveUnfinished(path)
	if err := cni.WriteFile(path, want, 0o600); err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	i.Log.Info("the CNI configuration is written", "path", path)
	return nil
}

// conf is what the runtime reads. It negotiates the newest version that both sides know.
func (i *Install) conf() ([]byte, error) {
	plugin := map[string]any{"type": cni.PluginType}
	if i.SocketDir != cni.DefaultSocketDir {
		plugin["socketDir"] = i.SocketDir
	}
	if i.StateDir != cni.DefaultStateDir {
		plugin["stateDir"] = i.StateDir
	}
	data, err := json.MarshalIndent(map[string]any{
		"cniVersion":  "1.0.0",
		"cniVersions": []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"},
		"name":        cni.NetworkName,
		"plugins":     []any{plugin},
	}, "", "  ")
	return append(data, '\n'), err
}

// ensureBinary compares contents only when size, time or mode of the installed file have changed.
func (i *Install) ensureBinary() error {
	path := filepath.Join(i.BinDir, cni.PluginType)
	now, err := os.Lstat(path)
	if err == nil && i.was != nil && now.Mode() == i.was.Mode() && now.Size() == i.was.Size() && now.ModTime().Equal(i.was.ModTime()) {
		return nil
	}
	same, cerr := false, error(nil)
	if err == nil && now.Mode() == 0o755 { // a regular file, and no bit that lends its owner's rights (CVE-2024-33522)
		same, cerr = sameFile(path, i.Plugin)
	}
	if cerr != nil {
		return cerr
	}
	if !same {
		if err := i.copyBinary(path); err != nil {
			return err
		}
		i.Log.Info("the CNI plugin is installed", "path", path)
	}
	i.was, err = os.Lstat(path)
	return err
}

// copyBinary replaces the file in one step: one that runs goes on with the old one.
func (i *Install) copyBinary(path string) error {
	if err := os.MkdirAll(i.BinDir, 0o755); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(i.BinDir, "."+cni.PluginType+".*"))
	if err == nil {
		for _, o := range old {
			_ = os.Remove(o) // of an agent that died while it copied
		}
	}
	from, err := os.Open(i.Plugin)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // only read
	to, err := os.CreateTemp(i.BinDir, "."+cni.PluginType+".")
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	err = errors.Join(err, to.Chmod(0o755), to.Sync(), to.Close())
	if err == nil {
		err = os.Rename(to.Name(), path)
	}
	if err != nil {
		_ = os.Remove(to.Name())
	}
	return err
}

func sameFile(a, b string) (bool, error) {
	fa, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer fa.Close() //nolint:errcheck // only read
	fb, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer fb.Close() //nolint:errcheck // only read
	bufA, bufB := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		na, ea := io.ReadFull(fa, bufA)
		nb, eb := io.ReadFull(fb, bufB)
		if !bytes.Equal(bufA[:na], bufB[:nb]) {
			return false, nil
		}
		if ea != nil || eb != nil {
			return isEnd(ea) && isEnd(eb), nil
		}
	}
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func modeOfFile(path string) fs.FileMode {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	return info.Mode()
}

// findCgroup2 is the cgroup2 mount at or below root: the host's whole tree, also in hybrid mode.
func findCgroup2(root string) string {
	for _, dir := range []string{root, filepath.Join(root, "unified")} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			return dir
		}
	}
	return root
}
