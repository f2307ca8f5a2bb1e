// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// nodeOptions are the flags of `kubectl cilium node list` and `get`.
type nodeOptions struct {
	*plugin
	output *output
}

func (p *plugin) node() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Aliases: []string{"nodes"}, Short: "Nodes as the network sees them"}
	list := &nodeOptions{plugin: p}
	listCmd := &cobra.Command{
		Use:   "list",
		Short: "List nodes with their agents, prefixes and use",
		Example: `  # With routing, devices and kernel
  kubectl cilium node list -o wide`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return list.list(cmd.Context()) },
	}
	list.output = newOutput(listCmd)
	get := &nodeOptions{plugin: p}
	getCmd := &cobra.Command{
		Use:   "get NODE",
		Short: "Show what one node's agent reports: kernel, programs, maps, addresses, drops",
		Example: `  # Everything about one node
  kubectl cilium node get worker-1`,
		Args:              cobra.ExactArgs(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return get.get(cmd.Context(), args[0]) },
		ValidArgsFunction: p.completeNode,
	}
	get.output = newOutput(getCmd)
	cmd.AddCommand(listCmd, getCmd)
	return cmd
}

func (o *nodeOptions) list(ctx context.Context) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	color, err := o.colors()
	if err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	if !o.output.table() {
		var all v1alpha1.CiliumNodeList
		if err := c.List(ctx, &all); err != nil {
			return err
		}
		return o.output.object(o.Out, c.Scheme(), &all)
	}
	snapshot, err := takeSnapshot(ctx, c)
	if err != nil {
		return err
	}
	return printNodes(o.Out, Summarize(snapshot).Nodes, o.output.wide(), true, color)
}

func (o *nodeOptions) get(ctx context.Context, name string) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	color, err := o.colors()
	if err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	if !o.output.table() {
		var report v1alpha1.CiliumNodeReport
		if err := c.Get(ctx, client.ObjectKey{Name: name}, &report); err != nil {
			return err
		}
		return o.output.object(o.Out, c.Scheme(), &report)
	}
	snapshot, err := takeSnapshot(ctx, c)
	if err != nil {
		return err
	}
	s := Summarize(snapshot)
	i := slices.IndexFunc(s.Nodes, func(n NodeSummary) bool { return n.Name == name })
	if i < 0 {
		return fmt.Errorf("nodes %q not found", name)
	}
	if err := printNodes(o.Out, s.Nodes[i:i+1], true, true, color); err != nil {
		return err
	}
	if err := printReport(o.Out, &s.Nodes[i]); err != nil {
		return err
	}
	about := slices.DeleteFunc(slices.Clone(s.Problems), func(p Problem) bool {
		return p.Object != "node/"+name && p.Object != "ciliumnode/"+name && p.Object != "ciliumnodereport/"+name
	})
	printProblems(o.Out, "Errors:", SeverityError, about, color.red)
	printProblems(o.Out, "Warnings:", SeverityWarning, about, color.yellow)
	return nil
}
