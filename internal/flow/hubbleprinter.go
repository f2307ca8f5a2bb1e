// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode/utf16"
	"unicode/utf8"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// Formats of a HubblePrinter besides Compact and JSON.
const (
	// JSONPB is another name for JSON: a message of Hubble's API a line, its fields named as in its definition.
	JSONPB Format = "jsonpb"
	// Table is a line a flow, in columns.
	Table Format = "table"
	// Dict is a block a flow.
	Dict Format = "dict"
)

// HubbleFormats are those that a HubblePrinter knows.
var HubbleFormats = []Format{Compact, Table, Dict, JSON, JSONPB}

// HubblePrinter writes flows of Hubble's API for people and machines. Nothing in a flow can move a terminal's cursor:
// what is not printable is written as an escape, in JSON as JSON's own.
type HubblePrinter struct {
	Out    io.Writer
	Format Format
	// Node prints the node's name.
	Node bool
	// Numeric prints addresses where names are known.
	Numeric bool
	// Color marks drops in compact lines. Only for a terminal that wants it.
	Color bool

	table *tabwriter.Writer
	lines int
}

// tableStretch is how many lines of a table are aligned together: nobody waits for all of a stream that does not end.
const tableStretch = 20

// Print writes one flow; whole is the message that it came in, which is what JSON shows.
func (p *HubblePrinter) Print(f *flowpb.Flow, whole proto.Message) error {
	switch p.Format {
	case JSON, JSONPB:
		return PrintMessage(p.Out, whole)
	case Table:
		return p.row(f)
	case Dict:
		return p.block(f)
	}
	_, err := io.WriteString(p.Out, p.line(f)+"\n")
	return err
}

// Close writes what waits to be aligned.
func (p *HubblePrinter) Close() error {
	if p.table == nil {
		return nil
	}
	return p.table.Flush()
}

// PrintMessage writes a message as one line of JSON, safe for a terminal.
func PrintMessage(out io.Writer, m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = out.Write(append(safeJSON(b), '\n'))
	return err
}

// safeJSON escapes what is not printable, and takes out the blanks between tokens that protojson puts in at whim.
func safeJSON(in []byte) []byte {
	out := make([]byte, 0, len(in)+1)
	quoted := false
	for i := 0; i < len(in); {
		r, size := utf8.DecodeRune(in[i:])
		switch {
		case quoted && r == '\\':
			out = append(out, in[i:i+2]...)
			size = 2
		case r == '"':
			quoted = !quoted
			out = append(out, '"')
		case !quoted && (r == ' ' || r == '\n'):
		case strconv.IsPrint(r) && r != utf8.RuneError:
			out = append(out, in[i:i+size]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		i += size
	}
	return out
}

// line is a flow for people: the client stays on the left, a reply turns the arrow.
func (p *HubblePrinter) line(f *flowpb.Flow) string {
	var b strings.Builder
	b.WriteString(stamp(f))
	if p.Node && f.GetNodeName() != "" {
		fmt.Fprintf(&b, " [%s]", Safe(f.GetNodeName()))
	}
	left, right, arrow := p.source(f), p.destination(f), "->"
	switch {
	case f.GetIsReply() == nil:
		arrow = "<>"
	case f.GetIsReply().GetValue():
		left, right, arrow = right, left, "<-"
	}
	verdict := verdictName(f)
	if p.Color && f.GetVerdict() == flowpb.Verdict_DROPPED {
		verdict = red + verdict + reset
	}
	fmt.Fprintf(&b, ": %s %s %s %s %s", left, arrow, right, TypeName(f), verdict)
	if why := decidedBy(f); why != "" {
		fmt.Fprintf(&b, " (%s)", Safe(why))
	}
	if f.GetSummary() != "" { //nolint:staticcheck // what servers fill in and clients show
		fmt.Fprintf(&b, " (%s)", Safe(f.GetSummary())) //nolint:staticcheck // as above
	}
	return b.String()
}

func (p *HubblePrinter) row(f *flowpb.Flow) error {
	if p.table == nil {
		p.table = tabwriter.NewWriter(p.Out, 2, 0, 3, ' ', 0)
		head := []string{"TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"}
		if p.Node {
			head = slices.Insert(head, 1, "NODE")
		}
		if _, err := fmt.Fprintln(p.table, strings.Join(head, "\t")); err != nil {
			return err
		}
	}
	cells := []string{stamp(f), p.source(f), p.destination(f), TypeName(f), verdictName(f), details(f)}
	if p.Node {
		cells = slices.Insert(cells, 1, Safe(f.GetNodeName()))
	}
	if _, err := fmt.Fprintln(p.table, strings.Join(cells, "\t")); err != nil {
		return err
	}
	if p.lines++; p.lines%tableStretch == 0 {
		return p.table.Flush()
	}
	return nil
}

// details are the summary and, for a drop by policy, why.
func details(f *flowpb.Flow) string {
	text := Safe(f.GetSummary()) //nolint:staticcheck // what servers fill in and clients show
	if why := decidedBy(f); why != "" {
		text = strings.TrimPrefix(text+"; "+Safe(why), "; ")
	}
	return text
}

func (p *HubblePrinter) block(f *flowpb.Flow) error {
	var b strings.Builder
	if p.lines++; p.lines > 1 {
		b.WriteString("------------\n")
	}
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%12s: %s\n", name, value)
		}
	}
	field("TIMESTAMP", stamp(f))
	if p.Node {
		field("NODE", Safe(f.GetNodeName()))
	}
	field("SOURCE", p.source(f))
	field("DESTINATION", p.destination(f))
	field("TYPE", TypeName(f))
	field("VERDICT", verdictName(f))
	field("DENIED BY", Safe(strings.Join(policyNames(slices.Concat(f.GetEgressDeniedBy(), f.GetIngressDeniedBy())), ", ")))
	field("EGRESS BY", Safe(strings.Join(policyNames(f.GetEgressAllowedBy()), ", ")))
	field("INGRESS BY", Safe(strings.Join(policyNames(f.GetIngressAllowedBy()), ", ")))
	field("SUMMARY", Safe(f.GetSummary())) //nolint:staticcheck // what servers fill in and clients show
	_, err := io.WriteString(p.Out, b.String())
	return err
}

func stamp(f *flowpb.Flow) string {
	if f.GetTime() == nil {
		return "N/A"
	}
	return f.GetTime().AsTime().Local().Format("Jan _2 15:04:05.000")
}

func (p *HubblePrinter) source(f *flowpb.Flow) string {
	from, _, ok := Ports(f)
	return p.side(f.GetSource(), f.GetSourceService(), f.GetSourceNames(), f.GetIP().GetSource(), f.GetEthernet().GetSource(), from, ok)
}

func (p *HubblePrinter) destination(f *flowpb.Flow) string {
	_, to, ok := Ports(f)
	return p.side(f.GetDestination(), f.GetDestinationService(), f.GetDestinationNames(), f.GetIP().GetDestination(), f.GetEthernet().GetDestination(), to, ok)
}

func (p *HubblePrinter) side(e *flowpb.Endpoint, service *flowpb.Service, names []string, ip, mac string, port uint32, hasPort bool) string {
	name := ip
	switch {
	case p.Numeric && ip != "":
	case e.GetPodName() != "":
		name = e.GetNamespace() + "/" + e.GetPodName()
	case service.GetName() != "":
		name = service.GetNamespace() + "/" + service.GetName()
	case len(names) > 0:
		name = strings.Join(names, ",")
	case ip == "" && mac != "":
		name = mac
	case ip == "":
		name = "?"
	}
	if hasPort {
		name = net.JoinHostPort(name, strconv.FormatUint(uint64(port), 10))
	}
	return Safe(name) + " (" + identityText(e) + ")"
}

func identityText(e *flowpb.Endpoint) string {
	if name := IdentityName(e.GetIdentity()); name != "" {
		return name
	}
	return "ID:" + strconv.FormatUint(uint64(e.GetIdentity()), 10)
}

// TypeName is the trace point, the drop's reason, or what else an event is.
func TypeName(f *flowpb.Flow) string {
	switch t := f.GetEventType(); {
	case f.GetVerdict() == flowpb.Verdict_DROPPED && t.GetType() != eventVerdict:
		return DropText(f)
	case t.GetType() == eventTrace:
		return dashed(f.GetTraceObservationPoint().String())
	case t.GetType() == eventVerdict:
		return strings.TrimSpace("policy-verdict " + strings.TrimPrefix(f.GetTrafficDirection().String(), "TRAFFIC_DIRECTION_UNKNOWN"))
	case f.GetSockXlatePoint() != flowpb.SocketTranslationPoint_SOCK_XLATE_POINT_UNKNOWN:
		return dashed(strings.TrimPrefix(f.GetSockXlatePoint().String(), "SOCK_XLATE_POINT_"))
	}
	return "unknown"
}

func dashed(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "-")) }

// DropText is a drop's reason in words: our own name where the published one is only the nearest.
func DropText(f *flowpb.Flow) string {
	name := f.GetDropReasonDesc().String()
	if own := f.GetDropReason(); own > 207 && own < uint32(bpf.MapsReasonREASON_MAX) { //nolint:staticcheck // holds the number that the datapath gave
		name = Reason(own).String()
	}
	name = strings.TrimPrefix(name, "DROP_")
	words := strings.ToLower(strings.ReplaceAll(name, "_", " "))
	return strings.ToUpper(words[:1]) + words[1:]
}

func verdictName(f *flowpb.Flow) string {
	if f.GetEventType().GetType() == eventVerdict {
		switch f.GetVerdict() {
		case flowpb.Verdict_FORWARDED, flowpb.Verdict_REDIRECTED:
			return "ALLOWED"
		case flowpb.Verdict_DROPPED, flowpb.Verdict_ERROR:
			return "DENIED"
		case flowpb.Verdict_AUDIT:
			return "AUDITED"
		}
	}
	return f.GetVerdict().String()
}

// AllowedBy says which policies let a connection in or out; empty where none did.
func AllowedBy(f *flowpb.Flow) string {
	var all []string
	if by := f.GetEgressAllowedBy(); len(by) > 0 {
		all = append(all, "egress allowed by "+strings.Join(policyNames(by), ", "))
	}
	if by := f.GetIngressAllowedBy(); len(by) > 0 {
		all = append(all, "ingress allowed by "+strings.Join(policyNames(by), ", "))
	}
	return strings.Join(all, "; ")
}

// decidedBy is what a line for people says of policies: who refused, and with verdicts also who allowed.
func decidedBy(f *flowpb.Flow) string {
	if why := DeniedBy(f); why != "" || f.GetEventType().GetType() != eventVerdict {
		return why
	}
	return AllowedBy(f)
}

// DeniedBy says which policies refused a flow, and how; empty where none did.
func DeniedBy(f *flowpb.Flow) string {
	var all []string
	for _, side := range []struct {
		direction string
		by        []*flowpb.Policy
	}{{"egress", f.GetEgressDeniedBy()}, {"ingress", f.GetIngressDeniedBy()}} {
		if len(side.by) == 0 {
			continue
		}
		how := side.direction + " denied by "
		if f.GetDropReasonDesc() == flowpb.DropReason_POLICY_DENIED { // no rule of theirs allows it
			how = "default deny of " + side.direction + " by "
		}
		all = append(all, how+strings.Join(policyNames(side.by), ", "))
	}
	return strings.Join(all, "; ")
}

// policyNames are policies as people name them, with the rules in them.
func policyNames(all []*flowpb.Policy) []string {
	var out []string
	for _, p := range all {
		name := p.GetName()
		if p.GetNamespace() != "" {
			name = p.GetNamespace() + "/" + name
		}
		name = strings.TrimSpace(p.GetKind() + " " + name)
		for _, l := range p.GetLabels() {
			if path, ok := strings.CutPrefix(l, LabelRule); ok {
				name += " " + path
			}
		}
		out = append(out, name)
	}
	return out
}
