// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	_ "embed"
	"fmt"
	"net/netip"
	"strings"

	"github.com/kube-cilium/kube-cilium/test/cluster/image"
)

//go:embed coredns.yaml
var coreDNS string

// dnsManifest is cluster DNS at the address that kubelets tell pods.
func (state *State) dnsManifest() string {
	return strings.NewReplacer(
		"${IMAGE}", image.CoreDNSRef,
		"${CLUSTER_IP}", state.ClusterDNS[0].String(),
		"${CLUSTER_IPS}", quotedAddrs(state.ClusterDNS),
		"${REVERSE}", "in-addr.arpa ip6.arpa",
	).Replace(coreDNS)
}

func quotedAddrs(addresses []netip.Addr) string {
	var words []string
	for _, a := range addresses {
		words = append(words, fmt.Sprintf("%q", a))
	}
	return strings.Join(words, ", ")
}
