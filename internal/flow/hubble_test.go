// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// book is Names from maps.
type book struct {
	who    map[string]*Who
	labels map[uint32][]string
	rules  map[uint32]policy.Provenance
}

func (b *book) Address(a netip.Addr) *Who { return b.who[a.String()] }
func (b *book) Labels(n uint32) []string  { return b.labels[n] }
func (b *book) Rule(id uint32) (policy.Provenance, bool) {
	p, ok := b.rules[id]
	return p, ok
}

func origin(kind, name, path string) policy.Origin {
	return policy.Origin{Ref: policy.Ref{Kind: kind, Namespace: "demo", Name: name}, Path: path}
}

var names = &book{
	who: map[string]*Who{
		"10.0.1.5": {Namespace: "demo", Pod: "client-7d4-x", Workloads: []Workload{{"Deployment", "client"}}},
		"fd00::2":  {Namespace: "demo", Pod: "web-0"},
	},
	labels: map[uint32][]string{
		300: {"k8s:app=client", "k8s:io.cilium.k8s.policy.cluster=default", "k8s:io.kubernetes.pod.namespace=demo"},
		400: {"k8s:app=web", "k8s:io.kubernetes.pod.namespace=demo"},
	},
	rules: map[uint32]policy.Provenance{
		1: {Verdict: policy.Allow, Direction: policy.Egress, Origins: []policy.Origin{
			origin("NetworkPolicy", "out", "spec.egress[0]"), origin("NetworkPolicy", "out", "spec.egress[1]"), origin("NetworkPolicy", "more", "spec.egress[0]")}},
		2: {Verdict: policy.Deny, Direction: policy.Ingress, Default: true, Origins: []policy.Origin{origin("NetworkPolicy", "web", ""), origin("NetworkPolicy", "all", "")}},
		3: {Verdict: policy.Deny, Direction: policy.Ingress, Origins: []policy.Origin{origin("ClusterNetworkPolicy", "admin", "spec.ingress[2]")}},
		4: {Verdict: policy.Allow, Direction: policy.Ingress, Origins: []policy.Origin{origin("NetworkPolicy", "web", "spec.ingress[0]")}},
	},
}

// denied is a SYN that web's default deny refused.
func denied() Event {
	return Event{
		Time: time.Date(2026, 11, 22, 17, 16, 29, 123456789, time.UTC), Node: "worker-1",
		Type: Drop, Hook: Hook(bpf.MapsHookHOOK_FROM_POD), Reason: Reason(bpf.MapsReasonDROP_POLICY),
		Protocol: 6, TCPFlags: 2, Reply: no(), Ingress: true, Endpoint: 7, Ifindex: 12, Interface: "kc1",
		Source:      Party{Address: netip.MustParseAddr("fd00::1"), Port: 40312, Identity: 300, Who: names.who["10.0.1.5"]},
		Destination: Party{Address: netip.MustParseAddr("fd00::2"), Port: 80, Identity: 400},
		Rules:       [2]uint32{1, 2}, Length: 74,
	}
}

func TestHubbleFlowOfADrop(t *testing.T) {
	e := denied()
	f := Hubble(&e, names)
	var want flowpb.Flow
	if err := protojson.Unmarshal([]byte(`{
		"time": "2026-11-22T17:16:29.123456789Z", "node_name": "worker-1", "Type": "L3_L4", "verdict": "DROPPED",
		"drop_reason": 133, "drop_reason_desc": "POLICY_DENIED", "event_type": {"type": 1, "sub_type": 133},
		"IP": {"source": "fd00::1", "destination": "fd00::2", "ipVersion": "IPv6"},
		"l4": {"TCP": {"source_port": 40312, "destination_port": 80, "flags": {"SYN": true}}},
		"source": {"identity": 300, "namespace": "demo", "pod_name": "client-7d4-x", "cluster_name": "default",
			"labels": ["k8s:app=client", "k8s:io.cilium.k8s.policy.cluster=default", "k8s:io.kubernetes.pod.namespace=demo"],
			"workloads": [{"kind": "Deployment", "name": "client"}]},
		"destination": {"ID": 7, "identity": 400, "namespace": "demo", "pod_name": "web-0", "labels": ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=demo"]},
		"traffic_direction": "INGRESS", "is_reply": false, "interface": {"index": 12, "name": "kc1"}, "Summary": "TCP Flags: SYN",
		"egress_allowed_by": [
			{"kind": "NetworkPolicy", "namespace": "demo", "name": "out", "labels": ["rule:spec.egress[0]", "rule:spec.egress[1]"]},
			{"kind": "NetworkPolicy", "namespace": "demo", "name": "more", "labels": ["rule:spec.egress[0]"]}],
		"ingress_denied_by": [{"kind": "NetworkPolicy", "namespace": "demo", "name": "web"}, {"kind": "NetworkPolicy", "namespace": "demo", "name": "all"}]
	}`), &want); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(f, &want) {
		t.Errorf("got  %s\nwant %s", protojson.Format(f), protojson.Format(&want))
	}
}

// Policy verdicts were offered as a type of flow that never came.
func TestPolicyVerdicts(t *testing.T) {
	const to = Reason(bpf.MapsReasonFORWARD_TO_POD)
	accepted := denied()
	accepted.Type, accepted.Reason, accepted.Rules, accepted.First = Trace, to, [2]uint32{1, 4}, true
	for _, tt := range []struct {
		name   string
		change func(*Event)
		want   []string
	}{
		{"both sides of a connection that begins", func(*Event) {}, []string{
			"policy-verdict EGRESS ALLOWED (egress allowed by NetworkPolicy demo/out spec.egress[0] spec.egress[1], NetworkPolicy demo/more spec.egress[0])",
			"policy-verdict INGRESS ALLOWED (ingress allowed by NetworkPolicy demo/web spec.ingress[0])"}},
		{"one side", func(e *Event) { e.Rules[0] = 0 }, []string{"policy-verdict INGRESS ALLOWED (ingress allowed by NetworkPolicy demo/web spec.ingress[0])"}},
		{"no policy", func(e *Event) { e.Rules = [2]uint32{} }, nil},
		{"a later packet", func(e *Event) { e.First = false }, nil},
		{"refused", func(e *Event) { *e = denied() }, []string{"policy-verdict INGRESS DENIED (default deny of ingress by NetworkPolicy demo/web, NetworkPolicy demo/all)"}},
		{"allowed, and dropped for another reason", func(e *Event) { e.Type, e.Reason, e.Rules[0] = Drop, Reason(bpf.MapsReasonDROP_TOO_BIG), 0 }, []string{
			"policy-verdict INGRESS ALLOWED (ingress allowed by NetworkPolicy demo/web spec.ingress[0])"}},
		{"dropped for another reason", func(e *Event) { *e = denied(); e.Reason = Reason(bpf.MapsReasonDROP_TOO_BIG) }, nil},
	} {
		e := accepted
		tt.change(&e)
		var got []string
		for _, f := range PolicyVerdicts(&e, names) {
			if f.GetEventType().GetType() != 5 || f.GetTraceObservationPoint() != 0 || f.GetSource().GetPodName() != "client-7d4-x" {
				t.Errorf("%s: %v", tt.name, f)
			}
			got = append(got, TypeName(f)+" "+verdictName(f)+" ("+decidedBy(f)+")")
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
		}
	}
}

func TestHubbleOtherFlows(t *testing.T) {
	event := func(change func(*Event)) *flowpb.Flow {
		e := denied()
		e.Type, e.Reason, e.Rules = Trace, Reason(bpf.MapsReasonFORWARD_TO_POD), [2]uint32{0, 4}
		change(&e)
		return Hubble(&e, names)
	}
	type check struct {
		name, got, want string
	}
	to := event(func(*Event) {})
	reply := event(func(e *Event) {
		e.Reply, e.Ingress, e.Reason = yes(), false, Reason(bpf.MapsReasonFORWARD_TO_TUNNEL)
		e.Translated = netip.MustParseAddrPort("192.0.2.1:3000")
	})
	host := event(func(e *Event) {
		e.Endpoint, e.Destination.Identity, e.Reason = 0, 1, Reason(bpf.MapsReasonFORWARD_TO_STACK)
		e.Destination.Who = &Who{Node: "worker-2"}
	})
	ping := event(func(e *Event) { e.Protocol, e.ICMPType, e.Reply = 58, 128, nil })
	own := event(func(e *Event) { e.Type, e.Reason = Drop, Reason(bpf.MapsReasonDROP_TOO_BIG) })
	late := event(func(e *Event) { e.Destination.Identity, e.Destination.Who = 300, nil })
	unknown := Hubble(&Event{}, nil)
	for _, c := range []check{
		{"allowed by", policyText(to.GetIngressAllowedBy()), "NetworkPolicy demo/web spec.ingress[0]"},
		{"to a pod", to.GetTraceObservationPoint().String(), "TO_ENDPOINT"},
		{"a reply out of a pod belongs to what came in", reply.GetTrafficDirection().String(), "INGRESS"},
		{"to the tunnel", reply.GetTraceObservationPoint().String(), "TO_OVERLAY"},
		{"translated", reply.GetIP().GetSourceXlated(), "192.0.2.1"},
		{"to the host", host.GetTraceObservationPoint().String(), "TO_HOST"},
		{"host's labels", strings.Join(host.GetDestination().GetLabels(), " "), "reserved:host"},
		{"host's name", strings.Join(host.GetDestinationNames(), " "), "worker-2"},
		{"no endpoint, no direction", host.GetTrafficDirection().String(), "TRAFFIC_DIRECTION_UNKNOWN"},
		{"ping", ping.GetSummary(), "ICMPv6 EchoRequest"}, //nolint:staticcheck // clients show it
		{"published reason", own.GetDropReasonDesc().String(), "IP_FRAGMENTATION_NOT_SUPPORTED"},
		{"our reason", DropText(own), "Too big"},
		{"an address that now is another pod's by its identity's namespace", late.GetDestination().GetPodName(), "web-0"},
		{"nothing is known", unknown.GetVerdict().String(), "FORWARDED"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %q, want %q", c.name, c.got, c.want)
		}
	}
	if ping.GetIsReply() != nil {
		t.Error("an unknown direction is said to be known")
	}
}

func policyText(all []*flowpb.Policy) string { return strings.Join(policyNames(all), ", ") }

// A pod of another namespace that has the address by now is not who was there.
func TestLateNameMustFitTheIdentity(t *testing.T) {
	other := &book{who: map[string]*Who{"fd00::2": {Namespace: "other", Pod: "stranger"}}, labels: names.labels}
	e := denied()
	if f := Hubble(&e, other); f.GetDestination().GetPodName() != "" || f.GetDestination().GetNamespace() != "demo" {
		t.Errorf("got %v", f.GetDestination())
	}
}

func TestEveryDropHasAPublishedReason(t *testing.T) {
	for _, r := range Reasons() {
		if r.Dropped() && r.Published() == flowpb.DropReason_DROP_REASON_UNKNOWN {
			t.Errorf("%v has no published reason that is near", r)
		}
	}
}

func TestUUIDsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for n := range uint64(1000) {
		u := UUID(0xdeadbeefcafef00d, n)
		if seen[u] || len(u) != 36 || u[14] != '8' {
			t.Fatalf("UUID %d: %s", n, u)
		}
		seen[u] = true
	}
}

func TestHubblePrinter(t *testing.T) {
	local := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = local })
	e := denied()
	drop := Hubble(&e, names)
	deny := denied()
	deny.Reason, deny.Rules = Reason(bpf.MapsReasonDROP_POLICY_DENY), [2]uint32{0, 3}
	reply := denied()
	reply.Type, reply.Reason, reply.Reply, reply.Rules = Trace, 1, yes(), [2]uint32{}
	world := Event{Time: e.Time, Type: Trace, Reason: Reason(bpf.MapsReasonFORWARD_TO_NETWORK), Protocol: 17,
		Source: Party{Address: netip.MustParseAddr("10.0.1.5"), Port: 9, Identity: 300}, Destination: Party{Address: netip.MustParseAddr("1.1.1.1"), Port: 53, Identity: 2}}
	for _, tt := range []struct {
		name    string
		printer HubblePrinter
		flow    *flowpb.Flow
		want    string
	}{
		{"default deny", HubblePrinter{Node: true}, drop, "Nov 22 17:16:29.123 [worker-1]: demo/client-7d4-x:40312 (ID:300) -> demo/web-0:80 (ID:400) Policy denied DROPPED (default deny of ingress by NetworkPolicy demo/web, NetworkPolicy demo/all) (TCP Flags: SYN)\n"},
		{"a rule that denies", HubblePrinter{}, Hubble(&deny, names), "Nov 22 17:16:29.123: demo/client-7d4-x:40312 (ID:300) -> demo/web-0:80 (ID:400) Policy deny DROPPED (ingress denied by ClusterNetworkPolicy demo/admin spec.ingress[2]) (TCP Flags: SYN)\n"},
		{"a reply keeps the client on the left", HubblePrinter{}, Hubble(&reply, names), "Nov 22 17:16:29.123: demo/web-0:80 (ID:400) <- demo/client-7d4-x:40312 (ID:300) to-endpoint FORWARDED (TCP Flags: SYN)\n"},
		{"unknown direction, world", HubblePrinter{}, Hubble(&world, names), "Nov 22 17:16:29.123: demo/client-7d4-x:9 (ID:300) <> 1.1.1.1:53 (world) to-network FORWARDED (UDP)\n"},
		{"numeric", HubblePrinter{Numeric: true}, drop, "Nov 22 17:16:29.123: [fd00::1]:40312 (ID:300) -> [fd00::2]:80 (ID:400) Policy denied DROPPED (default deny of ingress by NetworkPolicy demo/web, NetworkPolicy demo/all) (TCP Flags: SYN)\n"},
		{"table", HubblePrinter{Format: Table}, drop, "TIMESTAMP             SOURCE                             DESTINATION              TYPE            VERDICT   SUMMARY\n" +
			"Nov 22 17:16:29.123   demo/client-7d4-x:40312 (ID:300)   demo/web-0:80 (ID:400)   Policy denied   DROPPED   TCP Flags: SYN; default deny of ingress by NetworkPolicy demo/web, NetworkPolicy demo/all\n"},
		{"dict", HubblePrinter{Format: Dict}, drop, "   TIMESTAMP: Nov 22 17:16:29.123\n      SOURCE: demo/client-7d4-x:40312 (ID:300)\n DESTINATION: demo/web-0:80 (ID:400)\n        TYPE: Policy denied\n     VERDICT: DROPPED\n" +
			"   DENIED BY: NetworkPolicy demo/web, NetworkPolicy demo/all\n   EGRESS BY: NetworkPolicy demo/out spec.egress[0] spec.egress[1], NetworkPolicy demo/more spec.egress[0]\n     SUMMARY: TCP Flags: SYN\n"},
		{"empty", HubblePrinter{}, &flowpb.Flow{}, "N/A: ? (unknown) <> ? (unknown) unknown VERDICT_UNKNOWN\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			tt.printer.Out = &out
			if err := tt.printer.Print(tt.flow, tt.flow); err != nil {
				t.Fatal(err)
			}
			if err := tt.printer.Close(); err != nil {
				t.Fatal(err)
			}
			if out.String() != tt.want {
				t.Errorf("got\n%s\nwant\n%s", out.String(), tt.want)
			}
		})
	}
}

// CVE-2025-48056: control characters in a flow's fields reached the terminals of those who looked at it.
func TestCVE_2025_48056_NothingMovesTheCursor(t *testing.T) {
	checkPrinters(t, "a\x1b[2J\r\nb\u009b1m\u202e\U000e0001", "\x7f\x00\u0085")
}

func FuzzHubblePrinter(f *testing.F) {
	f.Add("a\x1b]0;x\x07", "\u009b2J")
	f.Add("plain", `quote" and \ back`)
	f.Fuzz(func(t *testing.T, a, b string) {
		checkPrinters(t, strings.ToValidUTF8(a, "?"), strings.ToValidUTF8(b, "?"))
	})
}

// checkPrinters puts text into every field that is text and looks at what comes out.
func checkPrinters(t *testing.T, a, b string) {
	t.Helper()
	p := &flowpb.Policy{Kind: a, Namespace: b, Name: a, Labels: []string{LabelRule + b}}
	f := &flowpb.Flow{
		NodeName: a, Verdict: flowpb.Verdict_DROPPED, Summary: b, Uuid: a, //nolint:staticcheck // clients show it
		IP: &flowpb.IP{Source: a, Destination: b, SourceXlated: a}, Ethernet: &flowpb.Ethernet{Source: a},
		Source:      &flowpb.Endpoint{Namespace: a, PodName: b, Labels: []string{a, b}, Workloads: []*flowpb.Workload{{Kind: a, Name: b}}},
		Destination: &flowpb.Endpoint{}, DestinationNames: []string{a, b}, SourceService: &flowpb.Service{Name: a, Namespace: b},
		Interface: &flowpb.NetworkInterface{Name: b}, EgressDeniedBy: []*flowpb.Policy{p}, IngressAllowedBy: []*flowpb.Policy{p},
		PolicyLog: []string{a},
	}
	for _, format := range HubbleFormats {
		var out bytes.Buffer
		printer := &HubblePrinter{Out: &out, Format: format, Node: true}
		if err := printer.Print(f, f); err != nil {
			t.Fatal(err)
		}
		if err := printer.Close(); err != nil {
			t.Fatal(err)
		}
		for _, r := range out.String() {
			if r != '\n' && (r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0x202e) {
				t.Fatalf("%s holds the control character %q: %q", format, r, out.String())
			}
		}
		if format != JSON {
			continue
		}
		if strings.Count(out.String(), "\n") != 1 || !json.Valid(out.Bytes()) {
			t.Fatalf("not one line of JSON: %q", out.String())
		}
		var back flowpb.Flow
		if err := protojson.Unmarshal(out.Bytes(), &back); err != nil || !proto.Equal(f, &back) {
			t.Fatalf("%v: read back %v", err, &back)
		}
	}
}
