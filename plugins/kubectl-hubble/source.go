// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// errNobody means that no node could be asked; why has been told for each.
var errNobody = errors.New("no node could be asked")

// Request is what is wanted of a source of flows.
type Request struct {
	// Last is how many past events, of all nodes together, that match.
	Last   int
	Follow bool
	Filter *flow.Filter
	// Fill gives an event names before it is filtered.
	Fill func(*flow.Event)
}

// askPast is how many past events of each node are asked for, of which the filter may leave few: as many as it has.
const askPast = 1 << 20

// settle is how long a live event waits for an older one of another node.
const settle = 300 * time.Millisecond

// nodeSource gets flows from each node's agent through its inspect container. The relay's Observer takes its place.
type nodeSource struct {
	cluster *cluster.Cluster
	nodes   []string
	remark  func(string)
}

// Flows calls each for every event wanted, in the order of time as far as the nodes' clocks agree: past ones exactly,
// live ones within the time that an event may need from its node to here. A node that cannot be asked is left out with
// a remark; it is an error when none can.
func (s *nodeSource) Flows(ctx context.Context, req Request, each func(flow.Event) error) error {
	m := newMerger(settle, func(e flow.Event) error {
		if req.Fill != nil {
			req.Fill(&e)
		}
		if req.Filter != nil && !req.Filter.Match(&e) {
			return nil
		}
		return each(e)
	})
	newest := map[string]time.Time{} // node -> of what it told already
	if req.Last > 0 {
		past, err := s.past(ctx, req, newest)
		if err != nil {
			return err
		}
		for _, e := range past {
			if err := each(e); err != nil {
				return err
			}
		}
	}
	if !req.Follow || ctx.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	merged := make(chan error, 1)
	go func() {
		err := m.run(ctx)
		cancel()
		merged <- err
	}()
	live := cluster.EventRequest{Follow: true, Types: typeNames(req)}
	if req.Last > 0 {
		live.Last = askPast // what happened since the past was asked for, too
	}
	streamErr := s.all(ctx, live, func(e flow.Event) {
		if e.Time.After(newest[e.Node]) {
			m.add(e)
		}
	})
	cancel()
	if err := <-merged; err != nil {
		return err
	}
	return streamErr
}

func typeNames(req Request) []string {
	var names []string
	if req.Filter != nil {
		for _, t := range req.Filter.Types {
			names = append(names, t.String())
		}
	}
	return names
}

// past are the last events of all nodes together, oldest first. Newest gets the time of each node's last event.
func (s *nodeSource) past(ctx context.Context, req Request, newest map[string]time.Time) ([]flow.Event, error) {
	var mu sync.Mutex
	var all []flow.Event
	err := s.all(ctx, cluster.EventRequest{Last: askPast, Types: typeNames(req)}, func(e flow.Event) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, e)
		newest[e.Node] = e.Time
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b flow.Event) int { return a.Time.Compare(b.Time) })
	kept := make([]flow.Event, 0, min(req.Last, len(all)))
	for i := len(all) - 1; i >= 0 && len(kept) < req.Last; i-- {
		if req.Fill != nil {
			req.Fill(&all[i])
		}
		if req.Filter == nil || req.Filter.Match(&all[i]) {
			kept = append(kept, all[i])
		}
	}
	slices.Reverse(kept)
	return kept, nil
}

// all asks every node at once and returns when all have ended.
func (s *nodeSource) all(ctx context.Context, req cluster.EventRequest, take func(flow.Event)) error {
	errs := make([]error, len(s.nodes))
	var wg sync.WaitGroup
	for i, node := range s.nodes {
		wg.Go(func() {
			errs[i] = s.cluster.Events(ctx, node, req, func(m flow.Message) error {
				if m.Lost > 0 {
					s.remark(fmt.Sprintf("node/%s: %d events lost: they came faster than they could be shown", node, m.Lost))
				}
				if m.Event != nil {
					take(*m.Event)
				}
				return nil
			})
			if errs[i] != nil && ctx.Err() == nil {
				s.remark(errs[i].Error())
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	if slices.Contains(errs, nil) {
		return nil
	}
	return errNobody
}
