// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// printSummary writes the cluster's lines, the nodes' table and what is wrong.
func printSummary(out io.Writer, s *Summary, wide, verbose bool, color colors) error {
	t := newTable(out, color)
	t.row("Agent:", color.good(s.Agent.Found && s.Agent.Ready >= s.Agent.Desired && s.Agent.Desired > 0, workloadText(s.Agent)))
	t.row("Operator:", color.good(s.Operator.Found && s.Operator.Ready > 0, workloadText(s.Operator)))
	t.row("Config:", configLine(s, color))
	t.row("Nodes:", color.good(s.NodesReady == s.NodesTotal, fmt.Sprintf("%d/%d ready", s.NodesReady, s.NodesTotal)))
	t.row("Routing:", shares(s.Routing))
	t.row("Masquerade:", shares(s.Masquerade))
	t.row("IPAM:", usagesText(s.IPAM, true))
	t.row("Endpoints:", strconv.FormatInt(s.Endpoints, 10))
	t.row("Policies:", color.good(s.PoliciesInForce == s.Policies, fmt.Sprintf("%d/%d in force", s.PoliciesInForce, s.Policies)))
	t.row("Health:", color.good(s.Health.Answered == s.Health.Probes, healthLine(s.Health)))
	t.row("Flows:", flowsLine(s))
	t.row("Versions:", shares(s.Versions))
	t.row("Images:", shares(s.Images))
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if err := printNodes(out, s.Nodes, wide, true, color); err != nil {
		return err
	}
	if verbose {
		for i := range s.Nodes {
			if err := printReport(out, &s.Nodes[i]); err != nil {
				return err
			}
		}
	}
	printProblems(out, "Errors:", SeverityError, s.Problems, color.red)
	printProblems(out, "Warnings:", SeverityWarning, s.Problems, color.yellow)
	return nil
}

func healthLine(h HealthSummary) string {
	if h.Probes == 0 {
		return "no other node to ask"
	}
	text := fmt.Sprintf("%d/%d probes between nodes answered", h.Answered, h.Probes)
	if h.SlowestMicros > 0 {
		text += ", slowest " + (time.Duration(h.SlowestMicros) * time.Microsecond).String()
	}
	return text
}

// flowsLine tells of the way of reporting where it is not the usual one: who finds no flows wants to know.
func flowsLine(s *Summary) string {
	text := fmt.Sprintf("%d seen, %d lost", s.Flows.Seen, s.Flows.Lost)
	if n := len(s.FlowReporting); n > 1 || n == 1 && s.FlowReporting[string(v1alpha1.FlowReportingDefault)] == 0 {
		text += ", reporting " + shares(s.FlowReporting)
	}
	return text
}

func workloadText(w Workload) string {
	if !w.Found {
		return "not found (" + w.Object + ")"
	}
	text := fmt.Sprintf("%d/%d ready", w.Ready, w.Desired)
	if w.Updated != w.Desired {
		text += fmt.Sprintf(", %d/%d up to date", w.Updated, w.Desired)
	}
	return text + " (" + w.Object + ")"
}

// shares is the one value that all have, or each with how many have it.
func shares(m map[string]int) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if len(m) == 1 {
			return k
		}
		all = append(all, fmt.Sprintf("%s (%d)", k, m[k]))
	}
	return orNone(strings.Join(all, "; "))
}

func configLine(s *Summary, color colors) string {
	if !s.ConfigPresent {
		return "the defaults (no ciliumconfig/" + v1alpha1.ConfigName + ")"
	}
	var all []string
	for _, c := range s.ConfigConditions {
		all = append(all, c.Type+"="+string(c.Status))
	}
	if len(all) == 0 {
		return color.good(false, "no condition yet")
	}
	slices.Sort(all)
	return color.good(meta.IsStatusConditionTrue(s.ConfigConditions, v1alpha1.ConditionReady), strings.Join(all, " ")+" (ciliumconfig/"+v1alpha1.ConfigName+")")
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func printNodes(out io.Writer, nodes []NodeSummary, wide, headers bool, color colors) error {
	t := newTable(out, color)
	if headers {
		head := []string{"NODE", "READY", "AGENT", "ADDRESSES", "PREFIXES", "IPAM", "ENDPOINTS", "VERSION"}
		if wide {
			head = append(head, "ROUTING", "MASQUERADE", "DEVICES", "POD-MTU", "KERNEL")
		}
		t.row(head...)
	}
	for _, n := range nodes {
		row := []string{
			n.Name, color.good(n.Ready, strconv.FormatBool(n.Ready)), n.Agent, list(n.Addresses), list(n.PodCIDRs),
			usagesText(n.IPAM, false), strconv.Itoa(int(n.Endpoints)), orNone(n.AgentVersion),
		}
		if wide {
			row = append(row, orNone(n.Routing), orNone(n.Masquerade), list(n.Devices), orNone(zeroEmpty(int64(n.PodMTU))), orNone(n.Kernel))
		}
		t.row(row...)
	}
	return t.flush()
}

// usagesText is used/total of each family; a total that nobody can use up is left out.
func usagesText(u Usages, long bool) string {
	var all []string
	for _, f := range []struct {
		name string
		*Usage
	}{{"IPv4", u.IPv4}, {"IPv6", u.IPv6}} {
		if f.Usage == nil {
			continue
		}
		text := strconv.FormatInt(f.Used, 10)
		if f.Total < endless {
			text += "/" + strconv.FormatInt(f.Total, 10)
		}
		if long {
			text = f.name + " " + text + " addresses used"
			if f.Resting > 0 {
				text += fmt.Sprintf(" and %d resting", f.Resting)
			}
		}
		all = append(all, text)
	}
	return orNone(strings.Join(all, ", "))
}

// endless is more addresses than a node could ever give.
const endless = 1 << 32

func totalText(n int64) string {
	if n >= endless {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}

func list(all []string) string { return orNone(strings.Join(all, ",")) }

func zeroEmpty(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// printReport writes what one agent says of its kernel, programs, maps and drops.
func printReport(out io.Writer, n *NodeSummary) error {
	fmt.Fprintf(out, "\nnode/%s", flow.Safe(n.Name))
	if n.Report == nil {
		fmt.Fprintln(out, ": no report yet")
		return nil
	}
	fmt.Fprintf(out, ": kernel %s, %s\n", flow.Safe(orNone(n.Kernel)), flow.Safe(orNone(n.Routing)))
	fmt.Fprintf(out, "  Flows: reporting %s, %d seen, %d lost\n", flow.Safe(orNone(string(n.Report.FlowReporting))), n.Report.Flows.Seen, n.Report.Flows.Lost)
	printConditions(out, n.Report.Conditions)
	sections := []struct {
		title string
		head  []string
		rows  [][]string
	}{
		{"Kernel features", []string{"FEATURE", "OUTCOME", "USING", "REMARK"}, featureRows(n.Report)},
		{"Programs", []string{"PROGRAM", "ATTACHED", "AT", "TAG"}, programRows(n.Report)},
		{"Maps", []string{"MAP", "ENTRIES", "MAX", "FILL", "MEMORY"}, mapRows(n.Report)},
		{"Pod addresses", []string{"PREFIX", "USED", "RESTING", "TOTAL"}, ipamRows(n.Report)},
		{"Policies", []string{"KIND", "KNOWN", "IN-FORCE-UP-TO", "EXCEPTIONS"}, policyRows(n.Report)},
		{"Health", []string{"NODE", "ADDRESS", "ICMP", "TCP"}, healthRows(n.Report)},
		{"Drops since the datapath was made", []string{"REASON", "HOOK", "PACKETS", "BYTES", "MEANING"}, dropRows(n.Report)},
	}
	for _, s := range sections {
		fmt.Fprintf(out, "  %s:", s.title)
		if len(s.rows) == 0 {
			fmt.Fprintln(out, " none")
			continue
		}
		fmt.Fprintln(out)
		t := newTable(out, colors{})
		t.indent = "    "
		t.row(s.head...)
		for _, r := range s.rows {
			t.row(r...)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	return nil
}

func printConditions(out io.Writer, all []metav1.Condition) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(out, "  Conditions:")
	for _, c := range slices.SortedFunc(slices.Values(all), func(a, b metav1.Condition) int { return cmp.Compare(a.Type, b.Type) }) {
		fmt.Fprintf(out, "    %s\n", flow.Safe(said(&c)))
	}
}

func featureRows(r *v1alpha1.CiliumNodeReportStatus) (rows [][]string) {
	for _, f := range r.Kernel.Features {
		rows = append(rows, []string{f.Name, string(f.Outcome), orNone(f.Using), f.Message})
	}
	return rows
}

func programRows(r *v1alpha1.CiliumNodeReportStatus) (rows [][]string) {
	for _, p := range r.Programs {
		rows = append(rows, []string{p.Name, p.Attach, strconv.Itoa(int(p.Devices)), orNone(p.Tag)})
	}
	return rows
}

func mapRows(r *v1alpha1.CiliumNodeReportStatus) (rows [][]string) {
	for _, m := range r.Maps {
		rows = append(rows, []string{m.Name, entries(m.Entries), strconv.FormatInt(m.MaxEntries, 10), fill(m.Entries, m.MaxEntries), bytesText(m.Bytes)})
	}
	return rows
}

func ipamRows(r *v1alpha1.CiliumNodeReportStatus) (rows [][]string) {
	for _, u := range r.IPAM {
		rows = append(rows, []string{u.Prefix, strconv.FormatInt(u.Used, 10), strconv.FormatInt(u.Resting, 10), totalText(u.Total)})
	}
	return rows
}

func policyRows(r *v1alpha1.CiliumNodeReportStatus) (rows [][]string) {
	for _, p := range r.Policies {
		var exceptions []string
		for _, e := range p.Exceptions {
			exceptions = append(exceptions, fmt.Sprintf("%s/%s (%s)", e.Namespace, e.Name, e.Reason))
		}
		rows = append(rows, []string{p.Kind, strconv.Itoa(int(p.Count)), orNone(p.InForce), orNone(strings.Join(exceptions, ", "))})
	}
	return rows
}

func healthRows(r *v1alpha1.CiliumNodeReportStatus) (rows [][]string) {
	outcome := func(o v1alpha1.HealthOutcome) string {
		switch {
		case o.Reachable:
			return (time.Duration(o.LatencyMicros) * time.Microsecond).String()
		case o.FailingSince != nil:
			return "no answer since " + o.FailingSince.UTC().Format(time.DateTime)
		}
		return "not asked yet"
	}
	for _, h := range r.Health {
		rows = append(rows, []string{h.Node, h.Address, outcome(h.ICMP), outcome(h.TCP)})
	}
	return rows
}

// dropRows puts the most frequent first.
func dropRows(r *v1alpha1.CiliumNodeReportStatus) (rows [][]string) {
	drops := slices.DeleteFunc(slices.Clone(r.Drops), func(c v1alpha1.PacketCounter) bool { return !c.Dropped })
	slices.SortStableFunc(drops, func(a, b v1alpha1.PacketCounter) int { return cmp.Compare(b.Packets, a.Packets) })
	for _, d := range drops {
		meaning := ""
		if reason, err := flow.ParseReason(d.Reason); err == nil {
			meaning = reason.Text()
		}
		rows = append(rows, []string{d.Reason, d.Hook, strconv.FormatInt(d.Packets, 10), bytesText(d.Bytes), meaning})
	}
	return rows
}

// entries is "-" where the kernel cannot tell.
func entries(n int64) string {
	if n < 0 {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}

func fill(n, limit int64) string {
	if n < 0 || limit <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", 100*n/limit)
}

// bytesText is an amount in the largest unit of which it has at least one.
func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	value, u := float64(n), 0
	for value >= 1024 && u < len(units)-1 {
		value /= 1024
		u++
	}
	if u > 0 && value < 10 {
		return fmt.Sprintf("%.1f %s", value, units[u])
	}
	return fmt.Sprintf("%.0f %s", value, units[u])
}

func printProblems(out io.Writer, title string, severity Severity, all []Problem, paint func(string) string) {
	first := true
	for _, p := range all {
		if p.Severity != severity {
			continue
		}
		if first {
			fmt.Fprintf(out, "\n%s\n", paint(title))
			first = false
		}
		fmt.Fprintf(out, "  %s: %s\n", flow.Safe(p.Object), flow.Safe(p.Message))
	}
}
