// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/maptable"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// mapOptions are the flags of `kubectl cilium map list` and `dump`.
type mapOptions struct {
	*plugin
	output  *output
	numeric bool
}

func (p *plugin) mapCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "map", Aliases: []string{"maps"}, Short: "eBPF maps of a node, straight from its kernel",
		Long: "eBPF maps of a node, straight from its kernel. They are read by the container inspect of the agent's pod, which\n" +
			"needs the right to pods/exec there and works also when the agent hangs.",
	}
	list := &mapOptions{plugin: p}
	listCmd := &cobra.Command{
		Use:   "list NODE",
		Short: "List a node's maps with their fill and memory",
		Example: `  # How full are they?
  kubectl cilium map list worker-1`,
		Args:              cobra.ExactArgs(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return list.list(cmd.Context(), args[0]) },
		ValidArgsFunction: p.completeNode,
	}
	list.output = newOutput(listCmd)
	dump := &mapOptions{plugin: p}
	dumpCmd := &cobra.Command{
		Use:   "dump NODE [MAP]",
		Short: "Show what a node's maps hold, with names filled in",
		Example: `  # Connections that cross a node
  kubectl cilium map dump worker-1 conntrack

  # Who the node takes an address for
  kubectl cilium map dump worker-1 peers

  # Packets by hook and reason
  kubectl cilium map dump worker-1 metrics

  # Everything, for a machine
  kubectl cilium map dump worker-1 -o json`,
		Args:              cobra.RangeArgs(1, 2),
		RunE:              func(cmd *cobra.Command, args []string) error { return dump.dump(cmd.Context(), args[0], args[1:]) },
		ValidArgsFunction: p.completeNode,
	}
	dump.output = newOutput(dumpCmd)
	dumpCmd.Flags().BoolVar(&dump.numeric, "numeric", false, "Leave names out: addresses and numbers as the kernel has them.")
	cmd.AddCommand(listCmd, dumpCmd)
	return cmd
}

func (o *mapOptions) list(ctx context.Context, node string) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	all, err := c.Maps(ctx, node)
	if err != nil {
		return err
	}
	o.countInner(ctx, c, node, all)
	if !o.output.table() {
		return o.output.answer(o.Out, "NodeMaps", struct {
			Node string          `json:"node"`
			Maps []maptable.Info `json:"maps"`
		}{node, all})
	}
	return printMaps(o.Out, all, o.output.wide())
}

// countInner puts in what the node's agent reports for maps of maps: nearly all of their memory is that of the maps in
// them, which the container inspect has no right to open. Without a report it is -1.
func (o *mapOptions) countInner(ctx context.Context, c *cluster.Cluster, node string, all []maptable.Info) {
	var report v1alpha1.CiliumNodeReport
	err := c.Get(ctx, client.ObjectKey{Name: node}, &report)
	if unknown := withInner(all, report.Status.Maps); len(unknown) > 0 {
		why := "the node's agent reports none"
		if err != nil {
			why = err.Error()
		}
		o.remark("memory of %s is left out: %s", strings.Join(unknown, ", "), why)
	}
}

// withInner is countInner with the report's maps, which are those of the newest layouts; it returns what they lack.
func withInner(all []maptable.Info, reported []v1alpha1.MapReport) (unknown []string) {
	for i := range all {
		m := &all[i]
		if !strings.HasSuffix(m.Type, "OfMaps") {
			continue
		}
		at := slices.IndexFunc(reported, func(r v1alpha1.MapReport) bool { return r.Name == m.Name })
		if at < 0 || i > 0 && all[i-1].Name == m.Name {
			m.Bytes, unknown = -1, append(unknown, m.Name)
			continue
		}
		m.Bytes = reported[at].Bytes
	}
	return unknown
}

func printMaps(out io.Writer, all []maptable.Info, wide bool) error {
	t := newTable(out, colors{})
	head := []string{"MAP", "LAYOUT", "TYPE", "ENTRIES", "MAX", "FILL", "MEMORY"}
	if wide {
		head = append(head, "KEY", "VALUE", "ERROR")
	}
	t.row(head...)
	total := int64(0)
	for _, m := range all {
		row := []string{m.Name, strconv.Itoa(m.Layout), m.Type, entries(m.Entries), strconv.FormatInt(m.MaxEntries, 10),
			fill(m.Entries, m.MaxEntries), memory(m.Bytes)}
		if wide {
			row = append(row, bytesText(int64(m.KeySize)), bytesText(int64(m.ValueSize)), m.Error)
		}
		t.row(row...)
		total += max(m.Bytes, 0)
	}
	t.row("total", "", "", "", "", "", bytesText(total))
	return t.flush()
}

func memory(n int64) string {
	if n < 0 {
		return "-"
	}
	return bytesText(n)
}

// mapDump is a map as the plugin tells it to machines.
type mapDump struct {
	Map     string           `json:"map"`
	Layout  int              `json:"layout"`
	Entries []map[string]any `json:"entries"`
	Remark  string           `json:"remark,omitempty"`
}

func (o *mapOptions) dump(ctx context.Context, node string, wanted []string) error {
	if err := o.output.validate(); err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	tables, err := o.read(ctx, c, node, wanted)
	if err != nil {
		return err
	}
	names := &cluster.Names{}
	endpoints := map[string]string{}
	if !o.numeric {
		names = c.LoadNames(ctx, func(s string) { o.remark("%s", s) })
		endpoints = o.endpointNames(ctx, c, node)
	}
	if !o.output.table() {
		dumps := make([]mapDump, 0, len(tables))
		for _, t := range tables {
			addNames(t, names, endpoints)
			dumps = append(dumps, mapDump{t.Map, t.Layout, namedObjects(t), t.Remark})
		}
		return o.output.answer(o.Out, "NodeMapDump", struct {
			Node string    `json:"node"`
			Maps []mapDump `json:"maps"`
		}{node, dumps})
	}
	for i, t := range tables {
		if len(tables) > 1 {
			fmt.Fprintf(o.Out, "%s%s (layout %d, %d entries)\n", strings.Repeat("\n", min(i, 1)), t.Map, t.Layout, len(t.Rows))
		}
		if t.Remark != "" {
			o.remark("map %s: %s", t.Map, t.Remark)
		}
		if len(t.Rows) == 0 {
			if len(tables) == 1 {
				o.remark("map %s is empty", t.Map)
			}
			continue
		}
		if err := printTable(o.Out, t, names, endpoints, o.output.wide()); err != nil {
			return err
		}
	}
	return nil
}

// read reads one map, or every map of the newest layout that has rows to show.
func (o *mapOptions) read(ctx context.Context, c *cluster.Cluster, node string, wanted []string) ([]*maptable.Table, error) {
	all := len(wanted) == 0
	if all {
		infos, err := c.Maps(ctx, node)
		if err != nil {
			return nil, err
		}
		for i, m := range infos {
			if m.Type != "RingBuf" && (i == 0 || infos[i-1].Name != m.Name) {
				wanted = append(wanted, m.Name)
			}
		}
	}
	var tables []*maptable.Table
	for _, name := range wanted {
		t, err := c.Map(ctx, node, name)
		switch {
		case err == nil:
			tables = append(tables, t)
		case all && !errors.Is(err, cluster.ErrNoAgent) && ctx.Err() == nil:
			o.remark("%s", err.Error())
		default:
			return nil, err
		}
	}
	return tables, nil
}

// endpointNames are the pods of a node by endpoint id.
func (o *mapOptions) endpointNames(ctx context.Context, c *cluster.Cluster, node string) map[string]string {
	names := map[string]string{}
	var all v1alpha1.CiliumEndpointList
	if err := c.List(ctx, &all); err != nil {
		o.remark("names of endpoints are left out: %s", err.Error())
	}
	for i := range all.Items {
		e := &all.Items[i]
		if e.Status.Node == node && e.Status.ID != 0 {
			names[strconv.FormatInt(e.Status.ID, 10)] = flow.Safe(e.Namespace + "/" + e.Name)
		}
	}
	return names
}

// fieldName is what a field is called, "" where it has no name.
func fieldName(kind maptable.Kind, text string, names *cluster.Names, endpoints map[string]string) string {
	switch kind {
	case maptable.Address:
		if a, err := netip.ParseAddr(text); err == nil {
			if name, ok := names.Address(a); ok {
				return name.String()
			}
		}
	case maptable.AddrPort:
		if a, err := netip.ParseAddrPort(text); err == nil {
			if name, ok := names.Address(a.Addr()); ok {
				return name.String()
			}
		}
	case maptable.Identity:
		if n, err := strconv.ParseUint(text, 10, 32); err == nil {
			if name := flow.IdentityName(uint32(n)); name != "" {
				return name
			}
			return strings.Join(names.Identity(uint32(n)), ",")
		}
	case maptable.Endpoint:
		return endpoints[text]
	}
	return ""
}

// maxLabels is how many characters of an identity's labels fit a narrow table.
const maxLabels = 40

func printTable(out io.Writer, t *maptable.Table, names *cluster.Names, endpoints map[string]string, wide bool) error {
	print := newTable(out, colors{})
	var head []string
	for _, c := range t.Columns {
		head = append(head, columnTitle(c.Name))
	}
	print.row(head...)
	for _, r := range t.Rows {
		row := make([]string, len(r))
		for i, c := range t.Columns {
			text := maptable.FieldText(r[i])
			row[i] = orNone(text)
			if c.Kind == maptable.Bytes && wide {
				if n, err := strconv.ParseInt(text, 10, 64); err == nil {
					row[i] = bytesText(n)
				}
			}
			name := fieldName(c.Kind, text, names, endpoints)
			if runes := []rune(name); !wide && len(runes) > maxLabels {
				name = string(runes[:maxLabels-1]) + "…"
			}
			if name != "" {
				row[i] += " (" + name + ")"
			}
		}
		print.row(row...)
	}
	return print.flush()
}

// columnTitle turns hostMAC into HOST-MAC and expiresIn into EXPIRES-IN.
func columnTitle(name string) string {
	var b strings.Builder
	for i, r := range name {
		if i > 0 && r >= 'A' && r <= 'Z' && name[i-1] >= 'a' && name[i-1] <= 'z' {
			b.WriteByte('-')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

// namedObjects are a table's rows as objects, without names that are not known.
func namedObjects(t *maptable.Table) []map[string]any {
	all := t.Objects()
	for _, o := range all {
		maps.DeleteFunc(o, func(column string, value any) bool { return strings.HasSuffix(column, nameSuffix) && value == "" })
	}
	return all
}

// nameSuffix ends the name of a column that holds another one's names.
const nameSuffix = "Name"

// addNames adds a column NAMEName beside each column whose fields have names.
func addNames(t *maptable.Table, names *cluster.Names, endpoints map[string]string) {
	columns := len(t.Columns)
	for i := range columns {
		c := t.Columns[i]
		switch c.Kind {
		case maptable.Address, maptable.AddrPort, maptable.Identity, maptable.Endpoint:
		default:
			continue
		}
		t.Columns = append(t.Columns, maptable.Column{Name: c.Name + nameSuffix, Kind: maptable.Text})
		for r := range t.Rows {
			t.Rows[r] = append(t.Rows[r], fieldName(c.Kind, maptable.FieldText(t.Rows[r][i]), names, endpoints))
		}
	}
}
