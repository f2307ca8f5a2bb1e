// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func bar(f Figure) string {
	switch {
	case f.Bar == 0:
		return ""
	case f.AtMost:
		return fmt.Sprintf("at most %.4g", f.Bar)
	}
	return fmt.Sprintf("at least %.4g", f.Bar)
}

func verdict(f Figure) string {
	if f.Bar == 0 {
		return ""
	}
	if f.Met {
		return "kept"
	}
	return "**missed**"
}

func line(f Figure) string {
	peer := f.Peer
	if peer == "" {
		peer = f.Unit
	}
	spread := ""
	if f.P25 != 0 {
		spread = fmt.Sprintf("%.4g to %.4g", f.P25, f.P75)
	}
	if f.Best != 0 {
		spread += fmt.Sprintf(", best %.4g", f.Best)
	}
	return fmt.Sprintf("%-14s %-28s %-24s %8.4g  %-30s %s %s", f.Figure, f.Shape, peer, f.Ratio, spread, bar(f), strings.Trim(verdict(f), "*"))
}

// spread and best are empty for a ratio of two values that were measured once.
func spread(f Figure) string {
	if f.P25 == 0 && f.P75 == 0 {
		return ""
	}
	return fmt.Sprintf("%.3f to %.3f", f.P25, f.P75)
}

func best(f Figure) string {
	if f.Best == 0 {
		return ""
	}
	return fmt.Sprintf("%.3f", f.Best)
}

// write writes both files; the page is for people, the JSON for machines.
func write(dir string, figures []Figure, now time.Time) error {
	b, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "benchmarks.json"), append(b, '\n'), 0o644); err != nil {
		return err
	}
	var page strings.Builder
	fmt.Fprintf(&page, `# Benchmarks

Written by %[1]smake bench%[1]s on %s, %s. Do not edit: run it again.

A ratio is paired within a round of short slices in random order; the median over all rounds, with its quartiles. rr: one byte there and
back on a lasting TCP connection; crr: connect, one byte there and back, close; stream: one TCP stream; udp: one datagram there and back.
Client and server share one CPU, so a ratio compares what the whole path costs; -cross: each on its own CPU. Best is the ratio of the rates
that a tenth of the slices reach, the ones that the machine disturbed least; bars are judged by the median.
Ours is one cluster, and another of the same build differs in crr by up to 3 %%, whatever the quartiles.
BIG TCP: every device on the way takes segments of 196608 bytes instead of the 64 KiB of all other shapes, the veth pair beside it among them.
The bare shapes are the limit on this machine: devices like ours, and programs that know one way by heart and only redirect, for VXLAN with a
header put on and taken off besides. With conntrack, they also remember connections: each packet looks for its own in the kernel's LRU table,
the first puts it in.
CNI ADD: 20 pods, 8 at a time, 15 times, of each plugin in turns and as processes of the same node; ours gives both families and finds pods that were bound to the node seconds ago, bridge gives IPv4.
Reports of flows are switched on and off before each slice, through the live record in which the agent of the node puts CiliumConfig's flows.reporting.

## Ratios

| figure | shape | beside | ratio | quartiles | best | bar | |
|---|---|---|---|---|---|---|---|
`, "`", now.UTC().Format("2006-01-02"), machine())
	for _, f := range figures {
		if f.Peer != "" {
			fmt.Fprintf(&page, "| %s | %s | %s | %.3f | %s | %s | %s | %s |\n", f.Figure, f.Shape, f.Peer, f.Ratio, spread(f), best(f), bar(f), verdict(f))
		}
	}
	page.WriteString("\n## Sizes and times\n\n| figure | of | value | bar | |\n|---|---|---|---|---|\n")
	for _, f := range figures {
		if f.Peer == "" {
			fmt.Fprintf(&page, "| %s | %s | %.4g %s | %s | %s |\n", f.Figure, f.Shape, f.Ratio, f.Unit, bar(f), verdict(f))
		}
	}
	return os.WriteFile(filepath.Join(dir, "benchmarks.md"), []byte(page.String()), 0o644)
}
