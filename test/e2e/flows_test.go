// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/test/testcluster"
)

// seenFlow is what the test looks at of a flow that kubectl hubble prints.
type seenFlow struct {
	Node string `json:"node_name"`
	Flow struct {
		Verdict string `json:"verdict"`
		Point   string `json:"trace_observation_point"`
		Source  struct {
			Pod string `json:"pod_name"`
		} `json:"source"`
		L4 struct {
			TCP struct {
				Flags map[string]bool `json:"flags"`
			} `json:"TCP"`
		} `json:"l4"`
	} `json:"flow"`
}

func (f seenFlow) String() string {
	var flags []string
	for name := range f.Flow.L4.TCP.Flags {
		flags = append(flags, name)
	}
	slices.Sort(flags)
	return fmt.Sprintf("%s: %s %s %s %s", f.Node, f.Flow.Source.Pod, strings.Join(flags, "+"), f.Flow.Verdict, f.Flow.Point)
}

func (c *cluster) hubble(t testing.TB, args ...string) string {
	t.Helper()
	bin := filepath.Join(filepath.Dir(os.Getenv("TEST_CLUSTER")), "kubectl-hubble")
	out, err := testcluster.Run(exec.CommandContext(t.Context(), bin, append([]string{"--kubeconfig", c.Kubeconfig}, args...)...), nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// handshakes are the first packets of connections with an address, each kind once.
func (c *cluster) handshakes(t testing.TB, ip string) []string {
	t.Helper()
	out := c.hubble(t, "flows", "-A", "--all", "--ip", ip, "--port", fmt.Sprint(proberPort), "--protocol", "tcp", "--tcp-flags", "SYN", "-o", "json",
		"--not", "--identity", "host,remote-node")
	var all []string
	for line := range strings.Lines(out) {
		var f seenFlow
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, f.String())
	}
	slices.Sort(all)
	return slices.Compact(all) // a SYN that got no answer is sent again
}

// TestFlows: connections between pods of one node and of two, IPv4 and IPv6, make exactly the flows that tell of them.
func TestFlows(t *testing.T) {
	c := up(t, "flows-e2e", "--workers", "2", "--ip-family", "dual", "--cni", "ours")
	const ns = "flows"
	dir := proberDir(t)
	one, two := c.Nodes[0].Name, c.Nodes[1].Name
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+"}\n---"+
		proberPod(ns, "client", one, dir, false)+proberPod(ns, "near", one, dir, false)+proberPod(ns, "far", two, dir, false))
	c.waitReady(t, ns, "client", "near", "far")
	connect := func(pod, family string) string {
		t.Helper()
		ip := c.podIPs(t, ns, pod)[family]
		for _, r := range c.ask(t, ns, "client", []target{{Name: pod, Proto: "tcp", Addr: ip, Port: proberPort, Size: 10}}, 1) {
			if !r.OK {
				t.Errorf("to %s over IPv%s: %+v", pod, family, r)
			}
		}
		return ip
	}
	compare := func(what, ip string, want ...string) {
		t.Helper()
		slices.Sort(want)
		eventually(t, what, 10*time.Second, func() error {
			if got := c.handshakes(t, ip); !slices.Equal(got, want) {
				return fmt.Errorf("flows are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			return nil
		})
	}
	for _, family := range []string{"4", "6"} {
		ip := connect("near", family)
		compare("one node, IPv"+family, ip,
			one+": client SYN FORWARDED TO_ENDPOINT", one+": near ACK+SYN FORWARDED TO_ENDPOINT")
		ip = connect("far", family)
		compare("two nodes, IPv"+family, ip,
			one+": client SYN FORWARDED TO_OVERLAY", two+": client SYN FORWARDED TO_ENDPOINT",
			two+": far ACK+SYN FORWARDED TO_OVERLAY", one+": far ACK+SYN FORWARDED TO_ENDPOINT")
	}
	if out := c.hubble(t, "status"); !strings.Contains(out, "Connected Nodes: 2/2") || !strings.Contains(out, "Healthcheck: Ok") {
		t.Error(out)
	}
}
