// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAPIServerAway cuts the nodes off from the API server for five minutes and kills an agent in between: running
// pods go on, and a new pod (a static one: nothing else can be asked for without an API server) starts.
func TestAPIServerAway(t *testing.T) {
	c := upBeside(t, "outage", "--workers", "2", "--ip-family", "dual", "--cni", "ours")
	const ns = "outage"
	dir := proberDir(t)
	n1, n2 := c.Nodes[0].Name, c.Nodes[1].Name
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+"}\n---"+
		proberPod(ns, "client", n1, dir, false)+proberPod(ns, "other", n2, dir, false))
	c.waitReady(t, ns, "client", "other")
	other := c.podIPs(t, ns, "other")
	_, container := c.agentPod(t, n2)
	client := c.containerOf(t, ns, "client")
	before := c.drops(t)
	podsBefore := c.podAddressesOn(t, n2)

	const away = 5 * time.Minute
	loads := startLoad(t, c, ns, away, map[string]string{"other v4": other["4"], "other v6": other["6"]})
	cutAPIServer(t, c)
	start := time.Now()
	if out, err := c.OnNode(t.Context(), n2, "ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", container); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	static := strings.ReplaceAll(proberPod("default", "static", "NODE", dir, false), "  nodeName: NODE\n", "")
	path := filepath.Join(t.TempDir(), "static.yaml")
	if err := os.WriteFile(path, []byte(strings.TrimSuffix(strings.TrimSpace(static), "---")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := c.OnNode(t.Context(), n2, "cp", path, "/etc/kubernetes/manifests/static.yaml"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	fresh := ""
	eventually(t, "a new pod answers its node during the outage", 3*time.Minute, func() error {
		for _, ip := range c.podAddressesOn(t, n2) {
			if slices.Contains(podsBefore, ip) {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			if _, err := c.OnNode(ctx, n2, saysBack(ip)...); err == nil {
				fresh = ip
				return nil
			}
		}
		return fmt.Errorf("no new address answers")
	})
	t.Logf("%.0f s after the API server went away and the agent was killed, a new pod answers", time.Since(start).Seconds())
	// The other node cannot have heard of it: the pod's address is inside its node's prefix, and that is known.
	if out, err := c.OnNode(t.Context(), n1, saysBack(fresh)...); err != nil {
		fault(t, "the new pod does not answer the other node: %v\n%s", err, out)
	}
	out, err := c.OnNode(t.Context(), n1, "ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", "asks", client,
		"/prober/prober", "stream", "-proto", "connect", "-dst", fmt.Sprintf("%s:%d", fresh, proberPort), "-rate", "20", "-duration", "1s")
	var asked streamResult
	if err == nil {
		err = json.Unmarshal([]byte(out), &asked)
	}
	if err != nil || asked.Sent == 0 || asked.Lost > 0 {
		fault(t, "the new pod does not answer a pod of the other node: %+v %v", asked, err)
	}
	time.Sleep(time.Until(start.Add(away))) // the length of the outage is the test
	restoreAPIServer(t, c)
	finish(t, loads)
	eventually(t, "the agents report again", 2*time.Minute, func() error {
		out, err := c.Kubectl(t.Context(), nil, "get", "ciliumnodereports", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
		if err != nil || strings.TrimSpace(out) != "True True" {
			return fmt.Errorf("ready: %q: %w", out, err)
		}
		return nil
	})
	c.noNewDrops(t, before)
}

// containerOf is the id of a pod's container, for when no API server can be asked to run something in it.
func (c *cluster) containerOf(t testing.TB, namespace, pod string) string {
	t.Helper()
	id := c.kubectl(t, "-n", namespace, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	return strings.TrimPrefix(strings.TrimSpace(id), "containerd://")
}

// podAddressesOn gives the IPv4 addresses that a node routes to its pods.
func (c *cluster) podAddressesOn(t testing.TB, node string) []string {
	t.Helper()
	out, err := c.OnNode(t.Context(), node, "ip", "-4", "-o", "route", "show", "proto", "201", "scope", "link")
	if err != nil {
		t.Fatal(err)
	}
	var ips []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[2], "kc") && f[2] != "kc_vxlan" {
			ips = append(ips, f[0])
		}
	}
	return ips
}

// cutAPIServer drops what reaches the API server's port from the nodes, also on connections that are open.
func cutAPIServer(t *testing.T, c *cluster) {
	t.Helper()
	t.Cleanup(func() { _ = execCP(c, t, "nft", "delete", "table", "inet", "outage") })
	for _, cmd := range [][]string{
		{"nft", "add", "table", "inet", "outage"},
		{"nft", "add", "chain", "inet", "outage", "in", "{ type filter hook input priority 0; }"},
		{"nft", "add", "rule", "inet", "outage", "in", `iifname != "lo" tcp dport 6443 drop`},
	} {
		if err := execCP(c, t, cmd...); err != nil {
			t.Fatal(err)
		}
	}
}

func restoreAPIServer(t *testing.T, c *cluster) {
	t.Helper()
	if err := execCP(c, t, "nft", "delete", "table", "inet", "outage"); err != nil {
		t.Fatal(err)
	}
}

func execCP(c *cluster, t testing.TB, args ...string) error {
	_, err := c.OnControlPlane(context.WithoutCancel(t.Context()), args...)
	return err
}

// saysBack is a command that ends well when the prober of an address does.
func saysBack(ip string) []string {
	return []string{"timeout", "3", "bash", "-c", fmt.Sprintf(`exec 3<>/dev/tcp/%s/%d && echo hello >&3 && read -r said <&3 && [ "$said" = hello ]`, ip, proberPort)}
}
