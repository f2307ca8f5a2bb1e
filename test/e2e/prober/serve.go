// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/kube-cilium/kube-cilium/internal/probe"
)

// serve echoes TCP and UDP on port, on both families. What comes to UDP two ports after it is echoed a while later, as if
// from far away.
func serve(ctx context.Context, port int) error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	// One socket an address: an answer has to come from the address that was asked, and a socket of all addresses
	// would let the routes choose.
	for _, a := range addrs {
		ip := a.(*net.IPNet).IP
		if ip.IsLinkLocalUnicast() {
			continue
		}
		late, err := net.ListenPacket("udp", net.JoinHostPort(ip.String(), strconv.Itoa(port+2)))
		if err != nil {
			return err
		}
		defer late.Close()
		if err := deepen(late); err != nil {
			return err
		}
		go echoLate(late)
	}
	return probe.Serve(ctx, []uint16{uint16(port)}, deepen, func() { fmt.Fprintln(os.Stderr, "serving on", port) })
}

// far is how long an answer from far away takes.
const far = 50 * time.Millisecond

func echoLate(c net.PacketConn) {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			late := bytes.Clone(buf[:n])
			time.AfterFunc(far, func() { _, _ = c.WriteTo(late, from) })
		}
	}
}
