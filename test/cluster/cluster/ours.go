// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// ErrInstall says that our installation is not in the source tree.
var ErrInstall = errors.New("config/default is not there")

// systemNamespace is where config/default puts us.
const systemNamespace = "kube-cilium-system"

type object = map[string]any

// installOurs does what an administrator does: say where the API server is,
// apply config/default, then the one CiliumConfig.
func (h *Host) installOurs(ctx context.Context, state *State) error {
	install := filepath.Join(h.Source, "config", "default")
	if _, err := os.Stat(filepath.Join(install, "kustomization.yaml")); err != nil {
		return fmt.Errorf("--cni ours: %w: %w", ErrInstall, err)
	}
	config, err := state.ciliumConfig()
	if err != nil {
		return err
	}
	first, err := state.beforeInstall()
	if err != nil {
		return err
	}
	if err := state.apply(ctx, first); err != nil {
		return err
	}
	if _, err := state.kubectl(ctx, "", "apply", "--server-side", "--kustomize", install); err != nil {
		return err
	}
	if err := state.wait(ctx, "wait", "--for=condition=Established", "crd/ciliumconfigs.kube-cilium.io"); err != nil {
		return err
	}
	return state.apply(ctx, config)
}

// beforeInstall is the namespace and the API server's addresses: agents must
// reach it before any Service works.
func (state *State) beforeInstall() (string, error) {
	return manifest(
		object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": systemNamespace}},
		object{
			"apiVersion": "v1", "kind": "ConfigMap",
			"metadata": object{"name": "cilium-api-servers", "namespace": systemNamespace},
			"data":     object{"KUBERNETES_API_SERVERS": strings.Join(state.AgentServers, ",")},
		},
	)
}

// ciliumConfig is the user's file, or one with the cluster's pod ranges.
func (state *State) ciliumConfig() (string, error) {
	if state.CiliumConfig != "" {
		raw, err := os.ReadFile(state.CiliumConfig)
		if err != nil {
			return "", fmt.Errorf("--cilium-config: %w", err)
		}
		return string(raw), nil
	}
	return GeneratedConfig(state.Ranges.Pods)
}

// GeneratedConfig is a CiliumConfig with these pools: a /24 and a /64 a node.
func GeneratedConfig(pods []netip.Prefix) (string, error) {
	ipam := object{}
	for _, p := range pods {
		family, size := "ipv4", 24
		if p.Addr().Is6() {
			family, size = "ipv6", 64
		}
		ipam[family] = object{"cidrs": []string{p.String()}, "maskSize": size}
	}
	return manifest(object{
		"apiVersion": "kube-cilium.io/v1alpha1", "kind": "CiliumConfig",
		"metadata": object{"name": "default"}, "spec": object{"ipam": ipam},
	})
}

func manifest(objects ...object) (string, error) {
	var out strings.Builder
	for _, o := range objects {
		raw, err := yaml.Marshal(o)
		if err != nil {
			return "", fmt.Errorf("manifest: %w", err)
		}
		out.WriteString("---\n")
		out.Write(raw)
	}
	return out.String(), nil
}
