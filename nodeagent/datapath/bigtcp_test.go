// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
)

func TestDecideSegments(t *testing.T) {
	native := Config{Mode: v1alpha1.RoutingNative, BigTCP: v1alpha1.BigTCPAuto}
	nic := func(tso int) uplink {
		return uplink{device: device{name: "eth0"}, segments: segments{physical: true, tso: tso, gso: 65536, gso4: 65536}}
	}
	virtual := func(v6, v4 int) uplink {
		return uplink{device: device{name: "bond0"}, segments: segments{tso: 524280, gso: v6, gso4: v4}}
	}
	old := uplink{device: device{name: "eth0"}, segments: segments{physical: true, tso: 524280, gso: 65536}}
	both := func(n int) SegmentSize { return SegmentSize{n, n} }
	for name, c := range map[string]struct {
		cfg     Config
		uplinks []uplink
		stack   bool
		want    SegmentSize
		why     string
		err     error
	}{
		"a NIC":                {native, []uplink{nic(524280)}, false, both(196608), "segments of 196608 bytes", nil},
		"a NIC that takes few": {native, []uplink{nic(131072)}, false, both(131072), "131072 bytes", nil},
		"a NIC that takes none": {native, []uplink{nic(65536)}, false, both(65536),
			"the driver of eth0 takes no more than 65536 bytes at once (tso_max_size)", nil},
		"a bond as it is":     {native, []uplink{virtual(65536, 65536)}, false, both(65536), "bond0 hands frames on", nil},
		"a bond half raised":  {native, []uplink{virtual(196608, 65536)}, false, both(65536), "bond0 hands frames on", nil},
		"a bond raised":       {native, []uplink{virtual(196608, 196608)}, false, both(196608), "196608", nil},
		"a bond raised far":   {native, []uplink{virtual(524280, 524280)}, false, both(196608), "196608", nil},
		"one of two takes it": {native, []uplink{nic(524280), virtual(65536, 65536)}, false, both(65536), "bond0", nil},
		"two uplinks":         {native, []uplink{nic(524280), virtual(150000, 160000)}, false, SegmentSize{150000, 65536}, "65536 of IPv6", nil},
		"the stack forwards":  {native, []uplink{nic(524280)}, true, SegmentSize{196608, 65536}, "host's stack", nil},
		"no uplink":           {native, nil, false, both(65536), "there is no uplink", nil},
		"tunnel":              {Config{Mode: v1alpha1.RoutingVXLAN, BigTCP: v1alpha1.BigTCPAuto}, []uplink{nic(524280)}, false, both(65536), "routing.mode is VXLAN", nil},
		"off":                 {Config{Mode: v1alpha1.RoutingNative, BigTCP: v1alpha1.BigTCPOff}, []uplink{nic(524280)}, false, both(65536), "64 KiB", ErrForbidden},
		"an old kernel":       {native, []uplink{old}, false, both(65536), "64 KiB", ErrNotSupported},
	} {
		size, why, err := decideSegments(c.cfg, c.uplinks, c.stack)
		if size != c.want || !strings.Contains(why, c.why) || !errors.Is(err, c.err) || (err != nil) != (c.err != nil) {
			t.Errorf("%s: %v, %q, %v", name, size, why, err)
		}
	}
}

// TestUplinksRaisedAndPutBack: what we raise is written down, and put back when it is no longer wanted, when the device
// is no uplink any longer, and at uninstall; what somebody else raised stays.
func TestUplinksRaisedAndPutBack(t *testing.T) {
	f := newFixture(t)
	forward6(t, false)
	d := f.open()
	cfg := f.config()
	cfg.Mode, cfg.BigTCP = v1alpha1.RoutingNative, v1alpha1.BigTCPAuto
	must(t, d.Configure(t.Context(), cfg))
	says := func(outcome Outcome, text string) {
		t.Helper()
		for _, feature := range d.Features() {
			if feature.Name == "BigTCP" && feature.Outcome == outcome && strings.Contains(feature.Using, text) {
				return
			}
		}
		t.Errorf("no %s %q in %+v", outcome, text, d.Features())
	}
	has := func() SegmentSize {
		t.Helper()
		l, err := netlink.LinkByName(d.Uplinks()[0])
		must(t, err)
		return SegmentSize{int(l.Attrs().GSOIPv4MaxSize), int(l.Attrs().GSOMaxSize)}
	}
	says(Supported, "hands frames on")
	if d.MaxSegment() != OrdinarySegments() {
		t.Fatalf("%v", d.MaxSegment())
	}
	big := SegmentSize{bigSegment, bigSegment}
	link, err := netlink.LinkByName(d.Uplinks()[0])
	must(t, err)
	index := link.Attrs().Index
	must(t, SetSegmentSize(index, big))
	must(t, d.Configure(t.Context(), cfg))
	says(Supported, "segments of 196608 bytes")
	if d.MaxSegment() != big {
		t.Fatalf("%v", d.MaxSegment())
	}
	cfg.BigTCP = v1alpha1.BigTCPOff
	must(t, d.Configure(t.Context(), cfg))
	says(Forbidden, "segments of 64 KiB")
	if has() != big {
		t.Errorf("what somebody else raised is %v now", has())
	}

	// As a physical one.
	uplinks := func() []uplink {
		ups, err := findUplinks(cfg)
		must(t, err)
		for i := range ups {
			ups[i].physical = true
		}
		return ups
	}
	size := func(ups []uplink) {
		t.Helper()
		size, err := d.sizeUplinks(cfg, ups)
		must(t, err)
		must(t, d.setDevices(ups))
		d.raiseUplinks(ups, size)
	}
	cfg.BigTCP = v1alpha1.BigTCPAuto
	for name, back := range map[string]func(){
		"off":       func() { cfg.BigTCP = v1alpha1.BigTCPOff; size(uplinks()); cfg.BigTCP = v1alpha1.BigTCPAuto },
		"no uplink": func() { size(nil) },
		"uninstall": func() { must(t, putUplinksBack(d.opts.folder())) },
	} {
		must(t, SetSegmentSize(index, OrdinarySegments()))
		size(uplinks())
		if has() != big {
			t.Fatalf("%s: raised to %v", name, has())
		}
		var dev bpf.Device
		must(t, d.maps.open[bpf.MapsMapDevices].Lookup(uint32(index), &dev))
		if !raisedByUs(dev) {
			t.Errorf("%s: not written down", name)
		}
		back()
		if has() != OrdinarySegments() {
			t.Errorf("%s: %v is left", name, has())
		}
	}

	// IPv6 alone shrinks, and grows again: the stack forwards it meanwhile, for us or for others.
	must(t, SetSegmentSize(index, OrdinarySegments()))
	for name, forwards := range map[string]func(bool){
		"for us":     func(yes bool) { d.stack = yes },
		"for others": func(yes bool) { forward6(t, yes) },
	} {
		size(uplinks())
		forwards(true)
		size(uplinks())
		says(Supported, "196608 bytes of IPv4, 65536 of IPv6")
		if want := (SegmentSize{bigSegment, ordinarySegment}); has() != want || d.MaxSegment() != want {
			t.Errorf("the stack forwards %s: the uplink has %v, pods are to have %v", name, has(), d.MaxSegment())
		}
		forwards(false)
		size(uplinks())
		if has() != big {
			t.Errorf("the stack no longer forwards %s: %v", name, has())
		}
	}

	// One that cannot be asked refuses.
	gone := uplinks()
	gone[0].index, gone[0].raised = 1<<20, true
	must(t, d.setDevices(gone))
	cfg.BigTCP = v1alpha1.BigTCPOff
	if _, err := d.sizeUplinks(cfg, gone); err != nil {
		t.Errorf("an uplink that refuses: %v", err)
	}
	says(Forbidden, "keeps larger ones")
	if !gone[0].raised {
		t.Error("an uplink that refuses is not tried again")
	}
}

func forward6(t *testing.T, yes bool) {
	t.Helper()
	value := map[bool]string{true: "1", false: "0"}[yes]
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte(value), 0))
}
