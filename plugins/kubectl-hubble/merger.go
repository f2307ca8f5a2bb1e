// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"container/heap"
	"context"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
)

// merger puts events of several streams into the order of their times. An event waits until no older one is expected:
// for the settling time after it came.
type merger struct {
	settle time.Duration
	out    func(*observerpb.GetFlowsResponse) error

	mu      sync.Mutex
	waiting eventHeap
	order   uint64
}

func newMerger(settle time.Duration, out func(*observerpb.GetFlowsResponse) error) *merger {
	return &merger{settle: settle, out: out}
}

// add may be called by several streams at once.
func (m *merger) add(e *observerpb.GetFlowsResponse) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order++
	heap.Push(&m.waiting, arrived{e, time.Now(), m.order})
}

// run hands events on until ctx is done, then those that wait; or until out returns an error.
func (m *merger) run(ctx context.Context) error {
	tick := time.NewTicker(m.settle / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return m.release(time.Time{})
		case now := <-tick.C:
			if err := m.release(now.Add(-m.settle)); err != nil {
				return err
			}
		}
	}
}

// release hands on, oldest first, what came before the given time and everything older than that; all for the zero time.
func (m *merger) release(before time.Time) error {
	for _, e := range m.take(before) {
		if err := m.out(e); err != nil {
			return err
		}
	}
	return nil
}

func (m *merger) take(before time.Time) []*observerpb.GetFlowsResponse {
	m.mu.Lock()
	defer m.mu.Unlock()
	ripe := 0 // the youngest event, by its own time, that has waited long enough takes along all that are older
	var limit time.Time
	for _, a := range m.waiting {
		if before.IsZero() || a.at.Before(before) {
			ripe++
			if timeOf(a.event).After(limit) {
				limit = timeOf(a.event)
			}
		}
	}
	if ripe == 0 {
		return nil
	}
	var all []*observerpb.GetFlowsResponse
	for m.waiting.Len() > 0 && !timeOf(m.waiting[0].event).After(limit) {
		all = append(all, heap.Pop(&m.waiting).(arrived).event)
	}
	return all
}

// byTime puts what happened at one time on several nodes into the order of their names, for clocks are read in ticks and
// nobody knows better: the same question has the same answer whichever node was faster. What a node tells of one time
// stays in the order in which it tells it.
func byTime(a, b *observerpb.GetFlowsResponse) int {
	return cmp.Or(timeOf(a).Compare(timeOf(b)), cmp.Compare(a.GetNodeName(), b.GetNodeName()))
}

// timeOf is when what a message tells of happened.
func timeOf(r *observerpb.GetFlowsResponse) time.Time { return r.GetTime().AsTime() }

// arrived is an event, when it came and as which one.
type arrived struct {
	event *observerpb.GetFlowsResponse
	at    time.Time
	order uint64
}

// eventHeap has the oldest event first; events of one time and node in the order in which they came.
type eventHeap []arrived

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return cmp.Or(byTime(h[i].event, h[j].event), cmp.Compare(h[i].order, h[j].order)) < 0
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(arrived)) }
func (h *eventHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
