// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kube-cilium/kube-cilium/internal/probe"
)

// probeCommand is both ends of `kubectl cilium connectivity test`: the image of the agent is on every node already.
func probeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "probe", Short: "Both ends of a connectivity test; needs no rights"}
	var ports []uint
	serve := &cobra.Command{
		Use: "serve", Short: "Send back what comes over TCP and UDP, until told to end", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var numbers []uint16
			for _, p := range ports {
				if p == 0 || p > 65535 {
					return fmt.Errorf("--port %d is not a port", p)
				}
				numbers = append(numbers, uint16(p))
			}
			return probe.Serve(cmd.Context(), numbers, nil, func() { _, _ = fmt.Fprintln(cmd.OutOrStdout(), "serving on", ports) })
		},
	}
	serve.Flags().UintSliceVar(&ports, "port", []uint{8080}, "ports of TCP and UDP to serve on")
	var o probe.Options
	check := &cobra.Command{
		Use: "check TARGET...", Short: "Ask targets at once and say in JSON who answered", Args: cobra.MinimumNArgs(1),
		Long: "Ask targets at once and say in JSON who answered. A target: " + probe.ErrTarget.Error(),
		RunE: func(cmd *cobra.Command, args []string) error {
			var targets []probe.Target
			for _, text := range args {
				t, err := probe.ParseTarget(text)
				if err != nil {
					return err
				}
				targets = append(targets, t)
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(probe.Check(cmd.Context(), targets, o))
		},
	}
	check.Flags().DurationVar(&o.Timeout, "timeout", 2*time.Second, "of one attempt")
	check.Flags().IntVar(&o.Attempts, "attempts", 1, "of each target before it counts as unreachable")
	cmd.AddCommand(serve, check)
	return cmd
}
