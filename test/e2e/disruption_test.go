// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

const systemNamespace = "kube-cilium-system"

// streamResult is the prober's, see prober/stream.go.
type streamResult struct {
	Proto    string `json:"proto"`
	Sent     int64  `json:"sent"`
	Received int64  `json:"received"`
	Lost     int64  `json:"lost"`
	Doubled  int64  `json:"doubled"`
	Resets   int64  `json:"resets"`
	Again    int64  `json:"again"`
	MaxGap   int64  `json:"maxGapMillis"`
	Error    string `json:"error"`
}

// longest is how long a load runs that nobody ends.
const longest = 5 * time.Minute

// load is a set of streams that run while something happens to the agents.
type load struct {
	name    string
	proto   string
	dst     string
	rate    int
	results chan error
	result  streamResult
}

// startLoad starts, from the client pod, a TCP stream, UDP at 1 kHz and 100 new connections a second to each address.
func startLoad(t *testing.T, c *cluster, namespace string, d time.Duration, to map[string]string) []*load {
	t.Helper()
	var loads []*load
	for name, addr := range to {
		dst := fmt.Sprintf("%s:%d", addr, proberPort)
		if strings.Contains(addr, ":") {
			dst = fmt.Sprintf("[%s]:%d", addr, proberPort)
		}
		for _, p := range []struct {
			proto string
			rate  int
		}{{"tcp", 100}, {"udp", 1000}, {"connect", 100}} {
			l := &load{name: name, proto: p.proto, dst: dst, rate: p.rate, results: make(chan error, 1)}
			loads = append(loads, l)
			go func() {
				out, err := c.InPod(t.Context(), namespace, "client", nil, "/prober/prober", "stream", "-proto", l.proto,
					"-dst", l.dst, "-rate", fmt.Sprint(l.rate), "-duration", d.String())
				if err == nil {
					err = json.Unmarshal([]byte(out), &l.result)
				}
				l.results <- err
			}()
		}
	}
	node := strings.TrimSpace(c.kubectl(t, "-n", namespace, "get", "pod", "client", "-o", "jsonpath={.spec.nodeName}"))
	eventually(t, "all streams run", 30*time.Second, func() error {
		out, err := c.OnNode(t.Context(), node, "pgrep", "-fc", "^/prober/prober stream")
		if err != nil || strings.TrimSpace(out) != fmt.Sprint(len(loads)) {
			return fmt.Errorf("%s of %d: %w", strings.TrimSpace(out), len(loads), err)
		}
		return nil
	})
	return loads
}

// endLoad lets the client's streams send no more: what was done to the agents is over. It fails where they had ended
// before.
func endLoad(t *testing.T, c *cluster, namespace string, loads []*load) {
	t.Helper()
	node := strings.TrimSpace(c.kubectl(t, "-n", namespace, "get", "pod", "client", "-o", "jsonpath={.spec.nodeName}"))
	out, err := c.OnNode(t.Context(), node, "pgrep", "-f", "^/prober/prober stream")
	pids := strings.Fields(out)
	if err != nil || len(pids) != len(loads) {
		fault(t, "%d of %d streams run at the end: %v", len(pids), len(loads), err)
		return
	}
	if out, err := c.OnNode(t.Context(), node, append([]string{"kill", "-INT"}, pids...)...); err != nil {
		fault(t, "end the streams: %v\n%s", err, out)
	}
}

// finish waits for the streams and fails for everything lost.
func finish(t *testing.T, loads []*load) {
	t.Helper()
	for _, l := range loads {
		if err := <-l.results; err != nil {
			fault(t, "%s %s: %v", l.name, l.proto, err)
			continue
		}
		r := l.result
		t.Logf("%-12s %-8s sent %7d  lost %3d  doubled %d  resets %d  sent again on %d  longest gap %d ms", l.name, l.proto, r.Sent, r.Lost, r.Doubled, r.Resets, r.Again, r.MaxGap)
		if r.Sent == 0 {
			fault(t, "%s %s: nothing was sent: %s", l.name, l.proto, r.Error)
		}
		if r.Lost != 0 || r.Resets != 0 {
			fault(t, "%s %s to %s: %d of %d lost, %d resets: %s", l.name, l.proto, l.dst, r.Lost, r.Sent, r.Resets, r.Error)
		}
	}
}

// drops gives each node's drop counters, straight from the kernel: a report of them may be ten seconds old.
func (c *cluster) drops(t testing.TB) map[string]int64 {
	t.Helper()
	m, err := c.readDrops(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (c *cluster) readDrops(ctx context.Context) (map[string]int64, error) {
	drops := map[string]int64{}
	for _, n := range c.Nodes {
		out, err := c.plugin(ctx, "map", "dump", n.Name, "metrics", "-o", "json")
		if err != nil {
			return nil, err
		}
		var dump struct {
			Maps []struct {
				Entries []struct {
					Hook, Reason string
					Dropped      bool
					Packets      int64
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &dump); err != nil || len(dump.Maps) != 1 {
			return nil, fmt.Errorf("metrics of %s: %w: %s", n.Name, err, out)
		}
		for _, e := range dump.Maps[0].Entries {
			if e.Dropped {
				drops[n.Name+" "+e.Hook+" "+e.Reason] = e.Packets
			}
		}
	}
	return drops, nil
}

// newDrops says which counters grew.
func newDrops(before, after map[string]int64) []string {
	var grew []string
	for k, v := range after {
		if v > before[k] {
			grew = append(grew, fmt.Sprintf("%s +%d", k, v-before[k]))
		}
	}
	sort.Strings(grew)
	return grew
}

// noNewDrops fails for counters that grew, but for those with a reason that was to be expected.
func (c *cluster) noNewDrops(t testing.TB, before map[string]int64, expected ...flow.Reason) {
	t.Helper()
	grew := slices.DeleteFunc(newDrops(before, c.drops(t)), func(what string) bool {
		return slices.ContainsFunc(expected, func(r flow.Reason) bool { return strings.Contains(what, " "+r.String()+" +") })
	})
	if len(grew) > 0 {
		fault(t, "drop counters grew: %s", strings.Join(grew, "; "))
	}
}

func (c *cluster) agentPod(t testing.TB, node string) (name, container string) {
	t.Helper()
	out := c.kubectl(t, "-n", systemNamespace, "get", "pods", "-l", "app.kubernetes.io/name=cilium-agent", "--field-selector", "spec.nodeName="+node,
		"-o", `jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[?(@.name=="agent")].containerID}{"\n"}{end}`)
	f := strings.Fields(out)
	if len(f) != 2 {
		t.Fatalf("want one agent pod on %s, got %q", node, out)
	}
	return f[0], strings.TrimPrefix(f[1], "containerd://")
}

// killAgent ends the agent's process with SIGKILL, then replaces its pod, so that kubelet's back-off does not make the test wait.
func (c *cluster) killAgent(t testing.TB, node string) {
	t.Helper()
	pod, container := c.agentPod(t, node)
	if out, err := c.OnNode(t.Context(), node, "ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", container); err != nil {
		t.Fatalf("kill the agent of %s: %v\n%s", node, err, out)
	}
	c.kubectl(t, "-n", systemNamespace, "delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
	eventually(t, "a new agent ready on "+node, 90*time.Second, func() error {
		out, err := c.Kubectl(t.Context(), nil, "-n", systemNamespace, "get", "pods", "-l", "app.kubernetes.io/name=cilium-agent", "--field-selector", "spec.nodeName="+node,
			"-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
		if err != nil {
			return err
		}
		for _, p := range strings.Fields(out) {
			if !strings.HasPrefix(p, pod+"=") && strings.HasSuffix(p, "=True") {
				return nil
			}
		}
		return fmt.Errorf("pods: %s", out)
	})
}

// TestAgentKilled is the promise that the agent may die at any instant: ten kills under load, nothing lost.
func TestAgentKilled(t *testing.T) {
	c := up(t, "killed", "--workers", "2", "--ip-family", "dual", "--cni", "ours")
	const ns = "killed"
	dir := proberDir(t)
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+"}\n---"+
		proberPod(ns, "client", c.Nodes[0].Name, dir, false)+proberPod(ns, "same", c.Nodes[0].Name, dir, false)+proberPod(ns, "other", c.Nodes[1].Name, dir, false))
	c.waitReady(t, ns, "client", "same", "other")
	other := c.podIPs(t, ns, "other")
	c.apply(t, proberService(ns))
	to := map[string]string{
		"same v4": c.podIPs(t, ns, "same")["4"], "other v4": other["4"], "other v6": other["6"],
		"ClusterIP v4": c.serviceIPs(t, ns, "both")["4"],
	}
	c.answers(t, ns, to)

	before := c.drops(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const kills = 10 // some 4 s each
	loads := startLoad(t, c, ns, longest, to)
	start := time.Now()
	for i := range kills {
		c.killAgent(t, c.Nodes[i%2].Name)
		t.Logf("%5.1fs: agent of %s killed, its successor is ready", time.Since(start).Seconds(), c.Nodes[i%2].Name)
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
	}
	endLoad(t, c, ns, loads)
	finish(t, loads)
	c.noNewDrops(t, before)
}
