// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kube-cilium/kube-cilium/internal/version"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// versions is the answer of `kubectl cilium version`. Images and agents count pods and nodes.
type versions struct {
	Client         string         `json:"client"`
	AgentVersions  map[string]int `json:"agentVersions,omitempty"`
	AgentImages    map[string]int `json:"agentImages,omitempty"`
	OperatorImages map[string]int `json:"operatorImages,omitempty"`
}

func (p *plugin) version() *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this plugin, the agents and the operator",
		Example: `  # This plugin's alone, without asking a cluster
  kubectl cilium version --client`,
		Args: cobra.NoArgs,
	}
	out := newOutput(cmd)
	cmd.Flags().BoolVar(&clientOnly, "client", false, "Do not ask the cluster.")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.validate(); err != nil {
			return err
		}
		v := &versions{Client: version.Version}
		var askErr error
		if !clientOnly {
			askErr = p.askVersions(cmd.Context(), v)
		}
		if !out.table() {
			if err := out.answer(p.Out, "Versions", v); err != nil {
				return err
			}
			return askErr
		}
		t := newTable(p.Out, colors{})
		t.row("Client:", v.Client)
		if !clientOnly && askErr == nil {
			t.row("Agents:", orNone(counts(v.AgentVersions)))
			t.row("Agent images:", orNone(counts(v.AgentImages)))
			t.row("Operator images:", orNone(counts(v.OperatorImages)))
		}
		if err := t.flush(); err != nil {
			return err
		}
		return askErr
	}
	return cmd
}

func (p *plugin) askVersions(ctx context.Context, v *versions) error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	s, err := takeSnapshot(ctx, c)
	if err != nil {
		return fmt.Errorf("ask the cluster: %w", err)
	}
	v.AgentVersions = Summarize(s).Versions
	v.AgentImages, v.OperatorImages = map[string]int{}, map[string]int{}
	for i := range s.Pods {
		images := v.OperatorImages
		if s.Pods[i].Labels[cluster.LabelName] == cluster.AgentName {
			images = v.AgentImages
		}
		for _, c := range s.Pods[i].Spec.Containers {
			if c.Name != cluster.InspectContainer {
				images[c.Image]++
			}
		}
	}
	return nil
}
