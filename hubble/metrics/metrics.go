// SPDX-License-Identifier: Apache-2.0

// Package metrics counts flows for Prometheus under the names that Hubble's users
// know. Labels are taken from short lists only, so that no traffic can make many
// series. Counting is an addition for each flow; text is made when somebody asks.
package metrics

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// Flows counts the events of a node. It is a sink of events and a collector.
type Flows struct {
	processed [256]atomic.Uint64 // by reason; every reason is of one type and verdict
	verdicts  [256]atomic.Uint64 // of those, policy verdicts
	drops     [3][256]atomic.Uint64
	// Lost tells how many events were lost, by where: the names of Hubble's LostEventSource.
	lost func() map[string]uint64

	flowsDesc, dropsDesc, lostDesc *prometheus.Desc
}

// directions are of the endpoint that a drop is about.
var directions = [3]string{"unknown", "egress", "ingress"}

// New makes one; lost may be nil.
func New(lost func() map[string]uint64) *Flows {
	return &Flows{
		lost:      lost,
		flowsDesc: prometheus.NewDesc("hubble_flows_processed_total", "Flows by type and verdict.", []string{"type", "subtype", "verdict"}, nil),
		dropsDesc: prometheus.NewDesc("hubble_drop_total", "Drops by reason, and direction as the pod sees it. Drops that come faster than they are reported are in kube_cilium_packets_total only.", []string{"reason", "direction"}, nil),
		lostDesc:  prometheus.NewDesc("hubble_lost_events_total", "Events that were lost, by where.", []string{"source"}, nil),
	}
}

// Take counts.
func (m *Flows) Take(batch []flow.Event) {
	for i := range batch {
		e := &batch[i]
		if e.Type == flow.Verdict {
			m.verdicts[e.Reason].Add(1)
		} else {
			m.processed[e.Reason].Add(1)
		}
		if e.Reason.Dropped() {
			m.drops[direction(e)][e.Reason].Add(1)
		}
	}
}

func direction(e *flow.Event) int {
	switch {
	case e.Endpoint == 0:
		return 0
	case e.Ingress:
		return 2
	}
	return 1
}

// Describe tells what Collect sends.
func (m *Flows) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.flowsDesc
	ch <- m.dropsDesc
	ch <- m.lostDesc
}

// Collect sends what is not zero.
func (m *Flows) Collect(ch chan<- prometheus.Metric) {
	count := func(desc *prometheus.Desc, n uint64, labels ...string) {
		if n > 0 {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
		}
	}
	for i := range m.processed {
		reason := flow.Reason(i)
		kind, verdict := "Trace", "FORWARDED"
		if reason.Dropped() {
			kind, verdict = "Drop", "DROPPED"
		}
		count(m.flowsDesc, m.processed[i].Load(), kind, reason.String(), verdict)
		count(m.flowsDesc, m.verdicts[i].Load(), "PolicyVerdict", reason.String(), verdict)
		for d := range m.drops {
			count(m.dropsDesc, m.drops[d][i].Load(), reason.String(), directions[d])
		}
	}
	if m.lost == nil {
		return
	}
	for source, n := range m.lost() {
		count(m.lostDesc, n, source)
	}
}
