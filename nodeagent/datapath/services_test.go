// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/internal/service"
)

// moveInto puts this process into the cgroup until the test ends: its sockets see services then.
func moveInto(t testing.TB, cgroup string) {
	t.Helper()
	root, err := firstCgroup2()
	must(t, err)
	own, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	before := root
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			before = filepath.Join(root, strings.TrimSpace(path))
		}
	}
	write := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	must(t, write(cgroup))
	t.Cleanup(func() {
		if err := write(before); err != nil {
			t.Errorf("leave the cgroup: %v", err)
		}
	})
}

// A socket that dials a ClusterIP speaks with a backend, from the host and from a pod; and goes on over a restart.
func TestClusterIPBySocket(t *testing.T) {
	f := newFixture(t)
	moveInto(t, f.opts.CgroupRoot)
	d := f.start(f.config())
	a, b := f.addPod(d, 91), f.addPod(d, 92)
	letPass(t, d, a, b)
	must(t, d.SetPods([]Pod{a, b}))
	var table []service.Frontend
	for clusterIP, backend := range map[string]netip.Addr{"10.96.0.80": b.IPv4, "fd00:96::80": b.IPv6} {
		f.echo(f.pods[92], netip.AddrPortFrom(backend, 7000))
		table = append(table, service.Frontend{
			Address:  service.Address{IP: netip.MustParseAddr(clusterIP), Port: 53, Protocol: service.UDP},
			Backends: []netip.AddrPort{netip.AddrPortFrom(backend, 7000)},
		})
	}
	must(t, d.SetServices(table))
	running := traffic{}
	for _, fe := range table {
		to := netip.AddrPortFrom(fe.IP, fe.Port)
		f.reach(-1, to)
		f.reach(f.pods[91], to)
		running["host to "+to.String()] = f.probe(-1, to)
		running["pod to "+to.String()] = f.probe(f.pods[91], to)
	}
	must(t, d.Close())
	d = f.start(f.config())
	letPass(t, d, a, b)
	must(t, d.SetPods([]Pod{a, b}))
	must(t, d.SetServices(table))
	running.end(t, 0)
	// Without backends a connection is refused rather than sent somewhere.
	table[0].Backends, table[1].Backends = nil, nil
	must(t, d.SetServices(table))
	for _, fe := range table {
		if err := f.once(-1, netip.AddrPortFrom(fe.IP, fe.Port)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want a refusal", fe.IP, err)
		}
		// On a port that the service has not, TCP is refused as well.
		conn, err := f.dial(-1, "tcp", netip.AddrPortFrom(fe.IP, 54))
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s port 54: %v, want a refusal", fe.IP, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}
