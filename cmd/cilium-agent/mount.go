// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

// mount is the one thing that the agent itself has no rights for: an init container does it (config/components/mount).
func mount() *cobra.Command {
	var bpffs string
	cmd := &cobra.Command{
		Use: "mount", Short: "Mount the bpf file system where the host has none, and end", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			made, err := datapath.MountBPFFS(bpffs)
			if err != nil {
				return err
			}
			state := "is mounted already"
			if made {
				state = "is mounted now"
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), bpffs, state)
			return err
		},
	}
	cmd.Flags().StringVar(&bpffs, "bpffs", "/sys/fs/bpf", "where the bpf file system belongs, mounted with mountPropagation Bidirectional")
	return cmd
}
