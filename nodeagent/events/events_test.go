// SPDX-License-Identifier: Apache-2.0

package events

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"github.com/go-logr/logr"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// needRoot skips where the test cannot run, and fails instead where it was promised that it can.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("KUBE_CILIUM_TEST_ROOT") == "1" {
		t.Fatal("needs root, and KUBE_CILIUM_TEST_ROOT=1 promised it")
	}
	t.Skip("needs root: loads a program and a map")
}

// netOrder is how a __be16 looks when it is read as a number on this machine.
func netOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

func sample() bpf.Event {
	return bpf.Event{
		Time: 5e9, Type: uint8(bpf.MapsEventTypeEVENT_DROP), Reason: uint8(bpf.MapsReasonDROP_POLICY),
		Hook: uint8(bpf.MapsHookHOOK_TO_POD), Flags: uint8(bpf.MapsEventFlagsEVENT_DIRECTION_KNOWN | bpf.MapsEventFlagsEVENT_INGRESS | bpf.MapsEventFlagsEVENT_TRANSLATED | bpf.MapsEventFlagsEVENT_FIRST),
		Proto: 6, TcpFlags: 2,
		Saddr: bpf.AddrFrom(netip.MustParseAddr("10.0.0.1")), Daddr: bpf.AddrFrom(netip.MustParseAddr("2001:db8::2")),
		XlateAddr: bpf.AddrFrom(netip.MustParseAddr("192.0.2.3")), XlatePort: netOrder(4000),
		Sport: netOrder(40000), Dport: netOrder(443), Endpoint: 17, SrcIdentity: 300, DstIdentity: 2, Ifindex: 1, Length: 60, Rules: [2]uint32{1: 9},
	}
}

func raw(e bpf.Event) []byte {
	return append([]byte(nil), (*[RecordSize]byte)(unsafe.Pointer(&e))[:]...)
}

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		name   string
		mutate func(*bpf.Event)
		cut    int
		want   error
	}{
		{name: "a drop"},
		{name: "empty", cut: RecordSize, want: ErrShort},
		{name: "one byte missing", cut: 1, want: ErrShort},
		{name: "longer, from a newer program", cut: -8},
		{name: "type 0", mutate: func(e *bpf.Event) { e.Type = 0 }, want: ErrRange},
		{name: "type past the last", mutate: func(e *bpf.Event) { e.Type = 4 }, want: ErrRange},
		{name: "hook past the last", mutate: func(e *bpf.Event) { e.Hook = uint8(bpf.MapsHookHOOK_MAX) }, want: ErrRange},
		{name: "reason without a name", mutate: func(e *bpf.Event) { e.Reason = 131 }, want: ErrRange},
		{name: "a drop that was forwarded", mutate: func(e *bpf.Event) { e.Reason = 1 }, want: ErrRange},
		{name: "a trace that was dropped", mutate: func(e *bpf.Event) { e.Type = 2 }, want: ErrRange},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := sample()
			if tt.mutate != nil {
				tt.mutate(&e)
			}
			b := append(raw(e), make([]byte, 8)...)
			got, err := Decode(b[:RecordSize-tt.cut])
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if err == nil && got != e {
				t.Errorf("got %+v\nwant %+v", got, e)
			}
		})
	}
}

func TestEventFields(t *testing.T) {
	e := sample()
	boot := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got := Event(&e, boot, "eth0")
	if want := boot.Add(5 * time.Second); !got.Time.Equal(want) {
		t.Errorf("time %v, want %v", got.Time, want)
	}
	if got.Source.Port != 40000 || got.Destination.Port != 443 || got.Translated != netip.MustParseAddrPort("192.0.2.3:4000") {
		t.Errorf("ports %d %d %v", got.Source.Port, got.Destination.Port, got.Translated)
	}
	if got.Reply == nil || *got.Reply || !got.Ingress || got.Fragment || got.Tunnel || !got.First {
		t.Errorf("flags of %+v", got)
	}
	if got.Source.Address != netip.MustParseAddr("10.0.0.1") || got.Interface != "eth0" {
		t.Errorf("got %+v", got)
	}
	// The answer to a masqueraded connection goes to the pod: told of as to the node, nobody who looks for the pod found it.
	e.Hook = uint8(bpf.MapsHookHOOK_FROM_NETDEV)
	got = Event(&e, boot, "eth0")
	if got.Destination.Address != netip.MustParseAddr("192.0.2.3") || got.Destination.Port != 4000 ||
		got.Translated != netip.MustParseAddrPort("[2001:db8::2]:443") || got.Source.Address != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("got %+v", got)
	}
	if ip := flow.Hubble(&got, nil).GetIP(); ip.GetDestination() != "192.0.2.3" || ip.GetSourceXlated() != "" {
		t.Errorf("got %+v", ip)
	}
	e.Time, e.Ifindex, e.Flags = 1<<64-1, 7, 0
	if got = Event(&e, boot, ""); got.Interface != "if7" || got.Reply != nil || got.Translated.IsValid() {
		t.Errorf("got %+v", got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(raw(sample()))
	f.Add([]byte{})
	f.Add(make([]byte, RecordSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrShort) && !errors.Is(err, ErrRange) {
				t.Fatal(err)
			}
			return
		}
		p := flow.Printer{Out: discard{}, Node: true}
		if err := p.Print(Event(&e, time.Now(), "")); err != nil {
			t.Fatal(err)
		}
		p.Format = flow.JSON
		if err := p.Print(Event(&e, time.Now(), "")); err != nil {
			t.Fatal(err)
		}
	})
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// bare is a Reader without a ring, for what happens behind it.
func bare(t *testing.T) *Reader {
	names, err := newInterfaceNames()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(names.close)
	return &Reader{names: names, clock: new(clock), log: logr.Discard(), subscribers: map[*Subscription]struct{}{}}
}

func numbered(n int) []byte {
	e := sample()
	e.Rules[1] = uint32(n)
	return raw(e)
}

func TestSlowSubscriberLosesAndOthersDoNot(t *testing.T) {
	r := bare(t)
	_, slow := r.Subscribe(0, 2)
	_, fast := r.Subscribe(0, 100)
	for i := range 10 {
		r.take(numbered(i))
	}
	if got := slow.TakeLost(); got != 8 {
		t.Errorf("slow lost %d, want 8", got)
	}
	if got := fast.TakeLost(); got != 0 || len(fast.C()) != 10 {
		t.Errorf("fast lost %d and holds %d", got, len(fast.C()))
	}
	r.take([]byte("short"))
	bad := sample()
	bad.Type = 77
	r.take(raw(bad))
	if got, want := r.Stats(), (Stats{Received: 12, Short: 1, OutOfRange: 1, Lost: 8}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
	slow.Close()
	slow.Close()
	r.take(numbered(11))
}

func TestHistoryGoesRound(t *testing.T) {
	r := bare(t)
	for i := range History + 10 {
		r.take(numbered(i))
	}
	past, _ := r.Subscribe(3, 1)
	if len(past) != 3 || past[0].Rules[1] != History+7 || past[2].Rules[1] != History+9 {
		t.Errorf("last three %+v", past)
	}
	past, _ = r.Subscribe(1<<30, 1)
	if len(past) != History || past[0].Rules[1] != 10 {
		t.Errorf("%d events from %d on", len(past), past[0].Rules[1])
	}
}

// ruleTwo knows one rule and nobody's name.
type ruleTwo struct{ flow.Names }

func (ruleTwo) Rule(id uint32) (policy.Provenance, bool) {
	ref := policy.Ref{Kind: policy.KindNetworkPolicy, Namespace: "shop", Name: "web"}
	return policy.Provenance{Default: true, Verdict: policy.Deny, Direction: policy.Ingress, Origins: []policy.Origin{{Ref: ref}}}, id == 2
}

func TestSocket(t *testing.T) {
	r := bare(t)
	r.Attach(ruleTwo{})
	path := filepath.Join(t.TempDir(), "run", "events.sock")
	if err := Read(t.Context(), path, Request{}, nil); !errors.Is(err, ErrAgentAway) {
		t.Errorf("without a server: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	if err := Read(t.Context(), path, Request{}, nil); !errors.Is(err, ErrAgentAway) {
		t.Errorf("behind a dead server's socket: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&Server{Reader: r, Path: path, Log: logr.Discard()}).Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	r.take(numbered(1))
	r.take(numbered(2))
	var rules []uint32
	get := func(m flow.Message) error { rules = append(rules, m.Event.Rules[1]); return nil }
	for range 100 {
		if err = Read(t.Context(), path, Request{Last: 1}, get); !errors.Is(err, ErrAgentAway) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil || len(rules) != 1 || rules[0] != 2 {
		t.Fatalf("last one: %v, %v", rules, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", info.Mode(), err)
	}

	rules = nil
	enough := errors.New("enough")
	// A rule's number alone said nothing to whoever watched a node.
	var decided *[2]string
	if err := Read(t.Context(), path, Request{Last: 1}, func(m flow.Message) error { decided = m.Event.Decided; return nil }); err != nil ||
		decided == nil || decided[policy.Ingress] != "ingress default deny of NetworkPolicy shop/web" {
		t.Errorf("rule 2: %v, %v", decided, err)
	}
	err = Read(t.Context(), path, Request{Last: 1, Follow: true, Types: []flow.Type{flow.Drop}}, func(m flow.Message) error {
		rules = append(rules, m.Event.Rules[1])
		if len(rules) == 1 { // subscribed by now: what comes next must arrive, but for the trace
			trace := sample()
			trace.Type, trace.Reason = uint8(flow.Trace), 1
			r.take(raw(trace))
			r.take(numbered(3))
			return nil
		}
		return enough
	})
	if !errors.Is(err, enough) || fmt.Sprint(rules) != "[2 3]" {
		t.Errorf("followed %v, %v", rules, err)
	}
}

// The ring itself: a program writes into the map of bpf/lib/maps.h, one good record, one short, one of a later layout.
func TestReadsTheKernelsRing(t *testing.T) {
	needRoot(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	spec, err := bpf.LoadMaps()
	if err != nil {
		t.Fatal(err)
	}
	ring, err := ebpf.NewMap(spec.Maps[bpf.MapsMapEvents])
	if err != nil {
		t.Fatalf("make ring buffer events: %v", err)
	}
	defer ring.Close()
	r, err := NewReader(ring, logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	_, sub := r.Subscribe(0, 10)

	emit(t, ring, raw(sample())[:40])
	bad := sample()
	bad.Reason = 131
	emit(t, ring, raw(bad))
	emit(t, ring, append(raw(sample()), make([]byte, 16)...))
	select {
	case e := <-sub.C():
		if e.Rules[1] != 9 || e.Interface != "lo" {
			t.Errorf("got %+v", e)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no event; stats %+v", r.Stats())
	}
	if got, want := r.Stats(), (Stats{Received: 3, Short: 1, OutOfRange: 1}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, open := <-sub.C(); open {
		t.Error("the queue outlived Run")
	}
	if past, late := r.Subscribe(5, 1); len(past) != 1 {
		t.Errorf("history after Run: %v", past)
	} else if _, open := <-late.C(); open {
		t.Error("a late queue is open")
	}
}

// emit runs a program once that writes b into the ring.
func emit(t *testing.T, ring *ebpf.Map, b []byte) {
	t.Helper()
	var insns asm.Instructions
	for i := 0; i < len(b); i += 8 {
		insns = append(insns,
			asm.LoadImm(asm.R1, int64(binary.NativeEndian.Uint64(b[i:])), asm.DWord),
			asm.StoreMem(asm.RFP, int16(i-len(b)), asm.R1, asm.DWord))
	}
	insns = append(insns,
		asm.LoadMapPtr(asm.R1, ring.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(-len(b))),
		asm.Mov.Imm(asm.R3, int32(len(b))),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(),
		asm.Return())
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: insns, License: "Apache-2.0"})
	if err != nil {
		t.Fatalf("load the writer: %v", err)
	}
	defer prog.Close()
	ret, err := prog.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil || ret != 0 {
		t.Fatalf("run the writer: %d, %v", ret, err)
	}
}

func BenchmarkDecode(b *testing.B) {
	rec := raw(sample())
	for b.Loop() {
		if _, err := Decode(rec); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	names, err := newInterfaceNames()
	if err != nil {
		b.Fatal(err)
	}
	r := &Reader{names: names, clock: new(clock), log: logr.Discard(), subscribers: map[*Subscription]struct{}{}}
	_, _ = r.Subscribe(0, 1)
	rec := raw(sample())
	for b.Loop() {
		r.take(rec)
	}
}
