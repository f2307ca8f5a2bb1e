// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
)

const fromPod = bpf.MapsHookHOOK_FROM_POD

var (
	moved   = []string{"from_pod tcx", "to_pod clsact"}
	unmoved = []string{"from_pod clsact", "to_pod clsact"}
)

func podWays(t testing.TB, p Pod) []string {
	t.Helper()
	return ways(t, map[bpf.Hook]device{fromPod: p.device(), bpf.MapsHookHOOK_TO_POD: p.device()})
}

// run runs the datapath, with pods that move over soon, until what is returned is called.
func (f *fixture) run(d *Datapath) (stop func()) {
	f.t.Helper()
	d.churn.calm = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	return func() {
		cancel()
		must(f.t, <-done)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 200 {
		if ok() {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatal(what)
}

// restart is the next agent's start, with the same pods.
func (f *fixture) restart(d *Datapath, cfg Config, pods ...Pod) *Datapath {
	f.t.Helper()
	must(f.t, d.Close())
	d = f.open()
	must(f.t, d.SetHostAddresses([]netip.Addr{node4, node6}))
	letPass(f.t, d, pods...)
	must(f.t, d.SetPods(pods))
	must(f.t, d.Configure(f.t.Context(), cfg))
	return d
}

// toStack counts what one hook gave to the host's stack.
func toStack(t testing.TB, d *Datapath, hook bpf.Hook) uint64 {
	t.Helper()
	all, err := d.Counters()
	must(t, err)
	for _, c := range all {
		if c.Hook == hook && c.Reason == bpf.MapsReasonFORWARD_TO_STACK {
			return c.Packets
		}
	}
	return 0
}

// A pod begins with filters; when it is calm what it sends moves over to a link, and back when that is forbidden. Of
// traffic at a thousand packets a second nothing is lost, and nothing judged twice.
func TestPodsMoveToLinksWhenItIsCalm(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	forced := f.config()
	forced.Forbidden = []v1alpha1.KernelFeature{v1alpha1.FeatureTCX}
	must(t, d.Configure(t.Context(), forced)) // the uplink gets its clsact before anything is counted
	must(t, d.Configure(t.Context(), f.config()))
	p, q := f.addPod(d, 191), f.addPod(d, 192)
	running := f.flows(p, q)
	if got := podWays(t, p); !slices.Equal(got, unmoved) {
		t.Errorf("after ADD: %v", got)
	}
	stop := f.run(d)
	over := func() bool { return slices.Equal(podWays(t, p), moved) && slices.Equal(podWays(t, q), moved) }
	eventually(t, "the pods do not move over", over)
	must(t, d.CheckPod(p))
	for _, info := range d.Programs() {
		if info.Name == "from_pod" && (info.Attach != tcx || info.Devices != 2) {
			t.Errorf("program %+v", info)
		}
	}
	// One more comes: the others stay where they are.
	d.churn.mu.Lock()
	d.churn.calm = time.Hour
	d.churn.mu.Unlock()
	r := f.addPod(d, 193)
	for _, info := range d.Programs() {
		if info.Name == "from_pod" && (info.Attach != "clsact, tcx" || info.Devices != 3) {
			t.Errorf("program %+v", info)
		}
	}
	stop()
	// A restart keeps what there is.
	before := f.ids()
	d = f.restart(d, f.config(), p, q, r)
	after := f.ids()
	for _, pin := range []string{"links/from_pod_" + p.Interface, "links/from_pod_" + q.Interface} {
		if before[pin] == 0 || after[pin] != before[pin] || after[pin+" program"] != before[pin+" program"] {
			t.Errorf("%s was %d, is %d", pin, before[pin], after[pin])
		}
	}
	if !over() || !slices.Equal(podWays(t, r), unmoved) {
		t.Errorf("after a restart: %v, %v, %v", podWays(t, p), podWays(t, q), podWays(t, r))
	}
	// There and back.
	must(t, d.Configure(t.Context(), forced))
	if got := podWays(t, p); !slices.Equal(got, unmoved) {
		t.Errorf("forbidden: %v", got)
	}
	stop = f.run(d)
	must(t, d.Configure(t.Context(), f.config()))
	eventually(t, "the pods do not move over again", over)
	stop()
	running.end(t, 0)
	must(t, d.RemovePod(192))
	if pins := f.pins(); slices.Contains(pins, "links/from_pod_"+q.Interface) {
		t.Errorf("pins %v", pins)
	}
	must(t, Uninstall(f.opts))
	if got := podWays(t, p); !slices.Equal(got, []string{"from_pod ", "to_pod "}) {
		t.Errorf("after uninstall: %v", got)
	}
}

// Whichever step the agent died after, the next one ends with one attachment, and no packet is lost or judged twice.
func TestDeathBetweenFilterAndLink(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p := f.addPod(d, 194)
	f.in(f.pods[194], func() { // what IPv6 says unasked would be counted too
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0); err != nil {
			t.Error(err)
		}
	})
	f.echo(-1, netip.AddrPortFrom(node4, 7000))
	f.reach(f.pods[194], netip.AddrPortFrom(node4, 7000))
	judged := toStack(t, d, fromPod)
	running := traffic{"pod to host": f.probe(f.pods[194], netip.AddrPortFrom(node4, 7000))}
	rows := []struct {
		name string
		make func(h handover)
	}{
		{"clear, stub", func(h handover) { must(t, d.attach.putLink(fromPod, p.device(), h.clear)) }},
		{"clear, guard", func(h handover) {
			must(t, d.attach.putLink(fromPod, p.device(), h.clear))
			must(t, d.attach.putFilter(fromPod, p.device(), h.guard))
		}},
		{"mark, guard", func(handover) { must(t, d.attach.beginLink(fromPod, p.device())) }},
		{"mark", func(handover) {
			must(t, d.attach.beginLink(fromPod, p.device()))
			must(t, waitForPrograms())
			must(t, d.attach.detachFilter(fromPod, p.device()))
		}},
	}
	expect := func(row, next string, want []string) {
		t.Helper()
		if got := podWays(t, p); !slices.Equal(got, want) {
			t.Errorf("%s, %s: %v, want %v", row, next, got, want)
		}
	}
	for _, row := range rows {
		h, err := d.attach.progs.handoverOf(fromPod)
		must(t, err)
		row.make(h)
		must(t, d.CheckPod(p))
		d = f.restart(d, f.config(), p)
		expect(row.name, "and a start", moved)
		must(t, d.attach.toFilter(fromPod, p.device()))
		expect(row.name, "and back", unmoved)
		h, err = d.attach.progs.handoverOf(fromPod)
		must(t, err)
		row.make(h)
		must(t, d.attach.toFilter(fromPod, p.device()))
		expect(row.name, "and a start with TCX forbidden", unmoved)
	}
	running.end(t, 0)
	if judged, sent := toStack(t, d, fromPod)-judged, running["pod to host"].sent.Load(); judged != sent {
		t.Errorf("%d packets sent, %d judged", sent, judged)
	}
}

// A pod that goes while it moves over leaves nothing behind, and nobody waits for it.
func TestPodGoesWhileItMoves(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p, q := f.addPod(d, 195), f.addPod(d, 196)
	must(t, d.attach.beginLink(fromPod, p.device()))
	must(t, netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: p.Ifindex}}))
	if _, _, err := d.movePod(t.Context(), p); err == nil {
		t.Log("the interface was there still")
	}
	must(t, d.RemovePod(195))
	if _, _, err := d.movePod(t.Context(), p); err != nil {
		t.Errorf("a pod that is gone: %v", err)
	}
	if pins := f.pins(); slices.ContainsFunc(pins, func(s string) bool { return strings.HasPrefix(s, "links/from_pod_") }) {
		t.Errorf("pins %v", pins)
	}
	// With its interface still there; and it comes again.
	must(t, d.attach.beginLink(fromPod, q.device()))
	must(t, d.RemovePod(196))
	if got := podWays(t, q); !slices.Equal(got, []string{"from_pod ", "to_pod "}) {
		t.Errorf("removed: %v", got)
	}
	letPass(t, d, q)
	must(t, d.AddPod(q))
	must(t, d.AddPod(q))
	if got := podWays(t, q); !slices.Equal(got, unmoved) {
		t.Errorf("added again: %v", got)
	}
	_, _, err := d.movePod(t.Context(), q)
	must(t, err)
	must(t, d.AddPod(q)) // once more, when it has moved
	if got := podWays(t, q); !slices.Equal(got, moved) {
		t.Errorf("added when it had moved: %v", got)
	}
	// Another interface of the same name finds the pin of the one before.
	must(t, netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: q.Ifindex}}))
	if _, err := os.Lstat(filepath.Join(f.opts.folder(), "links", "from_pod_"+q.Interface)); err != nil {
		t.Error(err)
	}
	q.Ifindex = f.veth(q.Interface, "eth0", f.pods[196], q.HostMAC, q.MAC)
	must(t, d.AddPod(q))
	if got := podWays(t, q); !slices.Equal(got, unmoved) {
		t.Errorf("another interface of the same name: %v", got)
	}
	_, _, err = d.movePod(t.Context(), q)
	must(t, err)
	if got := podWays(t, q); !slices.Equal(got, moved) {
		t.Errorf("moved: %v", got)
	}
}

// Whoever takes the qdisc off a pod that has moved opens nothing: what it sends goes on being judged.
func TestQdiscTakenFromAPodThatMoved(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p := f.addPod(d, 197)
	stop := f.run(d)
	defer stop()
	eventually(t, "the pod does not move over", func() bool { return slices.Equal(podWays(t, p), moved) })
	must(t, netlink.QdiscDel(clsactOn(p.device())))
	if n := tcxOn(t, p.Ifindex, ebpf.AttachTCXIngress); n != 1 {
		t.Errorf("%d programs", n)
	}
	eventually(t, "the other filter does not come back", func() bool { return slices.Equal(podWays(t, p), moved) })
}
