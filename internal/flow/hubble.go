// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// The published numbers of CiliumEventType.type.
const (
	eventDrop    = 1
	eventTrace   = 4
	eventVerdict = 5
)

// LabelRule begins the label of a Policy that names the rule in it: rule:spec.ingress[0].
const LabelRule = "rule:"

// Hubble gives an event the form of Hubble's API. What numbers stand for is asked of names, which may be nil.
func Hubble(e *Event, names Names) *flowpb.Flow {
	f := &flowpb.Flow{
		Time: timestamppb.New(e.Time), NodeName: e.Node, Type: flowpb.FlowType_L3_L4,
		Verdict: verdict(e), EventType: eventType(e), TrafficDirection: trafficDirection(e),
		Source: endpoint(e, &e.Source, !e.Ingress, names), Destination: endpoint(e, &e.Destination, e.Ingress, names),
		L4: layer4(e), Summary: summary(e), //nolint:staticcheck // clients show it
	}
	if e.Source.Address.IsValid() {
		f.IP = &flowpb.IP{Source: e.Source.Address.String(), Destination: e.Destination.Address.String(), IpVersion: flowpb.IPVersion_IPv4}
		if e.Source.Address.Is6() {
			f.IP.IpVersion = flowpb.IPVersion_IPv6
		}
		if e.Translated.IsValid() && bpf.Hook(e.Hook) != bpf.MapsHookHOOK_FROM_NETDEV { // the API has no place for that of a destination
			f.IP.SourceXlated = e.Translated.Addr().String()
		}
	}
	if e.Reply != nil {
		f.IsReply, f.Reply = wrapperspb.Bool(*e.Reply), *e.Reply //nolint:staticcheck // older clients read the deprecated field
	}
	if f.Verdict == flowpb.Verdict_DROPPED {
		f.DropReasonDesc, f.DropReason = e.Reason.Published(), uint32(e.Reason) //nolint:staticcheck // our own number stays in it
	} else {
		f.TraceObservationPoint = observationPoint(e)
		if e.Reply != nil && *e.Reply {
			f.TraceReason = flowpb.TraceReason_REPLY
		}
	}
	if e.Interface != "" || e.Ifindex != 0 {
		f.Interface = &flowpb.NetworkInterface{Index: e.Ifindex, Name: e.Interface}
	}
	if e.Tunnel {
		f.Tunnel = &flowpb.Tunnel{Protocol: flowpb.Tunnel_VXLAN}
	}
	f.SourceNames, f.DestinationNames = hostNames(e.Source.Who), hostNames(e.Destination.Who)
	f.SourceService, f.DestinationService = serviceOf(e.Source.Who), serviceOf(e.Destination.Who)
	if names != nil {
		decisions(f, e.Rules, names)
	}
	return f
}

// PolicyVerdicts are what policies said of a connection, a flow for each side that one of them judged: of the first packet
// that was accepted, and of every packet that was refused. Other packets were not judged, or not for the first time.
func PolicyVerdicts(e *Event, names Names) []*flowpb.Flow {
	var out []*flowpb.Flow
	refused := refusedByPolicy(e.Reason)
	one := *e
	one.Type = Verdict
	for _, side := range [...]policy.Direction{policy.Egress, policy.Ingress} {
		if e.Rules[side] == 0 || !e.First && (!refused || e.Ingress != (side == policy.Ingress)) {
			continue
		}
		one.Rules = [2]uint32{}
		one.Rules[side] = e.Rules[side]
		f := Hubble(&one, names)
		if !refused && f.Verdict == flowpb.Verdict_DROPPED { // for another reason, after policy
			f.Verdict, f.DropReasonDesc, f.DropReason = flowpb.Verdict_FORWARDED, 0, 0 //nolint:staticcheck // set above
		}
		f.TraceObservationPoint, f.TraceReason = flowpb.TraceObservationPoint_UNKNOWN_POINT, flowpb.TraceReason_TRACE_REASON_UNKNOWN
		f.TrafficDirection = flowpb.TrafficDirection_EGRESS
		if side == policy.Ingress {
			f.TrafficDirection = flowpb.TrafficDirection_INGRESS
		}
		out = append(out, f)
	}
	return out
}

func refusedByPolicy(r Reason) bool {
	switch bpf.Reason(r) {
	case bpf.MapsReasonDROP_POLICY, bpf.MapsReasonDROP_POLICY_DENY, bpf.MapsReasonDROP_PENDING_DENY:
		return true
	}
	return false
}

func verdict(e *Event) flowpb.Verdict {
	switch {
	case e.Type == Drop || e.Reason.Dropped():
		return flowpb.Verdict_DROPPED
	case e.Reason == Reason(bpf.MapsReasonFORWARD_TRANSLATED):
		return flowpb.Verdict_TRANSLATED
	}
	return flowpb.Verdict_FORWARDED
}

func eventType(e *Event) *flowpb.CiliumEventType {
	switch {
	case e.Type == Verdict:
		return &flowpb.CiliumEventType{Type: eventVerdict}
	case verdict(e) == flowpb.Verdict_DROPPED:
		return &flowpb.CiliumEventType{Type: eventDrop, SubType: int32(e.Reason)}
	}
	// The points' numbers in events are those of the API, but for the one that is 0 there.
	point := int32(observationPoint(e))
	if point == int32(flowpb.TraceObservationPoint_TO_ENDPOINT) {
		point = 0
	}
	return &flowpb.CiliumEventType{Type: eventTrace, SubType: point}
}

// observationPoint says where the packet was going, or, where nobody of ours took it further, where it came from.
func observationPoint(e *Event) flowpb.TraceObservationPoint {
	switch bpf.Reason(e.Reason) {
	case bpf.MapsReasonFORWARD_TO_POD:
		return flowpb.TraceObservationPoint_TO_ENDPOINT
	case bpf.MapsReasonFORWARD_TO_TUNNEL:
		return flowpb.TraceObservationPoint_TO_OVERLAY
	case bpf.MapsReasonFORWARD_TO_NETWORK:
		return flowpb.TraceObservationPoint_TO_NETWORK
	case bpf.MapsReasonFORWARD_TO_STACK:
		if e.Destination.Identity == identityHost {
			return flowpb.TraceObservationPoint_TO_HOST
		}
		return flowpb.TraceObservationPoint_TO_STACK
	}
	switch bpf.Hook(e.Hook) {
	case bpf.MapsHookHOOK_FROM_POD:
		return flowpb.TraceObservationPoint_FROM_ENDPOINT
	case bpf.MapsHookHOOK_TO_POD:
		return flowpb.TraceObservationPoint_TO_ENDPOINT
	case bpf.MapsHookHOOK_FROM_NETDEV:
		return flowpb.TraceObservationPoint_FROM_NETWORK
	case bpf.MapsHookHOOK_TO_NETDEV:
		return flowpb.TraceObservationPoint_TO_NETWORK
	case bpf.MapsHookHOOK_FROM_OVERLAY:
		return flowpb.TraceObservationPoint_FROM_OVERLAY
	case bpf.MapsHookHOOK_TO_OVERLAY:
		return flowpb.TraceObservationPoint_TO_OVERLAY
	}
	return flowpb.TraceObservationPoint_UNKNOWN_POINT
}

// trafficDirection is that of the connection, as its endpoint on this node sees it: a reply on its way out of a pod
// belongs to a connection that came in.
func trafficDirection(e *Event) flowpb.TrafficDirection {
	if e.Endpoint == 0 {
		return flowpb.TrafficDirection_TRAFFIC_DIRECTION_UNKNOWN
	}
	if e.Ingress != (e.Reply != nil && *e.Reply) {
		return flowpb.TrafficDirection_INGRESS
	}
	return flowpb.TrafficDirection_EGRESS
}

// endpoint is one side of a packet; ours tells that e.Endpoint is that side's.
func endpoint(e *Event, p *Party, ours bool, names Names) *flowpb.Endpoint {
	out := &flowpb.Endpoint{Identity: p.Identity}
	if ours {
		out.ID = uint32(e.Endpoint)
	}
	if name := IdentityName(p.Identity); name != "" {
		out.Labels = []string{"reserved:" + name}
	} else if names != nil {
		out.Labels = names.Labels(p.Identity)
	}
	namespace := ""
	for _, l := range out.Labels {
		switch key, value, _ := strings.Cut(l, "="); key {
		case labelCluster:
			out.ClusterName = value
		case labelNamespace:
			namespace = value
		}
	}
	who := p.Who
	if who == nil && names != nil && p.Address.IsValid() && p.Identity > lastReserved {
		// The packet was quicker than the news of its pod; whoever has the address by now must fit the identity.
		if who = names.Address(p.Address); who != nil && who.Namespace != namespace {
			who = nil
		}
	}
	out.Namespace = namespace
	if who != nil && who.Pod != "" {
		out.Namespace, out.PodName = who.Namespace, who.Pod
		for _, w := range who.Workloads {
			out.Workloads = append(out.Workloads, &flowpb.Workload{Kind: w.Kind, Name: w.Name})
		}
	}
	return out
}

const (
	identityHost = 1
	lastReserved = 255

	labelNamespace = "k8s:io.kubernetes.pod.namespace"
	labelCluster   = "k8s:io.cilium.k8s.policy.cluster"
)

func hostNames(w *Who) []string {
	if w == nil || w.Node == "" {
		return nil
	}
	return []string{w.Node}
}

func serviceOf(w *Who) *flowpb.Service {
	if w == nil || w.Service == "" {
		return nil
	}
	return &flowpb.Service{Namespace: w.ServiceNamespace, Name: w.Service}
}

func layer4(e *Event) *flowpb.Layer4 {
	src, dst := uint32(e.Source.Port), uint32(e.Destination.Port)
	switch e.Protocol {
	case protoTCP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{SourcePort: src, DestinationPort: dst, Flags: tcpFlags(e.TCPFlags)}}}
	case protoUDP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_UDP{UDP: &flowpb.UDP{SourcePort: src, DestinationPort: dst}}}
	case protoSCTP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_SCTP{SCTP: &flowpb.SCTP{SourcePort: src, DestinationPort: dst}}}
	case protoICMP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv4{ICMPv4: &flowpb.ICMPv4{Type: uint32(e.ICMPType), Code: uint32(e.ICMPCode)}}}
	case protoICMPv6:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv6{ICMPv6: &flowpb.ICMPv6{Type: uint32(e.ICMPType), Code: uint32(e.ICMPCode)}}}
	}
	return nil
}

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

func tcpFlags(bits uint8) *flowpb.TCPFlags {
	set := func(i int) bool { return bits&(1<<i) != 0 }
	return &flowpb.TCPFlags{FIN: set(0), SYN: set(1), RST: set(2), PSH: set(3), ACK: set(4), URG: set(5), ECE: set(6), CWR: set(7)}
}

// summary is what a line for people ends with.
func summary(e *Event) string {
	switch e.Protocol {
	case 0:
		return ""
	case protoTCP:
		return "TCP Flags: " + strings.Join(TCPFlagNames(e.TCPFlags), ", ")
	case protoICMP, protoICMPv6:
		return ProtocolName(e.Protocol) + " " + icmpName(e.Protocol, e.ICMPType, e.ICMPCode)
	case protoUDP, protoSCTP:
		return ProtocolName(e.Protocol)
	}
	return "protocol " + strconv.Itoa(int(e.Protocol))
}

// icmpName names the messages that people meet.
func icmpName(protocol, kind, code uint8) string {
	names := map[uint8]string{0: "EchoReply", 3: "DestinationUnreachable", 5: "Redirect", 8: "EchoRequest", 11: "TimeExceeded", 12: "ParameterProblem"}
	if protocol == protoICMPv6 {
		names = map[uint8]string{
			1: "DestinationUnreachable", 2: "PacketTooBig", 3: "TimeExceeded", 4: "ParameterProblem", 128: "EchoRequest", 129: "EchoReply",
			133: "RouterSolicitation", 134: "RouterAdvertisement", 135: "NeighborSolicitation", 136: "NeighborAdvertisement", 137: "Redirect",
		}
	}
	name := names[kind]
	switch {
	case name == "":
		return fmt.Sprintf("type %d code %d", kind, code)
	case code != 0:
		return fmt.Sprintf("%s code %d", name, code)
	}
	return name
}

// decisions names the policies that allowed or denied, on both sides.
func decisions(f *flowpb.Flow, rules [2]uint32, names Names) {
	for direction, id := range rules {
		if id == 0 {
			continue
		}
		p, ok := names.Rule(id)
		if !ok {
			continue
		}
		all := policies(p)
		switch denied := p.Default || p.Verdict == policy.Deny; {
		case policy.Direction(direction) == policy.Egress && denied:
			f.EgressDeniedBy = all
		case policy.Direction(direction) == policy.Egress:
			f.EgressAllowedBy = all
		case denied:
			f.IngressDeniedBy = all
		default:
			f.IngressAllowedBy = all
		}
	}
}

// policies are the objects that state a rule, each once; the rules in them are labels. A default deny has none: it is
// all of them that select the pod.
func policies(p policy.Provenance) []*flowpb.Policy {
	var out []*flowpb.Policy
	for _, o := range p.Origins {
		i := slices.IndexFunc(out, func(have *flowpb.Policy) bool {
			return have.Kind == o.Kind && have.Namespace == o.Namespace && have.Name == o.Name
		})
		if i < 0 {
			i = len(out)
			out = append(out, &flowpb.Policy{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name})
		}
		if o.Path != "" {
			out[i].Labels = append(out[i].Labels, LabelRule+o.Path)
		}
	}
	return out
}

// Published is the reason's number in Hubble's API: the same where the meaning agrees, the nearest for those that are
// only ours. Which one of ours it was stays in the flow's event_type.sub_type and drop_reason.
func (r Reason) Published() flowpb.DropReason {
	if _, ok := flowpb.DropReason_name[int32(r)]; ok && r.Dropped() {
		return flowpb.DropReason(r)
	}
	switch bpf.Reason(r) {
	case bpf.MapsReasonDROP_OWN_SOURCE, bpf.MapsReasonDROP_SPOOFED_ARP, bpf.MapsReasonDROP_MARTIAN:
		return flowpb.DropReason_INVALID_SOURCE_IP
	case bpf.MapsReasonDROP_DHCP_SERVER:
		return flowpb.DropReason_INVALID_PACKET_DROPPED
	case bpf.MapsReasonDROP_PENDING_DENY:
		return flowpb.DropReason_POLICY_DENY
	case bpf.MapsReasonDROP_NO_POLICY_YET:
		return flowpb.DropReason_DROP_EP_NOT_READY
	case bpf.MapsReasonDROP_TOO_BIG:
		return flowpb.DropReason_IP_FRAGMENTATION_NOT_SUPPORTED
	case bpf.MapsReasonDROP_REDIRECT:
		return flowpb.DropReason_FIB_LOOKUP_FAILED
	}
	return flowpb.DropReason_DROP_REASON_UNKNOWN
}

// UUID is that of the nth flow of a server whose seed is random: version 8 of RFC 9562, the number in its last bits.
func UUID(seed uint64, n uint64) string {
	b := [16]byte{}
	for i := range 8 {
		b[i], b[8+i] = byte(seed>>(56-8*i)), byte(n>>(56-8*i))
	}
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
