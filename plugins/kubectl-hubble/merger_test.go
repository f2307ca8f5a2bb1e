// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func at(ms int, node string) *observerpb.GetFlowsResponse {
	return &observerpb.GetFlowsResponse{Time: timestamppb.New(time.UnixMilli(int64(ms))), NodeName: node}
}

// Events of three nodes that came in any order within the settling time leave in the order of their times, those of one time in that
// of their nodes.
func TestMergerOrders(t *testing.T) {
	var got []*observerpb.GetFlowsResponse
	m := newMerger(time.Hour, func(e *observerpb.GetFlowsResponse) error { got = append(got, e); return nil })
	var in []*observerpb.GetFlowsResponse
	for i := range 300 {
		in = append(in, at(i/2, fmt.Sprint("n", i%3)))
	}
	rand.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
	for _, e := range in {
		m.add(e)
	}
	if err := m.release(time.Now().Add(-time.Hour)); err != nil || len(got) != 0 {
		t.Fatalf("%d events left before they had waited, %v", len(got), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.run(ctx); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(in) {
		t.Fatalf("%d of %d events left", len(got), len(in))
	}
	for i := 1; i < len(got); i++ {
		if timeOf(got[i]).Before(timeOf(got[i-1])) {
			t.Fatalf("event %d at %v after %v", i, timeOf(got[i]), timeOf(got[i-1]))
		}
		if timeOf(got[i]).Equal(timeOf(got[i-1])) && got[i].NodeName < got[i-1].NodeName {
			t.Fatalf("event %d of %s after that of %s at the same time", i, got[i].NodeName, got[i-1].NodeName)
		}
	}
}

// An older event that comes late leaves with the first younger one that is due, before it.
func TestMergerTakesOlderOnesAlong(t *testing.T) {
	m := newMerger(time.Second, nil)
	m.add(at(20, "a"))
	due := time.Now().Add(time.Millisecond)
	time.Sleep(2 * time.Millisecond)
	m.add(at(10, "b"))
	m.add(at(30, "b"))
	got := m.take(due)
	if len(got) != 2 || got[0].NodeName != "b" || got[1].NodeName != "a" {
		t.Errorf("took %+v", got)
	}
	if left := m.take(time.Time{}); len(left) != 1 || timeOf(left[0]).UnixMilli() != 30 {
		t.Errorf("left %+v", left)
	}
}

func TestMergerEndsOnError(t *testing.T) {
	broken := errors.New("broken pipe")
	m := newMerger(time.Millisecond, func(*observerpb.GetFlowsResponse) error { return broken })
	m.add(at(1, "a"))
	if err := m.run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}
