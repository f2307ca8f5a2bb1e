// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// completionTimeout bounds how long a TAB may take, waitInterval how often --wait looks.
const (
	completionTimeout = 3 * time.Second
	waitInterval      = time.Second
)

// statusOptions are the flags of `kubectl cilium status`.
type statusOptions struct {
	*plugin
	output  *output
	wait    bool
	timeout time.Duration
	verbose bool
}

func (p *plugin) status() *cobra.Command {
	o := &statusOptions{plugin: p}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say whether the cluster's network is well",
		Long: "Say whether the cluster's network is well: the agents, the operator, the configuration, each node, and below\n" +
			"them everything that is wrong, by the name that kubectl has for it. Exits with 1 when there is an error.",
		Example: `  # The cluster in twenty lines
  kubectl cilium status

  # Wait until everything is ready, for five minutes at most
  kubectl cilium status --wait --timeout 5m

  # What each node's kernel can do, its programs, maps and drops
  kubectl cilium status --verbose

  # For a script
  kubectl cilium status -o jsonpath='{.nodesReady}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.output = newOutput(cmd)
	cmd.Flags().BoolVar(&o.wait, "wait", false, "Wait until there is no error.")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "How long to wait with --wait.")
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "Add kernel features, programs, map fill and drops of each node.")
	return cmd
}

func (o *statusOptions) run(ctx context.Context) error {
	if err := o.output.validate(); err != nil {
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
	s, waitErr := o.look(ctx, c)
	if s == nil {
		return waitErr
	}
	if o.output.table() {
		err = printSummary(o.Out, s, o.output.wide(), o.verbose, color)
	} else {
		err = o.output.answer(o.Out, "ClusterStatus", s)
	}
	switch {
	case err != nil:
		return err
	case waitErr != nil:
		return waitErr
	case !s.Ready:
		return errNotWell
	}
	return nil
}

// look summarizes once, or with --wait until all is well; then the last summary comes with an error on timeout.
func (o *statusOptions) look(ctx context.Context, c *cluster.Cluster) (*Summary, error) {
	if !o.wait {
		snapshot, err := takeSnapshot(ctx, c)
		if err != nil {
			return nil, err
		}
		return Summarize(snapshot), nil
	}
	deadline, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	var last *Summary
	told := ""
	for {
		snapshot, err := takeSnapshot(deadline, c)
		if err == nil {
			last = Summarize(snapshot)
			if last.Ready {
				return last, nil
			}
			err = waitingFor(last)
		}
		if err.Error() != told && deadline.Err() == nil {
			told = err.Error()
			o.remark("waiting: %s", told)
		}
		select {
		case <-time.After(waitInterval):
			continue
		case <-deadline.Done():
		}
		if ctx.Err() != nil {
			return last, errors.New("interrupted")
		}
		return last, fmt.Errorf("not well after %s: %s", o.timeout, told)
	}
}

// waitingFor is the first error in words.
func waitingFor(s *Summary) error {
	for _, p := range s.Problems {
		if p.Severity == SeverityError {
			return fmt.Errorf("%d/%d nodes ready; %s: %s", s.NodesReady, s.NodesTotal, p.Object, p.Message)
		}
	}
	return errors.New("")
}

// takeSnapshot reads everything that a summary needs. What the cluster does not have is left empty; what cannot be
// read is an error.
func takeSnapshot(ctx context.Context, c *cluster.Cluster) (*Snapshot, error) {
	s := &Snapshot{Now: time.Now(), DaemonSet: &appsv1.DaemonSet{}, Operator: &appsv1.Deployment{}}
	key := client.ObjectKey{Namespace: cluster.Namespace, Name: cluster.AgentName}
	if err := c.Get(ctx, key, s.DaemonSet); apierrors.IsNotFound(err) {
		s.DaemonSet = nil
	} else if err != nil {
		return nil, err
	}
	key.Name = cluster.OperatorName
	if err := c.Get(ctx, key, s.Operator); apierrors.IsNotFound(err) {
		s.Operator = nil
	} else if err != nil {
		return nil, err
	}
	var (
		pods    corev1.PodList
		leases  coordinationv1.LeaseList
		nodes   corev1.NodeList
		configs v1alpha1.CiliumConfigList
		members v1alpha1.CiliumNodeList
		reports v1alpha1.CiliumNodeReportList
	)
	for _, list := range []client.ObjectList{&nodes, &configs, &members, &reports} {
		// Not found: discovery is cached for a while after the kinds have gone.
		if err := c.List(ctx, list); meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			s.NoKinds = true
		} else if err != nil {
			return nil, err
		}
	}
	for _, list := range []client.ObjectList{&pods, &leases} {
		if err := c.List(ctx, list, client.InNamespace(cluster.Namespace)); err != nil {
			return nil, err
		}
	}
	// Whoever may see the agents may not see every policy: then nothing is said of them.
	var policies networkingv1.NetworkPolicyList
	if err := c.List(ctx, &policies); err == nil {
		s.Policies = policies.Items
	} else if !apierrors.IsForbidden(err) {
		return nil, err
	}
	for _, p := range pods.Items {
		if app := p.Labels[cluster.LabelName]; app == cluster.AgentName || app == cluster.OperatorName {
			s.Pods = append(s.Pods, p)
		}
	}
	s.Leases, s.Nodes, s.Configs, s.Members, s.Reports = leases.Items, nodes.Items, configs.Items, members.Items, reports.Items
	return s, nil
}
