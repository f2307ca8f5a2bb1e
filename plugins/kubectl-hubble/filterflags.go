// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"github.com/google/uuid"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// maxAlternatives bounds what flags about either side can multiply to.
const maxAlternatives = 256

// filterFlags are the flags that say which flows are wanted, in the order in which they were given: --not is about the
// next one.
type filterFlags struct {
	given []given
	not   bool
}

// given is one flag as it was typed.
type given struct {
	flag   *filterFlag
	values []string
	not    bool
}

// filterFlag is a kind of flag. Make gives the alternatives that one value stands for, of which any may match: a flag
// about either side has two.
type filterFlag struct {
	name, short, usage string
	values             []string // for completion
	make               func(value, namespace string) ([]*flowpb.FlowFilter, error)
}

// isUUID tells whether a text has the form of RFC 9562: uuid.Validate takes others too, which no flow has.
func isUUID(text string) bool { return len(text) == 36 && uuid.Validate(text) == nil }

// source and destination are what a flag about a side sets in a filter.
type sideSetter func(source, destination *flowpb.FlowFilter, value, namespace string) error

// sided makes the three flags of a side: --X, --from-X and --to-X.
func sided(name, short, usage string, set sideSetter) []*filterFlag {
	one := func(keep ...int) func(string, string) ([]*flowpb.FlowFilter, error) {
		return func(value, namespace string) ([]*flowpb.FlowFilter, error) {
			both := []*flowpb.FlowFilter{{}, {}}
			if err := set(both[0], both[1], value, namespace); err != nil {
				return nil, err
			}
			var out []*flowpb.FlowFilter
			for _, i := range keep {
				out = append(out, both[i])
			}
			return out, nil
		}
	}
	return []*filterFlag{
		{name: name, short: short, usage: "Only where either side " + usage, make: one(0, 1)},
		{name: "from-" + name, usage: "Only where the source " + usage, make: one(0)},
		{name: "to-" + name, usage: "Only where the destination " + usage, make: one(1)},
	}
}

// simple makes a flag that sets one field.
func simple(name, short, usage string, values []string, set func(f *flowpb.FlowFilter, value string) error) *filterFlag {
	return &filterFlag{name: name, short: short, usage: usage, values: values, make: func(value, _ string) ([]*flowpb.FlowFilter, error) {
		f := &flowpb.FlowFilter{}
		return []*flowpb.FlowFilter{f}, set(f, value)
	}}
}

// allFilterFlags are the flags, in the order of the help.
func allFilterFlags() []*filterFlag {
	all := slices.Concat(
		sided("pod", "", "is a pod whose name begins so; NAMESPACE/NAME, or NAMESPACE/ for all pods of a namespace.", func(s, d *flowpb.FlowFilter, v, ns string) error {
			if !strings.Contains(v, "/") {
				v = ns + "/" + v
			}
			s.SourcePod, d.DestinationPod = []string{v}, []string{v}
			return nil
		}),
		sided("service", "", "is a Service whose name begins so; NAMESPACE/NAME is allowed.", func(s, d *flowpb.FlowFilter, v, ns string) error {
			if !strings.Contains(v, "/") {
				v = ns + "/" + v
			}
			s.SourceService, d.DestinationService = []string{v}, []string{v}
			return nil
		}),
		sided("ip", "", "has this address, or one of this prefix.", func(s, d *flowpb.FlowFilter, v, _ string) error {
			_, err := flow.ParsePrefix(v)
			s.SourceIp, d.DestinationIp = []string{v}, []string{v}
			return err
		}),
		sided("port", "", "has this port, or one of FIRST-LAST.", func(s, d *flowpb.FlowFilter, v, _ string) error {
			s.SourcePort, d.DestinationPort = []string{v}, []string{v}
			return nil
		}),
		sided("label", "l", "has labels that this selector selects, such as app=web or reserved:host.", func(s, d *flowpb.FlowFilter, v, _ string) error {
			s.SourceLabel, d.DestinationLabel = []string{v}, []string{v}
			return nil
		}),
		sided("identity", "", "has this identity, a number or a reserved name such as world.", func(s, d *flowpb.FlowFilter, v, _ string) error {
			n, err := parseIdentity(v)
			s.SourceIdentity, d.DestinationIdentity = []uint32{n}, []uint32{n}
			return err
		}),
		sided("workload", "", "belongs to this workload, NAME or KIND/NAME, or KIND/ for all of a kind.", func(s, d *flowpb.FlowFilter, v, _ string) error {
			w := &flowpb.Workload{Name: v}
			if kind, name, found := strings.Cut(v, "/"); found {
				if kind == "" || strings.Contains(name, "/") {
					return fmt.Errorf("%q is not [kind/]name", flow.Safe(v))
				}
				w = &flowpb.Workload{Kind: kind, Name: name}
			}
			s.SourceWorkload, d.DestinationWorkload = []*flowpb.Workload{w}, []*flowpb.Workload{w}
			return nil
		}),
	)
	return append(all,
		simple("protocol", "", "Only this protocol: tcp, udp, sctp, icmp, icmpv4 or icmpv6.", []string{"tcp", "udp", "sctp", "icmp", "icmpv4", "icmpv6"},
			func(f *flowpb.FlowFilter, v string) error { f.Protocol = []string{v}; return nil }),
		simple("verdict", "", "Only this verdict: forwarded or dropped.", []string{"forwarded", "dropped"}, setVerdict),
		simple("type", "t", "Only events of this type: drop, trace, trace:POINT such as trace:to-endpoint, or policy-verdict.", typeValues(), setType),
		simple("drop-reason-desc", "", "Only drops for this reason, such as POLICY_DENIED or TOO_BIG.", reasonValues(), setReason),
		simple("traffic-direction", "", "Only connections that go this way, as the node's pod sees it: ingress or egress.", []string{"ingress", "egress"}, setDirection),
		simple("tcp-flags", "", "Only packets with these flags, such as SYN or SYN,ACK.", nil, setFlags),
		simple("ip-version", "", "Only this version of IP: 4 or 6.", []string{"4", "6"}, setVersion),
		simple("reply", "", "Only replies, or with false only what is none.", []string{"true", "false"}, func(f *flowpb.FlowFilter, v string) error {
			is, err := strconv.ParseBool(v)
			if err != nil {
				return errors.New("true or false")
			}
			f.Reply = []bool{is}
			return nil
		}),
		simple("interface", "", "Only what was seen on the interface of this name.", nil, func(f *flowpb.FlowFilter, v string) error {
			f.Interface = []*flowpb.NetworkInterface{{Name: v}}
			return nil
		}),
		simple("snat-ip", "", "Only where the source was masqueraded to this address, or one of this prefix.", nil, func(f *flowpb.FlowFilter, v string) error {
			_, err := flow.ParsePrefix(v)
			f.SourceIpXlated = []string{v}
			return err
		}),
		simple("uuid", "", "Only the flow of this UUID.", nil, func(f *flowpb.FlowFilter, v string) error {
			f.Uuid = []string{strings.ToLower(v)}
			if !isUUID(v) {
				return errors.New("not a UUID: -o json shows a flow's")
			}
			return nil
		}),
		simple("node-name", "", "Only what this node saw; * stands for any part of a name.", nil, func(f *flowpb.FlowFilter, v string) error { f.NodeName = []string{v}; return nil }),
	)
}

// register adds the flags to a command.
func (f *filterFlags) register(set *pflag.FlagSet) {
	for _, kind := range allFilterFlags() {
		set.VarP(&filterValue{f, kind}, kind.name, kind.short, kind.usage)
		if kind.name == "reply" {
			set.Lookup(kind.name).NoOptDefVal = "true"
		}
	}
	set.Var(notValue{f}, "not", "Turn the next of these filters around: what it matches is left out.")
	set.Lookup("not").NoOptDefVal = "true"
}

// filterValue takes a flag's values as they come: a comma separates values of which any may match, but in --label,
// where it is the selector's, and in --tcp-flags, where it is the packet's.
type filterValue struct {
	into *filterFlags
	kind *filterFlag
}

func (v *filterValue) String() string { return "" }

func (v *filterValue) Type() string {
	if v.kind.name == "reply" {
		return "bool"
	}
	return "strings"
}

func (v *filterValue) Set(text string) error {
	values := strings.Split(text, ",")
	if strings.HasSuffix(v.kind.name, "label") || v.kind.name == "tcp-flags" {
		values = []string{text}
	}
	v.into.given = append(v.into.given, given{v.kind, values, v.into.not})
	v.into.not = false
	return nil
}

type notValue struct{ into *filterFlags }

func (notValue) String() string     { return "" }
func (notValue) Type() string       { return "bool" }
func (notValue) IsBoolFlag() bool   { return true }
func (v notValue) Set(string) error { v.into.not = true; return nil }

// has tells whether a flag was given, not turned around.
func (f *filterFlags) has(names ...string) bool {
	return slices.ContainsFunc(f.given, func(g given) bool { return !g.not && slices.Contains(names, g.flag.name) })
}

// ofNobody is a flag of Hubble's words alone, of which no node of ours ever tells; nil where there is none. Flags of one
// name are alternatives.
func (f *filterFlags) ofNobody() *given {
	for _, words := range [][]string{{"verdict", "forwarded", "dropped"}, {"type", "drop", "trace", "policy-verdict"}} {
		name, told := words[0], words[1:]
		var hopeless *given
		hope := false
		for i := range f.given {
			if g := &f.given[i]; g.flag.name == name && !g.not {
				hopeless = g
				hope = hope || slices.ContainsFunc(g.values, func(v string) bool {
					word, _, _ := strings.Cut(strings.ToLower(v), ":")
					return slices.Contains(told, word)
				})
			}
		}
		if hopeless != nil && !hope {
			return hopeless
		}
	}
	return nil
}

// lists makes the request's lists. Flags of one name are alternatives, flags of different names must all match: each
// entry of the whitelist is one way to choose an alternative of every name. Namespace is for names without one; where
// none of the flags says which pods are wanted, scope limits flows to those of pods of the namespace.
func (f *filterFlags) lists(namespace string, scope bool) (white, black []*flowpb.FlowFilter, err error) {
	if f.not {
		return nil, nil, errors.New("--not is not followed by a filter")
	}
	var names []string
	alternatives := map[string][]*flowpb.FlowFilter{}
	for _, g := range f.given {
		for _, value := range g.values {
			made, err := g.flag.make(value, namespace)
			if err == nil {
				_, err = flow.NewFilter(made, nil)
				err = errors.Unwrap(err) // which field it is about the flag says
			}
			if err != nil {
				return nil, nil, fmt.Errorf("--%s %s: %w", g.flag.name, flow.Safe(value), err)
			}
			if g.not {
				black = append(black, made...)
				continue
			}
			if !slices.Contains(names, g.flag.name) {
				names = append(names, g.flag.name)
			}
			alternatives[g.flag.name] = append(alternatives[g.flag.name], made...)
		}
	}
	white = []*flowpb.FlowFilter{{}}
	if scope && !f.has("pod", "from-pod", "to-pod", "service", "from-service", "to-service") {
		white = []*flowpb.FlowFilter{{SourcePod: []string{namespace + "/"}}, {DestinationPod: []string{namespace + "/"}}}
	}
	for _, name := range names {
		var next []*flowpb.FlowFilter
		for _, w := range white {
			for _, a := range alternatives[name] {
				if len(w.EventType) > 0 && len(a.EventType) > 0 { // --type, and a reason that the API has no number for
					if t := narrower(w.EventType[0], a.EventType[0]); t != nil {
						both := proto.Clone(w).(*flowpb.FlowFilter)
						both.EventType = []*flowpb.EventTypeFilter{t}
						next = append(next, both)
					}
					continue
				}
				if !disjoint(w, a) {
					return nil, nil, fmt.Errorf("--%s and another filter are about the same side: use --from-... and --to-... for both", name)
				}
				both := proto.Clone(w).(*flowpb.FlowFilter)
				proto.Merge(both, a)
				next = append(next, both)
			}
		}
		if len(next) == 0 {
			return nil, nil, errors.New("no flow fits both --type and --drop-reason-desc")
		}
		if white = next; len(white) > maxAlternatives {
			return nil, nil, errors.New("too many filters about either side: use --from-... and --to-...")
		}
	}
	if len(white) == 1 && proto.Size(white[0]) == 0 {
		white = nil
	}
	return white, black, nil
}

// narrower is what two types of events have in common, nil where that is nothing.
func narrower(a, b *flowpb.EventTypeFilter) *flowpb.EventTypeFilter {
	switch {
	case a.Type != b.Type, a.MatchSubType && b.MatchSubType && a.SubType != b.SubType:
		return nil
	case a.MatchSubType:
		return a
	}
	return b
}

// disjoint tells whether no field is set in both.
func disjoint(a, b *flowpb.FlowFilter) bool {
	free := true
	a.ProtoReflect().Range(func(d protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		free = !b.ProtoReflect().Has(d)
		return free
	})
	return free
}

func parseIdentity(text string) (uint32, error) {
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return uint32(n), nil
	}
	for n := range uint32(256) {
		if flow.IdentityName(n) == strings.ToLower(text) && text != "" {
			return n, nil
		}
	}
	return 0, errors.New("neither a number nor the name of a reserved identity")
}

func setVerdict(f *flowpb.FlowFilter, v string) error {
	n, ok := flowpb.Verdict_value[strings.ToUpper(v)]
	if !ok || n == 0 {
		return fmt.Errorf("not a verdict: %s", strings.ToLower(strings.Join(names(flowpb.Verdict_name), ", ")))
	}
	f.Verdict = []flowpb.Verdict{flowpb.Verdict(n)}
	return nil
}

// names are those of an enumeration but for its 0, by number.
func names(enum map[int32]string) []string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(enum)) {
		if n != 0 {
			out = append(out, enum[n])
		}
	}
	return out
}

// The published types of events.
var eventTypes = map[string]int32{"drop": 1, "capture": 3, "trace": 4, "policy-verdict": 5, "trace-sock": 7, "l7": 129}

func setType(f *flowpb.FlowFilter, v string) error {
	kind, point, hasPoint := strings.Cut(strings.ToLower(v), ":")
	n, ok := eventTypes[kind]
	if !ok {
		return fmt.Errorf("not a type: %s", strings.Join(slices.Sorted(maps.Keys(eventTypes)), ", "))
	}
	want := &flowpb.EventTypeFilter{Type: n}
	if hasPoint {
		sub, ok := flowpb.TraceObservationPoint_value[strings.ToUpper(strings.ReplaceAll(point, "-", "_"))]
		if kind != "trace" || !ok || sub == 0 {
			return fmt.Errorf("not a point of a trace: %s", strings.Join(points(), ", "))
		}
		if sub == int32(flowpb.TraceObservationPoint_TO_ENDPOINT) {
			sub = 0 // in events it is
		}
		want.MatchSubType, want.SubType = true, sub
	}
	f.EventType = []*flowpb.EventTypeFilter{want}
	return nil
}

func points() []string {
	all := names(flowpb.TraceObservationPoint_name)
	for i := range all {
		all[i] = strings.ToLower(strings.ReplaceAll(all[i], "_", "-"))
	}
	return all
}

func typeValues() []string {
	all := []string{"drop", "trace", "policy-verdict"}
	for _, p := range points() {
		all = append(all, "trace:"+p)
	}
	return all
}

// setReason takes the published names and ours; one that only we have is found by its number.
func setReason(f *flowpb.FlowFilter, v string) error {
	name := strings.ToUpper(strings.ReplaceAll(v, "-", "_"))
	if n, ok := flowpb.DropReason_value[name]; ok && n != 0 {
		f.DropReasonDesc = []flowpb.DropReason{flowpb.DropReason(n)}
		return nil
	}
	r, err := flow.ParseReason(name)
	if err != nil || !r.Dropped() {
		return errors.New("not a reason: complete it with <TAB>, or see Reasons in docs/hubble.md")
	}
	f.EventType = []*flowpb.EventTypeFilter{{Type: eventTypes["drop"], MatchSubType: true, SubType: int32(r)}}
	return nil
}

// reasonValues are the names of the reasons that our programs have.
func reasonValues() []string {
	var all []string
	for _, r := range flow.Reasons() {
		if !r.Dropped() {
			continue
		}
		name := r.String()
		if _, published := flowpb.DropReason_name[int32(r)]; published {
			name = r.Published().String()
		}
		all = append(all, name)
	}
	return all
}

func setDirection(f *flowpb.FlowFilter, v string) error {
	n, ok := flowpb.TrafficDirection_value[strings.ToUpper(v)]
	if !ok || n == 0 {
		return errors.New("ingress or egress")
	}
	f.TrafficDirection = []flowpb.TrafficDirection{flowpb.TrafficDirection(n)}
	return nil
}

func setFlags(f *flowpb.FlowFilter, v string) error {
	flags := &flowpb.TCPFlags{}
	fields := flags.ProtoReflect().Descriptor().Fields()
	for name := range strings.SplitSeq(strings.ToUpper(v), ",") {
		d := fields.ByName(protoreflect.Name(name))
		if d == nil {
			return fmt.Errorf("%q is not a TCP flag: FIN, SYN, RST, PSH, ACK, URG, ECE, CWR", flow.Safe(name))
		}
		flags.ProtoReflect().Set(d, protoreflect.ValueOfBool(true))
	}
	f.TcpFlags = []*flowpb.TCPFlags{flags}
	return nil
}

func setVersion(f *flowpb.FlowFilter, v string) error {
	switch strings.TrimPrefix(strings.ToLower(v), "ipv") {
	case "4":
		f.IpVersion = []flowpb.IPVersion{flowpb.IPVersion_IPv4}
	case "6":
		f.IpVersion = []flowpb.IPVersion{flowpb.IPVersion_IPv6}
	default:
		return errors.New("4 or 6")
	}
	return nil
}
