// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/version"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
	"github.com/kube-cilium/kube-cilium/plugins/commandline"
)

// plugin is what every verb has: the streams, kubectl's flags and, once asked for, the cluster.
type plugin struct {
	genericiooptions.IOStreams
	flags *genericclioptions.ConfigFlags
	color string
}

func newRoot(streams genericiooptions.IOStreams) *cobra.Command {
	p := &plugin{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true).WithWarningPrinter(streams)}
	cmd := &cobra.Command{
		Use:         "kubectl-cilium",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl cilium"},
		Short:       "See and manage the cluster's network",
		Long: "See and manage the cluster's network.\n\n" +
			"Exit codes: 0 all is well, 1 something is wrong, could not be done or makes no sense.",
		Version:      version.Version,
		SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	cmd.SetOut(streams.Out)
	cmd.SetErr(streams.ErrOut)
	cmd.SetIn(streams.In)
	p.flags.AddFlags(cmd.PersistentFlags())
	cmd.PersistentFlags().StringVar(&p.color, "color", "auto", "Colours in tables: auto (for a terminal, unless NO_COLOR is set), always or never.")
	cmd.AddCommand(
		p.status(), p.endpoint(), p.identity(), p.node(), p.service(), p.mapCommand(),
		p.monitor(), p.policy(), p.connectivity(), p.sysdump(), p.uninstall(), p.version(),
		commandline.Completion("kubectl-cilium", streams.Out, streams.ErrOut),
	)
	commandline.Refuse(cmd)
	_ = cmd.RegisterFlagCompletionFunc("namespace", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return p.completeNames(c.Context(), &corev1.NamespaceList{})
	})
	return cmd
}

func (p *plugin) connect() (*cluster.Cluster, error) { return cluster.Connect(p.flags) }

// remark says something that is not the answer.
func (p *plugin) remark(format string, args ...any) {
	fmt.Fprintln(p.ErrOut, flow.Safe(fmt.Sprintf(format, args...)))
}

// namespace is where a namespaced verb looks: "" is everywhere.
func (p *plugin) namespace(all bool) (string, error) {
	if all {
		return "", nil
	}
	ns, _, err := p.flags.ToRawKubeConfigLoader().Namespace()
	return ns, err
}

// colors for what goes to stdout.
func (p *plugin) colors() (colors, error) {
	return newColors(p.color, p.Out)
}

// completeNames offers the names of a cluster-scoped kind; nothing where the API server does not answer.
func (p *plugin) completeNames(ctx context.Context, into client.ObjectList, opts ...client.ListOption) ([]string, cobra.ShellCompDirective) {
	p.flags.WrapConfigFn = func(c *rest.Config) *rest.Config {
		c.Timeout = completionTimeout
		return c
	}
	c, err := p.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if err := c.List(ctx, into, opts...); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return objectNames(into), cobra.ShellCompDirectiveNoFileComp
}

// completeNode offers nodes for the first argument and maps for the second, where a verb takes one.
func (p *plugin) completeNode(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch {
	case len(args) == 0:
		return p.completeNames(c.Context(), &v1alpha1.CiliumNodeList{})
	case len(args) == 1 && c.Name() == "dump":
		return mapNames(), cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// mapNames are the maps that can be dumped.
func mapNames() []string {
	names := []string{
		bpf.MapsMapAdvances, bpf.MapsMapBackends, bpf.MapsMapConntrack, bpf.MapsMapDevices, bpf.MapsMapEndpoints, bpf.MapsMapFragments, bpf.MapsMapHooks,
		bpf.MapsMapLiveSettings, bpf.MapsMapMetrics, bpf.MapsMapNodes, bpf.MapsMapPeers, bpf.MapsMapPodInterfaces, bpf.MapsMapPrefixes,
		bpf.MapsMapServiceNames, bpf.MapsMapServices, bpf.MapsMapUnanswered,
		bpf.MapsMapClasses, bpf.MapsMapPolicies, bpf.MapsMapVerdictRanges, bpf.MapsMapVerdicts, bpf.MapsMapYoung,
	}
	slices.Sort(names)
	return names
}
