// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net/netip"

	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
	"github.com/kube-cilium/kube-cilium/test/cluster/ranges"
)

// The underlay, one namespace a box:
//
//	worker-1      worker-2      outside
//	  eth0          eth0       eth0  world0
//	   |             |          |      |      198.18.X.1
//	   w1            w2      outside   |
//	    \            |         /       |
//	     +--- br0 ---+--------+   world0      198.18.X.254
//	          .1       control plane, router
//
// A worker reaches outside's address on the link directly, and its world
// address through the router .1, as a host in the world is reached. A second
// uplink is the same once more: eth1 and br1.
const (
	bridge      = "br0"
	bridge2     = "br1"
	worldDevice = "world0"
	worldHost   = 1
	worldRouter = 254
	worldTable  = 100
	// IPv6 takes 0 for 1024, so the first uplink's metric is said too.
	firstMetric  = 100
	secondMetric = 200
)

// layOut makes the namespaces and the links between them.
func (state *State) layOut() error {
	for _, space := range state.spaces() {
		if err := netspace.Make(space); err != nil {
			return err
		}
	}
	r, cp := state.Ranges, state.ControlPlane.Space
	if err := netspace.Bridge(cp, bridge, ranges.On(r.Nodes, ranges.GatewayHost)); err != nil {
		return err
	}
	if state.Uplinks == 2 {
		if err := netspace.Bridge(cp, bridge2, ranges.On(r.Uplink2, ranges.GatewayHost)); err != nil {
			return err
		}
	}
	if err := netspace.Do(cp, routerSysctls); err != nil {
		return err
	}
	for number, n := range state.Nodes {
		port := fmt.Sprintf("w%d", number+1)
		if err := state.connect(n.Space, port, ranges.WorkerBase+number+1); err != nil {
			return err
		}
	}
	if err := state.connect(state.Outside.Space, "outside", ranges.OutsideHost); err != nil {
		return err
	}
	if err := state.world(); err != nil {
		return err
	}
	if state.CNI == CNIBridge {
		return state.podRoutes()
	}
	return nil
}

// spaces lists the cluster's namespaces by name.
func (state *State) spaces() []string {
	names := []string{state.ControlPlane.Space, state.Outside.Space}
	for _, n := range state.Nodes {
		names = append(names, n.Space)
	}
	return names
}

// routerSysctls make the control plane's namespace the workers' router. It
// must see frames between workers as frames: no netfilter on the bridge.
func routerSysctls() error {
	return netspace.Sysctl(map[string]string{
		"net/ipv4/ip_forward":                  "1",
		"net/ipv4/conf/all/rp_filter":          "0",
		"net/ipv4/conf/default/rp_filter":      "0",
		"net/ipv4/conf/all/send_redirects":     "0",
		"net/ipv4/conf/default/send_redirects": "0",
		"net/ipv6/conf/all/forwarding":         "1",
		"net/bridge/bridge-nf-call-iptables":   "0",
		"net/bridge/bridge-nf-call-ip6tables":  "0",
	})
}

// connect gives a namespace its uplinks, with the host number as address and
// the router as default route.
func (state *State) connect(space, port string, host int) error {
	r := state.Ranges
	if err := state.uplink(space, "eth0", bridge, port, r.Nodes, host, firstMetric); err != nil {
		return err
	}
	if state.Uplinks == 2 {
		return state.uplink(space, "eth1", bridge2, port+"b", r.Uplink2, host, secondMetric)
	}
	return nil
}

func (state *State) uplink(space, device, bridge, port string, network []netip.Prefix, host, metric int) error {
	cp := state.ControlPlane.Space
	err := netspace.Pair(
		netspace.End{Space: space, Device: device, Addresses: ranges.On(network, host)},
		netspace.End{Space: cp, Device: port, Bridge: bridge})
	if err != nil {
		return err
	}
	if state.CutSegments {
		// A switch does not aggregate what it receives; a node does.
		if err := netspace.CutSegments(space, device, true); err != nil {
			return err
		}
		if err := netspace.CutSegments(cp, port, false); err != nil {
			return err
		}
	}
	for _, gateway := range ranges.Host(network, ranges.GatewayHost) {
		if err := netspace.AddRoutes(space, netspace.Route{To: netspace.Default(gateway), Via: gateway, Metric: metric}); err != nil {
			return err
		}
	}
	return nil
}

// world gives outside an address that no worker has on its link. What comes
// from that address leaves by the router again, so both ways are routed.
func (state *State) world() error {
	cp, outside, network := state.ControlPlane.Space, state.Outside.Space, state.Ranges.World
	err := netspace.Pair(
		netspace.End{Space: outside, Device: worldDevice, Addresses: ranges.On(network, worldHost)},
		netspace.End{Space: cp, Device: worldDevice, Addresses: ranges.On(network, worldRouter)})
	if err != nil {
		return err
	}
	for i, router := range ranges.Host(network, worldRouter) {
		if err := netspace.AddRoutes(outside, netspace.Route{To: netspace.Default(router), Via: router, Table: worldTable}); err != nil {
			return err
		}
		own := ranges.Host(network, worldHost)[i]
		if err := netspace.FromRule(outside, netip.PrefixFrom(own, own.BitLen()), worldTable); err != nil {
			return err
		}
	}
	return nil
}

// podRoutes makes pods of the bridge plugin reachable from everywhere: that
// plugin knows its own node only.
func (state *State) podRoutes() error {
	for _, space := range state.spaces() {
		for _, n := range state.Nodes {
			if n.Space == space {
				continue
			}
			for i, pods := range n.Pods {
				if err := netspace.AddRoutes(space, netspace.Route{To: pods, Via: n.Addresses[i]}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
