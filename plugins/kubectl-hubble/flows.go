// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// flowsOptions are the flags of `kubectl hubble flows`.
type flowsOptions struct {
	*plugin
	filters       filterFlags
	output        string
	color         string
	input         string
	since, until  string
	allNamespaces bool
	follow        bool
	numeric       bool
	all           bool
	printNode     bool
	last, first   uint64

	shown                 int
	lastGiven, scopeGiven bool
	now                   time.Time
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
			"few thousand flows. A drop says why: the reason, and the policies that refused it. Without -f the last ones are\n" +
			"shown; with -f those to come. Of a file all are shown, of every namespace, unless -n or --last says less.\n\n" +
			"Values of one filter, separated by commas or given again, are alternatives; different filters must all match.\n" +
			"A filter without from- or to- is about either side.",
		Example: `  # The last twenty of the current namespace
  kubectl hubble flows

  # What is dropped in the cluster, as it happens, and by which policy
  kubectl hubble flows -A -f --verdict dropped

  # Who could not reach the pods of a Deployment on port 8080 in the last five minutes?
  kubectl hubble flows -n shop --to-pod checkout --to-port 8080 --type drop --since 5m

  # All but DNS
  kubectl hubble flows -n shop --not --port 53

  # For a machine; and the same questions to a file
  kubectl hubble flows -A --last 1000 -o json > flows.json
  kubectl hubble flows --input-file flows.json --drop-reason-desc POLICY_DENIED`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.lastGiven, o.scopeGiven = cmd.Flags().Changed("last"), cmd.Flags().Changed("namespace")
			return o.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "Show those of every namespace, and of hosts.")
	f.BoolVarP(&o.follow, "follow", "f", false, "Go on with what happens from now on, until interrupted.")
	f.Uint64Var(&o.last, "last", defaultLast, "That many of the past ones; all of them with --since, --until or --input-file, and none with -f, unless said.")
	f.Uint64Var(&o.first, "first", 0, "The first ones that the nodes remember, instead of the last.")
	f.BoolVar(&o.all, "all", false, "All that the nodes remember.")
	f.StringVar(&o.since, "since", "", "Only since then: how long ago, as in 5m, or a time such as 2006-01-02T15:04:05Z.")
	f.StringVar(&o.until, "until", "", "Only until then, said as for --since.")
	o.filters.register(f)
	f.StringVarP(&o.output, "output", "o", string(flow.Compact), "Output format. One of: ("+formatNames()+").")
	f.StringVar(&o.color, "color", "auto", "Mark drops: auto (for a terminal, unless NO_COLOR is set), always or never.")
	f.BoolVar(&o.numeric, "numeric", false, "Print addresses where names are known.")
	f.BoolVar(&o.printNode, "print-node-name", false, "Print the name of the node that saw a flow.")
	f.StringVar(&o.input, "input-file", "", "Read flows from a file that -o json has written, or from - for stdin, instead of from the cluster.")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(strings.Split(formatNames(), ", "), cobra.ShellCompDirectiveNoFileComp))
	for _, kind := range allFilterFlags() {
		if len(kind.values) > 0 {
			_ = cmd.RegisterFlagCompletionFunc(kind.name, cobra.FixedCompletions(kind.values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	return cmd
}

func formatNames() string {
	var all []string
	for _, f := range flow.HubbleFormats {
		all = append(all, string(f))
	}
	return strings.Join(all, ", ")
}

// request checks the flags and says what is wanted.
func (o *flowsOptions) request() (*observerpb.GetFlowsRequest, error) {
	if !slices.Contains(flow.HubbleFormats, flow.Format(o.output)) {
		return nil, fmt.Errorf("-o %q is not known: %s", o.output, formatNames())
	}
	req := &observerpb.GetFlowsRequest{Follow: o.follow}
	var err error
	if req.Since, err = o.time("since", o.since); err != nil {
		return nil, err
	}
	if req.Until, err = o.time("until", o.until); err != nil {
		return nil, err
	}
	if req.Since != nil && req.Until != nil && req.Until.AsTime().Before(req.Since.AsTime()) {
		return nil, fmt.Errorf("--until %s is before --since %s: there is nothing between", flow.Safe(o.until), flow.Safe(o.since))
	}
	switch {
	case o.follow && req.Until != nil:
		return nil, errors.New("--follow and --until exclude one another: what follows goes on until it is interrupted")
	case o.first > 0 && (o.follow || o.lastGiven || o.all):
		return nil, errors.New("--first goes with none of --follow, --last and --all")
	case o.all && o.lastGiven:
		return nil, errors.New("--all and --last exclude one another")
	case o.first > 0:
		req.Number, req.First = o.first, true
	case o.all && o.follow:
		req.Since = timestamppb.New(time.Unix(0, 0))
	case o.lastGiven:
		req.Number = o.last
	case !o.all && !o.follow && req.Since == nil && req.Until == nil && o.input == "":
		req.Number = o.last
	}
	if o.lastGiven && o.last == 0 && !o.follow {
		return nil, errors.New("--last 0 asks for nothing")
	}
	namespace := "default"
	if o.input == "" || o.scopeGiven {
		if namespace, _, err = o.flags.ToRawKubeConfigLoader().Namespace(); err != nil {
			return nil, err
		}
	}
	scope := !o.allNamespaces && (o.input == "" || o.scopeGiven)
	if o.allNamespaces || !scope {
		namespace = "" // a name is then of any namespace
	}
	req.Whitelist, req.Blacklist, err = o.filters.lists(namespace, scope)
	return req, err
}

// layouts are the forms of a time that --since and --until take, besides how long ago.
var layouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02", time.StampMilli, time.RFC1123Z}

func (o *flowsOptions) time(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return timestamppb.New(o.now.Add(-d)), nil
	}
	for _, layout := range layouts {
		if at, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			if layout == time.StampMilli {
				at = at.AddDate(o.now.Year(), 0, 0)
			}
			return timestamppb.New(at), nil
		}
	}
	return nil, fmt.Errorf("--%s %q is neither how long ago, as in 5m, nor a time such as 2006-01-02T15:04:05Z", flag, flow.Safe(text))
}

func (o *flowsOptions) run(ctx context.Context) error {
	if o.now.IsZero() {
		o.now = time.Now()
	}
	req, err := o.request()
	if err != nil {
		return err
	}
	color, err := o.wantsColor()
	if err != nil {
		return err
	}
	printer := &flow.HubblePrinter{Out: o.Out, Format: flow.Format(o.output), Node: o.printNode, Numeric: o.numeric, Color: color}
	print := func(r *observerpb.GetFlowsResponse) error {
		o.shown++
		if r.GetFlow().GetNodeName() == "" && r.GetFlow() != nil {
			r.GetFlow().NodeName = r.GetNodeName()
		}
		return printer.Print(r.GetFlow(), r)
	}
	if o.input != "" {
		err = o.readInput(req, print)
	} else {
		err = o.ask(ctx, req, print)
	}
	err = errors.Join(err, printer.Close())
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	if st, ok := status.FromError(err); ok && st.Code() == codes.InvalidArgument {
		return errors.New(st.Message())
	}
	return err
}

// foundNothing tells whether that is to be said: not to machines, and not of what is still to come.
func (o *flowsOptions) foundNothing(ctx context.Context) bool {
	f := flow.Format(o.output)
	return o.shown == 0 && !o.follow && ctx.Err() == nil && f != flow.JSON && f != flow.JSONPB
}

func (o *flowsOptions) readInput(req *observerpb.GetFlowsRequest, print func(*observerpb.GetFlowsResponse) error) error {
	if o.follow {
		return errors.New("--follow and --input-file exclude one another")
	}
	in, name := o.In, "stdin"
	if o.input != "-" {
		f, err := os.Open(o.input)
		if err != nil {
			return err
		}
		defer f.Close()
		in, name = f, o.input
	}
	read, err := readInput(in, req, print)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if o.foundNothing(context.Background()) {
		flows := "flows"
		if read == 1 {
			flows = "flow"
		}
		o.remark(fmt.Sprintf("nothing was found: %s holds %d %s", name, read, flows))
	}
	return nil
}

// ask gets flows from the agents.
func (o *flowsOptions) ask(ctx context.Context, req *observerpb.GetFlowsRequest, print func(*observerpb.GetFlowsResponse) error) error {
	a, err := o.agents(ctx)
	if err != nil {
		return err
	}
	defer a.close()
	targets := a.targets
	var wanted []string
	for _, g := range o.filters.given {
		if g.flag.name == "node-name" && !g.not {
			wanted = append(wanted, g.values...)
		}
	}
	if len(wanted) > 0 {
		targets = slices.DeleteFunc(slices.Clone(targets), func(t target) bool {
			return !slices.ContainsFunc(wanted, func(p string) bool { return flow.NodeMatch(p, t.node) })
		})
		if len(targets) == 0 {
			return fmt.Errorf("no node with an agent fits --node-name %s", flow.Safe(strings.Join(wanted, ",")))
		}
	}
	if err := (&source{targets: targets, remark: o.remark}).Flows(ctx, req, print); err != nil || !o.foundNothing(ctx) {
		return err
	}
	if namespace := o.within(); namespace != "" {
		if err := a.cluster.Get(ctx, client.ObjectKey{Name: namespace}, &corev1.Namespace{}); apierrors.IsNotFound(err) {
			o.remark(noNamespace(namespace))
			return nil
		}
	}
	o.remark(o.nothing(lookedAt(ctx, targets, a.askOne)))
	return nil
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
	return false, fmt.Errorf("--color %q is not known: auto, always or never", o.color)
}
