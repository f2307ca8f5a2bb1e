// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kube-cilium/kube-cilium/test/cluster/cgroup"
	"github.com/kube-cilium/kube-cilium/test/cluster/forward"
	"github.com/kube-cilium/kube-cilium/test/cluster/lag"
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
	run := &cobra.Command{
		Use: cgroup.RunCommand + " CGROUP -- COMMAND...", Hidden: true, Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error { return cgroup.Become(args[0], args[1:]) },
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
	return []*cobra.Command{launch, first, run, forwarder, slow()}
}

// slow is the late way to the API server; it has the server's own certificate,
// so that a client notices nothing but the delay.
func slow() *cobra.Command {
	var p lag.Proxy
	var upstream, listen, folder string
	cmd := &cobra.Command{
		Use: "lag", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
			if err != nil {
				return err
			}
			p.Transport = &tls.Config{RootCAs: x509.NewCertPool()}
			p.Transport.RootCAs.AppendCertsFromPEM(ca)
			if p.Upstream, err = url.Parse(upstream); err != nil {
				return err
			}
			return p.Serve(cmd.Context(), listen, filepath.Join(folder, "apiserver.crt"), filepath.Join(folder, "apiserver.key"))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&upstream, "upstream", "", "URL of the API server")
	flags.StringVar(&listen, "listen", "", "address to serve on")
	flags.StringVar(&folder, "pki", "", "folder with ca.crt, apiserver.crt and apiserver.key")
	flags.DurationVar(&p.Delay, "delay", 0, "delay of watch events")
	flags.StringSliceVar(&p.Resources, "resources", nil, "plural names of the resources that are late")
	return cmd
}
