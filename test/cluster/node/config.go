// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/kube-cilium/kube-cilium/test/cluster/cgroup"
)

// Config is everything that a node's first process must know. It is written
// to a file beside the node's state, so that a node can be looked at.
type Config struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	// Number counts workers from 1.
	Number    int          `json:"number"`
	Addresses []netip.Addr `json:"addresses"`
	// Space is the name of the node's network namespace, Cgroup its path in
	// every hierarchy.
	Space     string      `json:"space"`
	Cgroup    string      `json:"cgroup"`
	Hierarchy cgroup.Tree `json:"hierarchy"`
	// Dir is the node's state on disk; Shared is also seen inside the node,
	// at the same path.
	Dir    string   `json:"dir"`
	Shared []string `json:"shared"`
	PKI    string   `json:"pki"`
	// Binaries by name, and the folders with the CNI plugins and the runtime.
	Binaries map[string]string `json:"binaries"`
	// Images are archives to import that the store does not hold yet.
	Images []string `json:"images"`
	// Pods are the node's own prefixes, given out by host-local when Bridge.
	Pods        []netip.Prefix `json:"pods"`
	ClusterPods []netip.Prefix `json:"clusterPods"`
	ClusterDNS  []netip.Addr   `json:"clusterDNS"`
	// Resolver is the name server of the node itself.
	Resolver []netip.Addr `json:"resolver"`
	Bridge   bool         `json:"bridge"`
	// KubeProxy is "", "iptables" or "nftables".
	KubeProxy string `json:"kubeProxy"`
	// StoreOnly fills the image store and ends, instead of becoming a node.
	StoreOnly bool `json:"storeOnly,omitempty"`
}

// file is where Config lies in the node's folder.
func file(dir string) string { return filepath.Join(dir, "node.json") }

// Write stores the configuration in the node's folder.
func (c Config) Write() error {
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("node %s: %w", c.Name, err)
	}
	if err := os.WriteFile(file(c.Dir), raw, 0o600); err != nil {
		return fmt.Errorf("node %s: %w", c.Name, err)
	}
	return nil
}

// Read loads the configuration from a node's folder.
func Read(dir string) (Config, error) {
	var c Config
	raw, err := os.ReadFile(file(dir))
	if err != nil {
		return c, fmt.Errorf("node: %w", err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("node: %s: %w", file(dir), err)
	}
	return c, nil
}
