// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// forgetful ends each stream after one flow, with the token that it began with.
type forgetful struct{ calls atomic.Int64 }

func (f *forgetful) GetFlows(ctx context.Context, req *observerpb.GetFlowsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[observerpb.GetFlowsResponse], error) {
	return &oneFlow{ctx: ctx, number: f.calls.Add(1)}, nil
}

type oneFlow struct {
	grpc.ServerStreamingClient[observerpb.GetFlowsResponse]
	ctx    context.Context
	number int64
	told   bool
}

func (s *oneFlow) Recv() (*observerpb.GetFlowsResponse, error) {
	if s.told {
		time.Sleep(2 * time.Millisecond)
		return nil, status.Error(codes.Unauthenticated, "over")
	}
	s.told = true
	at := timestamppb.New(time.Unix(s.number, 0))
	return &observerpb.GetFlowsResponse{Time: at, ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{Time: at, Uuid: strconv.FormatInt(s.number, 10)}}}, nil
}

// quietSource asks one server, whose tokens end at once, and of which nobody is to be told anything.
func quietSource(t *testing.T, server observer) *source {
	return &source{
		targets: []target{{node: "worker-1", connect: func(context.Context) (observer, func(), error) { return server, func() {}, nil }}},
		remark:  func(text string) { t.Errorf("remark: %s", text) },
		lasts:   time.Millisecond,
	}
}

// With -f a token ends before the reader does: the next one goes on where the last one ended, and nobody is told.
func TestFollowOutlivesTokens(t *testing.T) {
	server := &forgetful{}
	s := quietSource(t, server)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	seen := int64(0)
	err := s.Flows(ctx, &observerpb.GetFlowsRequest{Follow: true}, func(r *observerpb.GetFlowsResponse) error {
		if seen++; r.GetTime().GetSeconds() != seen {
			t.Errorf("flow %d came as the %dth", r.GetTime().GetSeconds(), seen)
		}
		if seen == 3 {
			cancel()
		}
		return nil
	})
	if err != nil || seen < 3 {
		t.Errorf("%d flows, %v", seen, err)
	}
}

// disorderly is a server whose flows are not in the order of their times. Each stream that follows sees two more of
// them come, and ends.
type disorderly struct {
	flows []*flowpb.Flow
	come  int
	// mute is how many streams end before they have told of anything.
	mute int
}

func (d *disorderly) GetFlows(_ context.Context, req *observerpb.GetFlowsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[observerpb.GetFlowsResponse], error) {
	there := d.come
	if req.Follow {
		d.come = min(d.come+2, len(d.flows))
	}
	s := &someFlows{end: io.EOF}
	if req.Follow {
		s.end = status.Error(codes.Unauthenticated, "over")
	}
	for i, f := range d.flows[:d.come] {
		if req.Since == nil && req.Follow && i < there || req.Since != nil && f.Time.AsTime().Before(req.Since.AsTime()) {
			continue
		}
		s.flows = append(s.flows, f)
	}
	if n := int(req.Number); n > 0 && n < len(s.flows) {
		s.flows = s.flows[len(s.flows)-n:]
	}
	if req.Follow && d.mute > 0 {
		d.mute, s.flows = d.mute-1, nil
	}
	return s, nil
}

type someFlows struct {
	grpc.ServerStreamingClient[observerpb.GetFlowsResponse]
	flows []*flowpb.Flow
	end   error
}

func (s *someFlows) Recv() (*observerpb.GetFlowsResponse, error) {
	if len(s.flows) == 0 {
		time.Sleep(2 * time.Millisecond)
		return nil, s.end
	}
	f := s.flows[0]
	s.flows = s.flows[1:]
	return &observerpb.GetFlowsResponse{Time: f.Time, NodeName: f.NodeName, ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: f}}, nil
}

// With -f, what came after a younger flow of the same node was left out.
func TestFollowTellsEveryFlowOnce(t *testing.T) {
	start := time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		req   *observerpb.GetFlowsRequest
		there int // when it is asked
		first int // that is wanted
		mute  int
		asked int // the first whose time is after that of the question
	}{
		"since a time after which nothing was": {&observerpb.GetFlowsRequest{Follow: true, Since: timestamppb.New(start.Add(2 * time.Second))}, 10, 10, 0, 0},
		"from now on":                          {&observerpb.GetFlowsRequest{Follow: true}, 5, 5, 0, 0},
		"from now on, and nothing at first":    {&observerpb.GetFlowsRequest{Follow: true}, 5, 5, 2, 5},
		"the last ones and from now on":        {&observerpb.GetFlowsRequest{Follow: true, Number: 3}, 8, 5, 0, 0},
		"the last one, older than one before":  {&observerpb.GetFlowsRequest{Follow: true, Number: 1}, 7, 6, 0, 0},
		"the last two, and nothing at first":   {&observerpb.GetFlowsRequest{Follow: true, Number: 2}, 9, 7, 1, 0},
		"all":                                  {&observerpb.GetFlowsRequest{Follow: true, Since: timestamppb.New(time.Unix(0, 0))}, 3, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var flows []*flowpb.Flow
			for i, ms := range []int64{0, 4, 0, 8, 4, 996, 992, 1500, 1496, 1400, 3000, 2996, 3000, 3004} {
				at := start.Add(time.Duration(ms) * time.Millisecond)
				if i < c.asked {
					at = at.Add(-2 * time.Hour) // before anybody asks
				}
				flows = append(flows, &flowpb.Flow{Uuid: strconv.Itoa(i), Time: timestamppb.New(at)})
			}
			server := &disorderly{flows: flows, come: c.there, mute: c.mute}
			s := quietSource(t, server)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			told := map[string]int{}
			if err := s.Flows(ctx, c.req, func(r *observerpb.GetFlowsResponse) error {
				if told[r.GetFlow().Uuid]++; len(told) == len(flows)-c.first {
					time.AfterFunc(50*time.Millisecond, cancel) // for what would come twice
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			for i, f := range flows {
				want := 1
				if i < c.first {
					want = 0
				}
				if n := told[f.Uuid]; n != want {
					t.Errorf("flow %d was told of %d times, want %d", i, n, want)
				}
			}
		})
	}
}

// After a node's clock was put back, every flow of it was remembered until the clock was where it had been, and a stream
// that went on began there.
func TestClockPutBack(t *testing.T) {
	var l last
	tell := func(n int, at time.Time) int {
		return len(l.news(&observerpb.GetFlowsResponse{ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{Uuid: strconv.Itoa(n), Time: timestamppb.New(at)}}}))
	}
	start, n := time.Unix(1e9, 0), 0
	for range 100 {
		n++
		tell(n, start)
	}
	n++
	if tell(n, start.Add(-2*slack)); l.since().Before(start.Add(-slack)) {
		t.Errorf("after a flow that came late it goes on at %v", l.since())
	}
	back := start.Add(-time.Hour)
	for i := range 3 * maxTold {
		n++
		if at := back.Add(time.Duration(i) * time.Microsecond); tell(n, at) != 1 || l.since().Before(back.Add(-slack)) || l.since().After(at) {
			t.Fatalf("at %v: goes on at %v", at, l.since())
		}
	}
	if len(l.uuids) > maxTold || len(l.order) != len(l.uuids) || cap(l.order) > 4*maxTold {
		t.Errorf("%d UUIDs are remembered, in order %d of %d", len(l.uuids), len(l.order), cap(l.order))
	}
	if tell(n, start) != 0 {
		t.Error("the last one is told twice")
	}
	n++
	if tell(n, start.Add(time.Minute)); len(l.uuids) != 1 {
		t.Errorf("%d UUIDs are remembered when the clock is past it", len(l.uuids))
	}
}

// An agent that was replaced between the past and the live part has none of the flows that were told: what it has is new.
func TestLastFlowsOfAnotherAgent(t *testing.T) {
	l := last{counted: true}
	flow := func(uuid string, ms int64) *observerpb.GetFlowsResponse {
		return &observerpb.GetFlowsResponse{ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{Uuid: uuid, Time: timestamppb.New(time.UnixMilli(1e12 + ms))}}}
	}
	l.remember(flow("before", 0).GetFlow())
	for _, c := range []struct {
		uuid string
		ms   int64
		want int
	}{{"one", -5, 0}, {"two", 5, 0}, {"three", slack.Milliseconds() + 1, 3}, {"four", 6, 1}} {
		if got := len(l.news(flow(c.uuid, c.ms))); got != c.want {
			t.Errorf("%s: %d are told, want %d", c.uuid, got, c.want)
		}
	}
}

// sameTime is a node's server with two flows of one time; it answers once the given server, if any, has answered.
type sameTime struct {
	node  string
	after *sameTime
	told  chan struct{}
}

func (n *sameTime) GetFlows(context.Context, *observerpb.GetFlowsRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[observerpb.GetFlowsResponse], error) {
	if n.after != nil {
		<-n.after.told
	}
	s := &someFlows{end: io.EOF}
	for i := range 2 {
		s.flows = append(s.flows, &flowpb.Flow{Time: timestamppb.New(time.Unix(1, 0)), NodeName: n.node, Uuid: n.node + strconv.Itoa(i)})
	}
	return &ending{ServerStreamingClient: s, told: n.told}, nil
}

// ending closes told when its stream is over.
type ending struct {
	grpc.ServerStreamingClient[observerpb.GetFlowsResponse]
	told chan struct{}
}

func (e *ending) Recv() (*observerpb.GetFlowsResponse, error) {
	r, err := e.ServerStreamingClient.Recv()
	if err != nil {
		close(e.told)
	}
	return r, err
}

// Two nodes' clocks that are read in ticks often say the same: the same question has the same answer, whichever node is
// faster.
func TestFlowsOfOneTime(t *testing.T) {
	for _, first := range []int{0, 1} {
		nodes := []*sameTime{{node: "worker-1", told: make(chan struct{})}, {node: "worker-2", told: make(chan struct{})}}
		nodes[1-first].after = nodes[first]
		s := quietSource(t, nil)
		s.targets = nil
		for _, n := range nodes {
			s.targets = append(s.targets, target{node: n.node, connect: func(context.Context) (observer, func(), error) { return n, func() {}, nil }})
		}
		var got []string
		if err := s.Flows(t.Context(), &observerpb.GetFlowsRequest{}, func(r *observerpb.GetFlowsResponse) error {
			got = append(got, r.GetFlow().GetUuid())
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if want := []string{"worker-10", "worker-11", "worker-20", "worker-21"}; !slices.Equal(got, want) {
			t.Errorf("%s answered first: %v, not %v", nodes[first].node, got, want)
		}
	}
}
