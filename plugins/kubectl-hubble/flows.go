// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// flowsOptions are the flags of `kubectl hubble flows`.
type flowsOptions struct {
	*plugin
	output        string
	color         string
	allNamespaces bool
	follow        bool
	numeric       bool
	last          int
	pod           string
	types         []string
	nodes         []string
}

// defaultLast is how many flows are shown where nothing else is asked for.
const defaultLast = 20

func (p *plugin) flows() *cobra.Command {
	o := &flowsOptions{plugin: p}
	cmd := &cobra.Command{
		Use:     "flows",
		Aliases: []string{"observe"},
		Short:   "Show what happened to packets, and what happens",
		Long: "Show what happened to packets of a namespace, of all nodes, in the order of time. Each agent remembers its last\n" +
			"few thousand events. A drop says why. Without -f the last ones are shown; with -f those to come as well.",
		Example: `  # The last twenty of the current namespace
  kubectl hubble flows

  # What is dropped in the cluster, as it happens
  kubectl hubble flows -A -f --type drop

  # What a Deployment's pods do, for a machine
  kubectl hubble flows -n shop --pod checkout --last 1000 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "Show those of every namespace, and of hosts.")
	f.BoolVarP(&o.follow, "follow", "f", false, "Go on with what happens from now on.")
	f.IntVar(&o.last, "last", defaultLast, "Begin with that many past ones; 0 with -f unless said.")
	f.StringVarP(&o.output, "output", "o", string(flow.Compact), "Output format. One of: (compact, json).")
	f.StringVar(&o.color, "color", "auto", "Mark drops: auto (for a terminal, unless NO_COLOR is set), always or never.")
	f.StringVar(&o.pod, "pod", "", "Only where either side is a pod whose name begins so; NAMESPACE/NAME is allowed.")
	f.StringSliceVarP(&o.types, "type", "t", nil, "Only these: drop, trace, verdict.")
	f.StringSliceVar(&o.nodes, "node", nil, "Only what these nodes saw.")
	f.BoolVar(&o.numeric, "numeric", false, "Print addresses and numbers where names are known.")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"compact", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{"drop", "trace", "verdict"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRun = func(cmd *cobra.Command, _ []string) {
		if o.follow && !cmd.Flags().Changed("last") {
			o.last = 0
		}
	}
	return cmd
}

// filter checks the flags and says what is wanted.
func (o *flowsOptions) filter() (*flow.Filter, error) {
	if f := flow.Format(o.output); f != flow.Compact && f != flow.JSON {
		return nil, usageError{fmt.Errorf("-o %q is not known: compact or json", o.output)}
	}
	if o.last < 0 {
		return nil, usageError{fmt.Errorf("--last %d is negative", o.last)}
	}
	f := &flow.Filter{Pod: o.pod}
	for _, name := range o.types {
		var t flow.Type
		if err := t.UnmarshalText([]byte(name)); err != nil {
			return nil, usageError{err}
		}
		f.Types = append(f.Types, t)
	}
	if !o.allNamespaces {
		ns, _, err := o.flags.ToRawKubeConfigLoader().Namespace()
		if err != nil {
			return nil, err
		}
		f.Namespace = ns
	}
	return f, nil
}

func (o *flowsOptions) run(ctx context.Context) error {
	filter, err := o.filter()
	if err != nil {
		return err
	}
	color, err := o.wantsColor()
	if err != nil {
		return err
	}
	c, err := cluster.Connect(o.flags)
	if err != nil {
		return err
	}
	nodes, err := o.agentNodes(ctx, c)
	if err != nil {
		return err
	}
	remark := func(s string) { fmt.Fprintln(o.ErrOut, flow.Safe(s)) }
	source := &nodeSource{cluster: c, nodes: nodes, remark: remark}
	names := &cluster.LiveNames{Cluster: c, Remark: remark}
	printer := &flow.Printer{Out: o.Out, Format: flow.Format(o.output), Node: true, Numeric: o.numeric, Color: color}
	err = source.Flows(ctx, Request{Last: o.last, Follow: o.follow, Filter: filter, Fill: func(e *flow.Event) { names.Fill(ctx, e) }}, printer.Print)
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// agentNodes are the nodes to ask: those asked for, or all that have an agent.
func (o *flowsOptions) agentNodes(ctx context.Context, c *cluster.Cluster) ([]string, error) {
	if len(o.nodes) > 0 {
		return o.nodes, nil
	}
	pods, err := c.AgentPods(ctx, "")
	if err != nil {
		return nil, err
	}
	var nodes []string
	for i := range pods {
		if pods[i].Status.Phase == corev1.PodRunning && pods[i].DeletionTimestamp == nil {
			nodes = append(nodes, pods[i].Spec.NodeName)
		}
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("%w in namespace %s (kubectl cilium status)", cluster.ErrNoAgent, cluster.Namespace)
	}
	return nodes, nil
}

func (o *flowsOptions) wantsColor() (bool, error) {
	switch o.color {
	case "always":
		return true, nil
	case "never":
		return false, nil
	case "auto":
		f, ok := o.Out.(*os.File)
		return ok && os.Getenv("NO_COLOR") == "" && isatty.IsTerminal(f.Fd()), nil
	}
	return false, usageError{fmt.Errorf("--color %q is not known: auto, always or never", o.color)}
}
