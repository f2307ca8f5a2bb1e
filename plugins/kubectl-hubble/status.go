// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"github.com/spf13/cobra"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// askTimeout bounds how long one node may take to say how it is.
const askTimeout = 12 * time.Second

// nodeState is what one node said; Problem is why it said nothing.
type nodeState struct {
	Name     string  `json:"name"`
	State    string  `json:"state"`
	Problem  string  `json:"problem,omitempty"`
	Version  string  `json:"version,omitempty"`
	Uptime   string  `json:"uptime,omitempty"`
	Flows    uint64  `json:"flows"`
	MaxFlows uint64  `json:"maxFlows"`
	Seen     uint64  `json:"seenFlows"`
	Rate     float64 `json:"flowsPerSecond"`
	age      time.Duration
}

const (
	connected   = "Connected"
	unavailable = "Unavailable"
)

// askAll asks every node how it is.
func (a *agents) askAll(ctx context.Context) []nodeState {
	out := make([]nodeState, len(a.targets))
	var wg sync.WaitGroup
	for i, t := range a.targets {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			out[i] = a.askOne(ctx, t.node)
		})
	}
	wg.Wait()
	for _, node := range a.away {
		out = append(out, nodeState{Name: node, State: unavailable, Problem: "its agent does not run"})
	}
	return out
}

func (a *agents) askOne(ctx context.Context, node string) nodeState {
	s := nodeState{Name: node, State: unavailable}
	n, err := a.node(ctx, node)
	if err != nil {
		s.Problem = flow.Safe(err.Error())
		return s
	}
	health, err := n.Health.Check(ctx, &healthpb.HealthCheckRequest{Service: observerpb.Observer_ServiceDesc.ServiceName})
	if err != nil {
		s.Problem = flow.Safe(strings.TrimPrefix(nodeError(node, err).Error(), "node/"+node+": "))
		return s
	}
	if health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		s.Problem = "it says " + health.GetStatus().String()
		return s
	}
	st, err := n.ServerStatus(ctx, &observerpb.ServerStatusRequest{})
	if err != nil {
		s.Problem = flow.Safe(strings.TrimPrefix(nodeError(node, err).Error(), "node/"+node+": "))
		return s
	}
	s.State, s.Version, s.age = connected, flow.Safe(st.GetVersion()), time.Duration(st.GetUptimeNs())
	s.Uptime = duration.HumanDuration(s.age)
	s.Flows, s.MaxFlows, s.Seen, s.Rate = st.GetNumFlows(), st.GetMaxFlows(), st.GetSeenFlows(), st.GetFlowsRate()
	return s
}

// statusOptions are the flags of `kubectl hubble status` and of `kubectl hubble list nodes`.
type statusOptions struct {
	*plugin
	output string
}

func (p *plugin) status() *cobra.Command {
	o := &statusOptions{plugin: p}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether flows can be read, and how many there are",
		Long:  "Show whether flows of every node can be read, how many there are and how fast they come.",
		Example: `  # Of all nodes together
  kubectl hubble status

  # For a machine
  kubectl hubble status -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.runStatus(cmd.Context()) },
	}
	cmd.Flags().StringVarP(&o.output, "output", "o", "compact", "Output format. One of: (compact, json).")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"compact", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// summary is the status of all nodes together.
type summary struct {
	Healthy     bool        `json:"healthy"`
	Flows       uint64      `json:"flows"`
	MaxFlows    uint64      `json:"maxFlows"`
	Seen        uint64      `json:"seenFlows"`
	Rate        float64     `json:"flowsPerSecond"`
	Connected   int         `json:"connectedNodes"`
	Nodes       int         `json:"nodes"`
	Unavailable []nodeState `json:"unavailable,omitempty"`
}

func summarize(all []nodeState) summary {
	s := summary{Nodes: len(all)}
	for _, n := range all {
		if n.State != connected {
			s.Unavailable = append(s.Unavailable, n)
			continue
		}
		s.Connected++
		s.Flows, s.MaxFlows, s.Seen, s.Rate = s.Flows+n.Flows, s.MaxFlows+n.MaxFlows, s.Seen+n.Seen, s.Rate+n.Rate
	}
	s.Healthy = s.Connected == s.Nodes && s.Nodes > 0
	return s
}

func (s summary) print(w io.Writer) error {
	health := "Ok"
	if !s.Healthy {
		health = "Degraded"
	}
	if s.Connected == 0 {
		health = "Unavailable"
	}
	full := 0.0
	if s.MaxFlows > 0 {
		full = 100 * float64(s.Flows) / float64(s.MaxFlows)
	}
	_, err := fmt.Fprintf(w, "Healthcheck: %s\nCurrent/Max Flows: %d/%d (%.2f%%)\nFlows/s: %.2f\nConnected Nodes: %d/%d\n",
		health, s.Flows, s.MaxFlows, full, s.Rate, s.Connected, s.Nodes)
	if len(s.Unavailable) > 0 && err == nil {
		_, err = fmt.Fprintf(w, "Unavailable Nodes: %d\n", len(s.Unavailable))
	}
	for _, n := range s.Unavailable {
		if err == nil {
			_, err = fmt.Fprintf(w, "  - %s: %s\n", n.Name, n.Problem)
		}
	}
	return err
}

func (o *statusOptions) runStatus(ctx context.Context) error {
	if o.output != "compact" && o.output != "json" {
		return fmt.Errorf("-o %q is not known: compact or json", o.output)
	}
	a, err := o.agents(ctx)
	if err != nil {
		return err
	}
	defer a.close()
	s := summarize(a.askAll(ctx))
	if o.output == "json" {
		err = printJSON(o.Out, s)
	} else {
		err = s.print(o.Out)
	}
	if err == nil && s.Connected == 0 {
		err = errNobody
	}
	return err
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func (p *plugin) list() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the nodes whose flows can be read",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o := &statusOptions{plugin: p}
	nodes := &cobra.Command{
		Use:     "nodes",
		Aliases: []string{"node"},
		Short:   "List the nodes, how many flows they hold and how fast they come",
		Example: `  # Which nodes can be asked?
  kubectl hubble list nodes -o wide`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.runNodes(cmd.Context()) },
	}
	nodes.Flags().StringVarP(&o.output, "output", "o", "table", "Output format. One of: (table, wide, json).")
	_ = nodes.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "wide", "json"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.AddCommand(nodes)
	return cmd
}

func (o *statusOptions) runNodes(ctx context.Context) error {
	if o.output != "table" && o.output != "wide" && o.output != "json" {
		return fmt.Errorf("-o %q is not known: table, wide or json", o.output)
	}
	a, err := o.agents(ctx)
	if err != nil {
		return err
	}
	defer a.close()
	all := a.askAll(ctx)
	if o.output == "json" {
		return printJSON(o.Out, all)
	}
	return printNodes(o.Out, all, o.output == "wide")
}

func printNodes(out io.Writer, all []nodeState, wide bool) error {
	w := tabwriter.NewWriter(out, 2, 0, 3, ' ', 0)
	head := "NAME\tSTATUS\tAGE\tFLOWS/S\tCURRENT/MAX-FLOWS"
	if wide {
		head += "\tVERSION\tPROBLEM"
	}
	_, _ = fmt.Fprintln(w, head)
	for _, n := range all {
		line := n.Name + "\t" + n.State + "\tN/A\tN/A\tN/A"
		if n.State == connected {
			line = fmt.Sprintf("%s\t%s\t%s\t%.2f\t%d/%d", n.Name, n.State, n.Uptime, n.Rate, n.Flows, n.MaxFlows)
		}
		if wide {
			line += "\t" + orNone(n.Version) + "\t" + orNone(n.Problem)
		}
		_, _ = fmt.Fprintln(w, line)
	}
	return w.Flush()
}

func orNone(s string) string {
	if s == "" {
		return "N/A"
	}
	return s
}
