// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/plugins/sysdump"
)

// sysdumpOptions are the flags of `kubectl cilium sysdump`.
type sysdumpOptions struct {
	*plugin
	collect         sysdump.Options
	maxLog, maxSize string
}

func (p *plugin) sysdump() *cobra.Command {
	o := &sysdumpOptions{plugin: p}
	cmd := &cobra.Command{
		Use:   "sysdump",
		Short: "Gather into one archive what somebody needs who helps from afar",
		Long: "Gather into one archive what somebody needs who helps from afar: objects, reports, eBPF maps, flows, CNI configuration\n" +
			"and logs. The archive holds only fields that are known to be safe: Secrets are never read; environment values,\n" +
			"commands, most annotations, ConfigMaps of others and unknown log lines are left out, and what looks like a key or a\n" +
			"token. summary.txt in it says what could not be had, and why. Its name is printed when it is written.",
		Example: `  # Of the whole cluster
  kubectl cilium sysdump

  # Of one node, with the last hour of logs
  kubectl cilium sysdump --node worker-1 --logs-since 1h --output-file worker-1.zip`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.collect.File, "output-file", "", "File to write: .tar.gz, .tgz or .zip; cilium-sysdump-TIME.tar.gz unless said.")
	f.StringSliceVar(&o.collect.Nodes, "node", nil, "Look only into these nodes.")
	f.DurationVar(&o.collect.LogsSince, "logs-since", 0, "How far back logs go; all unless said.")
	f.IntVar(&o.collect.Flows, "flows", 4096, "Flows of each node, at most.")
	f.StringVar(&o.maxLog, "max-log", "16Mi", "Size of each log, at most.")
	f.StringVar(&o.maxSize, "max-size", "1Gi", "Size of everything before compression, at most.")
	f.DurationVar(&o.collect.NodeTimeout, "node-timeout", 2*time.Minute, "How long one node or log may take.")
	_ = cmd.RegisterFlagCompletionFunc("node", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return p.completeNames(c.Context(), &v1alpha1.CiliumNodeList{})
	})
	return cmd
}

func (o *sysdumpOptions) validate() error {
	for _, size := range []struct {
		flag, text string
		into       *int64
	}{{"max-log", o.maxLog, &o.collect.MaxLog}, {"max-size", o.maxSize, &o.collect.MaxSize}} {
		q, err := resource.ParseQuantity(size.text)
		if err != nil || q.Value() <= 0 {
			return fmt.Errorf("--%s %q is not a size, such as 16Mi", size.flag, size.text)
		}
		*size.into = q.Value()
	}
	if o.collect.Flows < 0 || o.collect.LogsSince < 0 {
		return errors.New("--flows and --logs-since are not negative")
	}
	if o.collect.File == "" {
		o.collect.File = "cilium-sysdump-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
	}
	for _, ending := range []string{".tar.gz", ".tgz", ".zip"} {
		if strings.HasSuffix(o.collect.File, ending) {
			return nil
		}
	}
	return fmt.Errorf("--output-file %q: its name must end in .tar.gz, .tgz or .zip", o.collect.File)
}

func (o *sysdumpOptions) run(ctx context.Context) error {
	if err := o.validate(); err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	o.collect.Progress = o.remark
	result, err := sysdump.Collect(ctx, c, o.collect)
	if err != nil {
		return err
	}
	if len(result.Missing) > 0 {
		o.remark("%d things could not be had: see summary.txt in the archive", len(result.Missing))
	}
	o.remark("%d files, %s before compression", result.Files, bytesText(result.Bytes))
	_, err = fmt.Fprintln(o.Out, result.File)
	return err
}
