// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

// serve echoes TCP and UDP on port and says who asked over HTTP on the next one, on both families. What comes to UDP on the
// port after that is echoed a while later, as if from far away.
func serve(ctx context.Context, port int) error {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	tcp, err := lc.Listen(ctx, "tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	web, err := lc.Listen(ctx, "tcp", ":"+strconv.Itoa(port+1))
	if err != nil {
		return err
	}
	failed := make(chan error, 2*len(addrs)+2)
	go func() { failed <- echoTCP(tcp) }()
	// One socket an address: an answer has to come from the address that was asked, and a socket of all addresses
	// would let the routes choose.
	for _, a := range addrs {
		ip := a.(*net.IPNet).IP
		if ip.IsLinkLocalUnicast() {
			continue
		}
		for _, u := range []struct {
			port int
			echo func(net.PacketConn) error
		}{{port, echoUDP}, {port + 2, echoLate}} {
			udp, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(ip.String(), strconv.Itoa(u.port)))
			if err != nil {
				return err
			}
			if err := deepen(udp); err != nil {
				return err
			}
			go func() { failed <- u.echo(udp) }()
		}
	}
	go func() { failed <- http.Serve(web, http.HandlerFunc(who)) }()
	fmt.Fprintln(os.Stderr, "serving on", port)
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

func echoTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func echoUDP(c net.PacketConn) error {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err == nil {
			_, _ = c.WriteTo(buf[:n], from)
		}
	}
}

// far is how long an answer from far away takes.
const far = 50 * time.Millisecond

func echoLate(c net.PacketConn) error {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err == nil {
			late := bytes.Clone(buf[:n])
			time.AfterFunc(far, func() { _, _ = c.WriteTo(late, from) })
		}
	}
}

// who answers "HOSTNAME CALLER".
func who(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	name, _ := os.Hostname()
	fmt.Fprintf(w, "%s %s\n", name, host)
}
