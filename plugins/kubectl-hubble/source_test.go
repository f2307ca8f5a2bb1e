// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
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

// With -f a token ends before the reader does: the next one goes on where the last one ended, and nobody is told.
func TestFollowOutlivesTokens(t *testing.T) {
	server := &forgetful{}
	s := &source{
		targets: []target{{node: "worker-1", connect: func(context.Context) (observer, func(), error) { return server, func() {}, nil }}},
		remark:  func(text string) { t.Errorf("remark: %s", text) },
		lasts:   time.Millisecond,
	}
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
