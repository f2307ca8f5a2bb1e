// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
)

// SetRoutes came while a pod was between its entry and its interface being set up, and was refused its routes with
// "network is down"; it is for peers' routes alone.
func TestSetRoutesMetAPodThatIsBeingWired(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p := f.addPod(d, 5)
	must(t, netlink.LinkSetDown(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: p.Ifindex}}))
	must(t, d.SetRoutes([]Route{{Prefix: netip.MustParsePrefix("10.78.1.0/24")}}))
	must(t, d.refresh(t.Context()))
	if got := ourRoutesText(t); len(got) != 3 {
		t.Errorf("routes %v, want the peer's and two of the pod", got)
	}
}

// Pods' interfaces go by themselves, with their namespace, while a repair or the removal of everything works on them:
// "delete neighbour 10.7.0.9: no such device".
func TestRepairAndUninstallMetPodsThatWereGoing(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	const pods = 12
	for round := range 3 {
		var all []Pod
		for i := range pods {
			all = append(all, f.addPod(d, uint16(1+round*pods+i)))
		}
		// As if somebody had taken all of it away: the repair has everything to do.
		for _, p := range all {
			must(t, d.removePodRoutes(p))
		}
		var going sync.WaitGroup
		going.Go(func() {
			for _, p := range all {
				_ = netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: p.Interface, Index: p.Ifindex}})
			}
		})
		if round < 2 {
			for range 4 {
				if err := d.refresh(t.Context()); err != nil {
					t.Errorf("repair: %v", err)
				}
				if err := d.SetRoutes(nil); err != nil {
					t.Errorf("routes: %v", err)
				}
			}
		} else if err := Uninstall(f.opts); err != nil {
			t.Errorf("uninstall: %v", err)
		}
		going.Wait()
	}
	// What had gone before it was looked at.
	neighbours := podNeighbours(Pod{IPv4: netip.MustParseAddr("10.77.0.9"), IPv6: netip.MustParseAddr("fd77::9"), MAC: []byte{2, 0, 0, 0, 1, 9}, Ifindex: 1 << 20})
	must(t, repairNeighbours(neighbours))
	must(t, removePermanentNeighbours(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "gone", Index: 1 << 20}}))
	must(t, removeFilters(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "gone", Index: 1 << 20}}))
	must(t, d.removePodRoutes(Pod{IPv4: netip.MustParseAddr("10.77.0.9"), IPv6: netip.MustParseAddr("fd77::9"), MAC: []byte{2, 0, 0, 0, 1, 9}, Ifindex: 1 << 20}))
	gone := route{prefix: netip.MustParsePrefix("10.77.0.9/32"), ifindex: 1 << 20}
	must(t, repairRoutes([]route{gone}, func(netip.Prefix, netlink.Route) bool { return false }, func(int) bool { return true }))
	if err := repairRoutes([]route{gone}, func(netip.Prefix, netlink.Route) bool { return false }, func(int) bool { return false }); err == nil {
		t.Error("a route to a peer whose device is missing is no error")
	}
}
