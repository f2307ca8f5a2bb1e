// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/testr"
	"golang.org/x/sys/unix"
)

// others are nodes that answer or do not.
type others struct {
	mu      sync.Mutex
	targets []Target
	silent  map[netip.Addr]bool
	asked   map[netip.Addr]int
}

func (o *others) list(context.Context) ([]Target, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]Target(nil), o.targets...), nil
}

func (o *others) set(f func()) { o.mu.Lock(); defer o.mu.Unlock(); f() }

func (o *others) ask(ctx context.Context, to netip.Addr) error {
	o.mu.Lock()
	silent := o.silent[to]
	o.asked[to]++
	o.mu.Unlock()
	if silent {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func nodes(n int) []Target {
	var out []Target
	for i := range n {
		name := fmt.Sprintf("node-%d", i)
		out = append(out, Target{name, netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})},
			Target{name, netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))})
	}
	return out
}

func TestSilentNodeIsSeenAndSeenToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &others{targets: nodes(3), silent: map[netip.Addr]bool{}, asked: map[netip.Addr]int{}}
		p := &Prober{Targets: o.list, tcp: o.ask, icmp: func(ctx context.Context, to netip.Addr) error {
			if to.Is6() {
				return fmt.Errorf("socket: %w", unix.EPERM)
			}
			return o.ask(ctx, to)
		}}
		if _, whole := p.Results(); whole {
			t.Error("whole before anything was asked")
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = p.Run(ctx) }()
		defer cancel()
		time.Sleep(Interval)
		rs, whole := p.Results()
		if len(rs) != 6 || !whole {
			t.Fatalf("after a round: %d results, whole %v", len(rs), whole)
		}
		for _, r := range rs {
			if !r.Reached() || !r.TCP.Reachable || r.ICMP.Asked != r.Address.Is4() {
				t.Errorf("%+v", r)
			}
		}
		down := o.targets[2]
		before := time.Now()
		o.set(func() { o.silent[down.Address] = true })
		time.Sleep(2 * Interval)
		var since time.Time
		rs, _ = p.Results()
		for _, r := range rs {
			if got := r.Reached(); got != (r.Target != down) {
				t.Errorf("%s %s reached: %v", r.Node, r.Address, got)
			}
			if r.Target == down {
				since = r.TCP.Since
			}
		}
		if since.Before(before) || since.After(before.Add(Interval)) {
			t.Errorf("failing since %s, went away at %s", since, before)
		}
		time.Sleep(3 * Interval)
		rs, _ = p.Results()
		if got := rs[2].TCP.Since; !got.Equal(since) {
			t.Errorf("it failed since %s, and now since %s", since, got)
		}
		o.set(func() { o.silent = nil; o.targets = o.targets[:5] })
		time.Sleep(3 * Interval)
		rs, whole = p.Results()
		if len(rs) != 5 || !whole {
			t.Errorf("%d results after an address went, whole %v", len(rs), whole)
		}
		for _, r := range rs {
			if !r.Reached() || !r.TCP.Since.IsZero() {
				t.Errorf("after all came back: %+v", r)
			}
		}
	})
}

// A large cluster is asked in bounded steps: never more probes a second than the least gap allows.
func TestManyNodesAreAskedSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &others{targets: nodes(5000), silent: map[netip.Addr]bool{}, asked: map[netip.Addr]int{}}
		p := &Prober{Targets: o.list, tcp: o.ask, icmp: func(context.Context, netip.Addr) error { return nil }}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = p.Run(ctx) }()
		time.Sleep(10 * time.Second)
		o.set(func() {
			if n := len(o.asked); n > int(10*time.Second/leastGap)+1 || n < 100 {
				t.Errorf("%d addresses asked in ten seconds", n)
			}
		})
		if _, whole := p.Results(); whole {
			t.Error("whole after ten seconds")
		}
	})
}

func TestServerAnswersTheProber(t *testing.T) {
	port := freePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	s := &Server{Port: port, Log: testr.New(t), Addresses: func(context.Context) ([]netip.Addr, error) { return addrs, nil }}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	p := &Prober{Port: port}
	for _, a := range addrs {
		deadline := time.Now().Add(10 * time.Second)
		for {
			once, stop := context.WithTimeout(t.Context(), time.Second)
			err := p.connect(once, a)
			stop()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", a, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := p.connect(t.Context(), addrs[0]); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after the end: %v", err)
	}
}

func TestPing(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("KUBE_CILIUM_TEST_ROOT") == "1" {
			t.Fatal("needs root, and KUBE_CILIUM_TEST_ROOT=1 says that it must run")
		}
		t.Skip("opens raw sockets: needs root")
	}
	for _, a := range []string{"127.0.0.1", "::1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := ping(ctx, netip.MustParseAddr(a)); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}
