// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// identityOptions are the flags of `kubectl cilium identity list` and `get`.
type identityOptions struct {
	*plugin
	output *output
}

func (p *plugin) identity() *cobra.Command {
	cmd := &cobra.Command{Use: "identity", Aliases: []string{"identities", "id"}, Short: "Numbers that label sets have, and who uses them"}
	list := &identityOptions{plugin: p}
	listCmd := &cobra.Command{
		Use:   "list",
		Short: "List identities with their labels and how many pods use them",
		Example: `  # All of them
  kubectl cilium identity list`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return list.list(cmd.Context()) },
	}
	list.output = newOutput(listCmd)
	get := &identityOptions{plugin: p}
	getCmd := &cobra.Command{
		Use:   "get NUMBER",
		Short: "Show the labels of one identity and the pods that have it",
		Example: `  # Who is 12969448?
  kubectl cilium identity get 12969448`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return get.get(cmd.Context(), args[0]) },
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return p.completeNames(c.Context(), &v1alpha1.CiliumIdentityList{})
		},
	}
	get.output = newOutput(getCmd)
	cmd.AddCommand(listCmd, getCmd)
	return cmd
}

// users are the pods of each identity, from the slices that every agent follows.
func users(all []v1alpha1.CiliumEndpointSlice) map[int64][]string {
	pods := map[int64][]string{}
	for i := range all {
		for _, e := range all[i].Spec.Endpoints {
			pods[e.Identity] = append(pods[e.Identity], e.Namespace+"/"+e.Name)
		}
	}
	for _, names := range pods {
		slices.Sort(names)
	}
	return pods
}

func (o *identityOptions) list(ctx context.Context) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	var all v1alpha1.CiliumIdentityList
	if err := c.List(ctx, &all); err != nil {
		return err
	}
	slices.SortFunc(all.Items, func(a, b v1alpha1.CiliumIdentity) int {
		return cmp.Or(cmp.Compare(identityNumber(&a), identityNumber(&b)), cmp.Compare(a.Name, b.Name))
	})
	if !o.output.table() {
		return o.output.object(o.Out, c.Scheme(), &all)
	}
	if len(all.Items) == 0 {
		o.nothing("identities", "")
		return nil
	}
	var endpoints v1alpha1.CiliumEndpointSliceList
	if err := c.List(ctx, &endpoints); err != nil {
		return err
	}
	return printIdentities(o.Out, all.Items, users(endpoints.Items), time.Now())
}

func identityNumber(i *v1alpha1.CiliumIdentity) int64 {
	n, err := strconv.ParseInt(i.Name, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func printIdentities(out io.Writer, all []v1alpha1.CiliumIdentity, pods map[int64][]string, now time.Time) error {
	t := newTable(out, colors{})
	t.row("IDENTITY", "PODS", "AGE", "LABELS")
	for i := range all {
		t.row(all[i].Name, strconv.Itoa(len(pods[identityNumber(&all[i])])), age(&all[i], now),
			list(cluster.LabelList(all[i].Spec.Labels)))
	}
	return t.flush()
}

func (o *identityOptions) get(ctx context.Context, name string) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	if n, err := strconv.ParseUint(name, 10, 32); err != nil {
		return fmt.Errorf("identity %q is not a number (see kubectl cilium identity list)", name)
	} else if reserved := identityText(&cluster.Names{}, uint32(n)); strings.Contains(reserved, "(") {
		fmt.Fprintf(o.Out, "%s is reserved: it stands for no labels and is no object of the cluster.\n", reserved)
		return nil
	}
	var identity v1alpha1.CiliumIdentity
	if err := c.Get(ctx, client.ObjectKey{Name: name}, &identity); err != nil {
		return err
	}
	if !o.output.table() {
		return o.output.object(o.Out, c.Scheme(), &identity)
	}
	var endpoints v1alpha1.CiliumEndpointSliceList
	if err := c.List(ctx, &endpoints); err != nil {
		return err
	}
	return printIdentity(o.Out, &identity, users(endpoints.Items)[identityNumber(&identity)])
}

func printIdentity(out io.Writer, identity *v1alpha1.CiliumIdentity, pods []string) error {
	t := newTable(out, colors{})
	t.row("Identity:", identity.Name)
	block(t, "Labels:", cluster.LabelList(identity.Spec.Labels))
	if adopted := identity.Annotations[v1alpha1.AnnotationAdopted]; adopted != "" {
		t.row("Last adopted:", adopted)
	}
	block(t, "Pods:", pods)
	return t.flush()
}

// block writes a title and a line for each value below one another.
func block(t *table, title string, values []string) {
	if len(values) == 0 {
		t.row(title, "-")
	}
	for i, v := range values {
		if i > 0 {
			title = ""
		}
		t.row(title, v)
	}
}
