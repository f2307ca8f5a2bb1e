// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// TestSYNFloodSparesNeighbours fills one pod's table of unanswered flows many times over, and would that of all were it
// let, while its neighbours hold idle connections and begin new ones: each must answer. What goes to the world
// is what cannot do without its entries, idle or new: what is masqueraded lives by them.
func TestSYNFloodSparesNeighbours(t *testing.T) {
	c := up(t, "flood", "--workers", "2", "--ip-family", "ipv4", "--cni", "ours")
	c.setMode(t, mode{"small tables", `{"spec":{"conntrack":{"maxEntries":65536,"unansweredPerEndpoint":128}}}`})
	const ns = "flood"
	dir := proberDir(t)
	n := c.Nodes[0].Name
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+"}\n---"+
		proberPod(ns, "client", n, dir, false)+proberPod(ns, "server", n, dir, false)+proberPod(ns, "flooder", n, dir, false)+
		proberPod(ns, "far", c.Nodes[1].Name, dir, false))
	c.waitReady(t, ns, "client", "server", "flooder", "far")
	server, far := c.podIPs(t, ns, "server")["4"], c.podIPs(t, ns, "far")["4"]

	startOutside(t, c, dir)
	world := byFamily(c.Outside.World)["4"]
	// One message every second: idle for a connection table, alive for us.
	const d = 30 * time.Second
	var loads []*load
	for _, to := range []struct{ name, addr string }{{"same node", server}, {"other node", far}, {"world", world}} {
		dst := fmt.Sprintf("%s:%d", to.addr, proberPort)
		loads = append(loads, &load{name: to.name, proto: "tcp", dst: dst, rate: 1, results: make(chan error, 1)},
			&load{name: to.name, proto: "connect", dst: dst, rate: 4, results: make(chan error, 1)},
			&load{name: to.name, proto: "ask", dst: fmt.Sprintf("%s:%d", to.addr, proberPort+2), rate: 40, results: make(chan error, 1)})
	}
	for _, l := range loads {
		go func() {
			out, err := c.InPod(t.Context(), ns, "client", nil, "/prober/prober", "stream", "-proto", l.proto, "-dst", l.dst, "-rate", fmt.Sprint(l.rate), "-duration", d.String())
			if err == nil {
				err = json.Unmarshal([]byte(out), &l.result)
			}
			l.results <- err
		}()
	}
	time.Sleep(2 * time.Second) // let the stream begin: its first message is the setup, not the test
	// To an address that is there for nobody: an answer, a reset too, would make room again.
	nobody := "203.0.113.77"
	if out, err := c.OnOutside(t.Context(), nil, "ip", "route", "replace", "blackhole", nobody); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	began := time.Now()
	out, err := c.InPod(t.Context(), ns, "flooder", nil, "/prober/prober", "flood", "-dst", nobody+":9", "-count", "200000")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("flood of %s: %s", time.Since(began).Round(time.Millisecond), out)
	finish(t, loads)
}
