// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// TestSYNFloodSparesNeighbours fills one pod's table of unanswered flows many times over, on a node whose connection
// table is tiny, while its neighbours hold idle connections: each must still answer afterwards. The connection to the
// world is the one that cannot do without its entry: what is masqueraded lives by it.
func TestSYNFloodSparesNeighbours(t *testing.T) {
	c := up(t, "flood", "--workers", "1", "--ip-family", "ipv4", "--cni", "ours")
	c.setMode(t, mode{"tiny tables", `{"spec":{"conntrack":{"maxEntries":1024,"unansweredPerEndpoint":128}}}`})
	const ns = "flood"
	dir := proberDir(t)
	n := c.Nodes[0].Name
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+"}\n---"+
		proberPod(ns, "client", n, dir, false)+proberPod(ns, "server", n, dir, false)+proberPod(ns, "flooder", n, dir, false))
	c.waitReady(t, ns, "client", "server", "flooder")
	server := c.podIPs(t, ns, "server")["4"]

	startOutside(t, c, dir)
	world := byFamily(c.Outside.World)["4"]
	// One message every second: idle for a connection table, alive for us.
	const d = 40 * time.Second
	loads := []*load{
		{name: "to a pod", proto: "tcp", dst: fmt.Sprintf("%s:%d", server, proberPort), results: make(chan error, 1)},
		{name: "to the world", proto: "tcp", dst: fmt.Sprintf("%s:%d", world, proberPort), results: make(chan error, 1)},
	}
	for _, l := range loads {
		go func() {
			out, err := c.InPod(t.Context(), ns, "client", nil, "/prober/prober", "stream", "-proto", l.proto, "-dst", l.dst, "-rate", "1", "-duration", d.String())
			if err == nil {
				err = json.Unmarshal([]byte(out), &l.result)
			}
			l.results <- err
		}()
	}
	time.Sleep(2 * time.Second) // let the stream begin: its first message is the setup, not the test
	out, err := c.InPod(t.Context(), ns, "flooder", nil, "/prober/prober", "flood", "-dst", world+":9", "-count", "200000")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("flood: %s", out)
	finish(t, loads)
}
