// SPDX-License-Identifier: Apache-2.0

package netspace_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/test/cluster/forward"
	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
)

// needRoot skips for a plain user and fails where every test has to run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getenv("KUBE_CILIUM_TEST_ROOT") != "1" {
		t.Skip("makes network namespaces: needs root and KUBE_CILIUM_TEST_ROOT=1 (make test)")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root, and KUBE_CILIUM_TEST_ROOT=1 says that it must run")
	}
}

// space makes a namespace that lives as long as the test.
func space(t *testing.T, suffix string) string {
	t.Helper()
	name := "kctest" + strconv.Itoa(os.Getpid()) + suffix
	if err := netspace.Make(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netspace.Remove(name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// listen answers every connection inside the namespace with a word.
func listen(t *testing.T, name, address, word string) string {
	t.Helper()
	var listener net.Listener
	err := netspace.Do(name, func() error {
		var err error
		listener, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, word)
			conn.Close()
		}
	}()
	return listener.Addr().String()
}

func TestDialGoesThroughTheNamespace(t *testing.T) {
	needRoot(t)
	a, b := space(t, "a"), space(t, "b")
	err := netspace.Pair(
		netspace.End{Space: a, Device: "x", Addresses: prefixes("192.168.77.1/24", "fd00:77::1/64")},
		netspace.End{Space: b, Device: "y", Addresses: prefixes("192.168.77.2/24", "fd00:77::2/64")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("x"); err == nil {
		t.Error("the pair shows in our own namespace")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for _, address := range []string{"192.168.77.2:0", "[fd00:77::2]:0"} {
		target := listen(t, b, address, "hello")
		conn, err := netspace.Dial(ctx, a, "tcp", target)
		if err != nil {
			t.Errorf("%s: %v", target, err)
			continue
		}
		if said, _ := io.ReadAll(conn); string(said) != "hello" {
			t.Errorf("%s says %q", target, said)
		}
		conn.Close()
	}
}

func TestForwardFromLoopback(t *testing.T) {
	needRoot(t)
	name := space(t, "f")
	target := listen(t, name, "127.0.0.1:0", "inside")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- forward.Serve(ctx, listener, name, target) }()
	for range 20 {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if said, _ := io.ReadAll(conn); string(said) != "inside" {
			t.Fatalf("the forwarder says %q", said)
		}
		conn.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestGuardIsRemovedWhole(t *testing.T) {
	needRoot(t)
	guarded := prefixes("172.29.255.0/24", "fd00:6b:6375::/64")
	if err := netspace.Guard(guarded); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netspace.Unguard(guarded); err != nil {
			t.Error(err)
		}
	})
	found, err := netspace.Guarded()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range guarded {
		if !contains(found, p) {
			t.Errorf("%s is not guarded", p)
		}
	}
	if _, err := net.DialTimeout("tcp", "172.29.255.1:1", time.Second); err == nil {
		t.Error("a guarded address answers")
	}
	for range 2 { // twice: what is gone is fine
		if err := netspace.Unguard(guarded); err != nil {
			t.Fatal(err)
		}
	}
	if found, err = netspace.Guarded(); err != nil || contains(found, guarded[0]) || contains(found, guarded[1]) {
		t.Errorf("left: %v, %v", found, err)
	}
}

// Where nobody has made a name before us, `ip netns add` after us mounted the folder over itself and over our names, and
// they could not be removed.
func TestRemoveAfterNamesOfOthers(t *testing.T) {
	needRoot(t)
	const inside = "KUBE_CILIUM_TEST_OWN_MOUNTS"
	if os.Getenv(inside) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""), unix.Mount("tmpfs", "/run", "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	// Many at once: of two that mount the folder one must not cover the other's names.
	var all sync.WaitGroup
	for i := range 16 {
		name := fmt.Sprintf("kctest%dm%d", os.Getpid(), i)
		t.Cleanup(func() {
			if err := netspace.Remove(name); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if err := netspace.Make(name); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	name := space(t, "m")
	theirs := name + "their"
	if out, err := exec.Command("ip", "netns", "add", theirs).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := netspace.List(name); len(got) != 2+16 {
		t.Errorf("names: %v", got)
	}
	if err := errors.Join(netspace.Remove(name), netspace.Remove(theirs)); err != nil {
		t.Error(err)
	}
}

func TestRemoveOfNothing(t *testing.T) {
	if err := netspace.Remove("kctest-never-made"); err != nil {
		t.Error(err)
	}
	if err := netspace.Do("kctest-never-made", func() error { return nil }); err == nil {
		t.Error("entered a namespace that is not there")
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func contains(list []netip.Prefix, p netip.Prefix) bool {
	for _, q := range list {
		if q == p {
			return true
		}
	}
	return false
}
