// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"os"

	"github.com/spf13/cobra"

	"github.com/kube-cilium/kube-cilium/test/cluster/forward"
	"github.com/kube-cilium/kube-cilium/test/cluster/node"
)

// inherited is the descriptor of the listener that a parent left open.
const inherited = 3

// hidden are the verbs by which this program becomes a part of a cluster.
func hidden() []*cobra.Command {
	launch := &cobra.Command{
		Use: node.LaunchCommand + " DIR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return node.Launch(args[0]) },
	}
	first := &cobra.Command{
		Use: node.InitCommand + " DIR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return node.Init(args[0]) },
	}
	var space, to string
	forwarder := &cobra.Command{
		Use: "forward", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			listener, err := net.FileListener(os.NewFile(inherited, "listener"))
			if err != nil {
				return fmt.Errorf("listener: %w", err)
			}
			return forward.Serve(cmd.Context(), listener, space, to)
		},
	}
	forwarder.Flags().StringVar(&space, "space", "", "network namespace to dial in")
	forwarder.Flags().StringVar(&to, "to", "", "address to dial")
	return []*cobra.Command{launch, first, forwarder}
}
