// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/test/testcluster"
)

// onlyPods leaves out what nodes and the world are a side of, and so what kubelet asks the pods.
var onlyPods = []string{"--not", "--identity", "host,remote-node,world"}

func (c *cluster) hubble(t testing.TB, args ...string) string {
	t.Helper()
	out, err := testcluster.Run(c.Client(t.Context(), hubbleBinary(), args...), nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFlows: conversations between pods of one node and of two, with nodes and with the world, over IPv4 and IPv6, by TCP,
// UDP and ICMP, make exactly the flows that tell of them, each as often as it happened, with the policies that allowed or refused it. Those who
// count agree: the endpoints' recent drops, the nodes' reports and the agents' metrics.
func TestFlows(t *testing.T) {
	c := up(t, "flows-e2e", "--workers", "2", "--ip-family", "dual", "--cni", "ours")
	const ns = "flows"
	dir := proberDir(t)
	yaml := "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + ns + "}\n---"
	var pods, closed, sealed []string
	for i, n := range c.Nodes {
		for _, name := range []string{"client", "sealed", "server", "closed"} {
			pods = append(pods, podOn(name, i))
			yaml += proberPod(ns, podOn(name, i), n.Name, dir, false)
		}
		pods = append(pods, podOn("host", i))
		yaml += proberPod(ns, podOn("host", i), n.Name, dir, true)
		closed, sealed = append(closed, podOn("closed", i)), append(sealed, podOn("sealed", i))
	}
	c.apply(t, yaml)
	c.waitReady(t, ns, pods...)
	startOutside(t, c, dir)
	before := map[string]counted{}
	for _, n := range c.Nodes {
		before[n.Name] = c.counted(t, n.Name)
	}

	// What was told before stays there: each act looks at all flows since the first, so that none may come late or twice.
	following := c.follow(t, "-n", ns, "--all", "-o", "jsonpb")
	s := &script{c: c, ns: ns, port: 20000, void: map[uint32]bool{}}
	defer func() {
		if t.Failed() {
			s.whereLost(t, before)
		}
	}()
	act := func(what string, all ...pairs) {
		t.Helper()
		s.hold(t, what, all...)
		s.told(t, what, following)
	}
	act("no policy", pairs{client: "client", server: "server"})
	s.holdBeyond(t, "nodes and the world", "client", "server", "host")
	s.told(t, "nodes and the world", following)

	policy := func(name string) string { return "NetworkPolicy " + ns + "/" + name }
	inbound, outbound := policy("inbound")+" rule:spec.ingress[1]", policy("outbound")+" rule:spec.egress[0]"
	c.applyPolicy(t, flowPolicies(ns,
		"every", `podSelector: {}, policyTypes: [Ingress]`,
		"inbound", `podSelector: {matchExpressions: [{key: pod, operator: In, values: [server-1, server-2]}]}, policyTypes: [Ingress],
  ingress: [{ports: [{port: 1}]}, {from: [{podSelector: {}}]}]`))
	act("ingress",
		pairs{client: "client", server: "server", judged: judged{ingress: inbound}},
		pairs{client: "client", server: "closed", judged: judged{ingress: policy("every"), refused: "INGRESS"}})

	c.applyPolicy(t, flowPolicies(ns,
		"another", `podSelector: {matchExpressions: [{key: pod, operator: In, values: [closed-1, closed-2]}]}, policyTypes: [Ingress], ingress: [{ports: [{port: 1}]}]`,
		"sealed", `podSelector: {matchExpressions: [{key: pod, operator: In, values: [sealed-1, sealed-2]}]}, policyTypes: [Egress]`,
		"outbound", `podSelector: {matchExpressions: [{key: pod, operator: In, values: [client-1, client-2]}]}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]`))
	refused := judged{egress: outbound, ingress: policy("another") + ", " + policy("every"), refused: "INGRESS"}
	act("both sides",
		pairs{client: "client", server: "server", judged: judged{egress: outbound, ingress: inbound}},
		pairs{client: "client", server: "closed", judged: refused},
		pairs{client: "sealed", server: "server", judged: judged{egress: policy("sealed"), ingress: inbound, refused: "EGRESS"}})
	t.Run("formats", func(t *testing.T) { flowFormats(t, s) })

	// A report is written at once when a setting turns.
	c.setMode(t, mode{"flows of drops alone", `{"spec":{"flows":{"reporting":"Off"}}}`})
	flows, err := following.seen()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		c.countersMoved(t, n.Name, before[n.Name], flows)
	}
	act("drops alone",
		pairs{client: "client", server: "server", judged: judged{egress: outbound, ingress: inbound}, untold: true},
		pairs{client: "client", server: "closed", judged: refused, untold: true})
	c.setMode(t, mode{"flows by default, native routing", `{"spec":{"flows":{"reporting":"Default"},"routing":{"mode":"Native"}}}`})
	act("native",
		pairs{client: "client", server: "server", judged: judged{egress: outbound, ingress: inbound}, away: "TO_NETWORK"},
		pairs{client: "client", server: "closed", judged: refused, away: "TO_NETWORK"})
	t.Logf("%d flows; %d conversations had to be held again", len(s.want), len(s.void))
	if out := c.hubble(t, "status"); !strings.Contains(out, "Connected Nodes: 2/2") || !strings.Contains(out, "Healthcheck: Ok") {
		t.Error(out)
	}

	// Endpoints come last in what an agent may write in a minute.
	c.endTurn()
	c.recentDrops(t, ns, closed, "Ingress", policy("every"))
	c.recentDrops(t, ns, sealed, "Egress", policy("sealed"))
	s.told(t, "everything, a while later", following)
}

// flowPolicies are NetworkPolicies: names and specs in turn.
func flowPolicies(namespace string, all ...string) string {
	var yaml strings.Builder
	for i := 0; i < len(all); i += 2 {
		fmt.Fprintf(&yaml, "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: %s, name: %s}\nspec: {%s}\n", namespace, all[i], all[i+1])
	}
	return yaml.String()
}

// flowFormats asks for the same flows in every format.
func flowFormats(t *testing.T, s *script) {
	ask := func(args ...string) string {
		return s.c.hubble(t, slices.Concat([]string{"flows", "-n", s.ns, "--all"}, args, onlyPods)...)
	}
	read := func(out string) []*observerpb.GetFlowsResponse {
		all, err := readFlows(out)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	jsonpb, jsons := ask("-o", "jsonpb"), ask("-o", "json")
	if jsonpb != jsons {
		t.Errorf("-o jsonpb and -o json differ:\n%s\n%s", jsonpb, jsons)
	}
	flows := read(jsonpb)
	if err := s.compare(flows, s.pods); err != nil {
		t.Errorf("asked for when all was over: %v", err)
	}
	if !slices.IsSortedFunc(flows, func(a, b *observerpb.GetFlowsResponse) int { return a.GetTime().AsTime().Compare(b.GetTime().AsTime()) }) {
		t.Error("the nodes' flows are not in the order of their times")
	}
	for format, mark := range map[string]string{"dict": "  TIMESTAMP: ", "compact": "\n"} {
		if n := strings.Count(ask("-o", format), mark); n != len(flows) {
			t.Errorf("-o %s shows %d flows, -o jsonpb %d", format, n, len(flows))
		}
	}
	if err := s.compare(read(ask("-t", "policy-verdict", "-o", "jsonpb")), s.verdicts); err != nil {
		t.Errorf("verdicts of policies: %v", err)
	}
	drops := s.c.hubble(t, "flows", "-n", s.ns, "--verdict", "dropped", "--all")
	for _, want := range []string{
		"(default deny of ingress by NetworkPolicy " + s.ns + "/every) (TCP Flags: SYN)",
		"(default deny of ingress by NetworkPolicy " + s.ns + "/another, NetworkPolicy " + s.ns + "/every) (UDP)",
		"(default deny of egress by NetworkPolicy " + s.ns + "/sealed) (ICMPv6 EchoRequest)",
	} {
		if !strings.Contains(drops, want) {
			t.Errorf("no line for people says %q:\n%s", want, drops)
		}
	}
}

// recentDrops waits until the status of endpoints tells of refused packets, each with its policies: the one and maybe others.
func (c *cluster) recentDrops(t testing.TB, namespace string, pods []string, direction, policy string) {
	t.Helper()
	for _, pod := range pods {
		eventually(t, "recent drops of "+pod, 4*time.Minute, func() error {
			out, err := c.Kubectl(t.Context(), nil, "-n", namespace, "get", "ciliumendpoint", pod, "-o", "json")
			if err != nil {
				return err
			}
			var e v1alpha1.CiliumEndpoint
			if err := json.Unmarshal([]byte(out), &e); err != nil {
				return err
			}
			if len(e.Status.RecentDrops) == 0 {
				return errors.New("none")
			}
			for _, d := range e.Status.RecentDrops {
				port := int32(proberPort)
				if strings.HasPrefix(d.Protocol, "ICMP") {
					port = 0
				}
				if d.Reason != "POLICY" || d.Direction != direction || !strings.HasPrefix(d.Peer, namespace+"/") || d.Port != port || d.Count < 1 ||
					!slices.Contains(d.Policies, policy) {
					return fmt.Errorf("%+v", d)
				}
			}
			return nil
		})
	}
}

// counted is what a node says of its flows and of policies' refusals.
type counted struct {
	// Packets refused, in the agent's metrics and in the report; drops told of by direction; flows of drops and of others.
	packets, report, ingress, egress, drops, traces int64
	// seen and lost records, by the report.
	seen, lost int64
}

// counted reads a node's metrics at the agent's port, and its report.
func (c *cluster) counted(t testing.TB, node string) (n counted) {
	t.Helper()
	n, err := c.readCounted(t, node)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// sample is one line of metrics: a name, labels, a value.
var sample = regexp.MustCompile(`^(\w+)\{(.*)\} (\S+)$`)

func (c *cluster) readCounted(t testing.TB, node string) (n counted, err error) {
	t.Helper()
	metrics, err := c.Kubectl(t.Context(), nil, "get", "--raw", "/api/v1/nodes/"+node+":9962/proxy/metrics")
	if err != nil {
		return n, err
	}
	for line := range strings.Lines(metrics) {
		m := sample.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return n, fmt.Errorf("%q: %w", line, err)
		}
		has := func(label string) bool { return slices.Contains(strings.Split(m[2], ","), label) }
		refused := has(`reason="POLICY"`)
		switch {
		case m[1] == "kube_cilium_packets_total" && refused && has(`dropped="true"`):
			n.packets += int64(value)
		case m[1] == "hubble_drop_total" && refused && has(`direction="ingress"`):
			n.ingress += int64(value)
		case m[1] == "hubble_drop_total" && refused && has(`direction="egress"`):
			n.egress += int64(value)
		case m[1] == "hubble_flows_processed_total" && has(`subtype="POLICY"`) && has(`type="Drop"`) && has(`verdict="DROPPED"`):
			n.drops += int64(value)
		case m[1] == "hubble_flows_processed_total" && has(`type="Trace"`) && has(`verdict="FORWARDED"`):
			n.traces += int64(value)
		}
	}
	out, err := c.Kubectl(t.Context(), nil, "get", "ciliumnodereport", node, "-o", "json")
	if err != nil {
		return n, err
	}
	var report v1alpha1.CiliumNodeReport
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		return n, err
	}
	for _, d := range report.Status.Drops {
		if d.Reason == "POLICY" && d.Dropped {
			n.report += d.Packets
		}
	}
	n.seen, n.lost = report.Status.Flows.Seen, report.Status.Flows.Lost
	return n, nil
}

// countersMoved waits until a node's counters have moved by the flows: by every refusal exactly, for no other pods are
// refused anything; by what passed at least, for others speak too.
func (c *cluster) countersMoved(t testing.TB, node string, before counted, flows []*observerpb.GetFlowsResponse) {
	t.Helper()
	var refused, ingress, egress, all int64
	for _, r := range flows {
		if r.GetNodeName() != node || ofKubelet(r.GetFlow()) {
			continue // kubelet asked before anything was counted, too
		}
		all++
		if f := r.GetFlow(); f.GetDropReasonDesc() == flowpb.DropReason_POLICY_DENIED {
			refused++
			if f.GetTrafficDirection() == flowpb.TrafficDirection_INGRESS {
				ingress++
			} else {
				egress++
			}
		}
	}
	if ingress == 0 || egress == 0 {
		t.Fatalf("%s: refused %d on the way in, %d on the way out", node, ingress, egress)
	}
	eventually(t, "counters of "+node, time.Minute, func() error {
		now, err := c.readCounted(t, node)
		if err != nil {
			return err
		}
		for what, moved := range map[string][2]int64{
			"kube_cilium_packets_total":           {now.packets - before.packets, refused},
			"the report's drops":                  {now.report - before.report, refused},
			"hubble_drop_total, ingress":          {now.ingress - before.ingress, ingress},
			"hubble_drop_total, egress":           {now.egress - before.egress, egress},
			"hubble_flows_processed_total, drops": {now.drops - before.drops, refused},
			"the report's lost flows":             {now.lost - before.lost, 0},
		} {
			if moved[0] != moved[1] {
				return fmt.Errorf("%s moved by %d, want %d", what, moved[0], moved[1])
			}
		}
		if traces, seen := now.traces-before.traces, now.seen-before.seen; traces < all-refused || seen < all {
			return fmt.Errorf("metrics count %d flows that passed, want %d or more; the report %d flows, want %d or more", traces, all-refused, seen, all)
		}
		return nil
	})
}
