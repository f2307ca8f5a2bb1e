// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/apimachinery/pkg/labels"
)

// maxFilters bounds how many filters one request may hold, and how many values one field of a filter.
const maxFilters = 1024

// Filter says which flows are wanted: those that an entry of a whitelist matches, or all without one, but for those
// that an entry of the blacklist matches. The zero Filter wants all.
type Filter struct {
	white, black []test
}

// test is a condition on a flow.
type test func(*flowpb.Flow) bool

// NewFilter understands the filters of Hubble's API. All fields that are set in one must match, of several values of a
// field one. An error is a sentence that names the field; fields about protocols that we do not read are refused, so
// that nobody takes silence for an answer.
func NewFilter(whitelist, blacklist []*flowpb.FlowFilter) (*Filter, error) {
	f := &Filter{}
	for _, half := range []struct {
		in  []*flowpb.FlowFilter
		out *[]test
	}{{whitelist, &f.white}, {blacklist, &f.black}} {
		if len(half.in) > maxFilters {
			return nil, fmt.Errorf("%d filters are too many: at most %d", len(half.in), maxFilters)
		}
		for _, in := range half.in {
			t, err := compile(in)
			if err != nil {
				return nil, err
			}
			*half.out = append(*half.out, t)
		}
	}
	return f, nil
}

// Match tells whether a flow is wanted.
func (f *Filter) Match(p *flowpb.Flow) bool {
	matches := func(t test) bool { return t(p) }
	return (len(f.white) == 0 || slices.ContainsFunc(f.white, matches)) && !slices.ContainsFunc(f.black, matches)
}

// compile makes one test of a filter's fields.
func compile(f *flowpb.FlowFilter) (test, error) {
	if f == nil {
		return func(*flowpb.Flow) bool { return true }, nil
	}
	if err := refuse(f); err != nil {
		return nil, err
	}
	source := func(p *flowpb.Flow) *flowpb.Endpoint { return p.GetSource() }
	destination := func(p *flowpb.Flow) *flowpb.Endpoint { return p.GetDestination() }
	var c compiler
	either(&c, "source_ip", f.SourceIp, ipTest(func(p *flowpb.Flow) string { return p.GetIP().GetSource() }))
	either(&c, "source_ip_xlated", f.SourceIpXlated, ipTest(func(p *flowpb.Flow) string { return p.GetIP().GetSourceXlated() }))
	either(&c, "destination_ip", f.DestinationIp, ipTest(func(p *flowpb.Flow) string { return p.GetIP().GetDestination() }))
	either(&c, "source_pod", f.SourcePod, podTest(source))
	either(&c, "destination_pod", f.DestinationPod, podTest(destination))
	either(&c, "source_fqdn", f.SourceFqdn, globTest(func(p *flowpb.Flow) []string { return p.GetSourceNames() }))
	either(&c, "destination_fqdn", f.DestinationFqdn, globTest(func(p *flowpb.Flow) []string { return p.GetDestinationNames() }))
	either(&c, "source_label", f.SourceLabel, labelTest(func(p *flowpb.Flow) []string { return p.GetSource().GetLabels() }))
	either(&c, "destination_label", f.DestinationLabel, labelTest(func(p *flowpb.Flow) []string { return p.GetDestination().GetLabels() }))
	either(&c, "source_service", f.SourceService, serviceTest(func(p *flowpb.Flow) *flowpb.Service { return p.GetSourceService() }))
	either(&c, "destination_service", f.DestinationService, serviceTest(func(p *flowpb.Flow) *flowpb.Service { return p.GetDestinationService() }))
	either(&c, "source_workload", f.SourceWorkload, workloadTest(source))
	either(&c, "destination_workload", f.DestinationWorkload, workloadTest(destination))
	either(&c, "source_cluster_name", f.SourceClusterName, globTest(func(p *flowpb.Flow) []string { return []string{p.GetSource().GetClusterName()} }))
	either(&c, "destination_cluster_name", f.DestinationClusterName, globTest(func(p *flowpb.Flow) []string { return []string{p.GetDestination().GetClusterName()} }))
	either(&c, "source_port", f.SourcePort, portTest(func(p *flowpb.Flow) (uint32, bool) { from, _, ok := Ports(p); return from, ok }))
	either(&c, "destination_port", f.DestinationPort, portTest(func(p *flowpb.Flow) (uint32, bool) { _, to, ok := Ports(p); return to, ok }))
	either(&c, "protocol", f.Protocol, protocolTest)
	either(&c, "node_name", f.NodeName, nodeTest)
	either(&c, "node_labels", f.NodeLabels, labelTest(func(p *flowpb.Flow) []string { return p.GetNodeLabels() }))
	either(&c, "event_type", f.EventType, eventTest)
	either(&c, "tcp_flags", f.TcpFlags, flagsTest)
	either(&c, "interface", f.Interface, interfaceTest)
	equals(&c, f.SourceIdentity, func(p *flowpb.Flow) uint32 { return p.GetSource().GetIdentity() })
	equals(&c, f.DestinationIdentity, func(p *flowpb.Flow) uint32 { return p.GetDestination().GetIdentity() })
	equals(&c, f.Verdict, (*flowpb.Flow).GetVerdict)
	equals(&c, f.DropReasonDesc, (*flowpb.Flow).GetDropReasonDesc)
	equals(&c, f.TrafficDirection, (*flowpb.Flow).GetTrafficDirection)
	equals(&c, f.IpVersion, func(p *flowpb.Flow) flowpb.IPVersion { return p.GetIP().GetIpVersion() })
	equals(&c, f.Encrypted, func(p *flowpb.Flow) bool { return p.GetIP().GetEncrypted() })
	equals(&c, f.Uuid, (*flowpb.Flow).GetUuid)
	equals(&c, f.IpTraceId, func(p *flowpb.Flow) uint64 { return p.GetIpTraceId().GetTraceId() })
	equals(&c, f.TraceId, func(p *flowpb.Flow) string { return p.GetTraceContext().GetParent().GetTraceId() })
	if len(f.Reply) > 0 { // a flow whose direction is not known is neither
		c.all = append(c.all, func(p *flowpb.Flow) bool {
			return p.GetIsReply() != nil && slices.Contains(f.Reply, p.GetIsReply().GetValue())
		})
	}
	all := c.all
	return func(p *flowpb.Flow) bool {
		for _, t := range all {
			if !t(p) {
				return false
			}
		}
		return true
	}, c.err
}

// refuse says which field of a filter nothing here can answer, or holds too much.
func refuse(f *flowpb.FlowFilter) error {
	application := []protoreflect.Name{"http_status_code", "dns_query", "http_method", "http_path", "http_url", "http_header"}
	var err error
	f.ProtoReflect().Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case slices.Contains(application, d.Name()):
			err = fmt.Errorf("filter %s is not supported: application protocols are not read", d.Name())
		case d.Name() == "experimental":
			err = fmt.Errorf("filter %s is not supported", d.Name())
		case d.IsList() && v.List().Len() > maxFilters:
			err = fmt.Errorf("filter %s has %d values: at most %d", d.Name(), v.List().Len(), maxFilters)
		}
		return err == nil
	})
	if err == nil && len(f.ProtoReflect().GetUnknown()) > 0 {
		err = fmt.Errorf("a filter has a field that this version does not know")
	}
	return err
}

// compiler gathers tests, all of which must hold, and the first error.
type compiler struct {
	all []test
	err error
}

// either adds that one of a field's values matches; nothing where there is none.
func either[T any](c *compiler, field string, values []T, make func(T) (test, error)) {
	if c.err != nil || len(values) == 0 {
		return
	}
	var any []test
	for _, v := range values {
		t, err := make(v)
		if err != nil {
			c.err = fmt.Errorf("filter %s: %w", field, err)
			return
		}
		any = append(any, t)
	}
	c.all = append(c.all, func(p *flowpb.Flow) bool {
		return slices.ContainsFunc(any, func(t test) bool { return t(p) })
	})
}

func equals[T comparable](c *compiler, values []T, get func(*flowpb.Flow) T) {
	if len(values) > 0 {
		c.all = append(c.all, func(p *flowpb.Flow) bool { return slices.Contains(values, get(p)) })
	}
}

// ipTest takes an address or a prefix.
func ipTest(get func(*flowpb.Flow) string) func(string) (test, error) {
	return func(text string) (test, error) {
		prefix, err := ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		return func(p *flowpb.Flow) bool {
			a, err := netip.ParseAddr(get(p))
			return err == nil && prefix.Contains(a.Unmap())
		}, nil
	}
}

// ParsePrefix takes an address or a prefix; an address is the prefix that holds it alone.
func ParsePrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a prefix", Safe(text))
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// podTest takes namespace/beginning-of-name, namespace/ for every pod of a namespace, /beginning-of-name for any
// namespace; a name without a slash is of the namespace default.
func podTest(side func(*flowpb.Flow) *flowpb.Endpoint) func(string) (test, error) {
	return func(text string) (test, error) {
		namespace, prefix, err := splitName(text)
		if err != nil {
			return nil, err
		}
		return func(p *flowpb.Flow) bool {
			e := side(p)
			return (namespace == "" || e.GetNamespace() == namespace) && strings.HasPrefix(e.GetPodName(), prefix) &&
				(prefix == "" || e.GetPodName() != "")
		}, nil
	}
}

func serviceTest(side func(*flowpb.Flow) *flowpb.Service) func(string) (test, error) {
	return func(text string) (test, error) {
		namespace, prefix, err := splitName(text)
		if err != nil {
			return nil, err
		}
		return func(p *flowpb.Flow) bool {
			s := side(p)
			return s.GetName() != "" && (namespace == "" || s.GetNamespace() == namespace) && strings.HasPrefix(s.GetName(), prefix)
		}, nil
	}
}

func splitName(text string) (namespace, prefix string, err error) {
	namespace, prefix, found := strings.Cut(text, "/")
	if !found {
		namespace, prefix = "default", text
	}
	if text == "" || text == "/" || strings.Contains(prefix, "/") {
		return "", "", fmt.Errorf("%q is not [namespace/]name", Safe(text))
	}
	return namespace, prefix, nil
}

func workloadTest(side func(*flowpb.Flow) *flowpb.Endpoint) func(*flowpb.Workload) (test, error) {
	return func(want *flowpb.Workload) (test, error) {
		if want.GetKind() == "" && want.GetName() == "" {
			return nil, fmt.Errorf("neither kind nor name is given")
		}
		return func(p *flowpb.Flow) bool {
			return slices.ContainsFunc(side(p).GetWorkloads(), func(w *flowpb.Workload) bool {
				return (want.GetKind() == "" || strings.EqualFold(want.GetKind(), w.GetKind())) && (want.GetName() == "" || want.GetName() == w.GetName())
			})
		}, nil
	}
}

// labelTest takes a selector as kubectl does. A key may begin with a source, as in k8s:app or reserved:host; without
// one it is of any source.
func labelTest(get func(*flowpb.Flow) []string) func(string) (test, error) {
	return func(text string) (test, error) {
		selector, err := labels.Parse(sources.Replace(text))
		if err != nil || selector.Empty() {
			return nil, fmt.Errorf("%q is not a label selector", Safe(text))
		}
		return func(p *flowpb.Flow) bool {
			set := labels.Set{}
			for _, l := range get(p) {
				key, value, _ := strings.Cut(l, "=")
				source, name, found := strings.Cut(key, ":")
				if !found {
					source, name = "", key
				}
				set[name] = value
				if source != "" {
					set[source+sourceMark+name] = value
				}
			}
			return selector.Matches(set)
		}, nil
	}
}

// sourceMark stands for the colon after a label's source, which selectors do not know.
const sourceMark = "."

var sources = strings.NewReplacer("k8s:", "k8s"+sourceMark, "reserved:", "reserved"+sourceMark, "cidr:", "cidr"+sourceMark, "any:", "")

func globTest(get func(*flowpb.Flow) []string) func(string) (test, error) {
	return func(pattern string) (test, error) {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return nil, fmt.Errorf("%q is not a pattern", Safe(pattern))
		}
		return func(p *flowpb.Flow) bool {
			return slices.ContainsFunc(get(p), func(name string) bool { ok, _ := path.Match(pattern, name); return ok })
		}, nil
	}
}

// NodeMatch tells whether a node's name fits a pattern with * in it, which may have a cluster's before a slash; nothing
// after the slash means every node of the cluster. A name without a cluster is of the cluster default.
func NodeMatch(pattern, name string) bool {
	wantCluster, want, ofCluster := strings.Cut(pattern, "/")
	if !ofCluster {
		wantCluster, want = "*", pattern
	} else if want == "" {
		want = "*"
	}
	cluster, node, found := strings.Cut(name, "/")
	if !found {
		cluster, node = "default", name
	}
	c, _ := path.Match(wantCluster, cluster)
	n, _ := path.Match(want, node)
	return c && n
}

func nodeTest(pattern string) (test, error) {
	if _, err := path.Match(strings.ReplaceAll(pattern, "/", ""), ""); err != nil || pattern == "" || strings.Count(pattern, "/") > 1 {
		return nil, fmt.Errorf("%q is not the pattern of a node's name", Safe(pattern))
	}
	return func(p *flowpb.Flow) bool { return NodeMatch(pattern, p.GetNodeName()) }, nil
}

// Ports of a flow's transport; ok is false where it has none.
func Ports(p *flowpb.Flow) (from, to uint32, ok bool) {
	switch l4 := p.GetL4().GetProtocol().(type) {
	case *flowpb.Layer4_TCP:
		return l4.TCP.GetSourcePort(), l4.TCP.GetDestinationPort(), true
	case *flowpb.Layer4_UDP:
		return l4.UDP.GetSourcePort(), l4.UDP.GetDestinationPort(), true
	case *flowpb.Layer4_SCTP:
		return l4.SCTP.GetSourcePort(), l4.SCTP.GetDestinationPort(), true
	}
	return 0, 0, false
}

// portTest takes a port, or two with a dash between them.
func portTest(get func(*flowpb.Flow) (uint32, bool)) func(string) (test, error) {
	return func(text string) (test, error) {
		first, last, found := strings.Cut(text, "-")
		if !found {
			last = first
		}
		low, err1 := strconv.ParseUint(first, 10, 16)
		high, err2 := strconv.ParseUint(last, 10, 16)
		switch {
		case err1 != nil || err2 != nil:
			return nil, fmt.Errorf("%q is not a port", Safe(text))
		case low > high:
			return nil, fmt.Errorf("%q goes backwards: FIRST-LAST is wanted, and %d is larger than %d", Safe(text), low, high)
		}
		return func(p *flowpb.Flow) bool {
			port, ok := get(p)
			return ok && uint64(port) >= low && uint64(port) <= high
		}, nil
	}
}

// protocols are the names that a filter may use.
var protocols = []string{"icmp", "icmpv4", "icmpv6", "sctp", "tcp", "udp"}

func protocolTest(name string) (test, error) {
	name = strings.ToLower(name)
	if !slices.Contains(protocols, name) {
		return nil, fmt.Errorf("%q is not known: %s", Safe(name), strings.Join(protocols, ", "))
	}
	return func(p *flowpb.Flow) bool {
		has := ""
		switch p.GetL4().GetProtocol().(type) {
		case *flowpb.Layer4_TCP:
			has = "tcp"
		case *flowpb.Layer4_UDP:
			has = "udp"
		case *flowpb.Layer4_SCTP:
			has = "sctp"
		case *flowpb.Layer4_ICMPv4:
			has = "icmpv4"
		case *flowpb.Layer4_ICMPv6:
			has = "icmpv6"
		}
		return has == name || name == "icmp" && strings.HasPrefix(has, name)
	}, nil
}

// WantsVerdicts tells whether a filter asks for policy verdicts by their type. They say again what other flows of the same
// packets say, so who does not ask for them gets none.
func WantsVerdicts(whitelist []*flowpb.FlowFilter) bool {
	return slices.ContainsFunc(whitelist, func(f *flowpb.FlowFilter) bool {
		return slices.ContainsFunc(f.GetEventType(), func(t *flowpb.EventTypeFilter) bool { return t.GetType() == eventVerdict })
	})
}

func eventTest(want *flowpb.EventTypeFilter) (test, error) {
	return func(p *flowpb.Flow) bool {
		t := p.GetEventType()
		return t != nil && t.GetType() == want.GetType() && (!want.GetMatchSubType() || t.GetSubType() == want.GetSubType())
	}, nil
}

// flagsTest matches a packet that has all the flags of the filter, whatever others it has.
func flagsTest(want *flowpb.TCPFlags) (test, error) {
	bits := flagBits(want)
	if bits == 0 {
		return nil, fmt.Errorf("no flag is given")
	}
	return func(p *flowpb.Flow) bool {
		has := p.GetL4().GetTCP().GetFlags()
		return has != nil && flagBits(has)&bits == bits
	}, nil
}

func flagBits(f *flowpb.TCPFlags) (bits uint16) {
	for i, set := range []bool{f.GetFIN(), f.GetSYN(), f.GetRST(), f.GetPSH(), f.GetACK(), f.GetURG(), f.GetECE(), f.GetCWR(), f.GetNS()} {
		if set {
			bits |= 1 << i
		}
	}
	return bits
}

func interfaceTest(want *flowpb.NetworkInterface) (test, error) {
	if want.GetName() == "" && want.GetIndex() == 0 {
		return nil, fmt.Errorf("neither name nor index is given")
	}
	return func(p *flowpb.Flow) bool {
		has := p.GetInterface()
		return (want.GetName() == "" || want.GetName() == has.GetName()) && (want.GetIndex() == 0 || want.GetIndex() == has.GetIndex())
	}, nil
}
