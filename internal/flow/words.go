// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// Reason is how a packet ended, numbered as in bpf/lib/reasons.h: from 128 on it was dropped.
type Reason uint8

type reasonWords struct{ name, text string }

// Known says whether the number has a name. A newer agent may send one that this build does not know.
func (r Reason) Known() bool { return reasons[r].name != "" }

// Dropped says whether a packet with this reason went nowhere.
func (r Reason) Dropped() bool { return r >= 128 }

// String is the name in metrics, flows and plugins, such as INVALID_SOURCE.
func (r Reason) String() string {
	if !r.Known() {
		return "REASON_" + strconv.Itoa(int(r))
	}
	return reasons[r].name
}

// Text is the reason in words, without a capital or a period.
func (r Reason) Text() string {
	if !r.Known() {
		return "reason " + strconv.Itoa(int(r))
	}
	return reasons[r].text
}

// MarshalText writes the name.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote, also of a number without a name here.
func (r *Reason) UnmarshalText(b []byte) error {
	parsed, err := ParseReason(string(b))
	*r = parsed
	return err
}

// ParseReason reads a name, in either case, or REASON_n.
func ParseReason(s string) (Reason, error) {
	upper := strings.ToUpper(s)
	for i := range reasons {
		if reasons[i].name == upper && upper != "" {
			return Reason(i), nil
		}
	}
	if digits, ok := strings.CutPrefix(upper, "REASON_"); ok {
		if n, err := strconv.ParseUint(digits, 10, 8); err == nil {
			return Reason(n), nil
		}
	}
	return 0, fmt.Errorf("reason %q is not known", Safe(s))
}

// Reasons are all that have a name, in the order of their numbers.
func Reasons() []Reason {
	var all []Reason
	for i := range reasons {
		if reasons[i].name != "" {
			all = append(all, Reason(i))
		}
	}
	return all
}

// Hook is the place where a packet was judged, numbered as in bpf/lib/types.h.
type Hook uint8

// Known says whether the number has a name.
func (h Hook) Known() bool { return int(h) < len(hooks) }

// String is the hook's name, such as from_pod.
func (h Hook) String() string {
	if !h.Known() {
		return "hook_" + strconv.Itoa(int(h))
	}
	return hooks[h]
}

// MarshalText writes the name.
func (h Hook) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Hook) UnmarshalText(b []byte) error {
	for i, name := range hooks {
		if name == string(b) {
			*h = Hook(i)
			return nil
		}
	}
	if digits, ok := strings.CutPrefix(string(b), "hook_"); ok {
		if n, err := strconv.ParseUint(digits, 10, 8); err == nil {
			*h = Hook(n)
			return nil
		}
	}
	return fmt.Errorf("hook %q is not known", Safe(string(b)))
}

// SplitMetric takes the index of the metrics map apart. Ok is false for an index that no packet can have.
func SplitMetric(index uint32) (hook Hook, reason Reason, ok bool) {
	const perHook = 256
	if index >= uint32(bpf.MapsHookHOOK_MAX)*perHook {
		return 0, 0, false
	}
	return Hook(index / perHook), Reason(index % perHook), true
}

// IdentityName is the name of a reserved identity, such as remote-node; "" for a number that labels have, or nobody.
func IdentityName(identity uint32) string { return reservedIdentities[identity] }

// Type is what an event tells of.
type Type uint8

const (
	Drop    = Type(bpf.MapsEventTypeEVENT_DROP)
	Trace   = Type(bpf.MapsEventTypeEVENT_TRACE)
	Verdict = Type(bpf.MapsEventTypeEVENT_VERDICT)
)

var typeNames = [...]string{Drop: "drop", Trace: "trace", Verdict: "verdict"}

// Known says whether the number has a name.
func (t Type) Known() bool { return int(t) < len(typeNames) && typeNames[t] != "" }

// String is drop, trace or verdict.
func (t Type) String() string {
	if !t.Known() {
		return "type_" + strconv.Itoa(int(t))
	}
	return typeNames[t]
}

// MarshalText writes the name.
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a name.
func (t *Type) UnmarshalText(b []byte) error {
	for i, name := range typeNames {
		if name != "" && name == string(b) {
			*t = Type(i)
			return nil
		}
	}
	return fmt.Errorf("event type %q is not known: drop, trace or verdict", Safe(string(b)))
}

// ProtocolName is what people call an IP protocol number.
func ProtocolName(proto uint8) string {
	switch proto {
	case 0:
		return "-"
	case 1:
		return "ICMP"
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	case 58:
		return "ICMPv6"
	case 132:
		return "SCTP"
	}
	return strconv.Itoa(int(proto))
}

// TCPFlagNames lists the flags that are set, in the order of the header's bits from FIN on.
func TCPFlagNames(flags uint8) []string {
	var set []string
	for i, name := range [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if flags&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	return set
}

// Safe makes a string that came from elsewhere fit for a terminal: whatever is not printable becomes an escape, so
// that no name can move the cursor or change colours.
func Safe(s string) string {
	clean := true
	for _, r := range s {
		if !strconv.IsPrint(r) || r == '\uFFFD' {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case size == 1 && r == '\uFFFD':
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
		i += size
	}
	return b.String()
}
