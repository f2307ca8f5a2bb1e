// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kube-cilium/kube-cilium/test/cluster/cluster"
	"github.com/kube-cilium/kube-cilium/test/cluster/conformance"
	"github.com/kube-cilium/kube-cilium/test/cluster/ranges"
)

func (a *app) up() *cobra.Command {
	var o cluster.Options
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a cluster up, building what is not built yet",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Name = a.name
			o.Complete()
			if err := o.Validate(); err != nil {
				return err
			}
			h, err := a.host(true)
			if err != nil {
				return err
			}
			state, err := h.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			h.Progress("cluster %s is up", state.Name)
			fmt.Println(state.Kubeconfig)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.Workers, "workers", 2, "number of workers")
	flags.StringVar((*string)(&o.Family), "ip-family", string(ranges.Dual), "ipv4, ipv6 or dual")
	flags.StringVar(&o.KubeProxy, "kube-proxy", "", "none, iptables or nftables (default nftables with --cni bridge, else none)")
	flags.StringVar(&o.CNI, "cni", cluster.CNIOurs, "pod network: ours, bridge (the reference plugin) or none")
	flags.DurationVar(&o.Lag, "lag", 0, "delay endpoint slices and identities on their way to agents")
	flags.BoolVar(&o.CutSegments, "cut-segments", false, "no packet larger than the MTU crosses the underlay")
	flags.IntVar(&o.Uplinks, "uplinks", 1, "number of underlay networks, 1 or 2")
	flags.StringVar(&o.CiliumConfig, "cilium-config", "", "CiliumConfig to apply instead of the generated one (--cni ours)")
	flags.DurationVar(&o.Timeout, "timeout", 3*time.Minute, "longest wait for each part to become ready")
	return cmd
}

func (a *app) down() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove a cluster whole, also one that is half made",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.host(false)
			if err != nil {
				return err
			}
			if all {
				return h.DownAll(cmd.Context())
			}
			return h.Down(cmd.Context(), a.name)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove every cluster on this machine")
	return cmd
}

func (a *app) status() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say what a cluster is and how it is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, state, err := a.load()
			if err != nil {
				return err
			}
			switch output {
			case "json":
				encoder := json.NewEncoder(os.Stdout)
				encoder.SetIndent("", "  ")
				return encoder.Encode(state)
			case "":
				return state.Describe(cmd.Context(), os.Stdout)
			}
			return fmt.Errorf("%w: --output %q (json or nothing)", cluster.ErrOption, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json: everything, for programs")
	return cmd
}

func (a *app) kubectlEnv() *cobra.Command {
	return &cobra.Command{
		Use:     "kubectl-env",
		Short:   "Print the lines that point kubectl at a cluster",
		Example: "  eval \"$(go run . kubectl-env)\"\n  kubectl get nodes",
		// The status of eval is that of the last line, and nothing is no line. What was typed for this cluster must not reach
		// the one that KUBECONFIG named before, nor that of ~/.kube/config. One line, for who does not quote it.
		Annotations: map[string]string{onError: "export KUBECONFIG=/dev/null; unset KUBECACHEDIR; false"},
		Args:        cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			h, state, err := a.load()
			if err != nil {
				return err
			}
			if _, err := os.Stat(state.Kubeconfig); err != nil {
				return fmt.Errorf("cluster %s is %s: kubeconfig: %w", state.Name, state.Phase, err)
			}
			fmt.Printf("export KUBECONFIG=%s\nexport KUBECACHEDIR=%s\nexport PATH=%s:$PATH\n", state.Kubeconfig, state.KubectlCache(), filepath.Join(h.Cache, "bin"))
			return nil
		},
	}
}

func (a *app) build() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build everything that is not in the cache, and start nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.host(true)
			if err != nil {
				return err
			}
			if _, err := cluster.Preflight(h.Packages); err != nil {
				return err
			}
			_, _, err = h.Build(cmd.Context())
			return err
		},
	}
}

func (a *app) assets() *cobra.Command {
	return &cobra.Command{
		Use:   "assets",
		Short: "Print the folder with etcd, kube-apiserver and kubectl (for KUBEBUILDER_ASSETS), building what is not built yet",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.host(true)
			if err != nil {
				return err
			}
			folder, err := h.Assets(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Println(folder)
			return nil
		},
	}
}

func (a *app) images() *cobra.Command {
	var out, tag, registry string
	var archs []string
	cmd := &cobra.Command{
		Use:   "images",
		Short: "Write our images as OCI archives, and push them if asked",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.host(true)
			if err != nil {
				return err
			}
			if out == "" {
				out = filepath.Join(h.Source, "dist")
			}
			return h.WriteImages(cmd.Context(), out, tag, strings.TrimSuffix(registry, "/"), archs)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&out, "out", "", "folder for the archives (default dist/ of the repository)")
	flags.StringVar(&tag, "tag", cluster.DevTag, "tag of the images")
	flags.StringVar(&registry, "push", "", "registry and path to push to, such as registry.example.org/team")
	flags.StringSliceVar(&archs, "arch", []string{"amd64", "arm64"}, "architectures")
	return cmd
}

func (a *app) loadImages() *cobra.Command {
	var tag string
	cmd := &cobra.Command{
		Use:   "load-images [NAME]",
		Short: "Build our images and import them into a running cluster's nodes",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := a.host(true)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				a.name = args[0]
			}
			archives, err := h.LoadImages(cmd.Context(), a.name, tag)
			if err != nil {
				return err
			}
			for _, archive := range archives {
				fmt.Println(archive.Ref)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&tag, "tag", cluster.DevTag, "tag of the images")
	return cmd
}

func (a *app) conformance() *cobra.Command {
	var run conformance.Run
	cmd := &cobra.Command{
		Use:   "conformance",
		Short: "Run the NetworkPolicy specs of Kubernetes' own end-to-end tests on a running cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.host(true)
			if err != nil {
				return err
			}
			state, err := h.Store().Load(a.name)
			if err != nil {
				return err
			}
			if run.Folder, err = h.Conformance(cmd.Context()); err != nil {
				return err
			}
			run.Kubeconfig, run.Kubectl, run.Progress = state.Kubeconfig, state.Binaries["kubectl"], h.Progress
			summary, err := run.Specs(cmd.Context())
			fmt.Println(summary)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&run.Focus, "focus", []string{conformance.Policies}, "regular expression of specs to run, by their full names")
	flags.StringArrayVar(&run.Skip, "skip", nil, "regular expression of specs to leave out")
	flags.IntVar(&run.Processes, "processes", 2, "specs at a time")
	flags.StringVar(&run.Report, "report", "dist", "folder for conformance.xml (JUnit) and conformance.log")
	return cmd
}

func (a *app) packages() *cobra.Command {
	return &cobra.Command{
		Use:   "packages",
		Short: "Print the Debian packages that a cluster needs",
		Args:  cobra.NoArgs,
		Run:   func(*cobra.Command, []string) { fmt.Println(strings.Join(strings.Fields(packages), " ")) },
	}
}

func (a *app) exec() *cobra.Command {
	return &cobra.Command{
		Use:     "exec NODE -- COMMAND...",
		Short:   "Run a command as a process of a node: its namespaces, its cgroups",
		Example: "  go run . exec worker-1 -- ip address",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			_, state, err := a.load()
			if err != nil {
				return err
			}
			return state.BecomeInNode(args[0], args[1:], os.Environ())
		},
	}
}

func (a *app) execOutside() *cobra.Command {
	return a.execIn("exec-outside", "Run a command in the namespace that is no cluster member",
		func(state *cluster.State) string { return state.Outside.Space })
}

func (a *app) execControlPlane() *cobra.Command {
	return a.execIn("exec-cp", "Run a command in the control plane's network namespace",
		func(state *cluster.State) string { return state.ControlPlane.Space })
}

func (a *app) execIn(use, short string, space func(*cluster.State) string) *cobra.Command {
	return &cobra.Command{
		Use:   use + " -- COMMAND...",
		Short: short,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			_, state, err := a.load()
			if err != nil {
				return err
			}
			env := append(os.Environ(), "KUBECONFIG="+state.InsideKubeconfig)
			return cluster.BecomeInSpace(space(state), args, env)
		},
	}
}
