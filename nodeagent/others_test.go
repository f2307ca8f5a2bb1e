// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/kube-cilium/kube-cilium/nodeagent/reach"
)

func askedNodes(n int, silent func(i int) bool) []reach.Result {
	good, bad := reach.Outcome{Asked: true, Reachable: true, Latency: time.Millisecond}, reach.Outcome{Asked: true, Since: time.Unix(1e9, 5)}
	var out []reach.Result
	for i := range n {
		for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))} {
			r := reach.Result{Target: reach.Target{Node: fmt.Sprintf("n%04d", i), Address: a}, ICMP: good, TCP: good}
			if silent(i) {
				r.ICMP, r.TCP = bad, bad
			}
			out = append(out, r)
		}
	}
	return out
}

func TestConditionOfOtherNodes(t *testing.T) {
	for _, row := range []struct {
		name   string
		n      int
		silent func(int) bool
		want   string
	}{
		{"alone", 0, nil, "True Reachable every other node that there is answers"},
		{"all", 4, func(int) bool { return false }, "True Reachable every other node that there is answers"},
		{"one of four", 4, func(i int) bool { return i == 2 }, "True SomeSilent 1 of 4 other nodes answer neither ICMP nor TCP: n0002"},
		{"the only one", 1, func(int) bool { return true }, "False MostSilent 1 of 1 other nodes answer neither ICMP nor TCP: n0000"},
		{"many", 11, func(i int) bool { return i > 0 }, "False MostSilent 10 of 11 other nodes answer neither ICMP nor TCP: n0001, n0002, n0003, n0004, n0005, n0006, n0007, n0008 and 2 more"},
	} {
		c := othersCondition(observed{others: askedNodes(row.n, row.silent), othersKnown: true})
		if got := fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message); got != row.want {
			t.Errorf("%s:\n got %s\nwant %s", row.name, got, row.want)
		}
	}
	if c := othersCondition(observed{}); c.Status != "Unknown" {
		t.Errorf("nobody asked yet: %+v", c)
	}
}

// A report of a cluster of any size stays small, and says what fails.
func TestHealthIsBounded(t *testing.T) {
	if got := healthProbes(askedNodes(3, func(i int) bool { return i == 1 })); len(got) != 6 || got[2].TCP.FailingSince == nil || got[0].TCP.LatencyMicros != 1000 {
		t.Errorf("%+v", got)
	}
	if got := healthProbes(askedNodes(1000, func(i int) bool { return i == 999 })); len(got) != 2 || got[0].Node != "n0999" {
		t.Errorf("%+v", got)
	}
	if got := healthProbes(askedNodes(1000, func(int) bool { return true })); len(got) != maxHealth {
		t.Errorf("%d entries", len(got))
	}
}

// Each probe takes another time; that alone is no reason to write.
func TestLatenciesAreNoNews(t *testing.T) {
	silent := func(i int) bool { return i == 1 }
	last := healthProbes(askedNodes(2, silent))
	results := askedNodes(2, silent)
	for i := range results {
		if results[i].TCP.Reachable {
			results[i].TCP.Latency, results[i].ICMP.Latency = time.Second, 2*time.Second
		}
	}
	now := healthProbes(results)
	keepLatencies(now, last)
	if !apiequality.Semantic.DeepEqual(now, last) {
		t.Errorf("got %+v, want %+v", now, last)
	}
	now = healthProbes(askedNodes(2, func(int) bool { return false }))
	keepLatencies(now, last)
	if apiequality.Semantic.DeepEqual(now, last) {
		t.Error("a node that came back is no news")
	}
}
