// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// monitorOptions are the flags of `kubectl cilium monitor`.
type monitorOptions struct {
	*plugin
	request cluster.EventRequest
	output  string
	numeric bool
}

func (p *plugin) monitor() *cobra.Command {
	o := &monitorOptions{plugin: p}
	cmd := &cobra.Command{
		Use:   "monitor NODE",
		Short: "Show drops and traces of a node as they happen",
		Long: "Show drops and traces of a node as they happen, until interrupted. A drop says why. Drops that come faster than\n" +
			"the node reports them are counted exactly in kubectl cilium map dump NODE metrics. For flows of the whole\n" +
			"cluster with filters, see kubectl hubble flows.",
		Example: `  # Why does this node drop packets?
  kubectl cilium monitor worker-1 --type drop

  # The last twenty events first, as JSON
  kubectl cilium monitor worker-1 --last 20 -o json`,
		Args:              cobra.ExactArgs(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args[0]) },
		ValidArgsFunction: p.completeNode,
	}
	cmd.Flags().StringVarP(&o.output, "output", "o", string(flow.Compact), "Output format. One of: (compact, json).")
	cmd.Flags().StringSliceVarP(&o.request.Types, "type", "t", nil, "Only these: drop, trace.")
	cmd.Flags().IntVar(&o.request.Last, "last", 0, "Begin with that many past events.")
	cmd.Flags().BoolVar(&o.numeric, "numeric", false, "Leave names out: addresses and numbers as the kernel has them.")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"compact", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{"drop", "trace"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (o *monitorOptions) run(ctx context.Context, node string) error {
	if f := flow.Format(o.output); f != flow.Compact && f != flow.JSON {
		return fmt.Errorf("-o %q is not known: compact or json", o.output)
	}
	for _, name := range o.request.Types {
		var t flow.Type
		// Verdicts are no events of their own: kubectl hubble flows makes them of the others.
		if err := t.UnmarshalText([]byte(name)); err != nil || t == flow.Verdict {
			return fmt.Errorf("event type %q is not known: drop or trace", name)
		}
	}
	if o.request.Last < 0 {
		return fmt.Errorf("--last %d is negative", o.request.Last)
	}
	color, err := o.colors()
	if err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	o.request.Follow = true
	names := &cluster.LiveNames{Cluster: c, Remark: func(s string) { o.remark("%s", s) }}
	printer := &flow.Printer{Out: o.Out, Format: flow.Format(o.output), Numeric: o.numeric, Color: color.on}
	err = c.Events(ctx, node, o.request, func(m flow.Message) error {
		if m.Lost > 0 {
			o.remark("node/%s: %d events lost: they came faster than they could be shown", node, m.Lost)
		}
		if m.Event == nil {
			return nil
		}
		if !o.numeric {
			names.Fill(ctx, m.Event)
		}
		return printer.Print(*m.Event)
	})
	if os.IsTimeout(err) {
		return fmt.Errorf("node/%s: the stream went silent: %w", node, err)
	}
	return err
}
