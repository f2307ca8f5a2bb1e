// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
)

// The process's first thread never ends: a goroutine that took it into another namespace would keep that for good.
func init() { runtime.LockOSThread() }

const inside = "KUBE_CILIUM_TEST_INSIDE"

// TestMain runs the tests a second time, as root, in a network and a mount namespace of their own: nothing that they
// do is seen outside, and all of it vanishes with them.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(inside) != "" {
		if os.Getenv(inside) != "" {
			if err := settle(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil: // not permitted here: the tests themselves say so
		os.Exit(m.Run())
	}
}

// settle makes the mounts private and gives named namespaces a folder of their own.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run/netns: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) != "" {
		return
	}
	if os.Getenv("KUBE_CILIUM_TEST_ROOT") == "1" {
		t.Fatal("needs root and a network namespace of its own")
	}
	t.Skip("needs root and a network namespace of its own (make test)")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fixture is a node in the test's namespace: an uplink to a namespace outside, a bpffs and a cgroup of its own.
type fixture struct {
	t       testing.TB
	opts    Options
	outside netns.NsHandle
	pods    map[uint16]netns.NsHandle
}

var (
	node4    = netip.MustParseAddr("198.18.0.1")
	node6    = netip.MustParseAddr("2001:db8:18::1")
	outside4 = netip.MustParseAddr("198.18.0.2")
	outside6 = netip.MustParseAddr("2001:db8:18::2")
)

func newFixture(t testing.TB) *fixture {
	t.Helper()
	needRoot(t)
	f := &fixture{t: t, pods: map[uint16]netns.NsHandle{}}
	f.opts = Options{BPFFS: mountBPFFS(t), CgroupRoot: makeCgroup(t)}
	if tt, ok := t.(*testing.T); ok {
		f.opts.Log = testr.New(tt)
	}
	f.outside = f.namespace("outside")
	f.veth("up0", "eth0", f.outside, nil, nil)
	f.address("up0", node4, 24)
	f.address("up0", node6, 64)
	f.in(f.outside, func() {
		f.address("eth0", outside4, 24)
		f.address("eth0", outside6, 64)
	})
	f.defaultRoute(outside4)
	f.defaultRoute(outside6)
	t.Cleanup(func() {
		_ = Uninstall(f.opts)
		if l, err := netlink.LinkByName("up0"); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	return f
}

func mountBPFFS(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("bpf", dir, "bpf", 0, "mode=0700"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func makeCgroup(t testing.TB) string {
	t.Helper()
	root, err := firstCgroup2()
	must(t, err)
	dir, err := os.MkdirTemp(root, "kube-cilium-test-")
	must(t, err)
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	return dir
}

// namespace makes one that goes with the test.
func (f *fixture) namespace(name string) netns.NsHandle {
	f.t.Helper()
	made := make(chan netns.NsHandle)
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread goes with the goroutine
		h, err := netns.NewNamed(name)
		if err != nil {
			failed <- err
			return
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			failed <- err
			return
		}
		made <- h
	}()
	select {
	case h := <-made:
		f.t.Cleanup(func() {
			h.Close()
			_ = netns.DeleteNamed(name)
		})
		return h
	case err := <-failed:
		f.t.Fatal(err)
		return -1
	}
}

// in runs g in the namespace, on a thread that is thrown away.
func (f *fixture) in(ns netns.NsHandle, g func()) {
	f.t.Helper()
	done := make(chan error, 1)
	go func() {
		defer close(done) // also when g ends the goroutine
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		g()
	}()
	must(f.t, <-done)
	if f.t.Failed() {
		f.t.FailNow()
	}
}

func (f *fixture) veth(name, peer string, ns netns.NsHandle, mac, peerMAC net.HardwareAddr) int {
	f.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	must(f.t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: peer, PeerHardwareAddr: peerMAC, PeerNamespace: netlink.NsFd(ns),
	}))
	l, err := netlink.LinkByName(name)
	must(f.t, err)
	must(f.t, netlink.LinkSetUp(l))
	f.in(ns, func() {
		p, err := netlink.LinkByName(peer)
		if err == nil {
			err = netlink.LinkSetUp(p)
		}
		if err != nil {
			f.t.Error(err)
		}
	})
	return l.Attrs().Index
}

func (f *fixture) address(dev string, ip netip.Addr, bits int) {
	l, err := netlink.LinkByName(dev)
	if err == nil {
		err = netlink.AddrAdd(l, &netlink.Addr{
			IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(bits, ip.BitLen())}, Flags: unix.IFA_F_NODAD,
		})
	}
	if err != nil {
		f.t.Error(err)
	}
}

func (f *fixture) defaultRoute(via netip.Addr) {
	f.t.Helper()
	dst := "0.0.0.0/0"
	if via.Is6() {
		dst = "::/0"
	}
	must(f.t, netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), Gw: via.AsSlice()}))
}

var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// pod makes what the endpoint room makes: the pair, addresses, routes and the permanent gateway.
func (f *fixture) pod(id uint16) Pod {
	f.t.Helper()
	p := Pod{
		ID: id, Interface: fmt.Sprintf("kc%012x", id), Identity: 1000 + uint32(id),
		MAC:     net.HardwareAddr{2, 0, 0, 0, 1, byte(id)},
		HostMAC: net.HardwareAddr{2, 0, 0, 0, 2, byte(id)},
		IPv4:    netip.AddrFrom4([4]byte{10, 77, byte(id >> 8), byte(id)}),
		IPv6:    netip.MustParseAddr(fmt.Sprintf("fd77::%x", id)),
	}
	ns := f.namespace(fmt.Sprintf("pod%d", id))
	f.pods[id] = ns
	p.Ifindex = f.veth(p.Interface, "eth0", ns, p.HostMAC, p.MAC)
	// AddPod is what sets it up.
	must(f.t, netlink.LinkSetDown(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: p.Ifindex}}))
	f.in(ns, func() {
		f.address("eth0", p.IPv4, 32)
		f.address("eth0", p.IPv6, 128)
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			f.t.Error(err)
			return
		}
		for dst, via := range map[string]netip.Addr{"0.0.0.0/0": gateway4, "::/0": gateway6} {
			n := neighbour{ip: via, ifindex: l.Attrs().Index, mac: p.HostMAC}
			if err := netlink.NeighSet(n.netlink()); err != nil {
				f.t.Error(err)
			}
			if err := netlink.RouteAdd(&netlink.Route{
				Dst: ipNet(netip.MustParsePrefix(dst)), Gw: via.AsSlice(), LinkIndex: l.Attrs().Index, Flags: int(netlink.FLAG_ONLINK),
			}); err != nil {
				f.t.Error(err)
			}
		}
	})
	return p
}

// addPod makes a pod and gives it to the datapath; the interface goes with the test.
func (f *fixture) addPod(d *Datapath, id uint16) Pod {
	f.t.Helper()
	p := f.pod(id)
	letPass(f.t, d, p)
	must(f.t, d.AddPod(p))
	return p
}

// letPass says that no policy selects the pods: without a word they are closed.
func letPass(t testing.TB, d *Datapath, pods ...Pod) {
	t.Helper()
	for _, p := range pods {
		must(t, d.SetPodPolicy(p.ID, PodPolicy{}))
	}
}

func (f *fixture) config() Config {
	return Config{
		NodeIPv4: node4, NodeIPv6: node6, Mode: v1alpha1.RoutingVXLAN, Encapsulation: v1alpha1.EncapsulationAuto,
		TunnelPort: 8472, MasqueradeIPv4: true, MasqueradeIPv6: true, ConntrackMax: 4096, UnansweredPerEndpoint: 256,
	}
}

func (f *fixture) open() *Datapath {
	f.t.Helper()
	d, err := Open(f.opts)
	must(f.t, err)
	d.churn.calm = time.Hour // pods move over where a test says so
	f.t.Cleanup(func() { _ = d.Close() })
	return d
}

// openWith is open for a build with other layouts.
func (f *fixture) openWith(other []layout) *Datapath {
	f.t.Helper()
	opts, err := f.opts.complete()
	must(f.t, err)
	m, err := openMaps(opts.folder(), other)
	must(f.t, err)
	d := assemble(opts, &kernel{known: map[v1alpha1.KernelFeature]error{}}, m)
	f.t.Cleanup(func() { _ = d.Close() })
	return d
}

// start opens and configures as an agent does: host and node prefixes told, no pods yet.
func (f *fixture) start(cfg Config) *Datapath {
	f.t.Helper()
	d := f.open()
	must(f.t, d.SetHostAddresses([]netip.Addr{node4, node6}))
	must(f.t, d.Configure(f.t.Context(), cfg))
	must(f.t, d.SetPrefixes(map[netip.Prefix]Peer{
		netip.MustParsePrefix("10.77.0.0/16"): {Identity: uint32(bpf.MapsIdentityIDENTITY_PENDING), Flags: uint32(bpf.MapsPeerFlagsPEER_CLUSTER)},
		netip.MustParsePrefix("fd77::/112"):   {Identity: uint32(bpf.MapsIdentityIDENTITY_PENDING), Flags: uint32(bpf.MapsPeerFlagsPEER_CLUSTER)},
	}))
	return d
}

// echo answers datagrams in the namespace until the test ends.
func (f *fixture) echo(ns netns.NsHandle, at netip.AddrPort) {
	f.t.Helper()
	var conn *net.UDPConn
	listen := func() {
		var err error
		if conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
			f.t.Error(err)
		}
	}
	if ns < 0 {
		listen()
	} else {
		f.in(ns, listen)
	}
	if conn == nil {
		f.t.FailNow()
	}
	f.t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
}

const (
	// patience is how long the last answers may take: it is the machine that is slow then, not the datapath.
	patience = 2 * time.Second
	// enough answers show that a flow goes on.
	enough = 50
)

// prober sends numbered datagrams a millisecond apart and counts what does not come back.
type prober struct {
	conn       net.Conn
	stop       chan struct{}
	done       chan struct{}
	sent, back atomic.Uint64
	errs       atomic.Uint64
	// seen is the reader's until done is closed.
	seen map[uint64]bool
}

// dial connects from the namespace; -1 is the node's own.
func (f *fixture) dial(ns netns.NsHandle, network string, to netip.AddrPort) (net.Conn, error) {
	var conn net.Conn
	var err error
	g := func() { conn, err = net.DialTimeout(network, to.String(), 2*time.Second) }
	if ns < 0 {
		g()
	} else {
		f.in(ns, g)
	}
	return conn, err
}

func (f *fixture) probe(ns netns.NsHandle, to netip.AddrPort) *prober {
	f.t.Helper()
	conn, err := f.dial(ns, "udp", to)
	must(f.t, err)
	p := &prober{conn: conn, stop: make(chan struct{}), done: make(chan struct{}), seen: map[uint64]bool{}}
	received := make(chan struct{})
	go func() {
		defer close(received)
		buf := make([]byte, 64)
		for {
			n, err := conn.Read(buf)
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if err != nil {
				p.errs.Add(1)
				continue
			}
			if n == 8 && !p.seen[binary.BigEndian.Uint64(buf)] {
				p.seen[binary.BigEndian.Uint64(buf)] = true
				p.back.Add(1)
			}
		}
	}()
	go func() {
		defer close(p.done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		var msg [8]byte
		for seq := uint64(0); ; seq++ {
			select {
			case <-p.stop:
				for end := time.Now().Add(patience); p.back.Load() < p.sent.Load() && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
				_ = conn.SetReadDeadline(time.Now())
				<-received
				conn.Close()
				return
			case <-tick.C:
			}
			binary.BigEndian.PutUint64(msg[:], seq)
			if _, err := conn.Write(msg[:]); err != nil {
				p.errs.Add(1)
			}
			p.sent.Add(1)
		}
	}()
	return p
}

// missing are the numbers of those that did not come back.
func (p *prober) missing() []uint64 {
	var out []uint64
	for seq := range p.sent.Load() {
		if !p.seen[seq] {
			out = append(out, seq)
		}
	}
	return out
}

// once is one datagram there and back.
func (f *fixture) once(ns netns.NsHandle, to netip.AddrPort) error {
	conn, err := f.dial(ns, "udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	_, err = conn.Read(make([]byte, 16))
	return err
}

// traffic is every way of a node's packets that a change must not disturb.
type traffic map[string]*prober

// flows starts datagrams from the host to a pod, from pod to pod, from a pod to the host and to the world, both
// families each, and waits until all of them go.
func (f *fixture) flows(a, b Pod) traffic {
	f.t.Helper()
	for _, p := range []Pod{a, b} {
		for _, ip := range p.addrs() {
			f.echo(f.pods[p.ID], netip.AddrPortFrom(ip, 7000))
		}
	}
	for _, ip := range []netip.Addr{outside4, outside6} {
		f.echo(f.outside, netip.AddrPortFrom(ip, 7000))
	}
	for _, ip := range []netip.Addr{node4, node6} {
		f.echo(-1, netip.AddrPortFrom(ip, 7000))
	}
	out := traffic{}
	for _, way := range []struct {
		name string
		from netns.NsHandle
		to   []netip.Addr
	}{
		{"host to pod", -1, a.addrs()},
		{"pod to pod", f.pods[a.ID], b.addrs()},
		{"pod to host", f.pods[a.ID], []netip.Addr{node4, node6}},
		{"pod to world", f.pods[b.ID], []netip.Addr{outside4, outside6}},
	} {
		for _, to := range way.to {
			f.reach(way.from, netip.AddrPortFrom(to, 7000))
			out[way.name+" "+to.String()] = f.probe(way.from, netip.AddrPortFrom(to, 7000))
		}
	}
	if out.goOn(f.t, enough); f.t.Failed() {
		f.t.FailNow()
	}
	return out
}

// goOn waits until every flow has had so many more answers, and fails the test for each that has not.
func (tr traffic) goOn(t testing.TB, more uint64) {
	t.Helper()
	want := map[string]uint64{}
	for name, p := range tr {
		want[name] = p.back.Load() + more
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		maps.DeleteFunc(want, func(name string, n uint64) bool { return tr[name].back.Load() >= n })
		if len(want) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	for name := range want {
		t.Errorf("%s does not go on: %d sent, %d answers (%d errors)", name, tr[name].sent.Load(), tr[name].back.Load(), tr[name].errs.Load())
	}
}

// end waits until what was done to the flows had its effect on all of them, and fails the test for each that lost more
// than it may.
func (tr traffic) end(t testing.TB, may uint64) {
	t.Helper()
	tr.goOn(t, enough)
	for _, p := range tr {
		close(p.stop)
	}
	for name, p := range tr {
		<-p.done
		sent, lost := p.sent.Load(), p.sent.Load()-p.back.Load()
		if lost > may {
			t.Errorf("%s: lost %d of %d datagrams (%d errors), numbers %v", name, lost, sent, p.errs.Load(), p.missing())
		}
	}
}

// reach tries for a while: an interface that just came up drops its first packets.
func (f *fixture) reach(ns netns.NsHandle, to netip.AddrPort) {
	f.t.Helper()
	var err error
	for range 4 {
		if err = f.once(ns, to); err == nil {
			return
		}
	}
	f.t.Errorf("no answer from %s: %v", to, err)
}

// pins lists the pinned paths below the folder.
func (f *fixture) pins() []string {
	var out []string
	_ = filepath.WalkDir(f.opts.folder(), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(f.opts.folder(), path)
			out = append(out, rel)
		}
		return nil
	})
	return out
}
