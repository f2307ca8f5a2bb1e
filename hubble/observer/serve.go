// SPDX-License-Identifier: Apache-2.0

package observer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

var (
	errFirstAndFollow = errors.New("first and follow exclude one another")
	errBadTime        = errors.New("since or until is not a time")
	// errNotLoopback keeps tokens off the wire: they would travel in clear.
	errNotLoopback = errors.New("flows are served on a loopback address only, such as 127.0.0.1:4244: callers bring tokens, and this port has no TLS")
	errBadMask     = errors.New("field_mask names a field that a flow does not have")
)

const (
	// maxConnections and maxStreams bound what readers can cost the agent.
	maxConnections = 64
	maxStreams     = 16
	// maxRequest bounds a request, in bytes.
	maxRequest = 1 << 20
)

// Serve answers on address until ctx is done, with names from names, which may be nil. Every call has to pass auth.
// Serving is called when it can be reached.
func (o *Observer) Serve(ctx context.Context, address string, auth *Authenticator, names flow.Names, serving func()) error {
	if err := onLoopback(address); err != nil {
		return fmt.Errorf("serve flows on %s: %w", address, err)
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serve flows: %w", err)
	}
	if names != nil {
		o.names.Store(&names)
	}
	serving()
	return o.serve(ctx, l, auth)
}

// onLoopback refuses addresses at which others than this host can call.
func onLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.Unmap().IsLoopback()) {
		return errNotLoopback
	}
	return nil
}

func (o *Observer) serve(ctx context.Context, l net.Listener, auth *Authenticator) error {
	server := grpc.NewServer(
		grpc.UnaryInterceptor(auth.unary), grpc.StreamInterceptor(auth.stream),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxRecvMsgSize(maxRequest),
		grpc.WriteBufferSize(16<<10), grpc.ReadBufferSize(4<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
	)
	observerpb.RegisterObserverServer(server, o)
	well := health.NewServer()
	well.SetServingStatus(observerpb.Observer_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(server, well)
	defer context.AfterFunc(ctx, server.Stop)()
	if err := server.Serve(netutil.LimitListener(l, maxConnections)); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve flows: %w", err)
	}
	return nil
}
