// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// idle is how long a connection may say nothing before the server ends it.
const idle = time.Minute

// Serve sends every byte and every datagram back, on each port, over both families, until ctx is done. It calls prepare,
// if any, with each socket for datagrams, and ready when all ports are open. A family that the kernel does not have is
// left out.
func Serve(ctx context.Context, ports []uint16, prepare func(net.PacketConn) error, ready func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var open []io.Closer
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for _, port := range ports {
		address := ":" + strconv.Itoa(int(port))
		config := net.ListenConfig{}
		config.SetMultipathTCP(false)
		stream, err := config.Listen(ctx, TCP, address)
		if err != nil {
			return err
		}
		open = append(open, stream)
		go func() { cancel(serveStreams(stream)) }()
		served := 0
		for network, serve := range map[string]func(net.PacketConn) error{"udp4": serve4, "udp6": serve6} {
			datagrams, err := config.ListenPacket(ctx, network, address)
			if errors.Is(err, syscall.EAFNOSUPPORT) {
				continue
			}
			if err != nil {
				return err
			}
			served++
			open = append(open, datagrams)
			if prepare != nil {
				if err := prepare(datagrams); err != nil {
					return err
				}
			}
			go func() { cancel(serve(datagrams)) }()
		}
		if served == 0 {
			return fmt.Errorf("listen on UDP port %d: this kernel has neither IPv4 nor IPv6", port)
		}
	}
	ready()
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func serveStreams(l net.Listener) error {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return context.Canceled
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // no descriptor left: one will end
			continue
		}
		go func() {
			defer c.Close()
			buffer := make([]byte, 16<<10)
			for {
				_ = c.SetDeadline(time.Now().Add(idle))
				n, err := c.Read(buffer)
				if err != nil {
					return
				}
				if _, err := c.Write(buffer[:n]); err != nil {
					return
				}
			}
		}()
	}
}

func serve4(c net.PacketConn) error {
	p := ipv4.NewPacketConn(c)
	if err := p.SetControlMessage(ipv4.FlagDst, true); err != nil {
		return err
	}
	return serveDatagrams(p, func(m *ipv4.ControlMessage) *ipv4.ControlMessage { return &ipv4.ControlMessage{Src: m.Dst} })
}

func serve6(c net.PacketConn) error {
	p := ipv6.NewPacketConn(c)
	if err := p.SetControlMessage(ipv6.FlagDst, true); err != nil {
		return err
	}
	return serveDatagrams(p, func(m *ipv6.ControlMessage) *ipv6.ControlMessage { return &ipv6.ControlMessage{Src: m.Dst} })
}

// packetConn is a socket that says where a datagram went to, and takes where one comes from.
type packetConn[Control any] interface {
	ReadFrom([]byte) (int, *Control, net.Addr, error)
	WriteTo([]byte, *Control, net.Addr) (int, error)
}

// serveDatagrams answers from the address that was asked: a socket of all addresses would let the routes choose one.
func serveDatagrams[Control any](p packetConn[Control], answer func(*Control) *Control) error {
	buffer := make([]byte, 1<<16)
	for {
		n, asked, from, err := p.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return context.Canceled
		}
		if err == nil && asked != nil {
			_, _ = p.WriteTo(buffer[:n], answer(asked), from)
		}
	}
}
