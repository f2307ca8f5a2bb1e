// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

// tableKeeper takes every table; atRoutes is called while routes are being written.
type tableKeeper struct{ atRoutes func() }

func (tableKeeper) Configure(context.Context, datapath.Config) error { return nil }
func (tableKeeper) SetHostAddresses([]netip.Addr) error              { return nil }
func (tableKeeper) SetPeers(map[netip.Addr]datapath.Peer) error      { return nil }
func (tableKeeper) SetPrefixes(map[netip.Prefix]datapath.Peer) error { return nil }
func (k tableKeeper) SetRoutes([]datapath.Route) error               { k.atRoutes(); return nil }

// A report said that a generation was observed, and Ready, while the routes of the mode before were still in the kernel:
// whoever waited for it found hosts that did not reach other nodes' pods.
func TestGenerationObservedBeforeItsRoutes(t *testing.T) {
	n := &Network{node: "me", addresses: ipam.NewAllocator(time.Now), log: logr.Discard()}
	var during int64
	n.datapath = tableKeeper{atRoutes: func() { during = n.InForce().generation }}
	own := v1alpha1.CiliumNode{}
	own.Name = "me"
	own.Spec.PodCIDRs = []string{"10.1.0.0/24", "fd00:1::/64"}
	own.Status.Addresses = []v1alpha1.NodeAddress{{Type: v1alpha1.NodeInternalIP, Address: "192.0.2.1"}}
	for generation, mode := range []v1alpha1.RoutingMode{v1alpha1.RoutingVXLAN, v1alpha1.RoutingNative} {
		w := world{self: "me", nodes: []v1alpha1.CiliumNode{own}}
		w.spec.Routing.Mode = mode
		if err := n.write(t.Context(), w, own, int64(generation+1), true); err != nil {
			t.Fatal(err)
		}
		if during != int64(generation) {
			t.Errorf("%s: generation %d was observed while its routes were written", mode, during)
		}
		if got := n.InForce().generation; got != int64(generation+1) {
			t.Errorf("%s: generation %d is observed after all was written, want %d", mode, got, generation+1)
		}
	}
}
