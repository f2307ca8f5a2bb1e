// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// Format is how a Printer writes an event.
type Format string

const (
	// Compact is one line for people.
	Compact Format = "compact"
	// JSON is one object a line.
	JSON Format = "json"
)

// Printer writes events, one a line. It is not safe for concurrent use.
type Printer struct {
	Out    io.Writer
	Format Format
	// Node prints the node's name; for readers of more than one node.
	Node bool
	// Numeric prints addresses and identity numbers where names are known.
	Numeric bool
	// Color marks drops. Only for a terminal that wants it.
	Color bool
}

const (
	red   = "\x1b[31m"
	reset = "\x1b[0m"
)

// Print writes one event. Strings in it are made safe for a terminal.
func (p *Printer) Print(e Event) error {
	e.Clean()
	if p.Format == JSON {
		return json.NewEncoder(p.Out).Encode(e)
	}
	_, err := io.WriteString(p.Out, p.line(e)+"\n")
	return err
}

// line is TIME [NODE]: SOURCE (WHO) ARROW DESTINATION (WHO) HOOK VERDICT (WHAT): REASON IN WORDS (REASON). A reply
// has its ends swapped and the arrow turned, so that the client stays on the left.
func (p *Printer) line(e Event) string {
	var b strings.Builder
	b.WriteString(e.Time.Format("Jan _2 15:04:05.000"))
	if p.Node && e.Node != "" {
		fmt.Fprintf(&b, " [%s]", e.Node)
	}
	left, right, arrow := e.Source, e.Destination, "->"
	switch {
	case e.Reply == nil:
		arrow = "<>"
	case *e.Reply:
		left, right, arrow = e.Destination, e.Source, "<-"
	}
	fmt.Fprintf(&b, ": %s %s %s %s ", p.party(left, e.Protocol), arrow, p.party(right, e.Protocol), e.Hook)
	verdict := "FORWARDED"
	if e.Type == Drop || e.Reason.Dropped() {
		verdict = "DROPPED"
	}
	if p.Color && verdict == "DROPPED" {
		verdict = red + verdict + reset
	}
	fmt.Fprintf(&b, "%s (%s): %s (%s)", verdict, strings.Join(e.summary(p.Numeric), ", "), e.Reason.Text(), e.Reason)
	return b.String()
}

func (p *Printer) party(who Party, protocol uint8) string {
	name := who.Name
	if name == "" || p.Numeric {
		name = "?"
		if who.Address.IsValid() {
			name = who.Address.String()
		}
	}
	if who.Port != 0 && (protocol == 6 || protocol == 17 || protocol == 132) {
		name = net.JoinHostPort(name, strconv.Itoa(int(who.Port)))
	}
	identity := IdentityName(who.Identity)
	if identity == "" || p.Numeric {
		identity = "ID:" + strconv.FormatUint(uint64(who.Identity), 10)
	}
	return name + " (" + identity + ")"
}

// summary is what is left to say of a packet, shortest first.
func (e Event) summary(numeric bool) []string {
	what := ProtocolName(e.Protocol)
	switch {
	case e.Protocol == 6 && e.TCPFlags != 0:
		what += " " + strings.Join(TCPFlagNames(e.TCPFlags), ",")
	case e.Protocol == 1 || e.Protocol == 58:
		what += fmt.Sprintf(" type %d code %d", e.ICMPType, e.ICMPCode)
	}
	all := []string{what}
	if e.Length != 0 {
		all = append(all, strconv.FormatUint(uint64(e.Length), 10)+" bytes")
	}
	if e.Interface != "" {
		all = append(all, e.Interface)
	}
	if e.Tunnel {
		all = append(all, "tunnel")
	}
	if e.Fragment {
		all = append(all, "fragment")
	}
	if e.Translated != (netip.AddrPort{}) {
		all = append(all, "as "+e.Translated.String())
	}
	for direction, rule := range e.Rules {
		if rule != 0 && !numeric && e.Decided != nil && e.Decided[direction] != "" {
			all = append(all, e.Decided[direction])
		} else if rule != 0 {
			all = append(all, policy.Direction(direction).String()+" rule "+strconv.FormatUint(uint64(rule), 10))
		}
	}
	return all
}

// maxOrigins is how many policies of one decision are named in a line.
const maxOrigins = 3

// Decision is what a rule stands for, in words: "ingress default deny of NetworkPolicy shop/web".
func Decision(d policy.Direction, p policy.Provenance) string {
	how := "allowed by"
	switch {
	case p.Default:
		how = "default deny of"
	case p.Verdict == policy.Deny:
		how = "denied by"
	}
	var names []string
	for _, o := range p.Origins[:min(len(p.Origins), maxOrigins)] {
		names = append(names, o.String())
	}
	if more := len(p.Origins) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return d.String() + " " + how + " " + strings.Join(names, ", ")
}
