// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// endpointOptions are the flags of `kubectl cilium endpoint list` and `get`.
type endpointOptions struct {
	*plugin
	output        *output
	allNamespaces bool
	selector      string
	node          string
}

func (p *plugin) endpoint() *cobra.Command {
	cmd := &cobra.Command{Use: "endpoint", Aliases: []string{"endpoints", "ep"}, Short: "Pods' networks: addresses, identity, state"}
	cmd.AddCommand(p.endpointList(), p.endpointGet())
	return cmd
}

func (p *plugin) endpointList() *cobra.Command {
	o := &endpointOptions{plugin: p}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List pods' networks",
		Example: `  # Every pod's network
  kubectl cilium endpoint list -A

  # Those of one node, with interfaces and labels
  kubectl cilium endpoint list -A --node worker-1 -o wide`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.list(cmd.Context()) },
	}
	o.output = newOutput(cmd)
	cmd.Flags().BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "List those of every namespace.")
	cmd.Flags().StringVarP(&o.selector, "selector", "l", "", "Labels of the CiliumEndpoint to filter by, as kubectl get -l.")
	cmd.Flags().StringVar(&o.node, "node", "", "Only pods of this node.")
	_ = cmd.RegisterFlagCompletionFunc("node", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return p.completeNames(c.Context(), &v1alpha1.CiliumNodeList{})
	})
	return cmd
}

func (o *endpointOptions) list(ctx context.Context) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	ns, err := o.namespace(o.allNamespaces)
	if err != nil {
		return err
	}
	opts := []client.ListOption{client.InNamespace(ns)}
	if o.selector != "" {
		selector, err := parseSelector(o.selector)
		if err != nil {
			return err
		}
		opts = append(opts, selector)
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	var all v1alpha1.CiliumEndpointList
	if err := c.List(ctx, &all, opts...); err != nil {
		return err
	}
	if o.node != "" {
		all.Items = slices.DeleteFunc(all.Items, func(e v1alpha1.CiliumEndpoint) bool { return e.Status.Node != o.node })
	}
	if !o.output.table() {
		return o.output.object(o.Out, c.Scheme(), &all)
	}
	if len(all.Items) == 0 {
		o.nothing("endpoints", ns)
		if o.selector != "" {
			o.remark("-l is about labels of the CiliumEndpoint, which does not carry its pod's: those are in the last column of -o wide.")
		}
		o.remark("A new pod's is written some seconds after the pod, and later where many came at once: the pod's network does not wait for it.")
		return nil
	}
	return printEndpoints(o.Out, all.Items, o.allNamespaces, o.output.wide(), time.Now())
}

// nothing says on stderr, as kubectl does, that a list is empty.
func (p *plugin) nothing(what, namespace string) {
	if namespace == "" {
		p.remark("No %s found.", what)
	} else {
		p.remark("No %s found in namespace %s.", what, namespace)
	}
}

func printEndpoints(out io.Writer, all []v1alpha1.CiliumEndpoint, namespaces, wide bool, now time.Time) error {
	t := newTable(out, colors{})
	head := []string{"NAME", "ENDPOINT", "STATE", "IDENTITY", "ADDRESSES", "NODE", "AGE"}
	if namespaces {
		head = append([]string{"NAMESPACE"}, head...)
	}
	if wide {
		head = append(head, "INTERFACE", "LABELS")
	}
	t.row(head...)
	for i := range all {
		e := &all[i]
		row := []string{
			e.Name, strconv.FormatInt(e.Status.ID, 10), orNone(string(e.Status.State)), endpointIdentity(e), list(e.Status.Addresses),
			orNone(e.Status.Node), age(e, now),
		}
		if namespaces {
			row = append([]string{e.Namespace}, row...)
		}
		if wide {
			row = append(row, orNone(e.Status.Interface), list(e.Status.Identity.Labels))
		}
		t.row(row...)
	}
	return t.flush()
}

func endpointIdentity(e *v1alpha1.CiliumEndpoint) string {
	if e.Status.Identity.Pending {
		return "pending"
	}
	return orNone(zeroEmpty(e.Status.Identity.ID))
}

func age(o client.Object, now time.Time) string {
	created := o.GetCreationTimestamp()
	if created.IsZero() {
		return "-"
	}
	return duration.HumanDuration(now.Sub(created.Time))
}

func (p *plugin) endpointGet() *cobra.Command {
	o := &endpointOptions{plugin: p}
	cmd := &cobra.Command{
		Use:   "get POD",
		Short: "Show one pod's network",
		Example: `  # The network of a pod of the current namespace
  kubectl cilium endpoint get web-0`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.get(cmd.Context(), args[0]) },
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			ns, err := p.namespace(false)
			if err != nil || len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return p.completeNames(c.Context(), &v1alpha1.CiliumEndpointList{}, client.InNamespace(ns))
		},
	}
	o.output = newOutput(cmd)
	return cmd
}

func (o *endpointOptions) get(ctx context.Context, name string) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	ns, err := o.namespace(false)
	if err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	var e v1alpha1.CiliumEndpoint
	if err := c.Get(ctx, client.ObjectKey{Namespace: ns, Name: name}, &e); err != nil {
		return within(ns, err)
	}
	if !o.output.table() {
		return o.output.object(o.Out, c.Scheme(), &e)
	}
	return printEndpoint(o.Out, &e)
}

func printEndpoint(out io.Writer, e *v1alpha1.CiliumEndpoint) error {
	t := newTable(out, colors{})
	t.row("Pod:", e.Namespace+"/"+e.Name)
	t.row("Node:", orNone(e.Status.Node))
	t.row("Endpoint:", strconv.FormatInt(e.Status.ID, 10))
	t.row("State:", orNone(string(e.Status.State)))
	t.row("Addresses:", strings.Join(e.Status.Addresses, ", "))
	t.row("Interface:", orNone(e.Status.Interface))
	t.row("Identity:", endpointIdentity(e))
	for _, l := range e.Status.Identity.Labels {
		t.row("", l)
	}
	for i := range e.Status.Conditions {
		title := ""
		if i == 0 {
			title = "Conditions:"
		}
		t.row(title, said(&e.Status.Conditions[i]))
	}
	return t.flush()
}

// identityText is a number with its name or labels, as far as they are known.
func identityText(names *cluster.Names, number uint32) string {
	text := strconv.FormatUint(uint64(number), 10)
	if name := flow.IdentityName(number); name != "" {
		return text + " (" + name + ")"
	}
	if labels := names.Identity(number); len(labels) > 0 {
		return text + " (" + strings.Join(labels, ",") + ")"
	}
	return text
}
