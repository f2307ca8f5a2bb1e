// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// Dial connects to a port of a pod through the API server. Nothing listens on this machine: what kubectl port-forward
// would open to every user here is one connection in this process.
func (c *Cluster) Dial(ctx context.Context, pod string, port int) (net.Conn, error) {
	url := c.core.Post().Resource("pods").Name(pod).Namespace(Namespace).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, err
	}
	socket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, c.config)
	if err != nil {
		return nil, err
	}
	dialer := portforward.NewFallbackDialerForStreaming(socket,
		spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url),
		func(err error) bool { return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err) })
	type dialed struct {
		conn httpstream.Connection
		err  error
	}
	done := make(chan dialed, 1)
	go func() { // dialers take no context
		conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		done <- dialed{conn, err}
	}()
	select {
	case <-ctx.Done():
		go func() {
			if d := <-done; d.err == nil {
				_ = d.conn.Close()
			}
		}()
		return nil, ctx.Err()
	case d := <-done:
		if d.err != nil {
			return nil, fmt.Errorf("port-forward to pod/%s: %w", pod, d.err)
		}
		return forward(d.conn, pod, port)
	}
}

// forward asks for the two streams of a forwarded connection and joins them to one end of a pipe.
func forward(conn httpstream.Connection, pod string, port int) (net.Conn, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	failure, err := conn.CreateStream(headers)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("port-forward to pod/%s: %w", pod, err), conn.Close())
	}
	_ = failure.Close() // we only read it
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("port-forward to pod/%s: %w", pod, err), conn.Close())
	}
	ours, theirs := net.Pipe()
	f := &forwarded{Conn: theirs, said: make(chan struct{})}
	go func() {
		b, _ := io.ReadAll(io.LimitReader(failure, maxRemark))
		f.failure = strings.TrimSpace(string(b))
		close(f.said)
		if f.failure != "" {
			_ = ours.Close()
		}
	}()
	go func() {
		_, _ = io.Copy(ours, data)
		_ = ours.Close()
	}()
	go func() {
		_, _ = io.Copy(data, ours)
		_ = data.Close()
		_ = ours.Close()
		_ = conn.Close()
	}()
	return f, nil
}

// forwarded is a connection that knows why it ended, where the other side said so.
type forwarded struct {
	net.Conn
	said    chan struct{}
	failure string
}

func (f *forwarded) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if err == nil {
		return n, nil
	}
	select {
	case <-f.said:
		if f.failure != "" {
			return n, errors.New(f.failure)
		}
	default:
	}
	return n, err
}
