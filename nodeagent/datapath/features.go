// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
)

// probe asks the kernel for one feature by using it, never by its version. run answers nil (it can), ErrNotSupported
// (it cannot) or anything else (we could not tell).
type probe struct {
	name     v1alpha1.KernelFeature
	run      func() error
	required bool
	// using is what the datapath does with it, fallback what it does without.
	using, fallback string
}

// Features that the configuration cannot forbid.
const (
	featureLRU       v1alpha1.KernelFeature = "LRUHash"
	featureLPM       v1alpha1.KernelFeature = "LPMTrie"
	featureMapOfMaps v1alpha1.KernelFeature = "MapOfMaps"
	featureRingbuf   v1alpha1.KernelFeature = "RingBuffer"
	featureSetRetval v1alpha1.KernelFeature = "SetReturnValue"
	featureClock     v1alpha1.KernelFeature = "CoarseClock"
)

func probes() []probe {
	return []probe{
		{v1alpha1.FeatureTCX, probeTCX, false,
			"uplinks and the tunnel device have TCX links, pods' interfaces clsact filters", "every device has clsact filters"},
		{v1alpha1.FeatureRedirectPeer, helperProbe(ebpf.SchedCLS, asm.FnRedirectPeer), false,
			"straight into the pod's namespace", "redirect to the host's end of the pod's interface"},
		{v1alpha1.FeatureRedirectNeigh, helperProbe(ebpf.SchedCLS, asm.FnRedirectNeigh), false,
			"straight out of the uplink", "the host's stack forwards"},
		{v1alpha1.FeatureAdjustRoomEncap, probeAdjustRoomEncap, false,
			"VXLAN header built in eBPF", "VXLAN header built by the device"},
		{v1alpha1.FeatureSocketLoadBalancing, probeSocketAddress, false,
			"services are translated at the socket", "services are not translated (run kube-proxy)"},
		{v1alpha1.FeatureBatchOperations, probeBatch, false,
			"tables are written in batches", "tables are written entry by entry"},
		{featureSetRetval, helperProbe(ebpf.CGroupSockAddr, asm.FnSetRetval), false,
			"a connection to a service without backends is refused at once", "it gets a permission error"},
		{featureClock, helperProbe(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs), false,
			"connections' ages from the clock of the last tick", "connections' ages from the exact clock"},
		{featureLRU, mapProbe(ebpf.LRUHash), true, "connection tables", ""},
		{featureLPM, mapProbe(ebpf.LPMTrie), true, "prefix table", ""},
		{featureMapOfMaps, mapProbe(ebpf.ArrayOfMaps), true, "unanswered flows of each pod", ""},
		{featureRingbuf, mapProbe(ebpf.RingBuf), true, "drops and traces", ""},
	}
}

func notSupported(err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}

func helperProbe(pt ebpf.ProgramType, fn asm.BuiltinFunc) func() error {
	return func() error { return notSupported(features.HaveProgramHelper(pt, fn)) }
}

func mapProbe(mt ebpf.MapType) func() error {
	return func() error { return notSupported(features.HaveMapType(mt)) }
}

// probeTCX attaches to the loopback device of a namespace of its own (Linux 6.6). Where that is not permitted a
// device that does not exist tells as much: a kernel with TCX looks for it first.
func probeTCX() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "kc_probe", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("load probe: %w", err)
	}
	defer prog.Close()
	attach := func(ifindex int) error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		return l.Close() // not pinned: this detaches it
	}
	err = inOwnNetns(func() error { return attach(1) })
	if errors.Is(err, unix.EPERM) {
		if err = attach(1<<31 - 1); errors.Is(err, unix.ENODEV) {
			return nil
		}
	}
	return notSupported(err)
}

// inOwnNetns runs f in a fresh network namespace that vanishes with the thread.
func inOwnNetns(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// probeAdjustRoomEncap makes room for outer headers as the tunnel does (BPF_F_ADJ_ROOM_ENCAP_L2_ETH, Linux 5.13) and
// asks the helper what it thinks of it; an older kernel answers -EINVAL.
func probeAdjustRoomEncap() error {
	const (
		adjRoomMAC  = 1
		encapL3IPv4 = 1 << 1
		encapL4UDP  = 1 << 4
		noCsumReset = 1 << 5
		encapL2Eth  = 1 << 6
		l2Len       = 8 + 14 // VXLAN and the inner Ethernet header
		room        = 20 + 8 + l2Len
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "kc_probe", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, room),
			asm.Mov.Imm(asm.R3, adjRoomMAC),
			asm.LoadImm(asm.R4, encapL3IPv4|encapL4UDP|noCsumReset|encapL2Eth|l2Len<<56, asm.DWord),
			asm.FnSkbAdjustRoom.Call(),
			asm.Return(),
		},
	})
	if err != nil {
		return fmt.Errorf("load probe: %w", notSupported(err))
	}
	defer prog.Close()
	ret, err := prog.Run(&ebpf.RunOptions{Data: probePacket(), Repeat: 1})
	if err != nil {
		return fmt.Errorf("run probe: %w", err)
	}
	switch errno := unix.Errno(-int32(ret)); errno {
	case 0:
		return nil
	case unix.EINVAL, unix.ENOTSUP:
		return fmt.Errorf("%w: bpf_skb_adjust_room: %w", ErrNotSupported, errno)
	default:
		return fmt.Errorf("bpf_skb_adjust_room: %w", errno)
	}
}

// probePacket is a UDP datagram from and to the documentation range.
func probePacket() []byte {
	p := make([]byte, 14+20+8+32)
	p[12] = 0x08
	p[14], p[14+8], p[14+9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[14+2:], uint16(len(p)-14))
	copy(p[14+12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
	binary.BigEndian.PutUint16(p[34+4:], 8+32)
	return p
}

// probeSocketAddress loads a program for each attach point: the kernel checks the attach type at load. getpeername
// (Linux 5.8) is the youngest.
func probeSocketAddress() error {
	for name, at := range bpf.SocketPrograms() {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "kc_probe", Type: ebpf.CGroupSockAddr, AttachType: at, License: "Dual BSD/GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%w: %s: %w", ErrNotSupported, name, err)
		}
		if err != nil {
			return fmt.Errorf("load probe for %s: %w", name, notSupported(err))
		}
		prog.Close()
	}
	return nil
}

func probeBatch() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "kc_probe", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		return fmt.Errorf("make probe map: %w", err)
	}
	defer m.Close()
	_, err = m.BatchUpdate([]uint32{1, 2}, []uint32{1, 2}, nil)
	return notSupported(err)
}

// kernel remembers what the probes said: yes and no for good, "could not tell" not at all.
type kernel struct {
	known map[v1alpha1.KernelFeature]error
}

// ask runs the probe unless its answer is known.
func (k *kernel) ask(p probe) error {
	if err, ok := k.known[p.name]; ok {
		return err
	}
	err := p.run()
	if err == nil || errors.Is(err, ErrNotSupported) {
		k.known[p.name] = err
	}
	return err
}

// features asks every probe, counting forbidden features as absent.
func (k *kernel) features(forbidden []v1alpha1.KernelFeature) []Feature {
	var out []Feature
	for _, p := range probes() {
		f := Feature{Name: string(p.name), Err: k.ask(p)}
		switch {
		case f.Err == nil && !p.required && slices.Contains(forbidden, p.name):
			f.Outcome, f.Err = Forbidden, ErrForbidden
		case f.Err == nil:
			f.Outcome = Supported
		case errors.Is(f.Err, ErrNotSupported):
			f.Outcome = Unsupported
		default:
			f.Outcome = Unknown
		}
		f.Using = p.using
		if f.Err != nil {
			f.Using = p.fallback
		}
		out = append(out, f)
	}
	return out
}

// require gives an error when a feature without fallback is absent.
func (k *kernel) require() error {
	var missing []string
	for _, p := range probes() {
		if !p.required {
			continue
		}
		err := k.ask(p)
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("probe %s: %w: %w", p.name, ErrMissingCapability, err)
		}
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", p.name, err))
		}
	}
	if missing != nil {
		return fmt.Errorf("%w: %s", ErrKernelTooOld, strings.Join(missing, "; "))
	}
	return nil
}

// checkCapabilities looks at the effective set: NET_ADMIN, BPF and PERFMON (or SYS_ADMIN, which holds both; Linux
// before 5.8 knows only that).
func checkCapabilities() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	var effective uint64
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			effective, err = strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			if err != nil {
				return fmt.Errorf("read own capabilities: %w", err)
			}
		}
	}
	has := func(c int) bool { return effective&(1<<c) != 0 }
	var missing []string
	if !has(unix.CAP_NET_ADMIN) {
		missing = append(missing, "NET_ADMIN")
	}
	if !has(unix.CAP_SYS_ADMIN) {
		if !has(unix.CAP_BPF) {
			missing = append(missing, "BPF")
		}
		if !has(unix.CAP_PERFMON) {
			missing = append(missing, "PERFMON")
		}
	}
	if missing != nil {
		return fmt.Errorf("%w %s (add it to the container's securityContext)", ErrMissingCapability, strings.Join(missing, ", "))
	}
	return nil
}
