// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// Every number between the first and the last drop reason is either named, with a text, or never used: the counts
// on both sides agree, so no constant of the header was lost on the way.
func TestEveryReasonHasItsWords(t *testing.T) {
	seen := map[string]Reason{}
	for _, r := range Reasons() {
		if uint32(r) >= uint32(bpf.MapsReasonREASON_MAX) {
			t.Errorf("%v: number %d is past REASON_MAX", r, r)
		}
		if r.Text() == "" || strings.HasSuffix(r.Text(), ".") {
			t.Errorf("%v: text %q", r, r.Text())
		}
		if other, twice := seen[r.String()]; twice {
			t.Errorf("%v and %v have one name", r, other)
		}
		seen[r.String()] = r
		if parsed, err := ParseReason(strings.ToLower(r.String())); err != nil || parsed != r {
			t.Errorf("ParseReason(%v) = %v, %v", r, parsed, err)
		}
	}
	for _, want := range []bpf.Reason{bpf.MapsReasonDROP_POLICY, bpf.MapsReasonDROP_REDIRECT, bpf.MapsReasonFORWARD_TO_TUNNEL} {
		if !Reason(want).Known() {
			t.Errorf("reason %d has no name: run go generate ./internal/flow", want)
		}
	}
	if last := Reason(bpf.MapsReasonREASON_MAX - 1); !last.Known() {
		t.Errorf("the last reason, %d, has no name: run go generate ./internal/flow", last)
	}
	if got := len(hooks); got != int(bpf.MapsHookHOOK_MAX) {
		t.Errorf("%d hooks have names, the programs know %d", got, bpf.MapsHookHOOK_MAX)
	}
}

func TestUnknownReasonKeepsItsNumber(t *testing.T) {
	text, _ := Reason(99).MarshalText()
	var back Reason
	if err := back.UnmarshalText(text); err != nil || back != 99 {
		t.Errorf("%s became %d, %v", text, back, err)
	}
}

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"eth0":             "eth0",
		"naïve/ü":          "naïve/ü",
		"\x1b[31mred":      `\x1b[31mred`,
		"a\nb\tc":          `a\nb\tc`,
		"\u009bcsi":        `\u009bcsi`,
		"\x7f":             `\x7f`,
		"bad\xffbyte":      `bad\xffbyte`,
		"right\u202eto-le": `right\u202eto-le`,
		"\U000e0001tag":    `\U000e0001tag`,
	} {
		if got := Safe(in); got != want {
			t.Errorf("Safe(%q) = %q, want %q", in, got, want)
		}
	}
}

func yes() *bool { v := true; return &v }
func no() *bool  { v := false; return &v }

func sample() Event {
	return Event{
		Time: time.Date(2026, 11, 22, 17, 16, 29, 123456789, time.UTC), Node: "worker-1",
		Type: Drop, Hook: Hook(bpf.MapsHookHOOK_FROM_POD), Reason: Reason(bpf.MapsReasonDROP_NO_SERVICE_BACKEND),
		Protocol: 6, TCPFlags: 0x12, Reply: no(),
		Source:      Party{Address: netip.MustParseAddr("10.0.1.5"), Port: 40312, Identity: 4242, Name: "default/client"},
		Destination: Party{Address: netip.MustParseAddr("2001:db8::1"), Port: 80, Identity: 2},
		Interface:   "kc0123456789ab", Length: 74,
	}
}

func TestPrinterLines(t *testing.T) {
	reply := sample()
	reply.Reply = yes()
	unknown := sample()
	unknown.Reply, unknown.Protocol, unknown.Type, unknown.Reason = nil, 58, Trace, Reason(bpf.MapsReasonFORWARD_TO_TUNNEL)
	unknown.ICMPType = 128
	decided := unknown
	decided.Rules[policy.Ingress] = 7
	origin := func(name, path string) policy.Origin {
		return policy.Origin{Ref: policy.Ref{Kind: policy.KindNetworkPolicy, Namespace: "shop", Name: name}, Path: path}
	}
	decided.Decided = &[2]string{policy.Ingress: Decision(policy.Ingress, policy.Provenance{Verdict: policy.Allow, Origins: []policy.Origin{
		origin("a", "spec.ingress[0]"), origin("b", ""), origin("c", ""), origin("d", ""),
	}})}
	for _, tt := range []struct {
		name    string
		printer Printer
		event   Event
		want    string
	}{
		{"drop", Printer{Node: true}, sample(), "Nov 22 17:16:29.123 [worker-1]: default/client:40312 (ID:4242) -> [2001:db8::1]:80 (world) from_pod DROPPED (TCP SYN,ACK, 74 bytes, kc0123456789ab): the service has no such port or no ready backend (NO_SERVICE_BACKEND)"},
		{"numeric", Printer{Numeric: true}, sample(), "Nov 22 17:16:29.123: 10.0.1.5:40312 (ID:4242) -> [2001:db8::1]:80 (ID:2) from_pod DROPPED (TCP SYN,ACK, 74 bytes, kc0123456789ab): the service has no such port or no ready backend (NO_SERVICE_BACKEND)"},
		{"a reply keeps the client on the left", Printer{}, reply, "Nov 22 17:16:29.123: [2001:db8::1]:80 (world) <- default/client:40312 (ID:4242) from_pod DROPPED (TCP SYN,ACK, 74 bytes, kc0123456789ab): the service has no such port or no ready backend (NO_SERVICE_BACKEND)"},
		{"unknown direction", Printer{}, unknown, "Nov 22 17:16:29.123: default/client (ID:4242) <> 2001:db8::1 (world) from_pod FORWARDED (ICMPv6 type 128 code 0, 74 bytes, kc0123456789ab): sent to another node through the tunnel (TO_TUNNEL)"},
		{"which policy", Printer{}, decided, "Nov 22 17:16:29.123: default/client (ID:4242) <> 2001:db8::1 (world) from_pod FORWARDED (ICMPv6 type 128 code 0, 74 bytes, kc0123456789ab, ingress allowed by NetworkPolicy shop/a spec.ingress[0], NetworkPolicy shop/b, NetworkPolicy shop/c, and 1 more): sent to another node through the tunnel (TO_TUNNEL)"},
		{"its number", Printer{Numeric: true}, decided, "Nov 22 17:16:29.123: 10.0.1.5 (ID:4242) <> 2001:db8::1 (ID:2) from_pod FORWARDED (ICMPv6 type 128 code 0, 74 bytes, kc0123456789ab, ingress rule 7): sent to another node through the tunnel (TO_TUNNEL)"},
		{"nothing known", Printer{}, Event{}, "Jan  1 00:00:00.000: ? (unknown) <> ? (unknown) from_pod FORWARDED (-): forwarded (FORWARDED)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			tt.printer.Out = &out
			if err := tt.printer.Print(tt.event); err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSuffix(out.String(), "\n"); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestEventJSONRoundTrip(t *testing.T) {
	in := sample()
	in.Translated = netip.MustParseAddrPort("192.0.2.1:3000")
	var out bytes.Buffer
	if err := (&Printer{Out: &out, Format: JSON}).Print(in); err != nil {
		t.Fatal(err)
	}
	var back Event
	if err := json.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	if !reflect.DeepEqual(in, back) {
		t.Errorf("got %+v\nwant %+v", back, in)
	}
}

// A node that lies about a name must not reach the terminal (the way of CVE-2025-48056).
func TestNoControlCharactersOnTheTerminal(t *testing.T) {
	e := sample()
	e.Interface, e.Node, e.Source.Name = "eth\x1b]0;owned\x07", "n\rode", "a\u009b2J"
	e.Destination.Address = netip.MustParseAddr("fe80::1%\x1b[2J")
	for _, format := range []Format{Compact, JSON} {
		var out bytes.Buffer
		p := Printer{Out: &out, Format: format, Node: true}
		if err := p.Print(e); err != nil {
			t.Fatal(err)
		}
		for _, r := range strings.TrimSuffix(out.String(), "\n") {
			if r < 0x20 || r >= 0x7f && r < 0xa0 {
				t.Errorf("%s: %q holds the control character %q", format, out.String(), r)
			}
		}
	}
}
