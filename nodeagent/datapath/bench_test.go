// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// BenchmarkAddPod is what the datapath adds to a CNI ADD; the interface is made outside the clock.
func BenchmarkAddPod(b *testing.B) {
	f := newFixture(b)
	d := f.start(f.config())
	p := f.pod(1)
	for b.Loop() {
		if err := d.AddPod(p); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		must(b, d.RemovePod(1))
		b.StartTimer()
	}
}

// BenchmarkAddPods is the same with eight at a time.
func BenchmarkAddPods(b *testing.B) {
	f := newFixture(b)
	d := f.start(f.config())
	const width = 8
	next := uint16(1000)
	var times []time.Duration
	for b.Loop() {
		b.StopTimer()
		pods := make([]Pod, width)
		for i := range pods {
			next++
			pods[i] = f.pod(next)
		}
		b.StartTimer()
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, p := range pods {
			wg.Go(func() {
				start := time.Now()
				if err := d.AddPod(p); err != nil {
					b.Error(err)
				}
				mu.Lock()
				times = append(times, time.Since(start))
				mu.Unlock()
			})
		}
		wg.Wait()
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkRestart is an agent's start on a node that runs: everything is adopted.
func BenchmarkRestart(b *testing.B) {
	f := newFixture(b)
	must(b, f.start(f.config()).Close())
	for b.Loop() {
		must(b, f.start(f.config()).Close())
	}
}

// BenchmarkLoad is the first start: every program goes through the verifier. It also says what the process keeps.
func BenchmarkLoad(b *testing.B) {
	f := newFixture(b)
	for b.Loop() {
		b.StopTimer()
		must(b, Uninstall(f.opts))
		b.StartTimer()
		must(b, f.start(f.config()).Close())
	}
	b.StopTimer()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	must(b, err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "RssAnon") {
			b.Log(strings.TrimSpace(line))
		}
	}
}

// BenchmarkInterfaceGoes is what the removal of a pod's interface costs, with filters and when it has moved to a link:
// the kernel holds the lock of all devices for it.
func BenchmarkInterfaceGoes(b *testing.B) {
	next := uint16(2000)
	for _, way := range []string{clsact, tcx} {
		b.Run(way, func(b *testing.B) {
			f := newFixture(b)
			d := f.start(f.config())
			var times []time.Duration
			for b.Loop() {
				b.StopTimer()
				next++
				p := f.addPod(d, next)
				if way == tcx {
					_, _, err := d.movePod(b.Context(), p)
					must(b, err)
				}
				b.StartTimer()
				start := time.Now()
				must(b, netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: p.Ifindex}}))
				times = append(times, time.Since(start))
				b.StopTimer()
				must(b, d.RemovePod(p.ID))
				b.StartTimer()
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
