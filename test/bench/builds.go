// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
)

// buildFigures compares two builds: c's cluster and one of what the checkout o.beside holds are up together, each
// with a wire between its nodes, and what a change costs is the ratio of the two in one run.
func buildFigures(ctx context.Context, log io.Writer, c *ours, o options) (figures []Figure, err error) {
	parts := []string{"same", "cross"}
	if o.only != "" {
		parts = strings.Split(o.only, ",")
	}
	fmt.Fprintln(log, "bringing the other build's cluster up")
	other, err := bringUp(ctx, o.testCluster, o.cluster+"-beside", o.beside)
	if err != nil {
		return nil, err
	}
	defer other.close()
	kinds := strings.Split(o.kinds, ",")
	compare := func(name, server string) error {
		var shapes []shape
		for _, side := range []struct {
			*ours
			name string
		}{{other, name + ", the other build"}, {c, name}} {
			to := side.pods[server]
			shapes = append(shapes, shape{name: side.name, client: side.pods["client"], server: to, dst: to.ips["4"]})
		}
		f, err := measure(ctx, log, name, shapes, shapes[0].name, kinds, o.rounds, o.millis, nil)
		figures = append(figures, f...)
		return err
	}
	if slices.Contains(parts, "same") {
		if err := compare("same node", "same"); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(parts, "cross") {
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
