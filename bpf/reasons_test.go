// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// TestReasons walks the enum as it stands in the header: each line has a number of its own in the right half and a
// sentence for people, and the last one is REASON_MAX.
func TestReasons(t *testing.T) {
	b, err := os.ReadFile("lib/reasons.h")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^\t((?:FORWARD|DROP)_\w+) = (\d+),(.*)$`)
	comment := regexp.MustCompile(`^\s*/\* (.+) \*/$`)
	seen := map[int]string{}
	last := 0
	for _, m := range line.FindAllStringSubmatch(string(b), -1) {
		n, _ := strconv.Atoi(m[2])
		if other := seen[n]; other != "" {
			t.Errorf("%s and %s have one number", m[1], other)
		}
		seen[n] = m[1]
		if (n >= 128) != strings.HasPrefix(m[1], "DROP_") {
			t.Errorf("%s = %d is in the wrong half", m[1], n)
		}
		if text := comment.FindStringSubmatch(m[3]); text == nil || strings.HasSuffix(text[1], ".") {
			t.Errorf("%s has no text, or one with a period: %q", m[1], m[3])
		}
		last = max(last, n)
	}
	if last+1 != int(bpf.MapsReasonREASON_MAX) {
		t.Errorf("the last reason is %d, REASON_MAX %d", last, bpf.MapsReasonREASON_MAX)
	}
	if strings.Count(string(b), "\tDROP_")+strings.Count(string(b), "\tFORWARD_") != len(seen) {
		t.Errorf("%d reasons were read, there are more", len(seen))
	}
	if bpf.MapsReasonREASON_MAX > bpf.MapsReason(bpf.MapsMetricSlotMETRIC_EVENTS_LIMITED) {
		t.Errorf("reasons up to %d run into the slots of METRIC_EVENTS_LIMITED and _LOST", bpf.MapsReasonREASON_MAX)
	}
}

func size(v any) int { return binary.Size(v) }

// TestSizes: both sides of the line agree on every struct that is a key, a value or a record. The C side asserts the
// same numbers in lib/types.h.
func TestSizes(t *testing.T) {
	spec, err := bpf.LoadMaps()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]int{
		bpf.MapsMapEndpoints:     {size(bpf.Addr{}), size(bpf.Endpoint{})},
		bpf.MapsMapPodInterfaces: {4, size(bpf.PodInterface{})},
		bpf.MapsMapPeers:         {size(bpf.Addr{}), size(bpf.Peer{})},
		bpf.MapsMapPrefixes:      {size(bpf.PrefixKey{}), size(bpf.Peer{})},
		bpf.MapsMapNodes:         {size(bpf.Addr{}), size(bpf.Node{})},
		bpf.MapsMapDevices:       {4, size(bpf.Device{})},
		bpf.MapsMapConntrack:     {size(bpf.FlowKey{}), size(bpf.Conn{})},
		bpf.MapsMapAdvances:      {4, size(bpf.Advance{})},
		bpf.MapsMapYoung:         {4, size(bpf.YoungConn{})},
		bpf.MapsMapPolicies:      {4, size(bpf.Policy{})},
		bpf.MapsMapVerdicts:      {size(bpf.VerdictKey{}), size(bpf.VerdictEntry{})},
		bpf.MapsMapVerdictRanges: {size(bpf.VerdictRangeKey{}), size(bpf.VerdictEntry{})},
		bpf.MapsMapClasses:       {size(bpf.PrefixKey{}), 4},
		bpf.MapsMapFragments:     {size(bpf.FragmentKey{}), size(bpf.Fragment{})},
		bpf.MapsMapServices:      {size(bpf.ServiceKey{}), size(bpf.Service{})},
		bpf.MapsMapBackends:      {size(bpf.BackendKey{}), size(bpf.Backend{})},
		bpf.MapsMapServiceNames:  {size(bpf.ServiceNameKey{}), size(bpf.ServiceName{})},
		bpf.MapsMapMetrics:       {4, size(bpf.Counter{})},
		bpf.MapsMapDropBudgets:   {4, size(bpf.DropBudget{})},
		bpf.MapsMapLiveSettings:  {4, size(bpf.Settings{})},
	} {
		m := spec.Maps[name]
		if got := [2]int{int(m.KeySize), int(m.ValueSize)}; got != want {
			t.Errorf("%s: %v bytes in the object, %v in Go", name, got, want)
		}
	}
	if size(bpf.Event{}) != 96 {
		t.Errorf("an event has %d bytes", size(bpf.Event{}))
	}
}
