// SPDX-License-Identifier: Apache-2.0

// Cilium-cni is the CNI plugin: it hands what the container runtime asks to the node agent.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/version"
)

func main() {
	skel.PluginMainFuncs(cni.Functions(), cniversion.All, "CNI plugin "+cni.PluginType+" "+version.Version)
}
