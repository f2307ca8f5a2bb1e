// SPDX-License-Identifier: Apache-2.0

package observer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// event is the nth: a second after the one before it, from port n.
func event(n int) flow.Event {
	return flow.Event{
		Time: epoch.Add(time.Duration(n) * time.Second), Type: flow.Trace, Protocol: 6,
		Source:      flow.Party{Address: netip.MustParseAddr("10.0.0.1"), Port: uint16(n), Who: &flow.Who{Namespace: fmt.Sprint("ns", n%2), Pod: "p"}},
		Destination: flow.Party{Address: netip.MustParseAddr("10.0.0.2"), Port: 80},
	}
}

func events(from, to int) []flow.Event {
	var all []flow.Event
	for n := from; n < to; n++ {
		all = append(all, event(n))
	}
	return all
}

func TestRing(t *testing.T) {
	for in, want := range map[int]int{0: 1, 1: 1, 3: 3, 4: 7, 4095: 4095, 4096: 8191, 1 << 30: maxCapacity} {
		if got := NewRing(in).Cap(); got != want {
			t.Errorf("capacity %d became %d, want %d", in, got, want)
		}
	}
	r := NewRing(7)
	buf := make([]flow.Event, 10)
	if _, n, _ := r.Read(0, buf); n != 0 {
		t.Fatalf("%d events in an empty ring", n)
	}
	_, _, grown := r.Read(0, buf)
	r.Take(events(0, 3))
	<-grown
	if first, n, _ := r.Read(1, buf); first != 1 || n != 2 || buf[0].Source.Port != 1 {
		t.Errorf("read %d from %d", n, first)
	}
	r.Take(events(3, 11))
	oldest, next := r.Span()
	first, n, _ := r.Read(0, buf)
	if oldest != 4 || next != 11 || first != 4 || n != 7 {
		t.Fatalf("span %d to %d; read %d from %d", oldest, next, n, first)
	}
	for i := range n {
		if buf[i].Source.Port != uint16(4+i) {
			t.Errorf("event %d came from %d", 4+i, buf[i].Source.Port)
		}
	}
	r.Take(events(11, 111)) // more than it holds at once
	if first, n, _ := r.Read(0, buf); first != 104 || n != 7 || buf[6].Source.Port != 110 {
		t.Errorf("read %d from %d", n, first)
	}
}

func TestRate(t *testing.T) {
	var r rate
	if r.perSecond(epoch) != 0 {
		t.Error("a rate of nothing")
	}
	for second := range 120 {
		r.add(epoch.Add(time.Duration(second)*time.Second), 10)
	}
	if got := r.perSecond(epoch.Add(119 * time.Second)); got != 10 {
		t.Errorf("rate %v, want 10", got)
	}
	if got := r.perSecond(epoch.Add(149 * time.Second)); got != 5 {
		t.Errorf("half a minute later %v, want 5", got)
	}
	r.add(epoch, 60) // the clock was set back
	if got := r.perSecond(epoch.Add(149 * time.Second)); got != 6 {
		t.Errorf("with late ones %v, want 6", got)
	}
	if got := r.perSecond(epoch.Add(time.Hour)); got != 0 {
		t.Errorf("an hour later %v", got)
	}
}

const user, audience = "system:serviceaccount:ns:reader", "flows"

// reviews answers by the token's name, and counts.
type reviews struct {
	mu    sync.Mutex
	asked map[string]int
	away  atomic.Bool
	// over: no token is in force any more.
	over atomic.Bool
}

func (r *reviews) Create(_ context.Context, in *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked[in.Spec.Token]++
	if r.away.Load() {
		return nil, errors.New("connection refused")
	}
	out := in.DeepCopy()
	out.Status = authenticationv1.TokenReviewStatus{Authenticated: in.Spec.Token != "bad" && !r.over.Load(), Audiences: in.Spec.Audiences}
	out.Status.User.Username = user
	switch in.Spec.Token {
	case "other":
		out.Status.User.Username = "system:serviceaccount:ns:other"
	case "elsewhere":
		out.Status.Audiences = []string{"https://kubernetes.default.svc"}
	}
	return out, nil
}

// serve runs a server on loopback and gives a client of it that brings a token.
func serve(t *testing.T, ring *Ring, token string) (*Observer, *grpc.ClientConn, *reviews) {
	t.Helper()
	asked := &reviews{asked: map[string]int{}}
	o, conn := serveWith(t, ring, token, NewAuthenticator(asked, user, audience))
	return o, conn, asked
}

func serveWith(t *testing.T, ring *Ring, token string, auth *Authenticator) (*Observer, *grpc.ClientConn) {
	t.Helper()
	o := New("worker-1", ring)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.serve(ctx, l, auth) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(bearer(token)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return o, conn
}

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if b == "" {
		return nil, nil
	}
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (bearer) RequireTransportSecurity() bool { return false }

// ports are the source ports of the flows of an answer; lost ones are negative.
func ports(t *testing.T, c observerpb.ObserverClient, req *observerpb.GetFlowsRequest) ([]int, error) {
	t.Helper()
	stream, err := c.GetFlows(t.Context(), req)
	if err != nil {
		return nil, err
	}
	var all []int
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if l := r.GetLostEvents(); l != nil {
			all = append(all, -int(l.GetNumEventsLost()))
			continue
		}
		f := r.GetFlow()
		if r.GetNodeName() != "worker-1" || f.GetNodeName() != "worker-1" || f.GetUuid() == "" || !r.GetTime().AsTime().Equal(f.GetTime().AsTime()) {
			t.Errorf("got %v", r)
		}
		all = append(all, int(f.GetL4().GetTCP().GetSourcePort()))
	}
}

func TestGetFlows(t *testing.T) {
	ring := NewRing(255)
	ring.Take(events(0, 300)) // 45 to 299 are there
	_, conn, _ := serve(t, ring, "good")
	c := observerpb.NewObserverClient(conn)
	at := func(n int) *timestamppb.Timestamp { return timestamppb.New(epoch.Add(time.Duration(n) * time.Second)) }
	odd := []*flowpb.FlowFilter{{SourcePod: []string{"ns1/"}}}
	for _, tt := range []struct {
		name string
		req  *observerpb.GetFlowsRequest
		want string
	}{
		{"the last", &observerpb.GetFlowsRequest{Number: 3}, "[297 298 299]"},
		{"the last that match", &observerpb.GetFlowsRequest{Number: 3, Whitelist: odd}, "[295 297 299]"},
		{"but for", &observerpb.GetFlowsRequest{Number: 3, Blacklist: odd}, "[294 296 298]"},
		{"the first", &observerpb.GetFlowsRequest{Number: 2, First: true}, "[45 46]"},
		{"the first that match", &observerpb.GetFlowsRequest{Number: 2, First: true, Blacklist: odd}, "[46 48]"},
		{"since", &observerpb.GetFlowsRequest{Since: at(298)}, "[298 299]"},
		{"until", &observerpb.GetFlowsRequest{Until: at(46)}, "[45 46]"},
		{"between", &observerpb.GetFlowsRequest{Since: at(100), Until: at(102)}, "[100 101 102]"},
		{"the last of those between", &observerpb.GetFlowsRequest{Number: 1, Since: at(100), Until: at(102)}, "[102]"},
		{"none match", &observerpb.GetFlowsRequest{Number: 9, Whitelist: []*flowpb.FlowFilter{{SourcePort: []string{"1"}}}}, "[]"},
		{"a mask gets more", &observerpb.GetFlowsRequest{Number: 1, FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"source.identity"}}}, "[299]"},
	} {
		got, err := ports(t, c, tt.req)
		if err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("%s: %v, %v; want %s", tt.name, got, err, tt.want)
		}
	}
	if all, err := ports(t, c, &observerpb.GetFlowsRequest{}); err != nil || len(all) != 255 {
		t.Errorf("all: %d, %v", len(all), err)
	}
	for want, req := range map[string]*observerpb.GetFlowsRequest{
		"first and follow": {First: true, Follow: true},
		"source_ip":        {Whitelist: []*flowpb.FlowFilter{{SourceIp: []string{"x"}}}},
		"field_mask":       {FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"colour"}}},
		"not a time":       {Since: &timestamppb.Timestamp{Nanos: -1}},
	} {
		if _, err := ports(t, c, req); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// judged knows every rule: the policy named for its number.
type judged struct{}

func (judged) Address(netip.Addr) *flow.Who { return nil }
func (judged) Labels(uint32) []string       { return nil }
func (judged) Rule(id uint32) (policy.Provenance, bool) {
	return policy.Provenance{Verdict: policy.Allow, Origins: []policy.Origin{{Ref: policy.Ref{Kind: "NetworkPolicy", Name: fmt.Sprint("p", id)}}}}, true
}

// Verdicts come for who asks for them by type, beside the packets' own flows where those are asked for too; --last and
// --first count each.
func TestPolicyVerdictsAreForWhoAsks(t *testing.T) {
	ring := NewRing(255)
	all := events(0, 4)
	for i := range all {
		all[i].First, all[i].Rules = i%2 == 1, [2]uint32{1, 2}
	}
	ring.Take(all)
	o, conn, _ := serve(t, ring, "good")
	var names flow.Names = judged{}
	o.names.Store(&names)
	c := observerpb.NewObserverClient(conn)
	of := func(types ...int32) []*flowpb.FlowFilter {
		f := &flowpb.FlowFilter{}
		for _, n := range types {
			f.EventType = append(f.EventType, &flowpb.EventTypeFilter{Type: n})
		}
		return []*flowpb.FlowFilter{f}
	}
	for _, tt := range []struct {
		name string
		req  *observerpb.GetFlowsRequest
		want string
	}{
		{"nobody asks", &observerpb.GetFlowsRequest{}, "0/4 1/4 2/4 3/4"},
		{"all", &observerpb.GetFlowsRequest{Whitelist: of(5)}, "1/5 1/5 3/5 3/5"},
		{"with traces", &observerpb.GetFlowsRequest{Whitelist: of(4, 5)}, "0/4 1/4 1/5 1/5 2/4 3/4 3/5 3/5"},
		{"the last three", &observerpb.GetFlowsRequest{Number: 3, Whitelist: of(5)}, "1/5 3/5 3/5"},
		{"the first", &observerpb.GetFlowsRequest{Number: 1, First: true, Whitelist: of(5)}, "1/5"},
	} {
		stream, err := c.GetFlows(t.Context(), tt.req)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		seen := map[string]bool{}
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			f := r.GetFlow()
			if seen[f.GetUuid()] {
				t.Errorf("%s: %s comes twice", tt.name, f.GetUuid())
			}
			seen[f.GetUuid()] = true
			got = append(got, fmt.Sprintf("%d/%d", f.GetL4().GetTCP().GetSourcePort(), f.GetEventType().GetType()))
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, got, tt.want)
		}
	}
}

func TestFollow(t *testing.T) {
	ring := NewRing(63)
	ring.Take(events(0, 5))
	o, conn, _ := serve(t, ring, "good")
	stream, err := observerpb.NewObserverClient(conn).GetFlows(t.Context(), &observerpb.GetFlowsRequest{Number: 2, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	next := func() *observerpb.GetFlowsResponse {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, want := range []uint32{3, 4} {
		if got := next().GetFlow().GetL4().GetTCP().GetSourcePort(); got != want {
			t.Fatalf("got %d, want %d", got, want)
		}
	}
	o.KernelLost(7)
	o.Take(events(5, 6))
	if l := next().GetLostEvents(); l.GetNumEventsLost() != 7 || l.GetSource() != flowpb.LostEventSource_PERF_EVENT_RING_BUFFER {
		t.Errorf("lost %v", l)
	}
	if got := next().GetFlow().GetL4().GetTCP().GetSourcePort(); got != 5 {
		t.Errorf("got %d", got)
	}
}

// Since is about what there is: a node whose clock is put back told of nothing until it was where it had been.
func TestFollowSinceWhereTheClockIsPutBack(t *testing.T) {
	ring := NewRing(63)
	ring.Take(events(10, 20))
	o, conn, _ := serve(t, ring, "good")
	stream, err := observerpb.NewObserverClient(conn).GetFlows(t.Context(), &observerpb.GetFlowsRequest{Since: timestamppb.New(epoch.Add(18 * time.Second)), Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint32{18, 19, 3, 4, 20} {
		if i == 2 {
			o.Take(append(events(3, 5), event(20)))
		}
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got := r.GetFlow().GetL4().GetTCP().GetSourcePort(); got != want {
			t.Fatalf("got %d, want %d", got, want)
		}
	}
}

// Who asks since a time to which this node's clock has not come yet is told what is new.
func TestFollowSinceOfAClockThatIsAhead(t *testing.T) {
	ring := NewRing(63)
	ring.Take(events(10, 20))
	o, conn, _ := serve(t, ring, "good")
	stream, err := observerpb.NewObserverClient(conn).GetFlows(t.Context(), &observerpb.GetFlowsRequest{Since: timestamppb.New(time.Now().Add(time.Minute)), Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{})
	go func() { // a stream does not say when it has begun
		for {
			select {
			case <-told:
				return
			case <-time.After(5 * time.Millisecond):
				o.Take(events(30, 31))
			}
		}
	}()
	r, err := stream.Recv()
	close(told)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.GetFlow().GetL4().GetTCP().GetSourcePort(); got != 30 {
		t.Errorf("got %d, which was there before", got)
	}
}

// A reader that is slower than the ring is told what it has missed; nothing is told twice.
func TestSlowReaderIsTold(t *testing.T) {
	const all = 20000
	ring := NewRing(255)
	ring.Take(events(0, 1))
	o, conn, _ := serve(t, ring, "good")
	stream, err := observerpb.NewObserverClient(conn).GetFlows(t.Context(), &observerpb.GetFlowsRequest{Number: 1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	for n := 1; n < all; n += 100 {
		o.Take(events(n, n+100))
	}
	last, sum := 0, uint64(1)
	for sum < all {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if l := r.GetLostEvents(); l != nil {
			sum += l.GetNumEventsLost()
			continue
		}
		sum++
		if at := int(r.GetFlow().GetTime().AsTime().Sub(epoch) / time.Second); at <= last {
			t.Fatalf("%d after %d", at, last)
		} else {
			last = at
		}
	}
}

func TestStatusNamespacesAndHealth(t *testing.T) {
	ring := NewRing(7)
	ring.Take(events(0, 10))
	recent := event(3)
	recent.Time = time.Now()
	ring.Take([]flow.Event{recent})
	_, conn, _ := serve(t, ring, "good")
	c := observerpb.NewObserverClient(conn)
	st, err := c.ServerStatus(t.Context(), &observerpb.ServerStatusRequest{})
	if err != nil || st.GetNumFlows() != 7 || st.GetMaxFlows() != 7 || st.GetSeenFlows() != 11 || st.GetUptimeNs() == 0 || st.GetVersion() == "" {
		t.Errorf("status %v, %v", st, err)
	}
	ns, err := c.GetNamespaces(t.Context(), &observerpb.GetNamespacesRequest{})
	if err != nil || len(ns.GetNamespaces()) != 1 || ns.GetNamespaces()[0].GetNamespace() != "ns1" {
		t.Errorf("namespaces of the last hour %v, %v", ns, err)
	}
	if _, err := c.GetNodes(t.Context(), &observerpb.GetNodesRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("nodes: %v", err)
	}
	h, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "observer.Observer"})
	if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health %v, %v", h, err)
	}
}

func TestOnlyTheRightTokenOpens(t *testing.T) {
	for token, want := range map[string]codes.Code{
		"": codes.Unauthenticated, "bad": codes.Unauthenticated, "elsewhere": codes.Unauthenticated, "other": codes.PermissionDenied,
		strings.Repeat("x", maxTokenSize+1): codes.Unauthenticated, "good": codes.OK,
	} {
		_, conn, asked := serve(t, NewRing(7), token)
		c := observerpb.NewObserverClient(conn)
		name := token[:min(len(token), 9)]
		for range 3 {
			if _, err := c.ServerStatus(t.Context(), &observerpb.ServerStatusRequest{}); status.Code(err) != want {
				t.Errorf("token %q: %v, want %v", name, err, want)
			}
			if _, err := ports(t, c, &observerpb.GetFlowsRequest{}); status.Code(err) != want {
				t.Errorf("token %q, stream: %v, want %v", name, err, want)
			}
		}
		if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); status.Code(err) != want {
			t.Errorf("token %q, health: %v, want %v", name, err, want)
		}
		if asked.asked[token] > 1 {
			t.Errorf("token %q: asked %d times", name, asked.asked[token])
		}
	}
}

// What the API server did not say is not remembered.
func TestAPIServerAwayIsNoVerdict(t *testing.T) {
	_, conn, asked := serve(t, NewRing(7), "good")
	c := observerpb.NewObserverClient(conn)
	asked.away.Store(true)
	if _, err := c.ServerStatus(t.Context(), &observerpb.ServerStatusRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	asked.away.Store(false)
	if _, err := c.ServerStatus(t.Context(), &observerpb.ServerStatusRequest{}); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestManyTokensAreForgotten(t *testing.T) {
	a := NewAuthenticator(&reviews{asked: map[string]int{}}, user, audience)
	a.strangers = flowcontrol.NewFakeAlwaysRateLimiter()
	for n := range 3 * maxTokens {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", fmt.Sprint("Bearer t", n)))
		if err := a.check(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.known) > maxTokens {
		t.Errorf("%d tokens are remembered", len(a.known))
	}
}

// Any process of the host could call with tokens that it makes up, each a question to the API server.
func TestMadeUpTokensCostFewReviews(t *testing.T) {
	asked := &reviews{asked: map[string]int{}}
	a := NewAuthenticator(asked, user, audience)
	call := func(token string) error {
		return a.check(metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token)))
	}
	if err := call("good"); err != nil {
		t.Fatal(err)
	}
	for _, j := range a.known {
		j.until = time.Now() // that was a minute ago
	}
	asked.over.Store(true)
	began, turned := time.Now(), 0
	for n := range 500 {
		if status.Code(call(fmt.Sprint("made-up", n))) == codes.ResourceExhausted {
			turned++
		}
	}
	bound := strangersBurst + int(time.Since(began).Seconds()+1)*strangers
	if n := 500 - turned; n > bound {
		t.Errorf("%d of 500 tokens were asked for, want at most %d", n, bound)
	}
	asked.over.Store(false)
	if err := call("good"); err != nil {
		t.Errorf("a token that was good, among them: %v", err)
	}
	for n := range 3 {
		if err := call(fmt.Sprint("made-up", n)); err == nil {
			t.Error("a refusal is not remembered")
		}
	}
}

// A call that lasts went on long after its token: whoever's right was taken away read on.
func TestStreamOutlivedItsToken(t *testing.T) {
	follow := func(t *testing.T) (*Observer, *reviews, grpc.ServerStreamingClient[observerpb.GetFlowsResponse]) {
		ring := NewRing(63)
		ring.Take(events(0, 1))
		asked := &reviews{asked: map[string]int{}}
		auth := NewAuthenticator(asked, user, audience)
		auth.age, auth.unsure = 20*time.Millisecond, 300*time.Millisecond
		o, conn := serveWith(t, ring, "good", auth)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		t.Cleanup(cancel)
		stream, err := observerpb.NewObserverClient(conn).GetFlows(ctx, &observerpb.GetFlowsRequest{Number: 1, Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		return o, asked, stream
	}
	again := func(asked *reviews) {
		for {
			asked.mu.Lock()
			n := asked.asked["good"]
			asked.mu.Unlock()
			if n > 3 {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	t.Run("taken away", func(t *testing.T) {
		o, asked, stream := follow(t)
		again(asked)
		o.Take(events(1, 2))
		if _, err := stream.Recv(); err != nil {
			t.Fatalf("while the token is in force: %v", err)
		}
		asked.over.Store(true)
		if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "any more") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nobody can say", func(t *testing.T) {
		o, asked, stream := follow(t)
		again(asked)
		asked.away.Store(true)
		o.Take(events(1, 2))
		if _, err := stream.Recv(); err != nil {
			t.Fatalf("a moment without an API server: %v", err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable && status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got %v", err)
		}
	})
}

// Tokens would cross the network in clear.
func TestServeOnlyOnLoopback(t *testing.T) {
	o := New("n", NewRing(7))
	for _, address := range []string{":4244", "0.0.0.0:4244", "[::]:4244", "192.0.2.1:4244", "node-1:4244"} {
		err := o.Serve(t.Context(), address, NewAuthenticator(nil, "", ""), nil, func() { t.Error("serving on " + address) })
		if !errors.Is(err, errNotLoopback) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "localhost:0", "127.1.2.3:0"} {
		if err := onLoopback(address); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// A port that is taken is an error of Serve, not the end of the agent.
func TestServeSaysWhyNot(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o := New("n", NewRing(7))
	err = o.Serve(t.Context(), l.Addr().String(), NewAuthenticator(nil, "", ""), nil, func() { t.Error("serving") })
	if err == nil || !strings.Contains(err.Error(), "serve flows") {
		t.Errorf("got %v", err)
	}
}

func BenchmarkTake(b *testing.B) {
	r := NewRing(DefaultCapacity)
	batch := events(0, 128)
	b.ReportAllocs()
	for b.Loop() {
		r.Take(batch)
	}
}
