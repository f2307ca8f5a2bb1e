// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/plugins/connectivity"
)

// connectivityOptions are the flags of `kubectl cilium connectivity test`.
type connectivityOptions struct {
	*plugin
	output   *output
	run      connectivity.Options
	external []string
	hostPort uint16
	junit    string
}

func (p *plugin) connectivity() *cobra.Command {
	cmd := &cobra.Command{Use: "connectivity", Short: "Test the cluster's network from pods of its own"}
	o := &connectivityOptions{plugin: p}
	test := &cobra.Command{
		Use:   "test",
		Short: "Deploy a few pods, ask who reaches whom, without and with policies, and take them away",
		Long: "Deploy a few pods on two nodes, ask who reaches whom, and take them away again, also when interrupted. Without any\n" +
			"policy: pods of the same and of the other node, both hosts, a ClusterIP, a name, from pods and from a host, by TCP,\n" +
			"UDP and ICMP, large and in fragments, over both families. Then a policy of each kind, which has to let through and\n" +
			"to refuse. Pods and policies are in two namespaces of the test's own; nothing else of the cluster is touched.\n" +
			"Exits with 1 when a check fails, and says why: for what was lost, the drop that a node told of.\n\n" +
			"Names of tests (" + connectivity.WorldTest + " needs --external):\n  " + strings.Join(connectivity.TestNames(), "\n  "),
		Example: `  # On two nodes that take pods
  kubectl cilium connectivity test

  # On these, and to the world too
  kubectl cilium connectivity test --nodes worker-1,worker-2 --external example.com:443

  # For a machine that runs tests
  kubectl cilium connectivity test --junit connectivity.xml -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.test(cmd.Context()) },
	}
	o.output = newOutput(test)
	f := test.Flags()
	f.StringVar(&o.run.Namespace, "test-namespace", "cilium-test", "Namespace to make; NAME-other is made too. Neither may exist.")
	f.StringVar(&o.run.Image, "image", "", "Image of the pods: it must hold cilium-agent. That of the agents unless said: every node has it.")
	f.StringSliceVar(&o.run.Nodes, "nodes", nil, "Two nodes; the first two that take pods unless said.")
	f.BoolVar(&o.run.SingleNode, "single-node", false, "Leave out what takes a second node.")
	f.Uint16Var(&o.hostPort, "host-port", 14241, "Port on the hosts for the two pods that speak for them.")
	f.StringSliceVar(&o.external, "external", nil, "Also ask the world: HOST[:PORT] or icmp://HOST. Nothing outside of the cluster is asked without.")
	f.StringSliceVar(&o.run.Only, "test", nil, "Only these tests, of those named above.")
	f.DurationVar(&o.run.Timeout, "timeout", 3*time.Second, "How long one answer may take.")
	f.DurationVar(&o.run.Settle, "settle", 15*time.Second, "How long a policy may take to act.")
	f.DurationVar(&o.run.Ready, "ready-timeout", 2*time.Minute, "How long the pods may take to be ready.")
	f.BoolVar(&o.run.Keep, "keep", false, "Leave the pods for a look.")
	f.StringVar(&o.junit, "junit", "", "Also write the results to this file as JUnit.")
	_ = test.RegisterFlagCompletionFunc("test", cobra.FixedCompletions(connectivity.TestNames(), cobra.ShellCompDirectiveNoFileComp))
	_ = test.RegisterFlagCompletionFunc("nodes", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return p.completeNames(c.Context(), &corev1.NodeList{})
	})
	cmd.AddCommand(test)
	return cmd
}

func (o *connectivityOptions) validate() error {
	if err := o.output.validate(); err != nil {
		return err
	}
	if len(validation.IsDNS1123Label(connectivity.OtherNamespace(o.run.Namespace))) > 0 {
		return fmt.Errorf("--test-namespace %q is not a name that a namespace can have", o.run.Namespace)
	}
	if o.hostPort == 0 {
		return errors.New("--host-port 0 is not a port")
	}
	o.run.HostPort = o.hostPort
	if n := len(o.run.Nodes); n > 2 || n == 2 && o.run.Nodes[0] == o.run.Nodes[1] {
		return errors.New("--nodes takes two different nodes")
	}
	for _, name := range o.run.Only {
		if names := connectivity.TestNames(); !slices.Contains(names, name) {
			return fmt.Errorf("--test %q is not known: %s", name, strings.Join(names, ", "))
		}
	}
	if len(o.run.Only) > 0 && len(o.external) > 0 && !slices.Contains(o.run.Only, connectivity.WorldTest) {
		return fmt.Errorf("--external is asked in the test %s, which --test leaves out: add --test %s", connectivity.WorldTest, connectivity.WorldTest)
	}
	if slices.Contains(o.run.Only, connectivity.WorldTest) && len(o.external) == 0 {
		return fmt.Errorf("--test %s needs --external: whom to ask", connectivity.WorldTest)
	}
	for _, text := range o.external {
		t, err := connectivity.ParseExternal(text)
		if err != nil {
			return fmt.Errorf("--external: %w", err)
		}
		o.run.External = append(o.run.External, t)
	}
	return nil
}

func (o *connectivityOptions) test(ctx context.Context) error {
	if err := o.validate(); err != nil {
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
	o.run.Progress = o.remark
	report, err := connectivity.Run(ctx, c, o.run)
	if report == nil {
		return err
	}
	if o.output.table() {
		err = errors.Join(err, printConnectivity(o.Out, report, color))
	} else {
		err = errors.Join(err, o.output.answer(o.Out, "ConnectivityReport", report))
	}
	if o.junit != "" {
		err = errors.Join(err, writeFile(o.junit, report.WriteJUnit))
	}
	if err == nil && !report.OK {
		return errNotWell
	}
	return err
}

func writeFile(path string, write func(io.Writer) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(file), file.Close())
}

func printConnectivity(out io.Writer, r *connectivity.Report, color colors) error {
	for i := range r.Tests {
		if err := printMatrix(out, &r.Tests[i], color); err != nil {
			return err
		}
	}
	t := newTable(out, color)
	t.row("TEST", "CHECKS", "RESULT", "TIME", "ABOUT")
	for i := range r.Tests {
		test := &r.Tests[i]
		result := color.good(true, "ok")
		if !test.OK() {
			result = color.red(fmt.Sprintf("%d FAILED", max(len(test.Failed()), 1)))
		}
		t.row(test.Name, strconv.Itoa(len(test.Checks)), result, fmt.Sprintf("%.1fs", test.Seconds), test.About)
	}
	if err := t.flush(); err != nil {
		return err
	}
	if !r.OK {
		fmt.Fprintf(out, "\n%s\n", color.red("Failures:"))
	}
	for i := range r.Tests {
		test := &r.Tests[i]
		if test.Error != "" {
			fmt.Fprintf(out, "  %s: %s\n", test.Name, flow.Safe(test.Error))
		}
		for _, f := range test.Failed() {
			fmt.Fprintf(out, "  %s: %s (%s): %s\n", test.Name, flow.Safe(f.Name()), flow.Safe(f.Target), flow.Safe(f.Reason))
			for _, d := range f.Drops[min(1, len(f.Drops)):] {
				fmt.Fprintf(out, "    %s\n", flow.Safe(d))
			}
		}
	}
	_, err := fmt.Fprintf(out, "\n%d of %d checks passed in %.0fs.\n", r.Passed, r.Passed+r.Failed, r.Seconds)
	return err
}

// printMatrix prints a test whose checks have rows as rows and columns.
func printMatrix(out io.Writer, test *connectivity.Test, color colors) error {
	var rows, columns []string
	cells := map[[2]string]string{}
	for _, c := range test.Checks {
		if c.Row == "" {
			continue
		}
		if !slices.Contains(rows, c.Row) {
			rows = append(rows, c.Row)
		}
		if !slices.Contains(columns, c.How) {
			columns = append(columns, c.How)
		}
		text := color.good(true, "ok")
		if !c.OK {
			text = color.red("FAILED")
		}
		cells[[2]string{c.Row, c.How}] = text
	}
	if len(rows) == 0 {
		return nil
	}
	t := newTable(out, color)
	t.row(append([]string{""}, columns...)...)
	for _, r := range rows {
		row := []string{r}
		for _, c := range columns {
			row = append(row, orNone(cells[[2]string{r, c}]))
		}
		t.row(row...)
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out)
	return err
}
