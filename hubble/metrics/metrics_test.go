// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/flow"
)

func TestFlows(t *testing.T) {
	m := New(func() map[string]uint64 {
		return map[string]uint64{"PERF_EVENT_RING_BUFFER": 4, "HUBBLE_RING_BUFFER": 0}
	})
	denied := flow.Reason(bpf.MapsReasonDROP_POLICY)
	m.Take([]flow.Event{
		{Type: flow.Trace, Reason: 1}, {Type: flow.Trace, Reason: 1},
		{Type: flow.Drop, Reason: denied, Endpoint: 3, Ingress: true},
		{Type: flow.Drop, Reason: denied, Endpoint: 3},
		{Type: flow.Drop, Reason: denied},
		{Type: flow.Verdict, Reason: 1},
	})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, one := range f.GetMetric() {
			var labels []string
			for _, l := range one.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			got[f.GetName()+" "+strings.Join(labels, " ")] = one.GetCounter().GetValue()
		}
	}
	want := map[string]float64{
		"hubble_flows_processed_total TO_POD Trace FORWARDED":         2,
		"hubble_flows_processed_total TO_POD PolicyVerdict FORWARDED": 1,
		"hubble_flows_processed_total POLICY Drop DROPPED":            3,
		"hubble_drop_total ingress POLICY":                            1,
		"hubble_drop_total egress POLICY":                             1,
		"hubble_drop_total unknown POLICY":                            1,
		"hubble_lost_events_total PERF_EVENT_RING_BUFFER":             4,
	}
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%s is %v, want %v", name, got[name], n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d series, want %d: %v", len(got), len(want), got)
	}
}
