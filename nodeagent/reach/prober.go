// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Interval between two probes of one address, unless there are very many.
	Interval = 30 * time.Second
	// leastGap between two probes: in a cluster of thousands of nodes a round takes longer than Interval.
	leastGap = 20 * time.Millisecond
	// firstGap is for addresses that were never asked: a new node is known of soon.
	firstGap = 100 * time.Millisecond
	// attempts before an address counts as unreachable, with patience for each: an agent that is being replaced answers
	// the second or third.
	attempts = 3
	patience = 2 * time.Second
	pause    = time.Second
	// atOnce bounds probes that wait for their answers.
	atOnce = 16
)

// Target is one address of another node.
type Target struct {
	Node    string
	Address netip.Addr
}

func (t Target) compare(o Target) int {
	return cmp.Or(cmp.Compare(t.Node, o.Node), t.Address.Compare(o.Address))
}

// Outcome is what one way of asking said last.
type Outcome struct {
	// Asked is false where this process may not ask so.
	Asked     bool
	Reachable bool
	Latency   time.Duration
	// Since is when the first probe without an answer was sent; zero while reachable.
	Since time.Time
}

// Result is how one address was reached.
type Result struct {
	Target
	ICMP, TCP Outcome
}

// Reached is true when the address answered in any way.
func (r Result) Reached() bool { return r.ICMP.Reachable || r.TCP.Reachable }

// Prober asks the addresses of other nodes in turn.
type Prober struct {
	// Targets gives every address of every other node, as of now.
	Targets func(context.Context) ([]Target, error)
	// Port on which agents answer.
	Port uint16
	// Observe is told of each answer, for metrics; may be nil.
	Observe func(protocol string, took time.Duration)

	// tcp and icmp replace the network in tests.
	tcp, icmp func(context.Context, netip.Addr) error

	mu      sync.Mutex
	results map[Target]Result
	whole   bool
}

// Results are those of every address asked so far, by node and address. Whole is false until each was asked once.
func (p *Prober) Results() (results []Result, whole bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	results = slices.Collect(maps.Values(p.results))
	slices.SortFunc(results, func(a, b Result) int { return a.compare(b.Target) })
	return results, p.whole
}

// Run asks until ctx ends. Probes are spread over the interval, so that neither this node nor those asked by many see
// a burst.
func (p *Prober) Run(ctx context.Context) error {
	if p.tcp == nil {
		p.tcp, p.icmp = p.connect, ping
	}
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, atOnce)
	for ctx.Err() == nil {
		targets, err := p.Targets(ctx)
		if err != nil || len(targets) == 0 {
			if err == nil {
				p.keep(nil)
			}
			sleep(ctx, Interval/10)
			continue
		}
		slices.SortFunc(targets, Target.compare)
		fresh := p.keep(targets)
		gap := max(Interval/time.Duration(len(targets)), leastGap)
		for _, t := range targets {
			select {
			case <-ctx.Done():
				return nil
			case slots <- struct{}{}:
			}
			work.Go(func() {
				defer func() { <-slots }()
				p.probe(ctx, t)
			})
			if fresh[t] {
				sleep(ctx, min(gap, firstGap))
			} else {
				sleep(ctx, gap)
			}
		}
	}
	return nil
}

// keep forgets addresses that are nobody's any longer, and says which were never asked.
func (p *Prober) keep(targets []Target) map[Target]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.results == nil {
		p.results = map[Target]Result{}
	}
	fresh, wanted := map[Target]bool{}, map[Target]bool{}
	for _, t := range targets {
		wanted[t] = true
		if _, known := p.results[t]; !known {
			fresh[t] = true
		}
	}
	maps.DeleteFunc(p.results, func(t Target, _ Result) bool { return !wanted[t] })
	p.whole = len(fresh) == 0
	return fresh
}

func (p *Prober) probe(ctx context.Context, t Target) {
	p.mu.Lock()
	last := p.results[t]
	p.mu.Unlock()
	now := Result{Target: t}
	var both sync.WaitGroup
	both.Go(func() { now.ICMP = p.ask(ctx, "icmp", p.icmp, t.Address, last.ICMP) })
	both.Go(func() { now.TCP = p.ask(ctx, "tcp", p.tcp, t.Address, last.TCP) })
	both.Wait()
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.results[t] = now
}

func (p *Prober) ask(ctx context.Context, protocol string, once func(context.Context, netip.Addr) error, to netip.Addr, last Outcome) Outcome {
	began := time.Now()
	for i := range attempts {
		if i > 0 {
			sleep(ctx, pause)
		}
		sent := time.Now()
		limited, cancel := context.WithTimeout(ctx, patience)
		err := once(limited, to)
		cancel()
		took := time.Since(sent)
		switch {
		case err == nil:
			if p.Observe != nil {
				p.Observe(protocol, took)
			}
			return Outcome{Asked: true, Reachable: true, Latency: took}
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
			return Outcome{}
		}
	}
	out := Outcome{Asked: true, Since: last.Since}
	if out.Since.IsZero() {
		out.Since = began
	}
	return out
}

// connect is answered by the agent's Server.
func (p *Prober) connect(ctx context.Context, to netip.Addr) error {
	var d net.Dialer
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(to.String(), strconv.Itoa(int(p.Port))))
	if err != nil {
		return err
	}
	return c.Close()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
