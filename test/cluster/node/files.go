// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/kube-cilium/kube-cilium/test/cluster/image"
)

// object is a JSON or YAML object as it is written out.
type object = map[string]any

const (
	kubeletConfig = "/etc/kubernetes/kubelet.yaml"
	proxyConfig   = "/etc/kubernetes/kube-proxy.yaml"
	staticPods    = "/etc/kubernetes/manifests"
	plugins       = "/opt/cni/bin"
)

// writeFiles writes the node's configuration under the standard paths.
func writeFiles(c Config) error {
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	for _, a := range c.Addresses {
		hosts += fmt.Sprintf("%s %s\n", a, c.Name)
	}
	var resolv strings.Builder
	for _, a := range c.Resolver {
		fmt.Fprintf(&resolv, "nameserver %s\n", a)
	}
	kubelet, err := yaml.Marshal(kubeletObject(c))
	if err != nil {
		return err
	}
	proxy, err := yaml.Marshal(proxyObject(c))
	if err != nil {
		return err
	}
	for path, text := range map[string]string{
		"/etc/hosts":                  hosts,
		"/etc/hostname":               c.Name + "\n",
		"/etc/resolv.conf":            resolv.String(),
		"/etc/machine-id":             fmt.Sprintf("%032x\n", c.Number),
		"/etc/containerd/config.toml": containerdConfig,
		kubeletConfig:                 string(kubelet),
		proxyConfig:                   string(proxy),
	} {
		if err := replace(path, text); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(staticPods, 0o755); err != nil {
		return err
	}
	if err := copyPlugins(c); err != nil {
		return err
	}
	for _, name := range []string{"containerd", "ctr", "runc", "kubectl"} {
		if err := relink(c.Binaries[name], filepath.Join("/usr/local/bin", name)); err != nil {
			return err
		}
	}
	return writeBridge(c)
}

// relink makes a symbolic link anew, for people who look around in a node.
func relink(target, path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// replace writes a file anew: the machine's may be a link to somewhere else.
func replace(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// containerdConfig: without CAP_SYS_RESOURCE runc cannot write a negative
// oom_score_adj and a pod ends in "can't get final child's PID from pipe".
const containerdConfig = `version = 3
disabled_plugins = ['io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing', 'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.erofs']
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '` + image.PauseRef + `'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['` + plugins + `']
    conf_dir = '/etc/cni/net.d'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
`

func kubeletObject(c Config) object {
	threshold := object{}
	for _, signal := range []string{"memory.available", "nodefs.available", "imagefs.available", "nodefs.inodesFree", "imagefs.inodesFree"} {
		threshold[signal] = "0%" // the disk is the machine's: a full one must not evict
	}
	return object{
		"apiVersion":               "kubelet.config.k8s.io/v1beta1",
		"kind":                     "KubeletConfiguration",
		"failCgroupV1":             false,
		"cgroupDriver":             "cgroupfs",
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": filepath.Join(c.PKI, "ca.crt")},
		},
		"authorization":               object{"mode": "Webhook"},
		"tlsCertFile":                 filepath.Join(c.PKI, c.Name+".crt"),
		"tlsPrivateKeyFile":           filepath.Join(c.PKI, c.Name+".key"),
		"clusterDomain":               "cluster.local",
		"clusterDNS":                  c.ClusterDNS,
		"resolvConf":                  "/etc/resolv.conf",
		"staticPodPath":               staticPods,
		"failSwapOn":                  false,
		"evictionHard":                threshold,
		"imageGCHighThresholdPercent": 100,
		"nodeStatusUpdateFrequency":   "5s",
		"syncFrequency":               "10s",
		"volumePluginDir":             "/var/lib/kubelet/volume-plugins",
		"maxPods":                     250,
		"serializeImagePulls":         false,
	}
}

func proxyObject(c Config) object {
	// Connection tracking limits are the machine's, not this namespace's.
	return object{
		"apiVersion":       "kubeproxy.config.k8s.io/v1alpha1",
		"kind":             "KubeProxyConfiguration",
		"clientConnection": object{"kubeconfig": filepath.Join(c.PKI, "kube-proxy.kubeconfig")},
		"mode":             c.KubeProxy,
		"hostnameOverride": c.Name,
		"clusterCIDR":      join(c.ClusterPods),
		"conntrack":        object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

// writeBridge configures the reference bridge plugin, when it is the cluster's network.
func writeBridge(c Config) error {
	if !c.Bridge {
		return nil
	}
	var pools []any
	var routes []any
	for _, p := range c.Pods {
		pools = append(pools, []any{object{"subnet": p.String()}})
		everything := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if p.Addr().Is4() {
			everything = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		routes = append(routes, object{"dst": everything.String()})
	}
	raw, err := json.MarshalIndent(object{
		"cniVersion": "1.0.0", "name": "bridge", "plugins": []any{
			object{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				"ipam": object{"type": "host-local", "ranges": pools, "routes": routes},
			},
			object{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return err
	}
	return replace("/etc/cni/net.d/10-bridge.conflist", string(raw))
}

// copyPlugins puts the reference plugins where a node has them.
func copyPlugins(c Config) error {
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"bridge", "host-local", "loopback", "portmap", "ptp"} {
		if err := copyFile(c.Binaries[name], filepath.Join(plugins, name)); err != nil {
			return fmt.Errorf("CNI plugin %s: %w", name, err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

func join[T fmt.Stringer](items []T) string {
	var words []string
	for _, item := range items {
		words = append(words, item.String())
	}
	return strings.Join(words, ",")
}
