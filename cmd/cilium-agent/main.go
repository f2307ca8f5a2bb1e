// SPDX-License-Identifier: Apache-2.0

// Cilium-agent is the agent of one node. `cilium-agent inspect` shows what is in the kernel without it.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/hubble/observer"
	"github.com/kube-cilium/kube-cilium/internal/apiserver"
	"github.com/kube-cilium/kube-cilium/internal/version"
	"github.com/kube-cilium/kube-cilium/nodeagent"
	"github.com/kube-cilium/kube-cilium/nodeagent/inspect"
)

// The process's first thread never ends, and /proc/PID/ns is its own: no goroutine is to take it into another namespace.
func init() { runtime.LockOSThread() }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cilium-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := run()
	root.Use = "cilium-agent"
	root.SilenceErrors, root.SilenceUsage = true, true
	root.Version = version.Version
	root.AddCommand(run(), mount(), probeCommand(), inspect.Command(), &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { _, _ = fmt.Fprintln(cmd.OutOrStdout(), version.Version) },
	})
	return root
}

func run() *cobra.Command {
	var o nodeagent.Options
	var flows flowOptions
	var verbosity int
	cmd := &cobra.Command{
		Use: "run", Short: "Run the agent (the default)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := textlogger.NewLogger(textlogger.NewConfig(textlogger.Verbosity(verbosity)))
			ctrl.SetLogger(log)
			klog.SetLogger(log)
			return start(cmd.Context(), o, flows, log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Node, "node", os.Getenv("NODE_NAME"), "name of this node (NODE_NAME)")
	f.StringVar(&o.BPFFS, "bpffs", "/sys/fs/bpf", "where the bpf file system is mounted")
	f.StringVar(&o.CgroupRoot, "cgroup-root", "/host/sys/fs/cgroup", "the host's cgroup2 mount, or the folder that holds it as unified")
	f.StringVar(&o.ProcSysNet, "proc-sys-net", "/host/proc/sys/net", "the host's /proc/sys/net, writable")
	f.StringVar(&o.BinDir, "cni-bin-dir", "/host/opt/cni/bin", "where the container runtime looks for plugins")
	f.StringVar(&o.ConfDir, "cni-conf-dir", "/host/etc/cni/net.d", "where the container runtime looks for configurations")
	f.StringVar(&o.Plugin, "cni-plugin", beside(cni.PluginType), "the plugin to install")
	f.StringVar(&o.StateDir, "state-dir", cni.DefaultStateDir, "what must outlive the agent but not the boot")
	f.StringVar(&o.SocketDir, "socket-dir", cni.DefaultSocketDir, "where the agent's sockets are")
	f.StringVar(&o.HealthAddress, "health-address", "127.0.0.1:9879", "where kubelet's probes are answered; 0 for none")
	f.StringVar(&o.MetricsAddress, "metrics-address", ":9962", "where Prometheus reads; 0 for none")
	f.Uint16Var(&o.NodeHealthPort, "node-health-port", 4240, "where other nodes ask whether this node's addresses are reached, on all nodes the same; 0: nobody is asked")
	f.StringVar(&flows.address, "hubble-address", cmp.Or(os.Getenv("HUBBLE_ADDRESS"), "127.0.0.1:4244"), "where flows are served over gRPC (HUBBLE_ADDRESS); 0 for nowhere")
	f.IntVar(&flows.capacity, "hubble-capacity", observer.DefaultCapacity, "how many flows are kept, a power of two less one")
	f.IntVarP(&verbosity, "verbosity", "v", 0, "1 for debugging")
	return cmd
}

func start(ctx context.Context, o nodeagent.Options, flows flowOptions, log logr.Logger) error {
	o.Log, o.Holder = log, cmp.Or(os.Getenv("POD_NAME"), fmt.Sprintf("%s-%d", o.Node, os.Getpid()))
	if o.Node == "" {
		return errors.New("no node name (set NODE_NAME)")
	}
	servers, err := apiserver.Open(ctx, o.StateDir)
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	config := servers.Config()
	config.UserAgent = "cilium-agent/" + version.Version
	if flows.address != "0" {
		if o.Flows, err = newFlows(o.Node, flows, config); err != nil {
			return err
		}
	}
	agent, err := nodeagent.New(o, config, servers)
	if err != nil {
		return err
	}
	log.Info("starting", "version", version.Version, "node", o.Node, "apiServers", servers.List())
	return agent.Run(ctx)
}

// beside is a file in the folder of this program.
func beside(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
