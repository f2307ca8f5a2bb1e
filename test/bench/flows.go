// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

// flowFigures gives what reporting costs two pods of one node: the default, and every packet, beside none. There is one
// switch a node and it takes effect with the next packet, so it is thrown before each slice, in the word where the
// agent puts CiliumConfig's flows.reporting: the slices of a round are as mixed as those of any other figure, through
// the same pods, programs and connections' tables. The agent reads the ring all the while, as it does in life.
func flowFigures(ctx context.Context, log io.Writer, c *ours, rounds, millis int) (figures []Figure, err error) {
	pid, err := c.agentPID(ctx, c.Nodes[0].Name)
	if err != nil {
		return nil, err
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinFolder(pid), datapath.PinName(bpf.MapsMapLiveSettings, 1)), nil)
	if err != nil {
		return nil, fmt.Errorf("open the live settings of %s: %w", c.Nodes[0].Name, err)
	}
	defer m.Close() //nolint:errcheck // nothing was asked of it that could fail late
	var usual bpf.Settings
	if err := m.Lookup(uint32(0), &usual); err != nil {
		return nil, fmt.Errorf("read live settings: %w", err)
	}
	report := func(interval uint32) func() error {
		return func() error {
			var s bpf.Settings
			if err := m.Lookup(uint32(0), &s); err != nil {
				return fmt.Errorf("read live settings: %w", err)
			}
			s.ReportInterval = interval
			if err := m.Put(uint32(0), s); err != nil {
				return fmt.Errorf("write live settings: %w", err)
			}
			return nil
		}
	}
	usually := report(usual.ReportInterval)
	defer func() {
		if again := usually(); err == nil {
			err = again
		}
	}()
	same := c.pods["same"]
	way := func(name string, before func() error) shape {
		return shape{name: name, client: c.pods["client"], server: same, dst: same.ips["4"], before: before}
	}
	off := way("same node, no reports", report(uint32(bpf.MapsReportIntervalREPORT_NOTHING)))
	ordinary := way("same node, default reports", usually)
	every := way("same node, every packet reported", report(uint32(bpf.MapsReportIntervalREPORT_EVERY_PACKET)))
	return measure(ctx, log, "flows", []shape{off, ordinary, every}, off.name, []string{"rr", "crr", "stream"}, rounds, millis,
		map[string]bars{ordinary.name: {"crr": 0.98}})
}
