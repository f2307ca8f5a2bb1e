// SPDX-License-Identifier: Apache-2.0

package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// History is how many events a Reader remembers for those who come later.
const History = 4096

// interval is how often the ring is looked into: programs wake us only when a quarter of it is full, and
// with each 16th more.
const interval = 50 * time.Millisecond

// Stats counts since the Reader was made.
type Stats struct {
	// Received records, whatever became of them.
	Received uint64
	// Short and OutOfRange records were left out.
	Short, OutOfRange uint64
	// Lost events did not fit a subscriber's queue; one event lost by two subscribers counts twice. What the kernel could
	// not put into the ring is counted by the programs.
	Lost uint64
}

// Sink gets every event, in order, on the reader's goroutine: it must be quick, must not wait for anybody and must not
// keep the slice. What an event points to may be kept.
type Sink interface {
	Take([]flow.Event)
}

// Reader is the one reader of the node's ring buffer.
type Reader struct {
	ring  *ringbuf.Reader
	who   flow.Names // nil: addresses stay without names
	sinks []Sink
	batch []flow.Event
	names *interfaceNames
	clock *clock
	log   logr.Logger

	received, short, outOfRange, lost atomic.Uint64

	mu          sync.Mutex
	subscribers map[*Subscription]struct{}
	// history is a ring of the last events: next is where the coming one goes.
	history []record
	next    int
}

// record is an event as it is remembered: a third of what flow.Event takes.
type record struct {
	event bpf.Event
	boot  time.Time
	iface string
}

// NewReader opens the ring. Nothing is read before Run.
func NewReader(ring *ebpf.Map, log logr.Logger) (*Reader, error) {
	r, err := ringbuf.NewReader(ring)
	if err != nil {
		return nil, fmt.Errorf("open ring buffer events: %w", err)
	}
	names, err := newInterfaceNames()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a socket for interface names: %w", err), r.Close())
	}
	return &Reader{ring: r, names: names, clock: new(clock), log: log, subscribers: map[*Subscription]struct{}{}}, nil
}

// maxBatch is how many events are handed on at once, at most.
const maxBatch = 128

// Attach says who has names and who wants every event. It comes before Run.
func (r *Reader) Attach(names flow.Names, sinks ...Sink) {
	r.who, r.sinks = names, append(r.sinks, sinks...)
}

// Run reads until ctx is done, then closes the ring and every subscription. It may be called once.
func (r *Reader) Run(ctx context.Context) error {
	defer r.close()
	defer r.flush()
	defer context.AfterFunc(ctx, func() { _ = r.ring.Close() })()
	var rec ringbuf.Record
	r.ring.SetDeadline(time.Now().Add(interval))
	for {
		err := r.ring.ReadInto(&rec)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.flush()
			r.ring.SetDeadline(time.Now().Add(interval))
			continue
		}
		if err != nil {
			return fmt.Errorf("read ring buffer events: %w", err)
		}
		r.take(rec.RawSample)
		if len(r.batch) == maxBatch || rec.Remaining == 0 {
			r.flush()
		}
	}
}

// flush hands the events taken since the last time to every sink.
func (r *Reader) flush() {
	if len(r.batch) == 0 {
		return
	}
	for _, s := range r.sinks {
		s.Take(r.batch)
	}
	clear(r.batch) // holds nobody's names
	r.batch = r.batch[:0]
}

// take decodes one record, hands it to the subscribers and keeps it for the sinks.
func (r *Reader) take(raw []byte) {
	first := r.received.Add(1) == 1
	e, err := Decode(raw)
	switch {
	case errors.Is(err, ErrShort):
		if r.short.Add(1) == 1 {
			r.log.Info("left out a short record of the ring buffer; later ones are only counted", "bytes", len(raw), "want", RecordSize)
		}
		return
	case err != nil:
		if r.outOfRange.Add(1) == 1 {
			r.log.Info("left out a record of the ring buffer with unknown numbers; later ones are only counted")
		}
		return
	}
	if first {
		r.log.V(1).Info("first event of the ring buffer")
	}
	rec := record{event: e, boot: r.clock.boot(), iface: r.names.name(e.Ifindex)}
	if len(r.sinks) > 0 {
		r.batch = append(r.batch, r.named(&rec))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remember(rec)
	for s := range r.subscribers {
		select {
		case s.queue <- Event(&rec.event, rec.boot, rec.iface):
		default:
			s.lost.Add(1)
			r.lost.Add(1)
		}
	}
}

// named is the event with who has its addresses now.
func (r *Reader) named(rec *record) flow.Event {
	e := Event(&rec.event, rec.boot, rec.iface)
	if r.who == nil {
		return e
	}
	for _, p := range [...]*flow.Party{&e.Source, &e.Destination} {
		if p.Address.IsValid() {
			p.Who = r.who.Address(p.Address)
		}
	}
	return e
}

// decided says which policies an event's rules are of, as long as somebody knows.
func (r *Reader) decided(e *flow.Event) {
	if r.who == nil || e.Rules == [2]uint32{} {
		return
	}
	var words [2]string
	for direction, id := range e.Rules {
		if id == 0 {
			continue
		}
		if p, ok := r.who.Rule(id); ok {
			words[direction] = flow.Decision(policy.Direction(direction), p)
		}
	}
	if words != [2]string{} {
		e.Decided = &words
	}
}

func (r *Reader) remember(rec record) {
	if len(r.history) < History {
		r.history = append(r.history, rec)
		return
	}
	r.history[r.next] = rec
	r.next = (r.next + 1) % History
}

func (r *Reader) close() {
	_ = r.ring.Close()
	r.names.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.subscribers {
		close(s.queue)
		delete(r.subscribers, s)
	}
	r.subscribers = nil
}

// Stats may be called at any time.
func (r *Reader) Stats() Stats {
	return Stats{
		Received: r.received.Load(), Short: r.short.Load(),
		OutOfRange: r.outOfRange.Load(), Lost: r.lost.Load(),
	}
}

// Subscription is a bounded queue of events.
type Subscription struct {
	reader *Reader
	queue  chan flow.Event
	lost   atomic.Uint64
}

// Subscribe gives the last events that are remembered, at most last of them, oldest first, and a queue of every one
// that follows: none is missing or twice between the two. The queue is closed when Run ends.
func (r *Reader) Subscribe(last, queue int) ([]flow.Event, *Subscription) {
	s := &Subscription{reader: r, queue: make(chan flow.Event, queue)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.subscribers == nil {
		close(s.queue)
	} else {
		r.subscribers[s] = struct{}{}
	}
	n := min(max(last, 0), len(r.history))
	past := make([]flow.Event, 0, n)
	for i := len(r.history) - n; i < len(r.history); i++ {
		rec := &r.history[(r.next+i)%len(r.history)]
		past = append(past, Event(&rec.event, rec.boot, rec.iface))
	}
	return past, s
}

// C is the queue.
func (s *Subscription) C() <-chan flow.Event { return s.queue }

// TakeLost says how many events did not fit the queue since it was last asked.
func (s *Subscription) TakeLost() uint64 { return s.lost.Swap(0) }

// Close ends the subscription; the queue may still hold events. Closing twice is fine.
func (s *Subscription) Close() {
	s.reader.mu.Lock()
	defer s.reader.mu.Unlock()
	if _, live := s.reader.subscribers[s]; live {
		delete(s.reader.subscribers, s)
		close(s.queue)
	}
}

// clock knows when the monotonic clock stood at zero by the wall clock, which people may set meanwhile.
type clock struct {
	at    time.Time
	taken time.Time
}

func (c *clock) boot() time.Time {
	if now := time.Now(); c.taken.IsZero() || now.Sub(c.taken) > time.Second {
		var ts unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) == nil {
			c.at = time.Unix(0, time.Now().UnixNano()-ts.Nano())
		}
		c.taken = now
	}
	return c.at
}

// interfaceNames turns numbers into names. A number is not given to another interface of the same namespace before
// all others were used, so a name is good for long; renaming is seen after the cache is emptied.
type interfaceNames struct {
	fd    int
	known map[uint32]string
	since time.Time
}

func newInterfaceNames() (*interfaceNames, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &interfaceNames{fd: fd, known: map[uint32]string{}, since: time.Now()}, nil
}

// name is "" for an interface that is gone.
func (n *interfaceNames) name(ifindex uint32) string {
	if ifindex == 0 {
		return ""
	}
	if len(n.known) > 4096 || time.Since(n.since) > time.Minute {
		clear(n.known)
		n.since = time.Now()
	}
	name, ok := n.known[ifindex]
	if !ok {
		name = n.ask(ifindex)
		n.known[ifindex] = name
	}
	return name
}

func (n *interfaceNames) ask(ifindex uint32) string {
	req, err := unix.NewIfreq("")
	if err != nil {
		return ""
	}
	req.SetUint32(ifindex)
	if err := unix.IoctlIfreq(n.fd, unix.SIOCGIFNAME, req); err != nil {
		return ""
	}
	return req.Name()
}

func (n *interfaceNames) close() { _ = unix.Close(n.fd) }
