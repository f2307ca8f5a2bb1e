// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Configurations of other networks hold credentials: none may leave the node.
func TestCNIConfigurationsWithoutSecrets(t *testing.T) {
	dir := t.TempDir()
	const canary = "hunter2-canary"
	for name, text := range map[string]string{
		"05-ours.conflist": `{"cniVersion":"1.1.0","name":"kube-cilium","plugins":[{"type":"cilium-cni","mtu":1450,"capabilities":{"portMappings":true}}]}`,
		"10-other.conf":    `{"cniVersion":"0.4.0","name":"x","type":"calico","kubernetes":{"token":"` + canary + `"},"ipam":{"type":"host-local","etcd_password":"` + canary + `"}}`,
		"20-multus.conf":   `{"name":"m","type":"multus","kubeconfig":"` + canary + `","delegates":[{"name":"d","plugins":[{"type":"bridge","password":"` + canary + `"}]}]}`,
		"30-broken.conf":   `{"name": ` + canary,
		"kubeconfig":       canary,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := readConfs(dir)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(all)
	if strings.Contains(string(text), canary) {
		t.Errorf("a secret is told: %s", text)
	}
	if len(all) != 4 || all[0].Plugins[0].Type != "cilium-cni" || all[0].Plugins[0].MTU != "1450" || all[1].Type != "calico" ||
		all[2].Delegates[0].Plugins[0].Type != "bridge" || all[3].Error == "" {
		t.Errorf("%s", text)
	}
}
