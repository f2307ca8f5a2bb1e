// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
)

// Serve accepts on listener and dials target inside the named namespace for
// each connection, until the listener is closed or ctx ends.
func Serve(ctx context.Context, listener net.Listener, space, target string) error {
	context.AfterFunc(ctx, func() { listener.Close() })
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// Out of file descriptors, most likely: one that ends frees some.
			fmt.Fprintln(os.Stderr, "accept:", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		go carry(ctx, conn, space, target)
	}
}

func carry(ctx context.Context, near net.Conn, space, target string) {
	defer near.Close()
	dialCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	far, err := netspace.Dial(dialCtx, space, "tcp", target)
	if err != nil {
		fmt.Fprintln(os.Stderr, "dial:", err)
		return
	}
	defer far.Close()
	done := make(chan struct{}, 2)
	go func() { copyHalf(far, near); done <- struct{}{} }()
	go func() { copyHalf(near, far); done <- struct{}{} }()
	<-done
	<-done
}

// copyHalf passes on one direction and its end, so that the other may go on.
func copyHalf(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
