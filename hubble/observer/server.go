// SPDX-License-Identifier: Apache-2.0

package observer

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"sync/atomic"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/version"
)

// chunk is how many events a reader copies out of the ring at once.
const chunk = 64

// Observer answers Hubble's Observer API from a ring. GetNodes and what is about agents and debugging are a relay's and
// other rooms': they answer Unimplemented.
type Observer struct {
	observerpb.UnimplementedObserverServer
	node    string
	ring    *Ring
	names   atomic.Pointer[flow.Names]
	seed    uint64
	started time.Time
	// kernelLost is what the programs could not put into the kernel's ring since it was made.
	kernelLost atomic.Uint64
}

// New makes an Observer of a node. Until somebody brings names, flows hold numbers and addresses.
func New(node string, ring *Ring) *Observer {
	var seed [8]byte
	_, _ = rand.Read(seed[:]) // never fails
	return &Observer{node: node, ring: ring, seed: binary.BigEndian.Uint64(seed[:]), started: time.Now()}
}

// Take keeps events in the ring.
func (o *Observer) Take(batch []flow.Event) { o.ring.Take(batch) }

// KernelLost says how many events the kernel's ring had no room for. Those who follow are told of what is new.
func (o *Observer) KernelLost(total uint64) { o.kernelLost.Store(total) }

// Lost is how many events were lost, by where, under the names of the API's LostEventSource.
func (o *Observer) Lost() map[string]uint64 {
	return map[string]uint64{flowpb.LostEventSource_PERF_EVENT_RING_BUFFER.String(): o.kernelLost.Load()}
}

// GetFlows sends flows, oldest first: with number the last ones that match, with first the first ones that are held;
// with since those from then on; with follow also those to come, and without any of these nothing else.
func (o *Observer) GetFlows(req *observerpb.GetFlowsRequest, stream grpc.ServerStreamingServer[observerpb.GetFlowsResponse]) error {
	q, err := newQuery(req)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	at, end, skip := o.start(q)
	if q.follow {
		q.heldUntil = end // whatever comes is new, also where this node's clock is put back, or is behind that of who asks
	}
	buf := make([]flow.Event, chunk)
	lost := o.kernelLost.Load()
	left := q.number
	for {
		if !q.follow && at >= end {
			return nil
		}
		first, n, grown := o.ring.Read(at, buf)
		if missed := first - at; missed > 0 {
			if err := o.sendLost(stream, flowpb.LostEventSource_HUBBLE_RING_BUFFER, missed); err != nil {
				return err
			}
		}
		if total := o.kernelLost.Load(); q.follow && total > lost {
			if err := o.sendLost(stream, flowpb.LostEventSource_PERF_EVENT_RING_BUFFER, total-lost); err != nil {
				return err
			}
			lost = total
		}
		for i := range n {
			number := first + uint64(i)
			if !q.follow && number >= end {
				return nil
			}
			if q.after(&buf[i]) && q.follow { // until has passed
				return nil
			}
			for _, f := range o.match(q, number, &buf[i]) {
				if skip > 0 {
					skip--
					continue
				}
				if err := stream.Send(o.response(f)); err != nil {
					return err
				}
				if q.first && q.number > 0 {
					if left--; left == 0 {
						return nil
					}
				}
			}
		}
		at = first + uint64(n)
		if n > 0 {
			if err := stream.Context().Err(); err != nil {
				return status.FromContextError(err).Err()
			}
			continue
		}
		if !q.follow {
			return nil
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-grown:
		}
	}
}

// start gives the number of the first event to look at, the end of those that are there by now, and how many flows of
// the first event are too many.
func (o *Observer) start(q *query) (at, end, skip uint64) {
	oldest, next := o.ring.Span()
	switch {
	case q.first || q.since.IsValid() && q.number == 0:
		return oldest, next, 0
	case q.number == 0:
		if q.follow {
			return next, next, 0
		}
		return oldest, next, 0
	}
	// The last number that match: walk back.
	left := q.number
	buf := make([]flow.Event, chunk)
	for at = next; at > oldest && left > 0; {
		from := at - min(at-oldest, chunk)
		first, n, _ := o.ring.Read(from, buf[:at-from])
		if first != from { // the ring turned over meanwhile
			return first, next, 0
		}
		for i := n - 1; i >= 0 && left > 0; i-- {
			at--
			have := uint64(len(o.match(q, at, &buf[i])))
			skip = max(left, have) - left
			left -= min(left, have)
		}
	}
	return at, next, skip
}

// match makes the flows of an event that are wanted: its own, and those of policies' verdicts for who asks for them.
func (o *Observer) match(q *query, number uint64, e *flow.Event) []*flowpb.Flow {
	if number < q.heldUntil && q.before(e) || q.after(e) {
		return nil
	}
	var names flow.Names
	if n := o.names.Load(); n != nil {
		names = *n
	}
	all := []*flowpb.Flow{flow.Hubble(e, names)}
	if q.verdicts {
		all = append(all, flow.PolicyVerdicts(e, names)...)
	}
	wanted := all[:0]
	for i, f := range all {
		f.NodeName, f.Uuid = o.node, flow.UUID(o.seed+uint64(i), number)
		if q.filter.Match(f) {
			wanted = append(wanted, f)
		}
	}
	return wanted
}

func (o *Observer) response(f *flowpb.Flow) *observerpb.GetFlowsResponse {
	return &observerpb.GetFlowsResponse{
		ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: f}, NodeName: o.node, Time: f.GetTime(),
	}
}

func (o *Observer) sendLost(stream grpc.ServerStreamingServer[observerpb.GetFlowsResponse], where flowpb.LostEventSource, n uint64) error {
	return stream.Send(&observerpb.GetFlowsResponse{
		ResponseTypes: &observerpb.GetFlowsResponse_LostEvents{LostEvents: &flowpb.LostEvent{Source: where, NumEventsLost: n}},
		NodeName:      o.node, Time: timestamppb.Now(),
	})
}

// ServerStatus tells how full the ring is and what it has seen.
func (o *Observer) ServerStatus(context.Context, *observerpb.ServerStatusRequest) (*observerpb.ServerStatusResponse, error) {
	oldest, next := o.ring.Span()
	now := time.Now()
	return &observerpb.ServerStatusResponse{
		NumFlows: next - oldest, MaxFlows: uint64(o.ring.Cap()), SeenFlows: next,
		UptimeNs: uint64(now.Sub(o.started)), Version: version.Version, FlowsRate: o.ring.Rate(now),
	}, nil
}

// namespaceAge is how old the last flow of a namespace may be for GetNamespaces, as the API says.
const namespaceAge = time.Hour

// GetNamespaces lists the namespaces of the flows that are held.
func (o *Observer) GetNamespaces(context.Context, *observerpb.GetNamespacesRequest) (*observerpb.GetNamespacesResponse, error) {
	seen := map[string]bool{}
	oldest, next := o.ring.Span()
	buf := make([]flow.Event, chunk)
	for at := oldest; at < next; {
		first, n, _ := o.ring.Read(at, buf)
		if n == 0 {
			break
		}
		for i := range n {
			for _, who := range []*flow.Who{buf[i].Source.Who, buf[i].Destination.Who} {
				if who != nil && who.Namespace != "" && time.Since(buf[i].Time) < namespaceAge {
					seen[who.Namespace] = true
				}
			}
		}
		at = first + uint64(n)
	}
	out := &observerpb.GetNamespacesResponse{}
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		out.Namespaces = append(out.Namespaces, &observerpb.Namespace{Namespace: name})
	}
	return out, nil
}

// query is a GetFlowsRequest that makes sense.
type query struct {
	number        uint64
	first, follow bool
	// verdicts tells that policies' verdicts are asked for.
	verdicts     bool
	since, until *timestamppb.Timestamp
	// heldUntil is the number of the first event to which since does not apply.
	heldUntil uint64
	filter    *flow.Filter
}

func newQuery(req *observerpb.GetFlowsRequest) (*query, error) {
	q := &query{number: req.GetNumber(), first: req.GetFirst(), follow: req.GetFollow(), since: req.GetSince(), until: req.GetUntil(), heldUntil: math.MaxUint64}
	if q.first && q.follow {
		return nil, errFirstAndFollow
	}
	for _, t := range []*timestamppb.Timestamp{q.since, q.until} {
		if t != nil && !t.IsValid() {
			return nil, errBadTime
		}
	}
	// A mask says what a client can do without: it gets more than that. A mask of fields that are none is a mistake.
	if paths := req.GetFieldMask().GetPaths(); len(paths) > 0 {
		if _, err := fieldmaskpb.New(&flowpb.Flow{}, paths...); err != nil {
			return nil, errBadMask
		}
	}
	q.verdicts = flow.WantsVerdicts(req.GetWhitelist())
	var err error
	q.filter, err = flow.NewFilter(req.GetWhitelist(), req.GetBlacklist())
	return q, err
}

func (q *query) before(e *flow.Event) bool { return q.since != nil && e.Time.Before(q.since.AsTime()) }
func (q *query) after(e *flow.Event) bool  { return q.until != nil && e.Time.After(q.until.AsTime()) }
