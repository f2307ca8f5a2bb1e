// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

// hookNames are the programs behind the stub, by their slot.
func hookNames() map[uint32]string {
	names := map[uint32]string{}
	for _, p := range bpf.DevicePrograms() {
		names[uint32(p.Hook)] = p.Name
	}
	return names
}

// counted is one attached program of the cluster and what it stands for.
type counted struct {
	name string
	prog *ebpf.Program
}

// pinnedMaps gives the ids of our maps on a node, seen through a process of the node that has them mounted.
func (o *ours) pinnedMaps(ctx context.Context, node string) (map[ebpf.MapID]bool, error) {
	pid, err := o.agentPID(ctx, node)
	if err != nil {
		return nil, err
	}
	pins, err := filepath.Glob(filepath.Join(pinFolder(pid), "*_v*"))
	if err != nil {
		return nil, err
	}
	ids := map[ebpf.MapID]bool{}
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, nil)
		if err != nil {
			continue // a link or a program
		}
		info, err := m.Info()
		if err == nil {
			if id, ok := info.ID(); ok {
				ids[id] = true
			}
		}
		if err := errors.Join(err, m.Close()); err != nil {
			return nil, err
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("no map is pinned on %s", node)
	}
	return ids, nil
}

// pinFolder is where the agent of a pid pins, as the agent has it mounted.
func pinFolder(pid string) string { return filepath.Join("/proc", pid, "root", datapath.Folder("")) }

func (o *ours) agentPID(ctx context.Context, node string) (string, error) {
	id, err := o.Kubectl(ctx, nil, "-n", "kube-cilium-system", "get", "pods", "-l", "app.kubernetes.io/name=cilium-agent",
		"--field-selector", "spec.nodeName="+node, "-o", `jsonpath={.items[0].status.containerStatuses[?(@.name=="agent")].containerID}`)
	if err != nil {
		return "", err
	}
	pids, err := processesOf(id)
	if err != nil {
		return "", fmt.Errorf("agent of %s: %w", node, err)
	}
	return pids[0], nil
}

// countedPrograms finds the programs of this cluster that the kernel accounts for: the stubs, whose time holds that of
// the program they call, and the socket programs.
func (o *ours) countedPrograms(ctx context.Context) (all []counted, err error) {
	mine := map[ebpf.MapID]bool{}
	for _, n := range o.Nodes {
		ids, err := o.pinnedMaps(ctx, n.Name)
		if err != nil {
			return nil, err
		}
		for id := range ids {
			mine[id] = true
		}
	}
	hooks := hookNames()
	for id := ebpf.ProgramID(0); ; {
		if id, err = ebpf.ProgramGetNextID(id); errors.Is(err, unix.ENOENT) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		name := ""
		if info, err := p.Info(); err == nil {
			maps, _ := info.MapIDs()
			if slices.ContainsFunc(maps, func(m ebpf.MapID) bool { return mine[m] }) {
				name = info.Name
				if name == "stub" {
					name = hooks[stubHook(maps)]
				} else if info.Type != ebpf.CGroupSockAddr {
					name = ""
				}
			}
		}
		if name == "" {
			_ = p.Close()
			continue
		}
		all = append(all, counted{name, p})
	}
}

// stubHook reads a stub's slot from its constants.
func stubHook(maps []ebpf.MapID) uint32 {
	for _, id := range maps {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		var hook uint32
		info, err := m.Info()
		if err == nil && strings.HasSuffix(info.Name, ".rodata") {
			err = m.Lookup(uint32(0), &hook)
			_ = m.Close()
			if err == nil {
				return hook
			}
			continue
		}
		_ = m.Close()
	}
	return ^uint32(0)
}

// traffic is one kind of packets that programs are timed with.
type traffic struct {
	what, kind string
	shape
	programs []string // that are reported for it
}

// programFigures has the kernel account every program's run time while typical packets pass. The time of a device's
// program holds the stub, the tail call and the kernel's reading of its clock twice; not what the kernel does after
// the program has said where the packet goes.
func programFigures(ctx context.Context, log io.Writer, c *ours, rounds, millis int) (figures []Figure, err error) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, fmt.Errorf("account programs' run time: %w", err)
	}
	defer stats.Close()
	client, same, other := c.pods["client"], c.pods["same"], c.pods["other"]
	pid, err := c.agentPID(ctx, c.Nodes[0].Name)
	if err != nil {
		return nil, err
	}
	host := place{enter: []string{"nsenter", "--net=/proc/" + pid + "/ns/net"}}
	outside := place{enter: c.OutsideCommand()}
	var world string
	for _, a := range c.Outside.World {
		if !strings.Contains(a, ":") {
			world = a
		}
	}
	to := func(from, server place, dst string) shape { return shape{client: from, server: server, dst: dst} }
	for _, part := range []struct {
		routing string
		all     []traffic
	}{
		{`{"spec":{"routing":{"mode":"VXLAN","encapsulation":"Auto"}}}`, []traffic{
			{"same node, established", "rr", to(client, same, same.ips["4"]), []string{"from_pod"}},
			{"same node, new connections, mean of their packets", "crr", to(client, same, same.ips["4"]), []string{"from_pod", "connect4"}},
			{"ClusterIP, new connections", "crr", to(client, same, c.vip), []string{"connect4"}},
			{"VXLAN, established", "rr", to(client, other, other.ips["4"]), []string{"from_pod", "to_netdev", "from_netdev"}},
			{"masquerade, established", "rr", to(client, outside, world), []string{"from_pod", "from_netdev"}},
			{"host to pod, established", "rr", to(host, same, same.ips["4"]), []string{"to_pod", "from_pod"}},
		}},
		{`{"spec":{"routing":{"encapsulation":"Device"}}}`, []traffic{
			{"VXLAN device, established", "rr", to(client, other, other.ips["4"]), []string{"from_pod", "to_overlay", "from_overlay"}},
		}},
		{`{"spec":{"routing":{"mode":"Native","encapsulation":"Auto"}}}`, []traffic{
			{"native, established", "rr", to(client, other, other.ips["4"]), []string{"from_pod", "from_netdev"}},
		}},
	} {
		if err := c.configure(ctx, part.routing); err != nil {
			return nil, err
		}
		programs, err := c.countedPrograms(ctx)
		if err != nil {
			return nil, err
		}
		for _, t := range part.all {
			fmt.Fprintf(log, "programs: %s\n", t.what)
			f, err := timePrograms(ctx, programs, t, rounds, millis)
			if err != nil {
				return nil, fmt.Errorf("programs: %s: %w", t.what, err)
			}
			figures = append(figures, f...)
		}
		for _, p := range programs {
			_ = p.prog.Close()
		}
	}
	return figures, c.configure(ctx, `{"spec":{"routing":{"mode":"VXLAN","encapsulation":"Auto"}}}`)
}

// timePrograms gives the median over slices of each program's mean time for a packet.
func timePrograms(ctx context.Context, programs []counted, t traffic, rounds, millis int) ([]Figure, error) {
	server, err := t.server.serve()
	if err != nil {
		return nil, err
	}
	defer server.stop()
	worker, err := t.client.start("client")
	if err != nil {
		return nil, err
	}
	defer worker.stop()
	type sum struct {
		time time.Duration
		runs uint64
	}
	read := func() (map[string]sum, error) {
		sums := map[string]sum{}
		for _, p := range programs {
			s, err := p.prog.Stats()
			if err != nil {
				return nil, err
			}
			sums[p.name] = sum{sums[p.name].time + s.Runtime, sums[p.name].runs + s.RunCount}
		}
		return sums, nil
	}
	nanos := map[string][]float64{}
	for range rounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		before, err := read()
		if err != nil {
			return nil, err
		}
		done, err := worker.do(job{Kind: t.kind, Dst: t.dst, Millis: millis})
		if err != nil {
			return nil, err
		}
		after, err := read()
		if err != nil {
			return nil, err
		}
		for name, b := range after {
			// Fewer runs than transactions: other traffic, not this.
			if runs := b.runs - before[name].runs; runs > 0 && runs >= uint64(done.Units)/2 {
				nanos[name] = append(nanos[name], float64(b.time-before[name].time)/float64(runs))
			}
		}
	}
	var figures []Figure
	for _, name := range t.programs {
		if len(nanos[name]) < (rounds+1)/2 {
			return nil, fmt.Errorf("%s did not run", name)
		}
		f := Figure{Figure: name, Shape: t.what, Unit: "ns"}
		f.P25, f.Ratio, f.P75 = quartiles(nanos[name])
		figures = append(figures, f.judged())
	}
	return figures, nil
}
