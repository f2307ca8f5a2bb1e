// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// errOver means that a stream has ended with the token that it began with: a new one goes on.
var errOver = errors.New("the token is over")

// errNobody means that no node could be asked; why has been told for each.
var errNobody = errors.New("no node could be asked")

const (
	// settle is how long a live flow waits for an older one of another node.
	settle = 300 * time.Millisecond
	// slack is how much older than one before it a flow of a node may be: its program was held up between the two.
	slack = time.Second
	// putBack is how much older than one before it a flow has to be for its node's clock to have been put back. What a
	// stream tells after that may have been told before it.
	putBack = 10 * slack
	// maxTold bounds the flows of a node that are remembered: as many as an agent can hold, and tell once more.
	maxTold = 1 << 16
	// reconnect is how long after the end of a node's stream it is asked again, with -f.
	reconnect = 2 * time.Second
	// tokenLasts is the least that a token is good for: a stream that is refused later was let in before.
	tokenLasts = 30 * time.Second
	// maxInput bounds a line of an input file, in bytes.
	maxInput = 1 << 20
)

// observer is one server of flows; Hubble's relay would be one for all nodes.
type observer interface {
	GetFlows(context.Context, *observerpb.GetFlowsRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[observerpb.GetFlowsResponse], error)
}

// target is a node and how to connect to its server. Connect is called again after a stream has ended; what it gives
// is closed by calling the function.
type target struct {
	node    string
	connect func(context.Context) (observer, func(), error)
}

// source gets flows from the servers of several nodes.
type source struct {
	targets []target
	remark  func(string)
	// lasts is tokenLasts unless said; tests have less patience.
	lasts time.Duration
}

// Flows calls each for every flow wanted, in the order of time as far as the nodes' clocks agree: past ones exactly, live
// ones within the time that a flow may need from its node to here. A node that cannot be asked is left out with a
// remark; it is an error when none can.
func (s *source) Flows(ctx context.Context, req *observerpb.GetFlowsRequest, each func(*observerpb.GetFlowsResponse) error) error {
	began := time.Now()
	now := proto.Clone(req).(*observerpb.GetFlowsRequest)
	now.Follow = false
	seen := map[string]*last{}
	for _, t := range s.targets {
		seen[t.node] = &last{}
	}
	if req.Number > 0 || req.Since != nil || !req.Follow {
		past, err := s.past(ctx, now, seen)
		if err != nil {
			return err
		}
		for _, r := range past {
			if err := each(r); err != nil {
				return err
			}
		}
	}
	if !req.Follow || ctx.Err() != nil {
		return nil
	}
	m := newMerger(settle, each)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	merged := make(chan error, 1)
	go func() {
		err := m.run(ctx)
		cancel()
		merged <- err
	}()
	var wg sync.WaitGroup
	for _, t := range s.targets {
		wg.Go(func() { s.follow(ctx, t, req, began, seen[t.node], m.add) })
	}
	wg.Wait()
	cancel()
	return <-merged
}

// last is what a node has told of late. Its flows are not quite in the order of their times: processors write theirs down
// side by side. So what is told in one stream is new whatever its time, and a stream that goes on after another begins
// slack before the newest flow; those told already are known by their UUIDs.
type last struct {
	// asked: the node has answered. told: there was a flow in it.
	asked, told    bool
	oldest, newest time.Time
	uuids          map[string]bool
	order          []toldFlow // those of uuids, as they came; not older than slack before the newest, and at most maxTold
	// counted: so many of the last flows were asked for. What the node has before them may be as young, and comes first in a
	// stream that goes on: it is held back until one of them comes, which it does unless the node has none of them any more.
	counted bool
	held    []*observerpb.GetFlowsResponse
}

// toldFlow is a flow that was told, or that nobody asked for.
type toldFlow struct {
	uuid string
	at   time.Time
}

// news are the flows to tell after one has come.
func (l *last) news(r *observerpb.GetFlowsResponse) []*observerpb.GetFlowsResponse {
	if l.uuids[r.GetFlow().GetUuid()] {
		for _, r := range l.held {
			l.know(r.GetFlow())
		}
		l.counted, l.held = false, nil
		return nil
	}
	l.held = append(l.held, r)
	if l.counted && l.told && !r.GetFlow().GetTime().AsTime().After(l.newest.Add(slack)) {
		return nil
	}
	news := l.held
	l.counted, l.held = false, nil
	for _, r := range news {
		l.remember(r.GetFlow())
	}
	return news
}

// remember a flow that is told.
func (l *last) remember(f *flowpb.Flow) {
	at := f.GetTime().AsTime()
	if !l.told || at.Before(l.oldest) {
		l.oldest = at
	}
	// Where the clock was put back, those to come are about as old.
	if !l.told || at.After(l.newest) || at.Before(l.newest.Add(-putBack)) {
		l.newest = at
	}
	l.told = true
	l.know(f)
}

// know a flow that is not to be told any more.
func (l *last) know(f *flowpb.Flow) {
	if f.GetUuid() == "" {
		return
	}
	if l.uuids == nil {
		l.uuids = map[string]bool{}
	}
	l.uuids[f.GetUuid()] = true
	l.order = append(l.order, toldFlow{f.GetUuid(), f.GetTime().AsTime()})
	for len(l.order) > maxTold || len(l.order) > 0 && l.order[0].at.Before(l.newest.Add(-slack)) {
		delete(l.uuids, l.order[0].uuid)
		l.order = l.order[1:]
	}
}

// since is where a stream goes on: never before the first flow that was told, for nobody asked for older ones, unless these
// are known when they come.
func (l *last) since() time.Time {
	if from := l.newest.Add(-slack); l.counted || from.After(l.oldest) {
		return from
	}
	return l.oldest
}

// past are flows that there are already, of all nodes together, oldest first, as many as the request wants.
func (s *source) past(ctx context.Context, req *observerpb.GetFlowsRequest, seen map[string]*last) ([]*observerpb.GetFlowsResponse, error) {
	var mu sync.Mutex
	var all []*observerpb.GetFlowsResponse
	errs := make([]error, len(s.targets))
	var wg sync.WaitGroup
	for i, t := range s.targets {
		wg.Go(func() {
			errs[i] = s.stream(ctx, t, req, func(r *observerpb.GetFlowsResponse) {
				mu.Lock()
				defer mu.Unlock()
				seen[t.node].remember(r.GetFlow())
				all = append(all, r)
			})
			seen[t.node].asked, seen[t.node].counted = errs[i] == nil, req.Number > 0
			if errs[i] != nil && ctx.Err() == nil {
				s.remark(errs[i].Error())
			}
		})
	}
	wg.Wait()
	if len(errs) > 0 && !slices.Contains(errs, nil) && ctx.Err() == nil {
		for _, err := range errs { // one sentence where all say that the question is wrong
			if status.Code(err) == codes.InvalidArgument {
				return nil, err
			}
		}
		return nil, errNobody
	}
	slices.SortStableFunc(all, byTime)
	if n := int(min(req.Number, uint64(len(all)))); n > 0 && req.First {
		all = all[:n]
	} else if n > 0 {
		all = all[len(all)-n:]
	}
	return all, nil
}

// follow hands on what is new on a node since the question was asked, until ctx is done, also after its agent was away.
func (s *source) follow(ctx context.Context, t target, req *observerpb.GetFlowsRequest, began time.Time, l *last, take func(*observerpb.GetFlowsResponse)) {
	said := ""
	for first := true; ctx.Err() == nil; first = false {
		live := &observerpb.GetFlowsRequest{Follow: true, Whitelist: req.Whitelist, Blacklist: req.Blacklist}
		switch {
		case l.told:
			live.Since = timestamppb.New(l.since())
		case req.Since != nil && (l.asked || req.Number == 0): // nothing matched then: whatever does is new
			live.Since = req.Since
		case l.asked:
			live.Since = timestamppb.New(time.Unix(0, 0))
		case !first: // the time by our clock; what came before the first stream began, the node has not kept for us
			live.Since = timestamppb.New(began)
		}
		l.held = nil // they come again
		err := s.stream(ctx, t, live, func(r *observerpb.GetFlowsResponse) {
			said = ""
			for _, r := range l.news(r) {
				take(r)
			}
		})
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errOver) {
			continue
		}
		if err == nil {
			err = fmt.Errorf("node/%s: the stream has ended", t.node)
		}
		if text := err.Error(); text != said {
			s.remark(text + "; asking again")
			said = text
		}
		select {
		case <-ctx.Done():
		case <-time.After(reconnect):
		}
	}
}

// stream asks one node and calls take for every flow of the answer.
func (s *source) stream(ctx context.Context, t target, req *observerpb.GetFlowsRequest, take func(*observerpb.GetFlowsResponse)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server, done, err := t.connect(ctx)
	if err != nil {
		return fmt.Errorf("node/%s: %w", t.node, err)
	}
	defer done()
	began := time.Now()
	answer, err := server.GetFlows(ctx, req)
	if err != nil {
		return nodeError(t.node, err)
	}
	for {
		r, err := answer.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case status.Code(err) == codes.Unauthenticated && time.Since(began) > cmp.Or(s.lasts, tokenLasts):
			return errOver
		case err != nil:
			return nodeError(t.node, err)
		}
		switch what := r.GetResponseTypes().(type) {
		case *observerpb.GetFlowsResponse_Flow:
			take(r)
		case *observerpb.GetFlowsResponse_LostEvents:
			s.remark(lostText(t.node, what.LostEvents))
		case *observerpb.GetFlowsResponse_NodeStatus:
			if text := nodeStatusText(what.NodeStatus); text != "" {
				s.remark(text)
			}
		}
	}
}

// nodeError keeps what a server says, without the words around it.
func nodeError(node string, err error) error {
	if st, ok := status.FromError(err); ok && st.Code() != codes.InvalidArgument {
		return fmt.Errorf("node/%s: %s", node, st.Message())
	} else if ok {
		return err
	}
	return fmt.Errorf("node/%s: %w", node, err)
}

func lostText(node string, l *flowpb.LostEvent) string {
	where := "they came faster than they could be shown"
	if l.GetSource() == flowpb.LostEventSource_PERF_EVENT_RING_BUFFER {
		where = "they came faster than the agent could read them"
	}
	return fmt.Sprintf("node/%s: %d flows lost: %s", node, l.GetNumEventsLost(), where)
}

// nodeStatusText is what a relay says of its nodes, where it is worth a remark.
func nodeStatusText(e *relaypb.NodeStatusEvent) string {
	if c := e.GetStateChange(); c != relaypb.NodeState_NODE_UNAVAILABLE && c != relaypb.NodeState_NODE_ERROR {
		return ""
	}
	names := e.GetNodeNames()
	more := ""
	if len(names) > 50 {
		more = fmt.Sprintf(" (and %d more)", len(names)-50)
		names = names[:50]
	}
	return fmt.Sprintf("nodes %v%s: %s", names, more, e.GetMessage())
}

// readInput calls each for the flows of a file that -o json has written, which the request wants: the last ones of them. It
// gives how many flows it has read.
func readInput(in io.Reader, req *observerpb.GetFlowsRequest, each func(*observerpb.GetFlowsResponse) error) (flows int, err error) {
	filter, err := flow.NewFilter(req.GetWhitelist(), req.GetBlacklist())
	if err != nil {
		return flows, err
	}
	var kept []*observerpb.GetFlowsResponse
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 0, 64<<10), maxInput)
	for n := 1; lines.Scan(); n++ {
		r, err := parseLine(lines.Bytes())
		if err != nil {
			return flows, fmt.Errorf("line %d: %w", n, err)
		}
		f := r.GetFlow()
		if f != nil {
			flows++
		}
		at := f.GetTime().AsTime()
		if f == nil || req.Since != nil && at.Before(req.Since.AsTime()) || req.Until != nil && at.After(req.Until.AsTime()) || !filter.Match(f) {
			continue
		}
		if kept = append(kept, r); req.Number == 0 {
			if err := each(r); err != nil {
				return flows, err
			}
			kept = kept[:0]
			continue
		}
		if uint64(len(kept)) == req.Number && req.First {
			break
		}
		if uint64(len(kept)) > req.Number {
			kept = kept[1:]
		}
	}
	if err := lines.Err(); err != nil {
		return flows, err
	}
	for _, r := range kept {
		if err := each(r); err != nil {
			return flows, err
		}
	}
	return flows, nil
}

// parseLine reads a message of GetFlows, or a flow alone.
func parseLine(line []byte) (*observerpb.GetFlowsResponse, error) {
	r := &observerpb.GetFlowsResponse{}
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true}
	if err := lenient.Unmarshal(line, r); err != nil {
		return nil, errors.New("neither a message of Hubble's GetFlows nor a flow (-o json writes them)")
	}
	if r.GetResponseTypes() == nil {
		f := &flowpb.Flow{}
		if err := lenient.Unmarshal(line, f); err == nil && f.GetTime() != nil {
			r.ResponseTypes, r.Time, r.NodeName = &observerpb.GetFlowsResponse_Flow{Flow: f}, f.GetTime(), f.GetNodeName()
		}
	}
	return r, nil
}
