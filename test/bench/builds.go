// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// buildFigures compares this build with what the checkout o.beside holds: clusters of both are up together, and what a
// change costs is the ratio of the two in one run. But a cluster is faster or slower than another of the same build for
// as long as it lives, crr by up to 3 % (probably by where its tables came to lie in memory): so both are brought up
// o.times, in alternating order, and the quartiles are of what each of these gave. With one time they are of its rounds.
func buildFigures(ctx context.Context, log io.Writer, o options) ([]Figure, error) {
	type key struct{ figure, shape string }
	ratios, best := map[key][]float64{}, map[key][]float64{}
	var figures []Figure
	for i := range o.times {
		fmt.Fprintf(log, "bringing both clusters up, %d/%d\n", i+1, o.times)
		once, err := besideOnce(ctx, log, o, i%2 == 0)
		if err != nil {
			return nil, err
		}
		for _, f := range once {
			k := key{f.Figure, f.Shape}
			ratios[k], best[k] = append(ratios[k], f.Ratio), append(best[k], f.Best)
		}
		figures = once
	}
	if o.times == 1 {
		return figures, nil
	}
	fmt.Fprintf(log, "over %d pairs of clusters\n", o.times)
	for i := range figures {
		f := &figures[i]
		k := key{f.Figure, f.Shape}
		f.P25, f.Ratio, f.P75 = quartiles(ratios[k])
		f.Best = percentile(best[k], 0.5)
	}
	return figures, nil
}

// besideOnce brings a cluster of either build up, each with a wire between its nodes, and compares them.
func besideOnce(ctx context.Context, log io.Writer, o options, oursFirst bool) (figures []Figure, err error) {
	bring := func(name, source string) (*ours, error) { return bringUp(ctx, o.testCluster, o.cluster+name, source) }
	var c, other *ours
	for _, turn := range []bool{oursFirst, !oursFirst} {
		if turn {
			if c, err = bring("", ""); err == nil {
				defer c.close()
			}
		} else if other, err = bring("-beside", o.beside); err == nil {
			defer other.close()
		}
		if err != nil {
			return nil, err
		}
	}
	compare := func(name, server string) error {
		var shapes []shape
		for _, side := range []struct {
			*ours
			name string
		}{{other, name + ", the other build"}, {c, name}} {
			to := side.pods[server]
			shapes = append(shapes, shape{name: side.name, client: side.pods["client"], server: to, dst: to.ips["4"]})
		}
		f, err := measure(ctx, log, name, shapes, shapes[0].name, strings.Split(o.kinds, ","), o.rounds/o.times, o.millis, nil)
		for _, f := range f {
			fmt.Fprintln(log, line(f))
		}
		figures = append(figures, f...)
		return err
	}
	if o.part("same") {
		if err := compare("same node", "same"); err != nil {
			return nil, err
		}
	}
	if !o.part("cross") {
		return figures, nil
	}
	for _, side := range []*ours{c, other} {
		if err := side.wire(ctx); err != nil {
			return nil, err
		}
	}
	for _, mode := range []string{"VXLAN", "Native"} {
		for _, side := range []*ours{c, other} {
			if err := side.configure(ctx, `{"spec":{"routing":{"mode":"`+mode+`"}}}`); err != nil {
				return nil, err
			}
		}
		if err := compare(map[string]string{"VXLAN": "two nodes, VXLAN", "Native": "two nodes, native"}[mode], "other"); err != nil {
			return nil, err
		}
	}
	return figures, nil
}
