// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
)

// shape is one way of connecting a client to a server.
type shape struct {
	name           string
	client, server place
	// dst is what the client dials: the server's address, or a Service's.
	dst string
	// before is done before each slice; nil: nothing is.
	before func() error
}

// bars by figure for one shape; kinds without a bar are measured and reported all the same.
type bars map[string]float64

// measure runs rounds over all shapes, for each kind, and gives the ratio of each to the shape named base.
func measure(ctx context.Context, log io.Writer, title string, shapes []shape, base string, kinds []string, rounds, millis int, limits map[string]bars) ([]Figure, error) {
	clients := map[string]*process{}
	defer func() {
		for _, p := range clients {
			p.stop()
		}
	}()
	servers := map[string]*process{}
	defer func() {
		for _, p := range servers {
			p.stop()
		}
	}()
	for _, s := range shapes {
		key := fmt.Sprint(s.server.enter)
		if servers[key] == nil {
			p, err := s.server.serve()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			servers[key] = p
		}
		p, err := s.client.start("client")
		if err != nil {
			return nil, err
		}
		clients[s.name] = p
	}
	type key struct{ shape, kind string }
	rates := map[key][]float64{}
	for round := range rounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if done := round + 1; done%10 == 0 || done == rounds {
			fmt.Fprintf(log, "%s: round %d/%d\n", title, done, rounds)
		}
		for _, kind := range kinds {
			for _, i := range rand.Perm(len(shapes)) {
				s := shapes[i]
				how, cpu := kind, 0
				if kind == "rr-cross" || kind == "crr-cross" {
					how, cpu = kind[:len(kind)-len("-cross")], 1
				}
				if s.before != nil {
					if err := s.before(); err != nil {
						return nil, fmt.Errorf("%s: %w", s.name, err)
					}
				}
				t, err := clients[s.name].do(job{Kind: how, Dst: s.dst, CPU: cpu, Millis: millis})
				if err != nil {
					return nil, fmt.Errorf("%s: %w", s.name, err)
				}
				rates[key{s.name, kind}] = append(rates[key{s.name, kind}], float64(t.Units)/float64(t.Nanos))
			}
		}
	}
	var figures []Figure
	for _, s := range shapes {
		if s.name == base {
			continue
		}
		for _, kind := range kinds {
			var ratios []float64
			for i, r := range rates[key{s.name, kind}] {
				ratios = append(ratios, r/rates[key{base, kind}][i])
			}
			f := Figure{Figure: kind, Shape: s.name, Peer: base, Bar: limits[s.name][kind]}
			f.P25, f.Ratio, f.P75 = quartiles(ratios)
			f.Best = percentile(rates[key{s.name, kind}], 0.9) / percentile(rates[key{base, kind}], 0.9)
			figures = append(figures, f.judged())
		}
	}
	return figures, nil
}
