// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/plugins/explain"
)

// explainOptions are the flags of `kubectl cilium policy explain`.
type explainOptions struct {
	*plugin
	output         *output
	from, to, port string
}

func (p *plugin) policyExplain() *cobra.Command {
	o := &explainOptions{plugin: p}
	cmd := &cobra.Command{
		Use:   "explain --from POD|IP --to POD|SERVICE|IP --port N/PROTO",
		Short: "Say whether one may reach the other, which rule decides on each side, and what comes nearest to another answer",
		Long: "Say whether one may reach the other, which rule decides on each side, and where it is denied which rule came nearest\n" +
			"to allowing it. The answer is made from the cluster's objects alone: no packet is sent and no node is asked, so it is\n" +
			"what holds when every node is up to date (kubectl cilium policy list); a policy that the node of a pod reports not to\n" +
			"have in force as it is written is named in a note. A pod is NAME or NAMESPACE/NAME, a service svc/NAME or\n" +
			"svc/NAMESPACE/NAME; of a service each ready backend is judged. For a workload, such as deploy/NAME, one of its pods\n" +
			"stands.",
		Example: `  # May this pod reach that one?
  kubectl cilium policy explain --from client --to web-0 --port 8080/TCP -n shop

  # Any pod of a Deployment
  kubectl cilium policy explain --from deploy/front --to sts/web --port 8080 -n shop

  # A service, from another namespace
  kubectl cilium policy explain --from batch/import --to svc/shop/web --port 80

  # Somebody from outside, for a script
  kubectl cilium policy explain --from 192.0.2.7 --to shop/web-0 --port 8080 -o jsonpath='{.answers[0].verdict}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.output = newOutput(cmd)
	cmd.Flags().StringVar(&o.from, "from", "", "Who speaks first: a pod, a workload or an address.")
	cmd.Flags().StringVar(&o.to, "to", "", "Whom: a pod, a workload, a service or an address.")
	cmd.Flags().StringVar(&o.port, "port", "", "Port of the destination: N/TCP, N/UDP, N/SCTP (TCP unless said), a port's name, or icmp.")
	return cmd
}

func (o *explainOptions) run(ctx context.Context) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	if o.from == "" || o.to == "" || o.port == "" {
		return errors.New("--from, --to and --port are all needed")
	}
	port, err := explain.ParsePort(o.port)
	if err != nil {
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
	c, err := o.connect()
	if err != nil {
		return err
	}
	w, err := o.readWorld(ctx, c)
	if err != nil {
		return err
	}
	answers, err := w.Ask(explain.Question{From: o.from, To: o.to, Port: port, Namespace: ns})
	if err != nil {
		return err
	}
	if !o.output.table() {
		return o.output.answer(o.Out, "PolicyExplanation", struct {
			Answers []explain.Answer `json:"answers"`
		}{answers})
	}
	printAnswers(o.Out, answers, color)
	return nil
}

func printAnswers(out io.Writer, answers []explain.Answer, color colors) {
	for i := range answers {
		a := &answers[i]
		if i > 0 {
			fmt.Fprintln(out)
		}
		families := ""
		if len(a.Families) == 1 {
			families = fmt.Sprintf(" IPv%d", a.Families[0])
		}
		via := ""
		if a.Via != "" {
			via = " (by " + a.Via + ")"
		}
		fmt.Fprintf(out, "%s -> %s%s, %s%s: %s\n", flow.Safe(a.From), flow.Safe(a.To), flow.Safe(via), a.Port, families,
			color.good(a.Allowed(), strings.ToUpper(a.Verdict)))
		printSide(out, "Egress of "+a.From, &a.Egress, color)
		printSide(out, "Ingress of "+a.To, &a.Ingress, color)
		if a.Nearest != "" {
			fmt.Fprintf(out, "  Nearest: %s\n", flow.Safe(a.Nearest))
		}
		for _, r := range a.Remarks {
			fmt.Fprintf(out, "  Note: %s\n", flow.Safe(r))
		}
	}
}

func printSide(out io.Writer, title string, s *explain.Side, color colors) {
	fmt.Fprintf(out, "  %s: %s: %s\n", flow.Safe(title), color.good(s.Verdict == "allowed", s.Verdict), flow.Safe(s.Why))
	for _, r := range s.Rules {
		mark := "-"
		if r.Matched {
			mark = "+"
		}
		fmt.Fprintf(out, "    %s %s %s: %s\n", mark, flow.Safe(r.Policy), flow.Safe(r.Path), flow.Safe(r.Text))
	}
}
