// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
)

// tcxOn counts the TCX programs on one side of a device, whoever attached them.
func tcxOn(t testing.TB, ifindex int, at ebpf.AttachType) int {
	t.Helper()
	r, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: at})
	must(t, err)
	return len(r.Programs)
}

// ways says how each hook's stub is on its device: "tcx", "clsact", both or neither.
func ways(t testing.TB, hooks map[bpf.Hook]device) []string {
	t.Helper()
	var out []string
	for hook, dev := range hooks {
		at, _ := side(hook)
		line := hookName(hook) + " " + strings.Repeat("tcx", tcxOn(t, dev.index, at))
		filters, err := ourFilters(hook, dev)
		must(t, err)
		out = append(out, line+strings.Repeat("clsact", len(filters)))
	}
	slices.Sort(out)
	return out
}

func deviceNamed(t testing.TB, name string) device {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return device{name, l.Attrs().Index}
}

// Forbidding TCX at run time, and allowing it again, keeps traffic going; each way takes the other off.
func TestTCXAndClsactTakeTurns(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p, q := f.addPod(d, 5), f.addPod(d, 6)
	letPass(t, d, p, q)
	must(t, d.SetPods([]Pod{p, q}))
	up, over := deviceNamed(t, "up0"), deviceNamed(t, OverlayDevice)
	hooks := map[bpf.Hook]device{
		bpf.MapsHookHOOK_FROM_POD: p.device(), bpf.MapsHookHOOK_TO_POD: p.device(),
		bpf.MapsHookHOOK_FROM_NETDEV: up, bpf.MapsHookHOOK_TO_NETDEV: up,
		bpf.MapsHookHOOK_FROM_OVERLAY: over, bpf.MapsHookHOOK_TO_OVERLAY: over,
	}
	expect := func(way string) {
		t.Helper()
		var want []string
		for hook := range hooks {
			one := way
			if way == "tcx" && slices.Contains(podHooks, hook) {
				one = "clsact"
			}
			want = append(want, hookName(hook)+" "+one)
		}
		slices.Sort(want)
		if got := ways(t, hooks); !slices.Equal(got, want) {
			t.Errorf("attached %v, want %v", got, want)
		}
	}
	expect("tcx")
	running := f.flows(p, q)
	forced := f.config()
	forced.Forbidden = []v1alpha1.KernelFeature{v1alpha1.FeatureTCX}
	for range 3 {
		must(t, d.Configure(t.Context(), forced))
		expect("clsact")
		must(t, d.Configure(t.Context(), f.config()))
		expect("tcx")
	}
	// The kernel stops a device for some milliseconds when it gets its first clsact, and nothing can be done about it:
	// a restart never does this, only a change of the configuration.
	running.goOn(t, enough) // so that what is lost is not among the last
	running.end(t, 200)
	for name, p := range running {
		missing := p.missing()
		if n := len(missing); n > 0 && missing[n-1]+40 > p.sent.Load() {
			t.Errorf("%s does not come back: %d lost, the last number %d of %d", name, n, missing[n-1], p.sent.Load())
		}
	}
	// A restart adopts filters as it adopts links.
	must(t, d.Configure(t.Context(), forced))
	before := filterIDs(t, hooks)
	must(t, d.Close())
	d = f.start(forced)
	letPass(t, d, p, q)
	must(t, d.SetPods([]Pod{p, q}))
	if after := filterIDs(t, hooks); !maps.Equal(before, after) {
		t.Errorf("filters %v, before the restart %v", after, before)
	}
	for _, info := range d.Programs() {
		if info.Name == "from_pod" && (info.Attach != "clsact" || info.Devices != 2) {
			t.Errorf("program %+v", info)
		}
	}
	must(t, d.RemovePod(5))
	must(t, Uninstall(f.opts))
	delete(hooks, bpf.MapsHookHOOK_FROM_OVERLAY) // the device is gone
	delete(hooks, bpf.MapsHookHOOK_TO_OVERLAY)
	expect("")
}

func filterIDs(t testing.TB, hooks map[bpf.Hook]device) map[string]int {
	t.Helper()
	out := map[string]int{}
	for hook, dev := range hooks {
		filters, err := ourFilters(hook, dev)
		must(t, err)
		for _, one := range filters {
			out[hookName(hook)] = one.Id
		}
	}
	return out
}

// A new build's programs take the slots; no link and no stub changes.
func TestOtherConstantsFlipTheSlotsOnly(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p := f.addPod(d, 5)
	letPass(t, d, p)
	must(t, d.SetPods([]Pod{p}))
	q := f.addPod(d, 6)
	letPass(t, d, p, q)
	must(t, d.SetPods([]Pod{p, q}))
	running := f.flows(p, q)
	before := f.ids()
	slots := contents[uint32, uint32](t, d, bpf.MapsMapHooks)
	cfg := f.config()
	cfg.MTU = 1400
	must(t, d.Configure(t.Context(), cfg))
	if d.PodMTU() != 1350 {
		t.Errorf("pod MTU %d, want 1350", d.PodMTU())
	}
	running.end(t, 0)
	after := f.ids()
	for pin, id := range before {
		if strings.HasPrefix(pin, "links/") && !strings.HasSuffix(pin, " program") || strings.HasPrefix(pin, "programs/stub_") {
			if after[pin] != id {
				t.Errorf("%s was %d, is %d", pin, id, after[pin])
			}
		}
	}
	changed := 0
	for slot, id := range contents[uint32, uint32](t, d, bpf.MapsMapHooks) {
		if slots[slot] != id {
			changed++
		}
	}
	if changed == 0 {
		t.Error("no slot changed")
	}
	count := func(pins []string) (n int) {
		for _, pin := range pins {
			if strings.HasPrefix(pin, "programs/") {
				n++
			}
		}
		return n
	}
	if n := count(f.pins()); n != 6+6+8 {
		t.Errorf("%d pinned programs, want one a stub, a slot and a socket hook: %v", n, f.pins())
	}
}

// The way of reporting is one word that running programs read: nothing is loaded, no slot flips, and the generation of
// the verdict tables, which shares the record, stays.
func TestReportingChangesNoProgram(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	var before bpf.Settings
	settings := d.maps.open[bpf.MapsMapLiveSettings]
	must(t, settings.Lookup(uint32(0), &before))
	before.Generation = 7
	must(t, settings.Put(uint32(0), before))
	ids, slots := f.ids(), contents[uint32, uint32](t, d, bpf.MapsMapHooks)
	for _, step := range []struct {
		reporting v1alpha1.FlowReporting
		interval  uint32
	}{
		{v1alpha1.FlowReportingOff, uint32(bpf.MapsReportIntervalREPORT_NOTHING)},
		{v1alpha1.FlowReportingEveryPacket, uint32(bpf.MapsReportIntervalREPORT_EVERY_PACKET)},
		{v1alpha1.FlowReportingDefault, reportTicks},
	} {
		cfg := f.config()
		cfg.FlowReporting = step.reporting
		must(t, d.Configure(t.Context(), cfg))
		var s bpf.Settings
		must(t, settings.Lookup(uint32(0), &s))
		if s.ReportInterval != step.interval || s.Generation != 7 {
			t.Errorf("%s: %+v", step.reporting, s)
		}
	}
	if after := f.ids(); !maps.Equal(ids, after) {
		t.Errorf("objects were\n%v, are\n%v", ids, after)
	}
	if after := contents[uint32, uint32](t, d, bpf.MapsMapHooks); !maps.Equal(slots, after) {
		t.Errorf("slots were %v, are %v", slots, after)
	}
}

// Another build's stub gives way in place: the link stays, and nothing is lost.
func TestAnotherBuildsStub(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p, q := f.addPod(d, 5), f.addPod(d, 6)
	letPass(t, d, p, q)
	must(t, d.SetPods([]Pod{p, q}))
	before := f.ids()
	running := f.flows(p, q)
	must(t, d.Close())
	folder := filepath.Join(f.opts.folder(), "programs")
	entries, err := os.ReadDir(folder)
	must(t, err)
	for _, e := range entries { // as if the same stubs had another hash
		if strings.HasPrefix(e.Name(), "stub_") {
			must(t, os.Rename(filepath.Join(folder, e.Name()), filepath.Join(folder, e.Name()[:len(e.Name())-16]+"0123456789abcdef")))
		}
	}
	d = f.start(f.config())
	letPass(t, d, p, q)
	must(t, d.SetPods([]Pod{p, q}))
	running.end(t, 0)
	after := f.ids()
	for pin, id := range before {
		switch {
		case strings.HasSuffix(pin, " program") && strings.Contains(pin, "netdev"):
			if after[pin] == id {
				t.Errorf("%s is the old one", pin)
			}
		case strings.HasPrefix(pin, "links/from_"), strings.HasPrefix(pin, "links/to_"):
			if !strings.HasSuffix(pin, " program") && after[pin] != id {
				t.Errorf("%s was %d, is %d", pin, id, after[pin])
			}
		}
	}
	for pin := range after {
		if strings.HasSuffix(pin, "0123456789abcdef") {
			t.Errorf("%s is left", pin)
		}
	}
}

// A renamed uplink is not attached to twice.
func TestRenamedUplink(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	up := deviceNamed(t, "up0")
	l, err := netlink.LinkByName("up0")
	must(t, err)
	must(t, netlink.LinkSetName(l, "wan.7"))
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("wan.7"); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	must(t, d.refresh(t.Context()))
	if n := tcxOn(t, up.index, ebpf.AttachTCXIngress); n != 1 {
		t.Errorf("%d programs on the renamed device", n)
	}
	pins := f.pins()
	if !slices.Contains(pins, "links/from_netdev_wan%2e7") || slices.Contains(pins, "links/from_netdev_up0") {
		t.Errorf("pins %v", pins)
	}
}

// Somebody else's TCX program on the uplink stays, through everything.
func TestOthersProgramsStay(t *testing.T) {
	f := newFixture(t)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	must(t, err)
	defer prog.Close()
	up := deviceNamed(t, "up0")
	l, err := link.AttachTCX(link.TCXOptions{Interface: up.index, Program: prog, Attach: ebpf.AttachTCXIngress})
	must(t, err)
	defer l.Close()
	d := f.start(f.config())
	if n := tcxOn(t, up.index, ebpf.AttachTCXIngress); n != 2 {
		t.Errorf("%d programs, want theirs and ours", n)
	}
	must(t, d.Close())
	must(t, Uninstall(f.opts))
	if n := tcxOn(t, up.index, ebpf.AttachTCXIngress); n != 1 {
		t.Errorf("%d programs, want theirs", n)
	}
}

// Whoever takes the filters off a pod's interface has them back at once.
func TestFiltersComeBack(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p := f.addPod(d, 5)
	letPass(t, d, p)
	must(t, d.SetPods([]Pod{p}))
	hooks := map[bpf.Hook]device{bpf.MapsHookHOOK_FROM_POD: p.device(), bpf.MapsHookHOOK_TO_POD: p.device()}
	back := func() bool { return slices.Equal(ways(t, hooks), []string{"from_pod clsact", "to_pod clsact"}) }
	must(t, d.CheckPod(p))
	must(t, netlink.QdiscDel(clsactOn(p.device())))
	if err := d.CheckPod(p); !errors.Is(err, ErrPodDiffers) {
		t.Errorf("want ErrPodDiffers, got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	defer func() {
		cancel()
		must(t, <-done)
	}()
	eventually(t, "what was taken off before Run began is not back", back)
	must(t, netlink.QdiscDel(clsactOn(p.device())))
	eventually(t, "what was taken off while Run goes on is not back", back)
	must(t, d.CheckPod(p))
}

// Uplinks that come, go and change are taken up while the agent runs.
func TestHotPlug(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	cfg.Devices = []string{"up*"}
	d := f.start(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	defer func() {
		cancel()
		must(t, <-done)
	}()
	eventually := func(what string, want []string) {
		t.Helper()
		for range 100 {
			if slices.Equal(d.Uplinks(), want) {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("%s: uplinks %v, want %v", what, d.Uplinks(), want)
	}
	eventually("start", []string{"up0"})
	f.veth("up1", "eth1", f.outside, nil, nil)
	eventually("plugged", []string{"up0", "up1"})
	for range 200 {
		if d.Health() == nil && len(contents[uint32, bpf.Device](t, d, bpf.MapsMapDevices)) == 2 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if n := tcxOn(t, deviceNamed(t, "up1").index, ebpf.AttachTCXEgress); n != 1 {
		t.Errorf("%d programs on the new uplink", n)
	}
	l, err := netlink.LinkByName("up1")
	must(t, err)
	must(t, netlink.LinkSetMTU(l, 1300))
	for range 100 {
		if d.PodMTU() == 1250 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if d.PodMTU() != 1250 {
		t.Errorf("pod MTU %d, want 1250", d.PodMTU())
	}
	must(t, netlink.LinkDel(l))
	eventually("pulled", []string{"up0"})
	for range 200 {
		if _, err := os.Lstat(filepath.Join(f.opts.folder(), "links", "from_netdev_up1")); errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("pins of the device that is gone are left: %v", f.pins())
}

func TestBondMasterIsTheUplink(t *testing.T) {
	f := newFixture(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	br, err := netlink.LinkByName("br0")
	must(t, err)
	t.Cleanup(func() { _ = netlink.LinkDel(br) })
	up, err := netlink.LinkByName("up0")
	must(t, err)
	must(t, netlink.LinkSetMaster(up, br)) // the address is still on the port: only the default route says up0
	got, err := findUplinks(f.config())
	must(t, err)
	if len(got) != 1 || got[0].name != "br0" {
		t.Errorf("uplinks %v, want br0", got)
	}
}

// An MTU that an uplink does not take was accepted without a word, and connections stood still with the first large packet.
func TestMTUBeyondAnUplinkIsSaid(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	cfg.MTU = 9000
	d := f.start(cfg)
	if err := d.Health(); err == nil || !strings.Contains(err.Error(), "mtu is 9000, and up0 takes 1500: larger packets are lost there (set spec.mtu to at most 1500, or to 0)") {
		t.Errorf("health: %v", err)
	}
	for _, fits := range []int{0, 1500} {
		cfg.MTU = fits
		must(t, d.Configure(t.Context(), cfg))
		if err := d.Health(); err != nil {
			t.Errorf("mtu %d: %v", fits, err)
		}
	}
}

func TestNoUplinkIsSaid(t *testing.T) {
	f := newFixture(t)
	l, err := netlink.LinkByName("up0")
	must(t, err)
	must(t, netlink.LinkDel(l))
	d := f.open()
	if err := d.Configure(t.Context(), f.config()); !errors.Is(err, ErrNoUplink) {
		t.Fatalf("want ErrNoUplink, got %v", err)
	}
	named := f.config()
	named.Devices = []string{"nosuch0"}
	if err := d.Configure(t.Context(), named); !errors.Is(err, ErrNoUplink) || !strings.Contains(err.Error(), "devices are nosuch0") {
		t.Errorf("devices that are not there: %v", err)
	}
	p := f.addPod(d, 9) // pods of this node are served all the same
	f.echo(f.pods[9], netip.AddrPortFrom(p.IPv4, 7000))
	must(t, d.SetHostAddresses([]netip.Addr{node4}))
	f.address("lo", node4, 32)
	defer func() {
		lo, _ := netlink.LinkByName("lo")
		_ = netlink.AddrDel(lo, &netlink.Addr{IPNet: ipNet(hostPrefix(node4))})
	}()
	f.reach(-1, netip.AddrPortFrom(p.IPv4, 7000))
}

func TestOverlayDevice(t *testing.T) {
	f := newFixture(t)
	foreign := func(port int) netlink.Link {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "theirs"
		must(t, netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 7, Port: port}))
		l, err := netlink.LinkByName("theirs")
		must(t, err)
		return l
	}
	d := f.open()
	theirs := foreign(8472)
	err := d.Configure(t.Context(), f.config())
	if !errors.Is(err, ErrTunnelPortTaken) || !strings.Contains(err.Error(), "theirs") {
		t.Fatalf("want ErrTunnelPortTaken naming the device, got %v", err)
	}
	must(t, netlink.LinkDel(theirs))
	must(t, d.Configure(t.Context(), f.config()))
	first := deviceNamed(t, OverlayDevice)
	// What can be changed is changed in place; a port cannot.
	l, err := netlink.LinkByName(OverlayDevice)
	must(t, err)
	must(t, netlink.LinkSetMTU(l, 1280))
	must(t, netlink.LinkSetARPOn(l))
	must(t, netlink.LinkSetDown(l))
	must(t, d.refresh(t.Context()))
	l, err = netlink.LinkByName(OverlayDevice)
	must(t, err)
	v := l.(*netlink.Vxlan)
	if v.Index != first.index || v.MTU != 1500 || v.RawFlags&unix.IFF_NOARP == 0 || v.RawFlags&unix.IFF_UP == 0 || v.Learning {
		t.Errorf("overlay device %+v", v)
	}
	cfg := f.config()
	cfg.TunnelPort = 4789
	must(t, d.Configure(t.Context(), cfg))
	if again := deviceNamed(t, OverlayDevice); again.index == first.index {
		t.Error("the device has another port but is the same")
	}
	if n := tcxOn(t, deviceNamed(t, OverlayDevice).index, ebpf.AttachTCXIngress); n != 1 {
		t.Errorf("%d programs on the new device", n)
	}
	cfg.Mode = v1alpha1.RoutingNative
	must(t, d.Configure(t.Context(), cfg))
	if _, err := netlink.LinkByName(OverlayDevice); err == nil {
		t.Error("the device is there in native routing")
	}
	for _, pin := range f.pins() {
		if strings.Contains(pin, OverlayDevice) {
			t.Errorf("pin %s is left", pin)
		}
	}
}

func TestUninstallLeavesNothing(t *testing.T) {
	f := newFixture(t)
	sysctl := func() string {
		b, _ := os.ReadFile("/proc/sys/net/ipv4/conf/all/route_localnet")
		return strings.TrimSpace(string(b))
	}
	d := f.start(f.config())
	p := f.addPod(d, 11)
	must(t, d.SetRoutes([]Route{{Prefix: netip.MustParsePrefix("10.78.1.0/24")}}))
	must(t, d.Close())
	must(t, Uninstall(f.opts))
	must(t, Uninstall(f.opts)) // twice is no error
	if _, err := os.Stat(f.opts.folder()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins are left: %v", f.pins())
	}
	if got := ourRoutesText(t); len(got) != 0 {
		t.Errorf("routes are left: %v", got)
	}
	links, err := linkList()
	must(t, err)
	for _, l := range links {
		if l.Attrs().Name == OverlayDevice {
			t.Error("the overlay device is left")
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			if n := tcxOn(t, l.Attrs().Index, at); n != 0 {
				t.Errorf("%d programs are left on %s", n, l.Attrs().Name)
			}
		}
		neighbours, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_V4)
		must(t, err)
		for _, n := range neighbours {
			if n.State == netlink.NUD_PERMANENT {
				t.Errorf("neighbour %s is left", n.IP)
			}
		}
	}
	cg, err := os.Open(f.opts.CgroupRoot)
	must(t, err)
	defer cg.Close()
	for name, at := range bpf.SocketPrograms() {
		r, err := link.QueryPrograms(link.QueryOptions{Target: int(cg.Fd()), Attach: at})
		must(t, err)
		if len(r.Programs) != 0 {
			t.Errorf("%s is left on the cgroup", name)
		}
	}
	if sysctl() != "0" {
		t.Error("route_localnet is set")
	}
	if _, err := netlink.LinkByName(p.Interface); err != nil {
		t.Errorf("the pod's interface went too: %v", err)
	}
}
