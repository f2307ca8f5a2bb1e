// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// mode is one way of going between nodes, as a CiliumConfig's spec says it.
type mode struct {
	name  string
	patch string
}

var modes = []mode{
	{"VXLAN", `{"spec":{"routing":{"mode":"VXLAN","encapsulation":"Auto"}}}`},
	{"VXLAN device", `{"spec":{"routing":{"mode":"VXLAN","encapsulation":"Device"}}}`},
	{"native", `{"spec":{"routing":{"mode":"Native"}}}`},
}

// column is one way of asking.
type column struct {
	name  string
	proto string
	size  int
}

var columns = []column{
	{"TCP", "tcp", 64},
	{"UDP", "udp", 64},
	{"ICMP", "icmp", 56},
	{"large", "tcp", 1 << 20},
	{"full", "udp", 1350},
	{"fragments", "udp", 6000},
	{"ICMP fragments", "icmp", 6000},
}

// TestConnectivityMatrix asks every kind of neighbour, by every protocol, on both families, in every routing mode.
func TestConnectivityMatrix(t *testing.T) {
	c := up(t, "matrix", "--workers", "2", "--ip-family", "dual", "--cni", "ours")
	matrix(t, c)
}

// TestConnectivityMatrixCutSegments asks the VXLAN rows again over an underlay that carries segments, as a wire does.
func TestConnectivityMatrixCutSegments(t *testing.T) {
	c := up(t, "matrix-cut", "--workers", "2", "--ip-family", "dual", "--cni", "ours", "--cut-segments")
	setup := prepareMatrix(t, c)
	for _, m := range modes[:2] {
		c.setMode(t, m)
		setup.run(t, m.name+", segments cut", 1)
	}
}

// TestConnectivityMatrixLagging asks the VXLAN rows again while slices and identities reach the agents 5 s late: what a
// pod sends first, and what is sent to it first, must arrive all the same.
func TestConnectivityMatrixLagging(t *testing.T) {
	c := up(t, "matrix-lag", "--workers", "2", "--ip-family", "dual", "--cni", "ours", "--lag", "5s")
	setup := prepareMatrix(t, c)
	for _, m := range modes[:2] {
		c.setMode(t, m)
		setup.run(t, m.name+", 5 s late", 1)
	}
	dir := proberDir(t)
	for i := range 3 {
		name := fmt.Sprintf("new-%d", i)
		c.apply(t, proberPod(matrixNamespace, name, c.Nodes[1].Name, dir, false))
		c.waitReady(t, matrixNamespace, name)
		var in, out []target
		for family, ip := range c.podIPs(t, matrixNamespace, name) {
			in = append(in, question("to "+name+" v"+family, "udp", ip, 64))
		}
		for family, ip := range c.podIPs(t, matrixNamespace, "client") {
			out = append(out, question("from "+name+" v"+family, "udp", ip, 64))
		}
		for _, r := range append(c.ask(t, matrixNamespace, "client", in, 1), c.ask(t, matrixNamespace, name, out, 1)...) {
			if !r.OK {
				fault(t, "first datagram %s: %s", r.Name, r.Error)
			}
		}
	}
}

// TestFallbacks forbids each kernel feature that has a fallback, alone and all at once, on a running cluster: the same
// traffic must pass without it. Nodes change over under the pods' feet, and the kernel stops a device for some
// milliseconds when it gets its first clsact: a question may be asked three times.
func TestFallbacks(t *testing.T) {
	c := up(t, "fallbacks", "--workers", "2", "--ip-family", "dual", "--cni", "ours")
	setup := prepareMatrix(t, c)
	all := `"TCX","RedirectPeer","RedirectNeigh","AdjustRoomEncap","BatchOperations"`
	for _, forbidden := range append(strings.Split(all, ","), all, "") {
		for _, routing := range []string{"VXLAN", "Native"} {
			m := mode{fmt.Sprintf("%s without %s", routing, strings.ReplaceAll(forbidden, `"`, "")),
				fmt.Sprintf(`{"spec":{"routing":{"mode":"%s","encapsulation":"Auto"},"forbiddenKernelFeatures":[%s]}}`, routing, forbidden)}
			c.setMode(t, m)
			setup.run(t, m.name, 3)
		}
	}
}

func matrix(t *testing.T, c *cluster) {
	setup := prepareMatrix(t, c)
	for _, m := range modes {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			c.setMode(t, m)
			setup.run(t, m.name, 1)
		})
	}
	t.Run("big-TCP", setup.bigTCP)
	c.nodesReachOneAnother(t)
}

// bigTCP switches it off and on again while a pod asks for much: every pod's interface and the report must follow, and
// the connections go on. The underlay takes larger segments, and routing is native. Where nodes forward IPv6, it stays at
// 64 KiB: that is the size which ip shows (gso_max_size).
func (s *matrixSetup) bigTCP(t *testing.T) {
	var much []target
	for family, addr := range s.rows[1].addresses {
		much = append(much, question("other node v"+family, "tcp", addr, 32<<20))
	}
	for _, step := range []struct {
		patch, forwards, outcome, says string
		size                           int
	}{
		{"Auto", "0", "Supported", "segments of 196608 bytes", 196608},
		{"Off", "0", "Forbidden", "segments of 64 KiB", 65536},
		{"Auto", "1", "Supported", "segments of 196608 bytes of IPv4, 65536 of IPv6", 65536},
	} {
		for _, n := range s.c.Nodes {
			if _, err := s.c.OnNode(t.Context(), n.Name, "sysctl", "-qw", "net.ipv6.conf.all.forwarding="+step.forwards); err != nil {
				t.Fatal(err)
			}
		}
		asked := make(chan []result)
		go func() { asked <- s.c.ask(t, matrixNamespace, "client", much, 1) }()
		s.c.setMode(t, mode{"BIG TCP " + step.patch, `{"spec":{"bigTCP":"` + step.patch + `"}}`})
		for _, r := range <-asked {
			if !r.OK {
				fault(t, "while BIG TCP becomes %s: %s: %s", step.patch, r.Name, r.Error)
			}
		}
		eventually(t, "BIG TCP "+step.patch, 30*time.Second, func() error {
			out, err := s.c.Kubectl(t.Context(), nil, "get", "ciliumnodereports", "-o",
				`jsonpath={range .items[*]}{.status.kernel.features[?(@.name=="BigTCP")].outcome} {.status.kernel.features[?(@.name=="BigTCP")].using}{"\n"}{end}`)
			if err != nil {
				return err
			}
			if n := strings.Count(out, step.outcome+" "+step.says); n != len(s.c.Nodes) {
				return fmt.Errorf("%s on %d nodes:\n%s", step.outcome, n, out)
			}
			for _, n := range s.c.Nodes {
				out, err := s.c.OnNode(t.Context(), n.Name, "ip", "-d", "-o", "link", "show", "type", "veth")
				if err != nil {
					return err
				}
				for line := range strings.Lines(out) {
					if strings.Contains(line, ": kc") && !strings.Contains(line, fmt.Sprintf(" gso_max_size %d ", step.size)) {
						return fmt.Errorf("%s: %s", n.Name, line)
					}
				}
			}
			return nil
		})
	}
}

// nodesReachOneAnother waits until every agent has reached every address of every other node in both ways.
func (c *cluster) nodesReachOneAnother(t testing.TB) {
	t.Helper()
	type outcome struct{ Reachable bool }
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Health []struct {
					Node, Address string
					ICMP, TCP     outcome
				}
			}
		}
	}
	eventually(t, "the agents reach one another", 90*time.Second, func() error {
		out, err := c.Kubectl(t.Context(), nil, "get", "ciliumnodereports", "-o", "json")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return err
		}
		for _, report := range list.Items {
			want := map[string]bool{}
			for _, n := range c.Nodes {
				for _, a := range n.Addresses {
					want[n.Name+" "+a] = n.Name != report.Metadata.Name
				}
			}
			for _, h := range report.Status.Health {
				if !h.ICMP.Reachable || !h.TCP.Reachable {
					return fmt.Errorf("%s: %+v", report.Metadata.Name, h)
				}
				delete(want, h.Node+" "+h.Address)
			}
			for k, other := range want {
				if other {
					return fmt.Errorf("%s has not asked %s: %+v", report.Metadata.Name, k, report.Status.Health)
				}
			}
		}
		return nil
	})
}

// setMode changes the CiliumConfig and waits until every node carries it out.
func (c *cluster) setMode(t testing.TB, m mode) {
	t.Helper()
	c.kubectl(t, "patch", "ciliumconfig", "default", "--type=merge", "-p", m.patch)
	generation := strings.TrimSpace(c.kubectl(t, "get", "ciliumconfig", "default", "-o", "jsonpath={.metadata.generation}"))
	eventually(t, m.name+" in force on every node", time.Minute, func() error {
		out, err := c.Kubectl(t.Context(), nil, "get", "ciliumnodereports", "-o",
			`jsonpath={range .items[*]}{.metadata.name}={.status.observedConfigGeneration}={.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		if err != nil {
			return err
		}
		for _, n := range c.Nodes {
			if !strings.Contains(out, n.Name+"="+generation+"=True") {
				return fmt.Errorf("want generation %s on %s:\n%s", generation, n.Name, out)
			}
		}
		return nil
	})
}

// matrixSetup is who asks and who answers.
type matrixSetup struct {
	c *cluster
	// destinations in the order of the rows: name -> family -> address.
	rows []matrixRow
}

type matrixRow struct {
	name      string
	addresses map[string]string
	// from is the pod that asks, "" where the namespace that is no cluster member does.
	from string
	// echo is false where nothing answers ICMP: a ClusterIP is a name for sockets.
	icmp bool
}

const matrixNamespace = "matrix"

func prepareMatrix(t testing.TB, c *cluster) *matrixSetup {
	t.Helper()
	dir := proberDir(t)
	w1, w2 := c.Nodes[0], c.Nodes[1]
	c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+matrixNamespace+"}\n---"+
		proberPod(matrixNamespace, "client", w1.Name, dir, false)+
		proberPod(matrixNamespace, "same", w1.Name, dir, false)+
		proberPod(matrixNamespace, "other", w2.Name, dir, false)+
		proberPod(matrixNamespace, "host-1", w1.Name, dir, true)+
		proberPod(matrixNamespace, "host-2", w2.Name, dir, true)+
		proberService(matrixNamespace))
	c.waitReady(t, matrixNamespace, "client", "same", "other", "host-1", "host-2")
	startOutside(t, c, dir)
	other := c.podIPs(t, matrixNamespace, "other")
	routeOutside(t, c, other, w2)
	service := c.serviceIPs(t, matrixNamespace, "both")
	c.answers(t, matrixNamespace, service)
	return &matrixSetup{c: c, rows: []matrixRow{
		{name: "same node", from: "client", addresses: c.podIPs(t, matrixNamespace, "same"), icmp: true},
		{name: "other node", from: "client", addresses: other, icmp: true},
		{name: "own host", from: "client", addresses: byFamily(w1.Addresses), icmp: true},
		{name: "other host", from: "client", addresses: byFamily(w2.Addresses), icmp: true},
		{name: "ClusterIP", from: "client", addresses: service},
		{name: "world", from: "client", addresses: byFamily(c.Outside.World), icmp: true},
		{name: "outside to pod", addresses: other, icmp: true},
		{name: "host to own pod", from: "host-2", addresses: other, icmp: true},
		{name: "host to other", from: "host-1", addresses: other, icmp: true},
		{name: "host ClusterIP", from: "host-1", addresses: service},
	}}
}

// startOutside serves the prober where the cluster ends.
func startOutside(t testing.TB, c *cluster, dir string) {
	t.Helper()
	line := c.OutsideCommand(dir+"/prober", "serve", "-port", fmt.Sprint(proberPort))
	cmd := exec.Command(line[0], line[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatalf("serve outside: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// routeOutside gives the outside a route to one pod through its node.
func routeOutside(t testing.TB, c *cluster, pod map[string]string, n node) {
	t.Helper()
	via := byFamily(n.Addresses)
	for family, ip := range pod {
		if _, err := c.OnOutside(t.Context(), nil, "ip", "-"+family, "route", "replace", ip, "via", via[family]); err != nil {
			t.Fatal(err)
		}
	}
}

// run fills the matrix, prints it and fails for each cell that is not ok after so many attempts.
func (s *matrixSetup) run(t testing.TB, title string, attempts int) {
	t.Helper()
	targets := map[string][]target{}
	for _, row := range s.rows {
		for family, addr := range row.addresses {
			for _, p := range columns {
				if p.proto == "icmp" && !row.icmp {
					continue
				}
				targets[row.from] = append(targets[row.from], question(row.name+"/"+family+"/"+p.name, p.proto, addr, p.size))
			}
		}
	}
	cells := map[string]result{}
	for from, list := range targets {
		if from == "" {
			continue
		}
		for _, r := range s.c.ask(t, matrixNamespace, from, list, attempts) {
			cells[r.Name] = r
		}
	}
	for _, r := range check(t, targets[""], attempts, func(in []byte, args ...string) (string, error) {
		return s.c.OnOutside(t.Context(), in, append([]string{proberDir(t) + "/prober"}, args...)...)
	}) {
		cells[r.Name] = r
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%-18s", title)
	for _, p := range columns {
		fmt.Fprintf(&table, " %-14s", p.name)
	}
	for _, row := range s.rows {
		for _, family := range []string{"4", "6"} {
			fmt.Fprintf(&table, "\n%-15s v%s", row.name, family)
			for _, p := range columns {
				r, asked := cells[row.name+"/"+family+"/"+p.name]
				switch {
				case !asked && p.proto == "icmp" && !row.icmp:
					fmt.Fprintf(&table, " %-14s", "-")
				case !asked:
					fmt.Fprintf(&table, " %-14s", "no address")
					fault(t, "%s: %s has no IPv%s address", title, row.name, family)
				case r.OK && r.Attempts > 1:
					fmt.Fprintf(&table, " %-14s", fmt.Sprintf("ok (%d)", r.Attempts))
				case r.OK:
					fmt.Fprintf(&table, " %-14s", "ok")
				default:
					fmt.Fprintf(&table, " %-14s", "FAILED")
					fault(t, "%s: %s: %s", title, r.Name, r.Error)
				}
			}
		}
	}
	t.Log("\n" + table.String())
}
