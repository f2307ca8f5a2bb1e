// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// metrics are this node's, read when Prometheus asks.
type metrics struct {
	observe func() observed
	// policies is what is in force.
	policies func() policyInForce

	policyCount, policyFailed, tables, tableEntries, policyTime     *prometheus.Desc
	policyApply                                                     prometheus.Histogram
	packets, bytes, endpoints, addresses, entries, capacity, memory *prometheus.Desc
	reached                                                         *prometheus.Desc
	cni, probes                                                     *prometheus.HistogramVec
}

func newMetrics(observe func() observed, policies func() policyInForce) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("kube_cilium_"+name, help, labels, nil)
	}
	return &metrics{
		observe: observe, policies: policies,
		policyCount:  desc("policies", "Policies that the agent knows.", "kind"),
		policyFailed: desc("policy_endpoints_failed", "Pods whose policy is not in force as it stands."),
		tables:       desc("policy_tables", "Different verdict tables that are in force.", "direction"),
		tableEntries: desc("policy_table_entries", "Entries of the different verdict tables that are in force.", "direction"),
		policyTime:   desc("policy_last_apply_timestamp_seconds", "When policies were last brought into force."),
		policyApply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kube_cilium_policy_apply_seconds", Help: "From the look at the objects to the last table in the kernel.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
		}),
		packets:   desc("packets_total", "Packets by the hook where they ended and the reason.", "hook", "reason", "dropped"),
		bytes:     desc("bytes_total", "Bytes by the hook where they ended and the reason.", "hook", "reason", "dropped"),
		endpoints: desc("endpoints", "Pods of this node with an interface of ours."),
		addresses: desc("ipam_addresses", "Addresses of this node's prefixes by state.", "prefix", "state"),
		entries:   desc("map_entries", "Entries of an eBPF map, where the kernel can tell.", "map"),
		capacity:  desc("map_capacity", "Most entries of an eBPF map.", "map"),
		memory:    desc("map_bytes", "Kernel memory of an eBPF map.", "map"),
		reached:   desc("node_addresses", "Addresses of other nodes by how they were asked and whether they answered.", "protocol", "reachable"),
		probes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kube_cilium_node_probe_seconds", Help: "Answers of other nodes' addresses by how they were asked.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1},
		}, []string{"protocol"}),
		cni: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kube_cilium_cni_request_seconds", Help: "CNI requests by command and outcome.",
			Buckets: []float64{.005, .01, .02, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"command", "outcome"}),
	}
}

// Describe sends nothing of what depends on maps and prefixes: Collect's metrics are checked as they come.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	m.cni.Describe(ch)
	m.probes.Describe(ch)
	m.policyApply.Describe(ch)
}

// Collect reads the kernel.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.cni.Collect(ch)
	m.probes.Collect(ch)
	m.policyApply.Collect(ch)
	m.collectPolicies(ch)
	o := m.observe()
	for labels, n := range countReached(o.others) {
		ch <- prometheus.MustNewConstMetric(m.reached, prometheus.GaugeValue, float64(n), labels[0], labels[1])
	}
	ch <- prometheus.MustNewConstMetric(m.endpoints, prometheus.GaugeValue, float64(o.endpoints))
	for _, u := range o.ipam {
		for state, n := range map[string]int64{"used": u.Used, "resting": u.Resting, "total": u.Total} {
			ch <- prometheus.MustNewConstMetric(m.addresses, prometheus.GaugeValue, float64(n), u.Prefix, state)
		}
	}
	if o.datapath == nil {
		return
	}
	counters, err := o.datapath.Counters()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(m.packets, err)
	}
	for _, c := range counters {
		labels := []string{flow.Hook(c.Hook).String(), flow.Reason(c.Reason).String(), strconv.FormatBool(flow.Reason(c.Reason).Dropped())}
		ch <- prometheus.MustNewConstMetric(m.packets, prometheus.CounterValue, float64(c.Packets), labels...)
		ch <- prometheus.MustNewConstMetric(m.bytes, prometheus.CounterValue, float64(c.Bytes), labels...)
	}
	for _, info := range o.datapath.Maps() {
		if info.Entries >= 0 {
			ch <- prometheus.MustNewConstMetric(m.entries, prometheus.GaugeValue, float64(info.Entries), info.Name)
		}
		ch <- prometheus.MustNewConstMetric(m.capacity, prometheus.GaugeValue, float64(info.MaxEntries), info.Name)
		ch <- prometheus.MustNewConstMetric(m.memory, prometheus.GaugeValue, float64(info.Bytes), info.Name)
	}
}

func (m *metrics) observeProbe(protocol string, took time.Duration) {
	m.probes.WithLabelValues(protocol).Observe(took.Seconds())
}

func (m *metrics) collectPolicies(ch chan<- prometheus.Metric) {
	now := m.policies()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	different := map[policy.Direction]map[*policy.Table]bool{policy.Ingress: {}, policy.Egress: {}}
	for _, pod := range now.pods {
		different[policy.Ingress][pod.Ingress], different[policy.Egress][pod.Egress] = true, true
	}
	for direction, tables := range different {
		delete(tables, nil)
		entries := 0
		for t := range tables {
			entries += len(t.Entries)
		}
		gauge(m.tables, float64(len(tables)), direction.String())
		gauge(m.tableEntries, float64(entries), direction.String())
	}
	gauge(m.policyCount, float64(now.count), policy.KindNetworkPolicy)
	gauge(m.policyFailed, float64(len(now.failed)))
	if !now.at.IsZero() {
		gauge(m.policyTime, float64(now.at.UnixNano())/1e9)
	}
}

func (m *metrics) observeCNI(cmd cni.Command, took time.Duration, failed bool) {
	outcome := "done"
	if failed {
		outcome = "failed"
	}
	m.cni.WithLabelValues(string(cmd), outcome).Observe(took.Seconds())
}
