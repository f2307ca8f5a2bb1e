// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/maptable"
	"github.com/kube-cilium/kube-cilium/internal/version"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/events"
)

// paths say where things are on this node.
type paths struct {
	bpffs  string
	socket string
}

// Command is `cilium-agent inspect`. What it prints on stdout is JSON; remarks go to stderr.
func Command() *cobra.Command {
	p := &paths{}
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "Show what is in the kernel, straight from the pinned maps",
		Long: "Show what is in the kernel, straight from the pinned maps. The agent is not asked and need not run,\n" +
			"except for monitor. Output is JSON, for kubectl cilium to print.",
		SilenceUsage: true,
	}
	cmd.PersistentFlags().StringVar(&p.bpffs, "bpffs", "/sys/fs/bpf", "where the bpf file system is mounted")
	cmd.PersistentFlags().StringVar(&p.socket, "events-socket", events.SocketPath, "where the agent serves events")
	cmd.AddCommand(p.maps(), p.mapDump(), p.status(), p.monitor(), cniCommand(), wait(), p.uninstall())
	return cmd
}

func (p *paths) maps() *cobra.Command {
	return &cobra.Command{
		Use:   "maps",
		Short: "List the pinned maps with their fill and memory",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pins, err := readPins(p.bpffs)
			if err != nil {
				return err
			}
			all := make([]maptable.Info, 0, len(pins))
			for _, pin := range pins {
				all = append(all, pin.info())
			}
			return write(cmd.OutOrStdout(), all)
		},
	}
}

func (p *paths) mapDump() *cobra.Command {
	return &cobra.Command{
		Use:   "map NAME",
		Short: "Show the entries of one map; NAME_vLAYOUT asks for an older layout",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pin, err := findPin(p.bpffs, args[0])
			if err != nil {
				return err
			}
			table, err := readTable(pin)
			if err != nil {
				return err
			}
			return write(cmd.OutOrStdout(), table)
		},
	}
}

// Status is what can be said of the node without the agent.
type Status struct {
	Version string `json:"version"`
	// Maps pinned, of all layouts.
	Maps int `json:"maps"`
	// AgentServesEvents is true when the agent answers on its socket.
	AgentServesEvents bool `json:"agentServesEvents"`
	// Problems in words.
	Problems []string `json:"problems,omitempty"`
}

func (p *paths) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say whether maps are pinned and the agent answers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := Status{Version: version.Version}
			pins, err := readPins(p.bpffs)
			if err != nil {
				s.Problems = append(s.Problems, err.Error())
			}
			s.Maps = len(pins)
			err = events.Read(cmd.Context(), p.socket, events.Request{}, func(flow.Message) error { return nil })
			if err != nil {
				s.Problems = append(s.Problems, err.Error())
			}
			s.AgentServesEvents = err == nil
			return write(cmd.OutOrStdout(), s)
		},
	}
}

func (p *paths) monitor() *cobra.Command {
	var req events.Request
	var types []string
	var output string
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Show drops and traces as they happen",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range types {
				var t flow.Type
				if err := t.UnmarshalText([]byte(name)); err != nil {
					return err
				}
				req.Types = append(req.Types, t)
			}
			each, err := printMessages(cmd.OutOrStdout(), cmd.ErrOrStderr(), output)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			err = events.Read(ctx, p.socket, req, each)
			if errors.Is(err, syscall.EPIPE) {
				return nil
			}
			if err == nil && req.Follow && ctx.Err() == nil {
				return errors.New("the agent ended the stream")
			}
			return err
		},
	}
	cmd.Flags().IntVar(&req.Last, "last", 0, fmt.Sprintf("begin with that many past events, of at most %d that the agent remembers", events.History))
	cmd.Flags().BoolVar(&req.Follow, "follow", true, "go on with what happens from now on")
	cmd.Flags().StringSliceVar(&types, "type", nil, "only these: drop, trace, verdict")
	cmd.Flags().StringVarP(&output, "output", "o", "stream", "stream (JSON with what was lost), json (events only) or compact (lines for people)")
	return cmd
}

// printMessages gives the printer for an output name.
func printMessages(out, errOut io.Writer, output string) (func(flow.Message) error, error) {
	switch output {
	case "stream":
		lines := json.NewEncoder(out)
		return func(m flow.Message) error {
			if m.Event != nil {
				m.Event.Clean()
			}
			return lines.Encode(m)
		}, nil
	case "json", "compact":
		p := flow.Printer{Out: out, Format: flow.Format(output)}
		return func(m flow.Message) error {
			if m.Lost > 0 {
				fmt.Fprintf(errOut, "%d events lost: this reader did not keep up\n", m.Lost)
			}
			if m.Event == nil {
				return nil
			}
			return p.Print(*m.Event)
		}, nil
	}
	return nil, fmt.Errorf("output %q is not known: stream, json or compact", flow.Safe(output))
}

// wait is what the inspect container does until somebody comes: nothing, and ends at once when told to.
func wait() *cobra.Command {
	return &cobra.Command{
		Use:   "wait",
		Short: "Do nothing until told to end: what the inspect container runs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			<-ctx.Done()
			return nil
		},
	}
}

func (p *paths) uninstall() *cobra.Command {
	var sure bool
	var files nodeFiles
	var cgroupRoot, procSysNet string
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything of ours on this node; its pods lose their network",
		Long: "Remove everything of ours on this node: first the CNI configuration, so that no pod is added any more; then\n" +
			"programs, maps, the tunnel device, routes and rules; then the plugin and the agent's files. The agent must not\n" +
			"run, or it would make them again. Pods that run lose their network. What is gone already is no error.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !sure {
				return errors.New("pods on this node would lose their network: say --yes to mean it")
			}
			if err := agentAway(cmd.Context(), p.socket); err != nil {
				return err
			}
			if err := files.removeConfiguration(); err != nil {
				return err
			}
			opts := datapath.Options{BPFFS: p.bpffs, CgroupRoot: cgroupRoot, ProcSysNet: procSysNet, Log: logr.Discard()}
			if err := datapath.Uninstall(opts); err != nil {
				return err
			}
			return files.removeRest()
		},
	}
	f := cmd.Flags()
	f.BoolVar(&sure, "yes", false, "mean it")
	f.StringVar(&cgroupRoot, "cgroup-root", "/host/sys/fs/cgroup", "the host's cgroup2 mount")
	f.StringVar(&procSysNet, "proc-sys-net", "/host/proc/sys/net", "the host's /proc/sys/net, writable")
	f.StringVar(&files.binDir, "cni-bin-dir", "/host/opt/cni/bin", "where the container runtime looks for plugins")
	f.StringVar(&files.confDir, "cni-conf-dir", "/host/etc/cni/net.d", "where the container runtime looks for configurations")
	f.StringVar(&files.stateDir, "state-dir", cni.DefaultStateDir, "what the agent keeps across restarts")
	f.StringVar(&files.socketDir, "socket-dir", cni.DefaultSocketDir, "where the agent's sockets are")
	return cmd
}

// agentAway returns an error while the agent serves events.
func agentAway(ctx context.Context, socket string) error {
	err := events.Read(ctx, socket, events.Request{}, func(flow.Message) error { return nil })
	switch {
	case errors.Is(err, events.ErrAgentAway):
		return nil
	case err == nil:
		return errors.New("the agent is running and would make everything again: stop it first (kubectl cilium uninstall does)")
	}
	return fmt.Errorf("is the agent away? %w", err)
}

func write(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
