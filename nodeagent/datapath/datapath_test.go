// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netns"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
)

// ids gives the kernel's number of everything that is pinned.
func (f *fixture) ids() map[string]uint32 {
	f.t.Helper()
	out := map[string]uint32{}
	for _, pin := range f.pins() {
		path := filepath.Join(f.opts.folder(), pin)
		switch dir := filepath.Dir(pin); dir {
		case "links":
			l, err := link.LoadPinnedLink(path, nil)
			must(f.t, err)
			info, err := l.Info()
			must(f.t, err)
			out[pin] = uint32(info.ID)
			out[pin+" program"] = uint32(info.Program)
			l.Close()
		case "programs":
			p, err := ebpf.LoadPinnedProgram(path, nil)
			must(f.t, err)
			info, err := p.Info()
			must(f.t, err)
			id, _ := info.ID()
			out[pin] = uint32(id)
			p.Close()
		default:
			m, err := ebpf.LoadPinnedMap(path, nil)
			must(f.t, err)
			info, err := m.Info()
			must(f.t, err)
			id, _ := info.ID()
			out[pin] = uint32(id)
			m.Close()
		}
	}
	return out
}

// An agent that starts again adopts maps, programs and links, and no packet is lost meanwhile.
func TestRestartChangesNothing_CVE_2023_27595(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p, q := f.addPod(d, 7), f.addPod(d, 8)
	letPass(t, d, p, q)
	must(t, d.SetPods([]Pod{p, q}))
	running := f.flows(p, q)
	podFilters := map[bpf.Hook]device{bpf.MapsHookHOOK_FROM_POD: p.device(), bpf.MapsHookHOOK_TO_POD: p.device()}
	before, filters := f.ids(), filterIDs(t, podFilters)
	for range 3 {
		must(t, d.Close())
		d = f.start(f.config())
		letPass(t, d, p, q)
		must(t, d.SetPods([]Pod{p, q}))
	}
	running.end(t, 0)
	if after := filterIDs(t, podFilters); len(filters) != 2 || !maps.Equal(filters, after) {
		t.Errorf("restart changed filters: before %v after %v", filters, after)
	}
	if after := f.ids(); !maps.Equal(before, after) {
		t.Errorf("restart changed kernel objects:\nbefore %v\nafter  %v", before, after)
	}
	for _, want := range []string{"links/from_netdev_up0",
		"links/to_netdev_up0", "links/from_overlay_kc_vxlan", "links/to_overlay_kc_vxlan", "links/connect4", "links/getpeername6"} {
		if _, ok := before[want]; !ok {
			t.Errorf("no pin %s in %v", want, before)
		}
	}
	if t.Failed() {
		counters, _ := d.Counters()
		t.Log(fmt.Sprint(counters))
		t.Log(strings.Join(f.pins(), "\n"))
	}
}

// A constant that a program has and the agent does not set would silently be what its file says.
func TestEveryConstantIsSet(t *testing.T) {
	d := assemble(Options{}, &kernel{known: map[v1alpha1.KernelFeature]error{}}, &mapSet{})
	for _, p := range probes() {
		d.kernel.known[p.name] = nil
	}
	consts, err := d.constants(Config{Mode: v1alpha1.RoutingVXLAN})
	must(t, err)
	used := map[string]bool{}
	loads := map[string]func() (*ebpf.CollectionSpec, error){"sock": bpf.LoadSock}
	for _, p := range bpf.DevicePrograms() {
		loads[p.Name] = p.Load
	}
	for name, load := range loads {
		spec, err := load()
		must(t, err)
		for v, s := range spec.Variables {
			if !s.Constant() {
				continue
			}
			used[v] = true
			value, ok := consts[v]
			if !ok {
				t.Errorf("%s: constant %s is not set", name, v)
				continue
			}
			if err := s.Set(value); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for v := range consts {
		if !used[v] {
			t.Errorf("no program has a constant %s", v)
		}
	}
}

// An array has all its entries from the beginning: the report showed metrics and settings as full.
func TestArraysAreNotReportedAsFull(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	_, err := d.collect(t.Context())
	must(t, err)
	for _, m := range d.Maps() {
		kind := d.maps.open[m.Name].Type()
		// An array too, but its places are counted.
		fillless := m.Name != bpf.MapsMapYoung && (kind == ebpf.Array || kind == ebpf.PerCPUArray || kind == ebpf.RingBuf)
		if fillless != (m.Entries == -1) {
			t.Errorf("%s (%s): %d entries of %d", m.Name, kind, m.Entries, m.MaxEntries)
		}
		if m.MaxEntries <= 0 || m.Bytes <= 0 && m.Entries != 0 { // an empty trie takes nothing
			t.Errorf("%s: %+v", m.Name, m)
		}
	}
}

// cilium #30609: a node whose agent stopped lost all its network. Neither pods nor the host need a
// live agent, for old flows or new ones.
func TestTrafficNeedsNoAgent_30609(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p, q := f.addPod(d, 7), f.addPod(d, 8)
	letPass(t, d, p, q)
	must(t, d.SetPods([]Pod{p, q}))
	running := f.flows(p, q)
	for _, ip := range []netip.Addr{outside4, outside6} {
		f.reach(-1, netip.AddrPortFrom(ip, 7000))
		running["host to world "+ip.String()] = f.probe(-1, netip.AddrPortFrom(ip, 7000))
	}
	must(t, d.Close())
	running.goOn(t, 10*enough) // half a second of each: what was closed is taken apart some grace periods later
	for _, to := range []struct {
		from netns.NsHandle
		ip   netip.Addr
	}{{-1, outside4}, {-1, outside6}, {-1, p.IPv4}, {-1, q.IPv6}, {f.pods[p.ID], q.IPv4}, {f.pods[q.ID], outside4}, {f.outside, node4}} {
		f.reach(to.from, netip.AddrPortFrom(to.ip, 7000))
	}
	running.end(t, 0)
}

// CVE-2020-8558; CVE-2020-10749, CVE-2020-11091, CVE-2020-13597: neighbours reached the
// node's loopback, and pods' router advertisements made its routes.
func TestHostEndsListenToNoRouters_CVE_2020_13597(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p := f.addPod(d, 9)
	for path, want := range map[string]string{
		"ipv6/conf/" + p.Interface + "/accept_ra":      "0",
		"ipv6/conf/" + OverlayDevice + "/accept_ra":    "0",
		"ipv4/conf/" + p.Interface + "/route_localnet": "0",
		"ipv4/conf/all/route_localnet":                 "0",
		"ipv4/conf/up0/route_localnet":                 "0",
	} {
		if got, err := d.sysctl.read(path); err != nil || got != want {
			t.Errorf("%s is %q, want %s: %v", path, got, want, err)
		}
	}
}
