// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/test/testcluster"
)

// TestUpgradeAndBack rolls the agents to a build whose connection table has another layout, and back, under load. The
// streams to the world are the ones that would not survive a lost table: they live by their masquerade. Beside them a
// policy holds on both nodes, for new connections and for those that the table before remembers as refused.
func TestUpgradeAndBack(t *testing.T) {
	c := up(t, "upgrade", "--workers", "2", "--ip-family", "dual", "--cni", "ours")
	const ns = "upgrade"
	dir := proberDir(t)
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+"}\n---"+
		proberPod(ns, "client", c.Nodes[0].Name, dir, false)+proberPod(ns, "same", c.Nodes[0].Name, dir, false)+proberPod(ns, "other", c.Nodes[1].Name, dir, false))
	c.waitReady(t, ns, "client", "same", "other")
	startOutside(t, c, dir)
	c.loadNext(t)
	world := byFamily(c.Outside.World)
	c.apply(t, proberService(ns))
	to := map[string]string{
		"same v4": c.podIPs(t, ns, "same")["4"], "other v6": c.podIPs(t, ns, "other")["6"],
		"world v4": world["4"], "world v6": world["6"], "ClusterIP v6": c.serviceIPs(t, ns, "both")["6"],
	}
	c.answers(t, ns, to)
	tr := newTrace(t, c)
	c.apply(t, tr.sink(ns, "server", c.Nodes[1].Name, "role: server", 0))
	c.waitReady(t, ns, "server")
	var friends, strangers []*tracedFlow
	var senders strings.Builder
	for i, n := range c.Nodes {
		friend := tr.to("friend on "+n.Name, c.podIPs(t, ns, "server"), "udp", "connect", "tcp")
		stranger := tr.to("stranger on "+n.Name, c.podIPs(t, ns, "server"), "udp", "connect", "tcp")
		senders.WriteString(tr.sender(ns, fmt.Sprintf("friend-%d", i), n.Name, "role: friend", friend...) +
			tr.sender(ns, fmt.Sprintf("stranger-%d", i), n.Name, "role: stranger", stranger...))
		friends, strangers = append(friends, friend...), append(strangers, stranger...)
	}
	c.apply(t, senders.String())
	tr.flowing(t, slices.Concat(friends, strangers)...)
	allowed("friends through the upgrade and back", friends...)
	c.applyPolicy(t, friendsOnly(ns))
	forbidden("strangers through the upgrade and back", strangers...)

	before := c.drops(t)
	loads := startLoad(t, c, ns, longest, to)
	start := time.Now()
	for _, tag := range []string{"next", "dev"} {
		c.roll(t, tag)
		t.Logf("%5.1fs: every agent is of the build %q", time.Since(start).Seconds(), tag)
		pins, err := c.OnNode(t.Context(), c.Nodes[0].Name, "ls", "/sys/fs/bpf/kube-cilium")
		if err != nil {
			t.Fatal(err)
		}
		if want := map[string]string{"next": "conntrack_v2", "dev": "conntrack_v1"}[tag]; !strings.Contains(pins, want) {
			fault(t, "no %s with the build %s: %s", want, tag, pins)
		}
	}
	unsaid(tr.flows...)
	endLoad(t, c, ns, loads)
	finish(t, loads)
	c.noNewDrops(t, before, flow.Reason(bpf.MapsReasonDROP_POLICY))
	tr.check(t)
}

// loadNext gives the nodes a build whose connection table has another layout.
func (c *cluster) loadNext(t testing.TB) {
	t.Helper()
	images := exec.Command(testClusterTool(t), "load-images", "--name", c.Name, "--tag", "next")
	images.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false -tags=kubecilium_next")
	if _, err := testcluster.Run(images, nil); err != nil {
		t.Fatal(err)
	}
}

// roll brings all agents to a build, one after the other.
func (c *cluster) roll(t testing.TB, tag string) {
	t.Helper()
	c.kubectl(t, "-n", systemNamespace, "set", "image", "daemonset/cilium-agent", "*=kube-cilium/cilium-agent:"+tag)
	c.kubectl(t, "-n", systemNamespace, "rollout", "status", "daemonset/cilium-agent", "--timeout=90s")
}
