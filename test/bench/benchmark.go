// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

type options struct {
	rounds, millis int
	out            string
	testCluster    string
	beside         string
	objects        string
	times          int
	only           string
	cluster        string
	kinds          string
}

// part tells whether it is asked for.
func (o options) part(name string) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), name)
}

// compares is what measures other builds beside this one, nil where that is not asked for.
func (o options) compares() func(context.Context, io.Writer, options) ([]Figure, error) {
	switch {
	case o.beside != "":
		return buildFigures
	case o.objects != "":
		return objectFigures
	}
	return nil
}

// The bars: what the product promises of its own shapes.
var promised = map[string]bars{
	"same node":                  {"rr": 0.94, "crr": 0.90, "stream": 0.94},
	"two nodes, VXLAN":           {"rr": 0.82, "crr": 0.78, "stream": 0.80},
	"two nodes, native":          {"rr": 0.88, "crr": 0.86, "stream": 0.92},
	"ClusterIP":                  {"crr": 0.97},
	"two nodes, VXLAN, segments": {"stream": 1.1},
	"same node, BIG TCP":         {"stream": 1.6},
	"two nodes, native, BIG TCP": {"stream": 1.6},
}

func benchmark(ctx context.Context, o options) (err error) {
	log := os.Stderr
	var figures []Figure
	want := o.part
	if compare := o.compares(); compare != nil {
		if figures, err = compare(ctx, log, o); err != nil {
			return err
		}
		return report(log, o, figures)
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	fmt.Fprintln(log, "bringing a cluster up")
	c, err := bringUp(ctx, o.testCluster, o.cluster, "")
	if err != nil {
		return err
	}
	defer c.close()
	clientPod, same, other := c.pods["client"], c.pods["same"], c.pods["other"]
	all := strings.Split(o.kinds, ",")
	g := &ground{
		run: fmt.Sprintf("kcb%d-", os.Getpid()), dir: dir,
		cni: filepath.Dir(c.Binaries["bridge"]), like: [2]string{clientPod.procs, same.procs},
	}
	defer g.close()
	far := g.another("far")
	far.like[1] = other.procs
	farPair, err := far.straight()
	if err != nil {
		return err
	}

	if want("same") {
		pair, err := g.straight()
		if err != nil {
			return err
		}
		bridge, err := g.reference("bridge", "10.73.0.0/24")
		if err != nil {
			return err
		}
		ptp, err := g.reference("ptp", "10.74.0.0/24")
		if err != nil {
			return err
		}
		limits, err := g.bare(func(h *ground, conntrack bool) (shape, error) { return h.bareSameNode(1450, conntrack) })
		if err != nil {
			return err
		}
		mine := shape{name: "same node", client: clientPod, server: same, dst: same.ips["4"]}
		f, err := measure(ctx, log, "same node", slices.Concat([]shape{pair, bridge, ptp}, limits, []shape{mine}), pair.name, all, o.rounds, o.millis, promised)
		if err != nil {
			return err
		}
		figures = append(figures, f...)
		named := mine
		named.name, named.dst = "ClusterIP", c.vip
		if f, err = measure(ctx, log, "ClusterIP", []shape{mine, named}, mine.name, []string{"crr"}, o.rounds, o.millis, promised); err != nil {
			return err
		}
		figures = append(figures, f...)
	}
	if want("programs") {
		f, err := programFigures(ctx, log, c, min(o.rounds, 50), o.millis)
		if err != nil {
			return err
		}
		figures = append(figures, f...)
	}
	if want("flows") {
		f, err := flowFigures(ctx, log, c, o.rounds, o.millis)
		if err != nil {
			return err
		}
		figures = append(figures, f...)
	}
	if want("policy") {
		f, err := policyFigures(ctx, log, c, g, min(o.rounds, 100), o.millis)
		if err != nil {
			return err
		}
		figures = append(figures, f...)
	}
	vxlan := shape{name: "two nodes, VXLAN", client: clientPod, server: other, dst: other.ips["4"]}
	if want("cross") || want("cut") || want("bigtcp") {
		if err := c.wire(ctx); err != nil {
			return err
		}
	}
	if want("cross") {
		kernel, err := far.kernelVXLAN(false)
		if err != nil {
			return err
		}
		limits, err := far.bare(func(h *ground, conntrack bool) (shape, error) { return h.bareVXLAN(1450, conntrack) })
		if err != nil {
			return err
		}
		f, err := measure(ctx, log, vxlan.name, slices.Concat([]shape{farPair, kernel}, limits, []shape{vxlan}), farPair.name, all, o.rounds, o.millis, promised)
		if err != nil {
			return err
		}
		figures = append(figures, f...)
		if err := c.configure(ctx, `{"spec":{"routing":{"mode":"Native"}}}`); err != nil {
			return err
		}
		limits, err = far.bare(func(h *ground, conntrack bool) (shape, error) { return h.bareNative(1500, conntrack) })
		if err != nil {
			return err
		}
		native := vxlan
		native.name = "two nodes, native"
		if f, err = measure(ctx, log, native.name, slices.Concat([]shape{farPair}, limits, []shape{native}), farPair.name, all, o.rounds, o.millis, promised); err != nil {
			return err
		}
		figures = append(figures, f...)
		if err := c.configure(ctx, `{"spec":{"routing":{"mode":"VXLAN"}}}`); err != nil {
			return err
		}
	}
	if want("bigtcp") {
		f, err := bigTCPFigures(ctx, log, c, far, farPair, o.rounds, o.millis)
		if err != nil {
			return err
		}
		figures = append(figures, f...)
	}
	if want("cut") {
		kernel, err := far.another("cut").kernelVXLAN(true)
		if err != nil {
			return err
		}
		kernel.name = "kernel VXLAN, segments"
		if err := c.cutSegments(ctx, true); err != nil {
			return err
		}
		cut := vxlan
		cut.name = "two nodes, VXLAN, segments"
		f, err := measure(ctx, log, cut.name, []shape{kernel, cut}, kernel.name, []string{"stream"}, o.rounds, 4*o.millis, promised)
		if err != nil {
			return err
		}
		figures = append(figures, f...)
		if err := c.cutSegments(ctx, false); err != nil {
			return err
		}
	}
	if want("cni") {
		f, err := cniFigures(ctx, log, c, g)
		if err != nil {
			return err
		}
		figures = append(figures, f...)
	}
	if want("memory") {
		f, err := memoryFigures(ctx, log, c)
		if err != nil {
			return err
		}
		figures = append(figures, f...)
	}
	if want("enforced") {
		if err := hundredPods(ctx, log, c); err != nil {
			return err
		}
		f, err := enforcedFigures(ctx, log, c)
		if err != nil {
			return err
		}
		figures = append(figures, f...)
	}
	return report(log, o, figures)
}

// machine says on what the figures were measured.
func machine() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("Linux %s, %d CPUs, %s, %s", trim(release), runtime.NumCPU(), runtime.GOARCH, processor())
}

// processor is the CPU's make, where the kernel knows it, and its L2 cache: that decides what remembering connections costs.
func processor() string {
	model := "unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	caches, _ := filepath.Glob("/sys/devices/system/cpu/cpu0/cache/index*")
	for _, c := range caches {
		level, _ := os.ReadFile(filepath.Join(c, "level"))
		if size, err := os.ReadFile(filepath.Join(c, "size")); err == nil && trim(level) == "2" {
			model += ", L2 cache " + trim(size)
		}
	}
	return model
}

func trim(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return string(b)
}

func report(log io.Writer, o options, figures []Figure) error {
	missed := 0
	for _, f := range figures {
		if !f.Met {
			missed++
		}
		fmt.Fprintln(log, line(f))
	}
	fmt.Fprintf(log, "%d figures, %d below their bar\n", len(figures), missed)
	if o.only != "" || o.compares() != nil {
		return nil // a look, not the record
	}
	return write(o.out, figures, time.Now())
}
