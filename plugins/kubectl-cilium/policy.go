// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
	"github.com/kube-cilium/kube-cilium/plugins/explain"
	"github.com/kube-cilium/kube-cilium/plugins/progress"
)

// policyOptions are the flags of `kubectl cilium policy list`, `get` and `wait`.
type policyOptions struct {
	*plugin
	output        *output
	allNamespaces bool
	timeout       time.Duration
}

func (p *plugin) policy() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Aliases: []string{"policies"}, Short: "Policies: where they are in force, and what they decide"}
	list := &policyOptions{plugin: p}
	listCmd := &cobra.Command{
		Use:   "list",
		Short: "List policies with the nodes that enforce them and what they wait for",
		Example: `  # Of every namespace
  kubectl cilium policy list -A`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return list.list(cmd.Context()) },
	}
	list.output = newOutput(listCmd)
	get := &policyOptions{plugin: p}
	getCmd := &cobra.Command{
		Use:   "get POLICY",
		Short: "Show one policy: each node's progress, whom it selects, what it waits for",
		Example: `  # On which node is it not in force, and why?
  kubectl cilium policy get web -n shop`,
		Args:              cobra.ExactArgs(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return get.get(cmd.Context(), args[0]) },
		ValidArgsFunction: p.completePolicy,
	}
	get.output = newOutput(getCmd)
	wait := &policyOptions{plugin: p}
	waitCmd := &cobra.Command{
		Use:   "wait [POLICY...]",
		Short: "Wait until policies, as they are now, are in force on every node",
		Long: "Wait until policies, as they are now, are in force on every node: those named, or all of the namespace. Nodes that\n" +
			"nothing was heard from lately are named and not waited for. Exits with 1 when the time is over.",
		Example: `  # Apply, and go on when it is enforced
  kubectl cilium policy wait web -n shop --timeout 30s

  # Everything
  kubectl cilium policy wait -A`,
		RunE:              func(cmd *cobra.Command, args []string) error { return wait.wait(cmd.Context(), args) },
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: p.completePolicy,
	}
	waitCmd.Flags().DurationVar(&wait.timeout, "timeout", time.Minute, "How long to wait.")
	for _, o := range []struct {
		cmd *cobra.Command
		all *bool
	}{{listCmd, &list.allNamespaces}, {waitCmd, &wait.allNamespaces}} {
		o.cmd.Flags().BoolVarP(o.all, "all-namespaces", "A", false, "All namespaces.")
	}
	cmd.AddCommand(listCmd, getCmd, waitCmd, p.policyExplain())
	return cmd
}

func (p *plugin) completePolicy(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	ns, err := p.namespace(false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return p.completeNames(c.Context(), &networkingv1.NetworkPolicyList{}, client.InNamespace(ns))
}

// PolicySummary is one policy's line.
type PolicySummary struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Kind      string `json:"kind"`
	// ResourceVersion that the nodes are compared with.
	ResourceVersion string          `json:"resourceVersion"`
	Progress        progress.Policy `json:"progress"`
	// Selected pods, as namespace/name.
	Selected []string `json:"selected"`
	// Notes say what it waits for and what is not heard.
	Notes []string `json:"notes"`

	created client.Object
}

// readWorld reads what policies are about. What may not be read of the rest is left out and told.
func (p *plugin) readWorld(ctx context.Context, c *cluster.Cluster) (*explain.World, error) {
	var (
		policies   networkingv1.NetworkPolicyList
		pods       corev1.PodList
		namespaces corev1.NamespaceList
		services   corev1.ServiceList
		endpoints  discoveryv1.EndpointSliceList
		nodes      corev1.NodeList
		members    v1alpha1.CiliumNodeList
		reports    v1alpha1.CiliumNodeReportList
		configs    v1alpha1.CiliumConfigList
	)
	for _, list := range []client.ObjectList{&policies, &pods, &namespaces} {
		if err := c.List(ctx, list); err != nil {
			return nil, err
		}
	}
	for _, list := range []struct {
		what string
		into client.ObjectList
	}{{"services", &services}, {"endpointslices", &endpoints}, {"nodes", &nodes}, {"ciliumnodes", &members}, {"ciliumnodereports", &reports}, {"ciliumconfigs", &configs}} {
		if err := c.List(ctx, list.into); err != nil && !meta.IsNoMatchError(err) {
			if ctx.Err() != nil {
				return nil, errors.New("interrupted")
			}
			p.remark("%s are left out: %s", list.what, err.Error())
		}
	}
	name := v1alpha1.DefaultClusterName
	for i := range configs.Items {
		if configs.Items[i].Name == v1alpha1.ConfigName {
			name = cmp.Or(configs.Items[i].Spec.ClusterName, name)
		}
	}
	return explain.New(explain.Objects{
		Pods: pods.Items, Namespaces: namespaces.Items, Policies: policies.Items, Services: services.Items, Slices: endpoints.Items,
		Nodes: nodes.Items, Members: members.Items, Reports: reports.Items, ClusterName: name,
	})
}

// readView reads what agents say of policies.
func readView(ctx context.Context, c *cluster.Cluster) (*progress.View, error) {
	var reports v1alpha1.CiliumNodeReportList
	var leases coordinationv1.LeaseList
	if err := c.List(ctx, &reports); err != nil {
		return nil, err
	}
	if err := c.List(ctx, &leases, client.InNamespace(cluster.Namespace)); err != nil {
		return nil, err
	}
	return &progress.View{Now: time.Now(), Reports: reports.Items, Leases: leases.Items}, nil
}

func summarizePolicies(w *explain.World, v *progress.View, namespace string, names ...string) []PolicySummary {
	all := []PolicySummary{}
	for i := range w.Policies {
		np := &w.Policies[i]
		if namespace != "" && np.Namespace != namespace || len(names) > 0 && !slices.Contains(names, np.Name) {
			continue
		}
		s := PolicySummary{
			Namespace: np.Namespace, Name: np.Name, Kind: policy.KindNetworkPolicy, ResourceVersion: np.ResourceVersion,
			Progress: v.Of(policy.KindNetworkPolicy, np.Namespace, np.Name, np.ResourceVersion),
			Selected: append([]string{}, w.Selected(np)...), Notes: append([]string{}, w.Notes(np)...), created: np,
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b PolicySummary) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return all
}

func (o *policyOptions) read(ctx context.Context, namespace string, names ...string) ([]PolicySummary, error) {
	c, err := o.connect()
	if err != nil {
		return nil, err
	}
	w, err := o.readWorld(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := readView(ctx, c)
	if err != nil {
		return nil, err
	}
	return summarizePolicies(w, v, namespace, names...), nil
}

func (o *policyOptions) list(ctx context.Context) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	color, err := o.colors()
	if err != nil {
		return err
	}
	ns, err := o.namespace(o.allNamespaces)
	if err != nil {
		return err
	}
	all, err := o.read(ctx, ns)
	if err != nil {
		return err
	}
	if !o.output.table() {
		return o.output.answer(o.Out, "PolicyList", struct {
			Policies []PolicySummary `json:"policies"`
		}{all})
	}
	if len(all) == 0 {
		o.nothing("policies", ns)
		return nil
	}
	return printPolicies(o.Out, all, o.output.wide(), color, time.Now())
}

func printPolicies(out io.Writer, all []PolicySummary, wide bool, color colors, now time.Time) error {
	t := newTable(out, color)
	head := []string{"NAMESPACE", "NAME", "KIND", "ENFORCED", "PODS", "AGE", "NOTES"}
	t.row(head...)
	for i := range all {
		s := &all[i]
		t.row(s.Namespace, s.Name, s.Kind, color.good(s.Progress.Done(), s.Progress.Counts()), fmt.Sprint(len(s.Selected)), age(s.created, now), orNone(s.remarks(wide)))
	}
	return t.flush()
}

// remarks are exceptions first, then who is late and what the policy waits for; the first of them unless all are wanted.
func (s *PolicySummary) remarks(all bool) string {
	var texts []string
	for _, n := range s.Progress.In(progress.Exception) {
		texts = append(texts, fmt.Sprintf("%s on node/%s", n.Reason, n.Name))
	}
	if away := s.Progress.In(progress.Unreachable); len(away) > 0 {
		texts = append(texts, fmt.Sprintf("%d unreachable", len(away)))
	}
	switch late := s.Progress.In(progress.Behind); len(late) {
	case 0:
	case 1:
		texts = append(texts, fmt.Sprintf("node/%s has not reported it yet", late[0].Name))
	default:
		texts = append(texts, fmt.Sprintf("%d nodes have not reported it yet", len(late)))
	}
	texts = append(texts, s.Notes...)
	if !all && len(texts) > 1 {
		return fmt.Sprintf("%s (and %d more)", texts[0], len(texts)-1)
	}
	return strings.Join(texts, "; ")
}

func (o *policyOptions) get(ctx context.Context, name string) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	color, err := o.colors()
	if err != nil {
		return err
	}
	ns, err := o.namespace(false)
	if err != nil {
		return err
	}
	all, err := o.read(ctx, ns, name)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return noPolicy(ns, name)
	}
	if !o.output.table() {
		return o.output.answer(o.Out, "PolicyStatus", all[0])
	}
	return printPolicy(o.Out, &all[0], color)
}

func noPolicy(namespace, name string) error {
	return within(namespace, apierrors.NewNotFound(networkingv1.Resource("networkpolicies"), name))
}

// shownPods of a policy in `get`; -o json has all.
const shownPods = 10

func printPolicy(out io.Writer, s *PolicySummary, color colors) error {
	t := newTable(out, color)
	t.row("Policy:", fmt.Sprintf("%s %s/%s", s.Kind, s.Namespace, s.Name))
	t.row("Enforced:", color.good(s.Progress.Done(), s.Progress.Counts()+" nodes"))
	pods := fmt.Sprint(len(s.Selected))
	if len(s.Selected) > 0 {
		pods += ": " + strings.Join(s.Selected[:min(len(s.Selected), shownPods)], ", ")
	}
	if len(s.Selected) > shownPods {
		pods += ", ..."
	}
	t.row("Pods:", pods)
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	t = newTable(out, color)
	t.row("NODE", "STATE", "MESSAGE")
	for _, n := range s.Progress.Nodes {
		t.row(n.Name, color.good(n.State == progress.InForce, string(n.State)), orNone(strings.TrimPrefix(n.Reason+": "+n.Message, ": ")))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if len(s.Notes) > 0 {
		fmt.Fprintln(out, "\nNotes:")
	}
	for _, n := range s.Notes {
		fmt.Fprintf(out, "  %s\n", flow.Safe(n))
	}
	return nil
}

// waitPoll is how often nodes' reports are looked at.
const waitPoll = 200 * time.Millisecond

func (o *policyOptions) wait(ctx context.Context, names []string) error {
	if o.allNamespaces && len(names) > 0 {
		return errors.New("-A takes no names: policies of different namespaces may share one")
	}
	ns, err := o.namespace(o.allNamespaces)
	if err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	var policies networkingv1.NetworkPolicyList
	if err := c.List(ctx, &policies, client.InNamespace(ns)); err != nil {
		return err
	}
	for _, name := range names {
		if !slices.ContainsFunc(policies.Items, func(p networkingv1.NetworkPolicy) bool { return p.Name == name }) {
			return noPolicy(ns, name)
		}
	}
	policies.Items = slices.DeleteFunc(policies.Items, func(p networkingv1.NetworkPolicy) bool { return len(names) > 0 && !slices.Contains(names, p.Name) })
	if len(policies.Items) == 0 {
		o.nothing("policies", ns)
		return nil
	}
	return o.waitFor(ctx, c, policies.Items)
}

// waitFor waits for the policies as they were read: a later change is another wait.
func (o *policyOptions) waitFor(ctx context.Context, c *cluster.Cluster, policies []networkingv1.NetworkPolicy) error {
	deadline := time.Now().Add(o.timeout)
	told := map[string]bool{}
	for {
		view, err := readView(ctx, c)
		if err != nil {
			return err
		}
		var waiting []string
		for i := range policies {
			p := &policies[i]
			s := view.Of(policy.KindNetworkPolicy, p.Namespace, p.Name, p.ResourceVersion)
			name := fmt.Sprintf("networkpolicy/%s in namespace %s", p.Name, p.Namespace)
			switch {
			case len(view.Reports) == 0:
				waiting = append(waiting, name+": no node has reported yet")
			case !s.Done():
				n := s.In(progress.Behind, progress.Exception)[0]
				waiting = append(waiting, fmt.Sprintf("%s: %s nodes; node/%s: %s", name, s.Counts(), n.Name, strings.TrimPrefix(n.Reason+": "+n.Message, ": ")))
			case !told[name]:
				told[name] = true
				fmt.Fprintf(o.Out, "%s: in force on %s nodes\n", name, s.Counts())
				for _, n := range s.In(progress.Unreachable) {
					o.remark("node/%s is not waited for: %s", n.Name, n.Message)
				}
			}
		}
		if len(waiting) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			for _, w := range waiting[1:] {
				o.remark("waiting for %s", w)
			}
			return fmt.Errorf("not in force after %s: %s", o.timeout, waiting[0])
		}
		select {
		case <-ctx.Done():
			return errors.New("interrupted")
		case <-time.After(waitPoll):
		}
	}
}
