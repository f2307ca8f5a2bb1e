// SPDX-License-Identifier: Apache-2.0

// Command kubectl-hubble is `kubectl hubble`: it shows what happens to packets in the cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/klog/v2"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/version"
	"github.com/kube-cilium/kube-cilium/plugins/commandline"
)

// plugin is what every verb has.
type plugin struct {
	genericiooptions.IOStreams
	flags *genericclioptions.ConfigFlags
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	klog.SetLogger(logr.Discard()) // the client library's own words about streams that end; errors reach us as values
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	os.Exit(run(ctx, streams, commandline.Args(os.Args)))
}

// run is main without the process. The exit code is 0 or, as kubectl's, 1.
func run(ctx context.Context, streams genericiooptions.IOStreams, args []string) int {
	cmd := newRoot(streams)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil || errors.Is(err, syscall.EPIPE) {
		return 0
	}
	fmt.Fprintf(streams.ErrOut, "error: %s\n", flow.Safe(err.Error()))
	return 1
}

func newRoot(streams genericiooptions.IOStreams) *cobra.Command {
	p := &plugin{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true).WithWarningPrinter(streams)}
	cmd := &cobra.Command{
		Use:         "kubectl-hubble",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl hubble"},
		Short:       "See what happens to packets in the cluster",
		Long: "See what happens to packets in the cluster. Agents are asked through the API server's port-forward, with a token that\n" +
			"whoever has the role hubble-reader may have made.\n\n" +
			"Exit codes: 0 done, 1 something could not be done or makes no sense.",
		Version:      version.Version,
		SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	cmd.SetOut(streams.Out)
	cmd.SetErr(streams.ErrOut)
	cmd.SetIn(streams.In)
	p.flags.AddFlags(cmd.PersistentFlags())
	cmd.AddCommand(p.flows(), p.status(), p.list(), p.version(), commandline.Completion("kubectl-hubble", streams.Out, streams.ErrOut))
	commandline.Refuse(cmd)
	return cmd
}

func (p *plugin) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this plugin; that of the agents has kubectl cilium version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(p.Out, "Client:   %s\n", version.Version)
			return err
		},
	}
}
