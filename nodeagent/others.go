// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/nodeagent/reach"
)

const (
	// maxHealth bounds status.health: where there are more addresses, it holds those that fail, and of them so many.
	maxHealth = 128
	// maxNamed bounds the nodes that a message names.
	maxNamed = 8
)

// otherNodes are the addresses that other nodes give as their own.
func (a *Agent) otherNodes(ctx context.Context) ([]reach.Target, error) {
	var nodes v1alpha1.CiliumNodeList
	if err := a.manager.GetCache().List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("CiliumNodes: %w", err)
	}
	var out []reach.Target
	for _, n := range nodes.Items {
		if n.Name == a.Node || n.DeletionTimestamp != nil {
			continue
		}
		for _, ip := range internalAddresses(n) {
			out = append(out, reach.Target{Node: n.Name, Address: ip})
		}
	}
	return out, nil
}

// ownAddresses are those at which other nodes ask this one.
func (a *Agent) ownAddresses(ctx context.Context) ([]netip.Addr, error) {
	var own v1alpha1.CiliumNode
	if err := a.manager.GetCache().Get(ctx, types.NamespacedName{Name: a.Node}, &own); err != nil {
		return nil, err
	}
	return internalAddresses(own), nil
}

// internalAddresses are those of the node's InternalIPs that a packet can be sent to.
func internalAddresses(n v1alpha1.CiliumNode) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if a.Type != v1alpha1.NodeInternalIP || err != nil {
			continue
		}
		ip = ip.Unmap()
		usable := ip.IsGlobalUnicast() && ip.Zone() == ""
		if usable && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out
}

// healthProbes are the results as the report has them: all where they are few, else what fails.
func healthProbes(results []reach.Result) []v1alpha1.HealthProbe {
	if len(results) > maxHealth {
		results = slices.DeleteFunc(slices.Clone(results), func(r reach.Result) bool {
			return (r.TCP.Reachable || !r.TCP.Asked) && (r.ICMP.Reachable || !r.ICMP.Asked)
		})
		results = results[:min(len(results), maxHealth)]
	}
	var out []v1alpha1.HealthProbe
	for _, r := range results {
		out = append(out, v1alpha1.HealthProbe{Node: r.Node, Address: r.Address.String(), ICMP: healthOutcome(r.ICMP), TCP: healthOutcome(r.TCP)})
	}
	return out
}

func healthOutcome(o reach.Outcome) v1alpha1.HealthOutcome {
	out := v1alpha1.HealthOutcome{Reachable: o.Reachable, LatencyMicros: o.Latency.Microseconds()}
	if !o.Since.IsZero() {
		since := metav1.NewTime(o.Since).Rfc3339Copy()
		out.FailingSince = &since
	}
	return out
}

// keepLatencies makes the latencies those that were written last, where the outcome is the same.
func keepLatencies(now, last []v1alpha1.HealthProbe) {
	type key struct{ node, address string }
	was := map[key]v1alpha1.HealthProbe{}
	for _, p := range last {
		was[key{p.Node, p.Address}] = p
	}
	for i := range now {
		old, ok := was[key{now[i].Node, now[i].Address}]
		if !ok {
			continue
		}
		if now[i].ICMP.Reachable && old.ICMP.Reachable {
			now[i].ICMP.LatencyMicros = old.ICMP.LatencyMicros
		}
		if now[i].TCP.Reachable && old.TCP.Reachable {
			now[i].TCP.LatencyMicros = old.TCP.LatencyMicros
		}
	}
}

// othersCondition is False when most other nodes answer in no way at none of their addresses.
func othersCondition(o observed) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionNodesReachable, Status: metav1.ConditionTrue, Reason: "Reachable", Message: "every other node that there is answers"}
	if !o.othersKnown && len(o.others) == 0 {
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, "Asking", "other nodes were not asked yet, or there are none"
		return c
	}
	reached := map[string]bool{}
	var names, silent []string
	for _, r := range o.others { // by node
		if _, seen := reached[r.Node]; !seen {
			names = append(names, r.Node)
		}
		reached[r.Node] = reached[r.Node] || r.Reached()
	}
	for _, n := range names {
		if !reached[n] {
			silent = append(silent, n)
		}
	}
	if len(silent) == 0 {
		return c
	}
	named := strings.Join(silent[:min(len(silent), maxNamed)], ", ")
	if more := len(silent) - maxNamed; more > 0 {
		named += fmt.Sprintf(" and %d more", more)
	}
	c.Reason, c.Message = "SomeSilent", fmt.Sprintf("%d of %d other nodes answer neither ICMP nor TCP: %s", len(silent), len(names), named)
	if 2*len(silent) > len(names) {
		c.Status, c.Reason = metav1.ConditionFalse, "MostSilent"
	}
	return c
}

// countReached counts addresses by protocol and "true" or "false".
func countReached(results []reach.Result) map[[2]string]int {
	out := map[[2]string]int{}
	for _, r := range results {
		for protocol, o := range map[string]reach.Outcome{"icmp": r.ICMP, "tcp": r.TCP} {
			if o.Asked {
				out[[2]string{protocol, strconv.FormatBool(o.Reachable)}]++
			}
		}
	}
	return out
}
