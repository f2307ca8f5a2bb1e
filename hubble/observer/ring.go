// SPDX-License-Identifier: Apache-2.0

package observer

import (
	"math/bits"
	"sync"
	"time"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// DefaultCapacity is how many flows a ring holds unless said.
const DefaultCapacity = 4095

// maxCapacity bounds what a setting can cost: some 25 MiB.
const maxCapacity = 1<<16 - 1

// Ring holds the last events of a node, numbered from 0 on.
//
//	slots:  [ 7 | 8 | 9 | 10 | 4 | 5 | 6 ]      11 are written, the ring can hold 7
//	                           ^ oldest          slot of n: n mod 7
type Ring struct {
	mu    sync.Mutex
	slots []flow.Event
	// written is how many there were; the next one's number.
	written uint64
	// grown is closed, and replaced, when something is written while somebody waits.
	grown   chan struct{}
	waiting bool
	rate    rate
}

// NewRing makes one for at least capacity events: the next power of two, less one, as Hubble's sizes are.
func NewRing(capacity int) *Ring {
	capacity = min(max(capacity, 1), maxCapacity)
	return &Ring{slots: make([]flow.Event, 1<<bits.Len(uint(capacity))-1), grown: make(chan struct{})}
}

// Cap is how many events the ring can hold.
func (r *Ring) Cap() int { return len(r.slots) }

// Take puts events into the ring, the oldest ones out. It waits for nobody who reads.
func (r *Ring) Take(batch []flow.Event) {
	if len(batch) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at := int(r.written % uint64(len(r.slots)))
	for i := range batch {
		r.slots[at] = batch[i]
		if at++; at == len(r.slots) {
			at = 0
		}
	}
	r.written += uint64(len(batch))
	r.rate.add(batch[len(batch)-1].Time, len(batch))
	if r.waiting {
		close(r.grown)
		r.grown, r.waiting = make(chan struct{}), false
	}
}

// Span gives the number of the oldest event that is held, and that of the next to come.
func (r *Ring) Span() (oldest, next uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.span()
}

func (r *Ring) span() (oldest, next uint64) {
	return r.written - min(r.written, uint64(len(r.slots))), r.written
}

// Read copies events from number n on into buf. First is the number of the first of them: it is larger than n where
// those before were overwritten. Where there is none yet, grown is closed when there is.
func (r *Ring) Read(n uint64, buf []flow.Event) (first uint64, count int, grown <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	oldest, next := r.span()
	n = max(n, oldest)
	for count < len(buf) && n+uint64(count) < next {
		buf[count] = r.slots[(n+uint64(count))%uint64(len(r.slots))]
		count++
	}
	if count == 0 {
		r.waiting = true
	}
	return n, count, r.grown
}

// Rate is how many events came in a second, over the minute that ended at now.
func (r *Ring) Rate(now time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rate.perSecond(now)
}

// rate counts in buckets of a second.
type rate struct {
	buckets [60]uint32
	last    int64 // the second, by the events' clock, of the newest bucket
	since   int64 // the second of the first event
}

func (r *rate) add(at time.Time, n int) {
	second := at.Unix()
	if r.since == 0 {
		r.since, r.last = second, second
	}
	r.turn(second)
	r.buckets[uint64(r.last)%uint64(len(r.buckets))] += uint32(n)
}

// turn empties the buckets of the seconds that have passed. A clock that was set back counts in the newest one.
func (r *rate) turn(second int64) {
	if second-r.last >= int64(len(r.buckets)) {
		clear(r.buckets[:])
		r.last = second
	}
	for r.last < second {
		r.last++
		r.buckets[uint64(r.last)%uint64(len(r.buckets))] = 0
	}
}

func (r *rate) perSecond(now time.Time) float64 {
	if r.since == 0 {
		return 0
	}
	r.turn(now.Unix())
	var sum uint64
	for _, n := range r.buckets {
		sum += uint64(n)
	}
	over := min(max(now.Unix()-r.since, 1), int64(len(r.buckets)))
	return float64(sum) / float64(over)
}
