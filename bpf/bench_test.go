// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// BenchmarkPrograms gives ns per packet of each program on the ways that matter. The time of an empty program, about
// 10 ns, is in it; the time of redirects, which happen after the program, is not.
func BenchmarkPrograms(b *testing.B) {
	tcp := func(p packet) packet { return p.with(func(p *packet) { p.flags = ack }) }
	echo := packet{smac: wireMAC, dmac: nodeMAC, src: out4, dst: node4, proto: protoTCP, sport: 40000, dport: 22, flags: ack}
	outer, inner := fromFar(podA4)
	for _, c := range []struct {
		name   string
		prog   string
		frame  []byte
		warm   func(w *world)
		repeat int // the frame is not put back within a call: 1 where it is rewritten, else the hop limit's worth
	}{
		{"from_pod to pod v4", "from_pod", tcp(fromA(podB4)).frame(), nil, 32},
		{"from_pod to pod v6", "from_pod", tcp(fromA(podB6)).frame(), nil, 32},
		{"from_pod to own host", "from_pod", tcp(fromA(node4)).frame(), nil, 32},
		{"from_pod masqueraded v4", "from_pod", tcp(fromA(out4)).frame(), func(w *world) {
			w.run("from_pod", fromA(out4).frame())
			w.run("from_netdev", answer(fromA(out4).with(func(p *packet) { p.src = node4 })).frame())
		}, 1},
		{"from_pod spoofed", "from_pod", tcp(fromA(podB4)).with(func(p *packet) { p.src = podB4 }).frame(), nil, 32},
		{"from_netdev unmasqueraded v4", "from_netdev", answer(fromA(out4).with(func(p *packet) { p.src = node4 })).frame(), func(w *world) {
			w.run("from_pod", fromA(out4).frame())
		}, 1},
		{"from_netdev from the world to pod", "from_netdev", packet{smac: wireMAC, dmac: nodeMAC, src: out4, dst: podA4, proto: protoTCP, sport: 9, dport: 80, flags: ack}.frame(), nil, 32},
		{"from_netdev out of the tunnel", "from_netdev", outer.vxlan(idFar, inner.frame()), nil, 1},
		{"from_pod into the tunnel", "from_pod", tcp(fromA(far4)).frame(), nil, 1},
		{"to_pod from host v4", "to_pod", tcp(packet{smac: hostMAC, dmac: podMAC, src: node4, dst: podA4, proto: protoTCP, sport: 9, dport: 80}).frame(), nil, 32},
		{"from_netdev for the host", "from_netdev", echo.frame(), nil, 32},
		{"from_netdev refused in the tunnel", "from_netdev", outer.vxlan(idHost, inner.frame()), nil, 32},
		{"to_netdev of the host", "to_netdev", echo.reply().with(func(p *packet) { p.dport = 22; p.sport = 40000 }).frame(), nil, 32},
		{"to_overlay", "to_overlay", tcp(fromA(far4)).with(func(p *packet) { p.src = node4 }).frame(), nil, 32},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, nil)
			if c.warm != nil {
				c.warm(w)
			}
			prog := w.program(c.prog).Programs[c.prog]
			var total time.Duration
			for b.Loop() {
				_, per, err := prog.Benchmark(c.frame, c.repeat, nil)
				if err != nil {
					b.Fatal(err)
				}
				total += per
			}
			b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/packet")
		})
	}
}

// BenchmarkAgain is an IPv4 TCP packet of a connection that goes on, on each way that programs remember; the clean sheet
// and the tables are asked once in a tick. Compare with BenchmarkPrograms.
func BenchmarkAgain(b *testing.B) {
	for _, c := range ways() {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, nil)
			if c.native {
				w = nativeWorld(b)
			}
			p := c.first(false)
			wrap, repeat := packet.frame, 32
			if c.wrap != nil {
				wrap = c.wrap
			}
			flags := func(f uint8) packet { return p.with(func(p *packet) { p.flags = f }) }
			w.run(c.program, wrap(flags(syn)))
			c.answer(w, flags(syn|ack).reply())
			data := wrap(flags(ack))
			w.run(c.program, data)
			if strings.Contains(c.name, "tunnel") {
				repeat = 1 // the header is put on or taken off
			}
			prog := w.program(c.program).Programs[c.program]
			var total time.Duration
			onOneCPU(b, func() {
				for b.Loop() {
					_, per, err := prog.Benchmark(data, repeat, nil)
					if err != nil {
						b.Fatal(err)
					}
					total += per
				}
			})
			b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/packet")
		})
	}
}

// BenchmarkNewConnection is the first packet of a connection between two pods of the node, both with policies: what an
// established connection does not pay. The entries are of other peers, and one of this.
func BenchmarkNewConnection(b *testing.B) {
	for _, entries := range []int{0, 10, 1000, 10000} {
		b.Run(fmt.Sprintf("%d entries", entries), func(b *testing.B) {
			w := newWorld(b, nil)
			if entries > 0 {
				rows := []verdictRow{{idA, protoTCP, 16, 80, verdictAllow, 5}, {idB, protoTCP, 16, 80, verdictAllow, 5}}
				for i := range (entries - 2) / 2 {
					rows = append(rows, verdictRow{uint32(10000 + i), protoTCP, 16, 80, verdictAllow, 5},
						verdictRow{class + 1, protoTCP, 16, uint16(i + 1), verdictAllow, 5})
				}
				flags := identities | withClasses | ports | one
				w.enforce(1, egress, flags, rows...)
				w.enforce(2, ingress, flags)
			}
			prog := w.program("from_pod").Programs["from_pod"]
			var total time.Duration
			for i := 0; b.Loop(); i++ {
				p := fromA(podB4)
				p.sport = uint16(1024 + i%60000)
				_, per, err := prog.Benchmark(p.frame(), 1, nil)
				if err != nil {
					b.Fatal(err)
				}
				total += per
			}
			b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/packet")
		})
	}
}
