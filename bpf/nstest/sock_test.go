// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// Services of the socket test. Their addresses are nowhere: only translation makes them answer.
var (
	service4, service6 = netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd96::10")
	backends4          = []netip.Addr{netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2")}
	backends6          = []netip.Addr{netip.MustParseAddr("fd99::1"), netip.MustParseAddr("fd99::2")}
)

const (
	servicePort = 80 // backends listen on echoPort
	emptyPort   = 81 // a service without backends
	nonePort    = 82 // no service on this port
)

// cgroup makes a cgroup2 of this test, or says why there is none.
func cgroup(t *testing.T) string {
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var st unix.Statfs_t
		if unix.Statfs(root, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			dir := filepath.Join(root, fmt.Sprintf("kct%d", os.Getpid()))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(dir) })
			return dir
		}
	}
	if os.Getenv("KUBE_CILIUM_TEST_ROOT") != "" {
		t.Fatal("no cgroup2 is mounted")
	}
	t.Skip("no cgroup2 is mounted")
	return ""
}

func port16(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// TestServices connects, sends and receives by service addresses, from sockets of every kind, in a process of its own
// inside the cgroup.
func TestServices(t *testing.T) {
	needRoot(t)
	dir := cgroup(t)
	s := newSpace(t, "svc")
	for i := range 2 {
		s.ip(fmt.Sprintf("addr add %s/32 dev lo", backends4[i]))
		s.ip(fmt.Sprintf("-6 addr add %s/128 dev lo nodad", backends6[i]))
	}
	s.ip("route add default dev lo")
	s.ip("-6 route add default dev lo")
	s.listen()

	for _, setRetval := range []bool{true, false} {
		t.Run(fmt.Sprintf("set_retval %v", setRetval), func(t *testing.T) {
			maps := attachSock(t, dir, setRetval)
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cg, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer cg.Close()
			cmd := exec.Command("nsenter", "--net=/var/run/netns/"+s.name, exe, "-test.run=^TestSocketsInside$", "-test.v")
			cmd.Env = append(os.Environ(), "KCT_INSIDE=1")
			if !setRetval {
				cmd.Env = append(cmd.Env, "KCT_REFUSAL=EPERM")
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
			out, err := cmd.CombinedOutput()
			t.Logf("%s", out)
			if err != nil || !bytes.Contains(out, []byte("--- PASS: TestSocketsInside")) {
				t.Errorf("inside: %v", err)
			}
			var per []bpf.Counter
			var n uint64
			if err := maps[bpf.MapsMapMetrics].Lookup(uint32(bpf.MapsHookHOOK_CONNECT)*256+uint32(bpf.MapsReasonFORWARD_TRANSLATED), &per); err != nil {
				t.Fatal(err)
			}
			for _, c := range per {
				n += c.Packets
			}
			if n == 0 {
				t.Error("no connect was counted")
			}
		})
	}
}

func attachSock(t *testing.T, dir string, setRetval bool) map[string]*ebpf.Map {
	spec, err := bpf.LoadSock()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	if err := spec.Variables["have_set_retval"].Set(setRetval); err != nil {
		t.Fatal(err)
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	put := func(name string, k, v any) {
		if err := c.Maps[name].Put(k, v); err != nil {
			t.Fatalf("map %s: %v", name, err)
		}
	}
	id := uint32(0)
	for addr, backends := range map[netip.Addr][]netip.Addr{service4: backends4, service6: backends6} {
		put(bpf.MapsMapServices, bpf.ServiceKey{Addr: bpf.AddrFrom(addr)}, bpf.Service{})
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			id++
			for slot, b := range backends {
				put(bpf.MapsMapBackends, bpf.BackendKey{Service: id, Slot: uint16(slot)}, bpf.Backend{Addr: bpf.AddrFrom(b), Port: port16(echoPort)})
			}
			put(bpf.MapsMapServices, bpf.ServiceKey{Addr: bpf.AddrFrom(addr), Port: port16(servicePort), Proto: proto}, bpf.Service{Id: id, Backends: 2})
			put(bpf.MapsMapServices, bpf.ServiceKey{Addr: bpf.AddrFrom(addr), Port: port16(emptyPort), Proto: proto}, bpf.Service{Id: 99})
		}
	}
	for name, where := range bpf.SocketPrograms() {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: where, Program: c.Programs[name]})
		if err != nil {
			t.Fatalf("attach %s: %v", name, err)
		}
		t.Cleanup(func() { l.Close() })
	}
	return c.Maps
}

// TestSocketsInside is the part of TestServices that runs inside the cgroup and the namespace.
func TestSocketsInside(t *testing.T) {
	if os.Getenv("KCT_INSIDE") == "" {
		t.Skip("runs as a part of TestServices")
	}
	refusal := syscall.ECONNREFUSED
	if os.Getenv("KCT_REFUSAL") == "EPERM" {
		refusal = syscall.EPERM
	}
	for _, svc := range []netip.Addr{service4, service6} {
		at := netip.AddrPortFrom(svc, servicePort)
		t.Run("tcp "+svc.String(), func(t *testing.T) {
			// Both ends are on the loopback, so our own address is that of the backend.
			chosen := map[netip.Addr]bool{}
			for range 20 {
				c, err := net.DialTimeout("tcp", at.String(), 5*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				if got := c.RemoteAddr().String(); got != at.String() {
					t.Errorf("peer is called %s", got)
				}
				chosen[c.LocalAddr().(*net.TCPAddr).AddrPort().Addr()] = true
				c.Close()
			}
			if len(chosen) != 2 {
				t.Errorf("20 connections went to %v, want both backends", chosen)
			}
			for port, want := range map[uint16]error{emptyPort: refusal, nonePort: refusal} {
				_, err := net.DialTimeout("tcp", netip.AddrPortFrom(svc, port).String(), 5*time.Second)
				if !errors.Is(err, want) {
					t.Errorf("port %d: %v, want %v", port, err, want)
				}
			}
		})
		t.Run("multipath tcp "+svc.String(), func(t *testing.T) {
			var d net.Dialer
			d.SetMultipathTCP(true)
			c, err := d.Dial("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// The kernel connects by a first path, a socket of its own, and asks the other for the name: it is the backend's
			// then, and the service's where the kernel makes an ordinary stream.
			if got := c.RemoteAddr().(*net.TCPAddr).AddrPort(); got != at && got.Port() != echoPort {
				t.Errorf("peer is called %s", got)
			}
		})
		t.Run("connected udp "+svc.String(), func(t *testing.T) {
			c, err := net.DialTimeout("udp", at.String(), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := c.RemoteAddr().String(); got != at.String() {
				t.Errorf("peer is called %s", got)
			}
			exchange(t, func(b []byte) error { _, err := c.Write(b); return err },
				func(b []byte) (netip.AddrPort, error) {
					_ = c.SetReadDeadline(time.Now().Add(time.Second))
					_, from, err := c.(*net.UDPConn).ReadFromUDPAddrPort(b)
					return from, err
				}, at)
			if _, err := net.DialTimeout("udp", netip.AddrPortFrom(svc, emptyPort).String(), 5*time.Second); !errors.Is(err, refusal) {
				t.Errorf("no backend: %v", err)
			}
			// Asking for one's source address is no harm.
			probe, err := net.DialTimeout("udp", netip.AddrPortFrom(svc, nonePort).String(), 5*time.Second)
			if err != nil {
				t.Errorf("no such port: %v", err)
			} else {
				probe.Close()
			}
		})
		networks := []string{"udp4", "udp"} // of its family; dual-stack, which speaks to IPv4 by mapped addresses
		if svc.Is6() {
			networks = []string{"udp6", "udp"}
		}
		for _, network := range networks {
			t.Run("unconnected "+network+" "+svc.String(), func(t *testing.T) {
				c, err := net.ListenUDP(network, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				read := func(b []byte) (netip.AddrPort, error) {
					_ = c.SetReadDeadline(time.Now().Add(time.Second))
					_, from, err := c.ReadFromUDPAddrPort(b)
					return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
				}
				write := func(b []byte) error { _, err := c.WriteToUDPAddrPort(b, at); return err }
				for range 8 {
					exchange(t, write, read, at)
				}
				for _, port := range []uint16{emptyPort, nonePort} {
					if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(svc, port)); !errors.Is(err, refusal) {
						t.Errorf("port %d: %v, want %v", port, err, refusal)
					}
				}
			})
		}
	}
	t.Run("mapped tcp", func(t *testing.T) {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		sa := &unix.SockaddrInet6{Port: servicePort, Addr: service4.As16()}
		if err := unix.Connect(fd, sa); err != nil {
			t.Fatal(err)
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			t.Fatal(err)
		}
		if p := peer.(*unix.SockaddrInet6); p.Addr != sa.Addr || p.Port != servicePort {
			t.Errorf("peer is called %v", p)
		}
	})
	t.Run("not a service", func(t *testing.T) {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(backends4[0], echoPort).String(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

// exchange sends a datagram and expects the answer from the service itself.
func exchange(t *testing.T, write func([]byte) error, read func([]byte) (netip.AddrPort, error), want netip.AddrPort) {
	t.Helper()
	if err := write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	from, err := read(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	if from.Addr().Unmap() != want.Addr() || from.Port() != want.Port() {
		t.Errorf("answer from %v, want %v", from, want)
	}
}
