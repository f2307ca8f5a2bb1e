// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/maptable"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// serviceOptions are the flags of `kubectl cilium service list` and `get`.
type serviceOptions struct {
	*plugin
	output        *output
	allNamespaces bool
	node          string
}

func (p *plugin) service() *cobra.Command {
	cmd := &cobra.Command{Use: "service", Aliases: []string{"services", "svc"}, Short: "Services as a node's kernel has them"}
	list := &serviceOptions{plugin: p}
	listCmd := &cobra.Command{
		Use:   "list",
		Short: "List service addresses with the backends that a node chooses from",
		Example: `  # As one node has them
  kubectl cilium service list -A --node worker-1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return list.run(cmd.Context(), "") },
	}
	listCmd.Flags().BoolVarP(&list.allNamespaces, "all-namespaces", "A", false, "List those of every namespace.")
	get := &serviceOptions{plugin: p}
	getCmd := &cobra.Command{
		Use:   "get SERVICE",
		Short: "Show one service's addresses with the backends that a node chooses from",
		Example: `  # Does the node know where cluster DNS is?
  kubectl cilium service get kube-dns -n kube-system --node worker-1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return get.run(cmd.Context(), args[0]) },
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			ns, err := p.namespace(false)
			if err != nil || len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return p.completeNames(c.Context(), &corev1.ServiceList{}, client.InNamespace(ns))
		},
	}
	for c, o := range map[*cobra.Command]*serviceOptions{listCmd: list, getCmd: get} {
		o.output = newOutput(c)
		c.Flags().StringVar(&o.node, "node", "", "The node to ask; the first with a running agent unless said.")
		_ = c.RegisterFlagCompletionFunc("node", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return p.completeNames(c.Context(), &v1alpha1.CiliumNodeList{})
		})
	}
	cmd.AddCommand(listCmd, getCmd)
	return cmd
}

// frontend is one address and port of a service as a node's kernel has it.
type frontend struct {
	Address  string `json:"address"`
	Port     string `json:"port"`
	Protocol string `json:"protocol"`
	// Namespace and Service are empty where no Service has the address any more.
	Namespace string    `json:"namespace,omitempty"`
	Service   string    `json:"service,omitempty"`
	Backends  []backend `json:"backends"`
}

type backend struct {
	Address string `json:"address"`
	Port    string `json:"port"`
	// Pod is namespace/name, empty for an address that is no pod's.
	Pod string `json:"pod,omitempty"`
}

func (o *serviceOptions) run(ctx context.Context, name string) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	ns, err := o.namespace(o.allNamespaces)
	if err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	if name != "" {
		if err := c.Get(ctx, client.ObjectKey{Namespace: ns, Name: name}, &corev1.Service{}); err != nil {
			return within(ns, err)
		}
	}
	if o.node == "" {
		if o.node, err = firstNode(ctx, c); err != nil {
			return err
		}
		o.remark("as node %s has them (choose with --node)", o.node)
	}
	services, err := c.Map(ctx, o.node, bpf.MapsMapServices)
	if err != nil {
		return err
	}
	backends, err := c.Map(ctx, o.node, bpf.MapsMapBackends)
	if err != nil {
		return err
	}
	names := c.LoadNames(ctx, func(s string) { o.remark("%s", s) })
	all, err := joinServices(services, backends, names)
	if err != nil {
		return fmt.Errorf("node/%s: %w", o.node, err)
	}
	all = slices.DeleteFunc(all, func(f frontend) bool {
		return ns != "" && f.Namespace != ns || name != "" && f.Service != name
	})
	if !o.output.table() {
		return o.output.answer(o.Out, "NodeServices", struct {
			Node      string     `json:"node"`
			Frontends []frontend `json:"frontends"`
		}{o.node, all})
	}
	if len(all) == 0 {
		if name != "" {
			return fmt.Errorf("service/%s: node %s has no address of it in its datapath (a headless service has none; another one: kubectl cilium status)", name, o.node)
		}
		o.nothing("service addresses", ns)
		return nil
	}
	return printServices(o.Out, all, o.output.wide())
}

// firstNode is the first node, by name, whose agent pod can be asked.
func firstNode(ctx context.Context, c *cluster.Cluster) (string, error) {
	pods, err := c.AgentPods(ctx, "")
	if err != nil {
		return "", err
	}
	var nodes []string
	for i := range pods {
		if pods[i].Status.Phase == corev1.PodRunning && pods[i].DeletionTimestamp == nil {
			nodes = append(nodes, pods[i].Spec.NodeName)
		}
	}
	if len(nodes) == 0 {
		return "", fmt.Errorf("%w in namespace %s (kubectl cilium status)", cluster.ErrNoAgent, cluster.Namespace)
	}
	return slices.Min(nodes), nil
}

// joinServices puts the two maps of a node together. A service's marker for "any port" is no frontend.
func joinServices(services, backends *maptable.Table, names *cluster.Names) ([]frontend, error) {
	b, err := columns(backends, "service", "address", "port")
	if err != nil {
		return nil, err
	}
	of := map[string][]backend{}
	for _, row := range b {
		one := backend{Address: row[1], Port: row[2]}
		if name, ok := lookup(names, row[1]); ok && name.Kind == "pod" {
			one.Pod = name.String()
		}
		of[row[0]] = append(of[row[0]], one)
	}
	s, err := columns(services, "address", "port", "protocol", "service")
	if err != nil {
		return nil, err
	}
	all := []frontend{}
	for _, row := range s {
		if row[1] == "0" {
			continue
		}
		f := frontend{Address: row[0], Port: row[1], Protocol: row[2], Backends: of[row[3]]}
		if f.Backends == nil {
			f.Backends = []backend{}
		}
		if name, ok := lookup(names, f.Address); ok && name.Kind == "service" {
			f.Namespace, f.Service = name.Namespace, name.Name
		}
		all = append(all, f)
	}
	slices.SortStableFunc(all, func(a, b frontend) int {
		return strings.Compare(a.Namespace+"/"+a.Service, b.Namespace+"/"+b.Service)
	})
	return all, nil
}

func lookup(names *cluster.Names, address string) (cluster.Name, bool) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return cluster.Name{}, false
	}
	return names.Address(a)
}

// columns takes the named columns out of a table as text.
func columns(t *maptable.Table, names ...string) ([][]string, error) {
	index := make([]int, len(names))
	for i, name := range names {
		if index[i] = t.Index(name); index[i] < 0 {
			return nil, fmt.Errorf("map %s has no column %s: its layout %d is newer than this plugin", t.Map, name, t.Layout)
		}
	}
	rows := make([][]string, 0, len(t.Rows))
	for _, r := range t.Rows {
		row := make([]string, len(index))
		for i, j := range index {
			row[i] = maptable.FieldText(r[j])
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// maxBackends is how many backends fit a narrow table.
const maxBackends = 3

func printServices(out io.Writer, all []frontend, wide bool) error {
	t := newTable(out, colors{})
	t.row("NAMESPACE", "SERVICE", "FRONTEND", "PROTOCOL", "BACKENDS")
	for _, f := range all {
		var texts []string
		for i, b := range f.Backends {
			if !wide && i == maxBackends && len(f.Backends) > maxBackends+1 {
				texts = append(texts, fmt.Sprintf("and %d more", len(f.Backends)-i))
				break
			}
			text := net.JoinHostPort(b.Address, b.Port)
			if b.Pod != "" {
				text += " (" + b.Pod + ")"
			}
			texts = append(texts, text)
		}
		t.row(orNone(f.Namespace), orNone(f.Service), net.JoinHostPort(f.Address, f.Port), f.Protocol, orNone(strings.Join(texts, ", ")))
	}
	return t.flush()
}
