// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/test/e2e/talk"
)

// conversation is one that the test asked for.
type conversation struct{ talk.Conversation }

const (
	// patience is how long an answer may take. One that takes longer than soon makes a conversation void: live flows are told
	// of again after four seconds at the earliest.
	patience = 20 * time.Second
	soon     = 3 * time.Second
	// Nobody waits longer than silent for an answer that must not come. A SYN without an answer is sent again after a second,
	// so beyond again it is not known how many there were.
	silent = 300 * time.Millisecond
	again  = 900 * time.Millisecond
)

// converse holds all conversations at once.
func converse(ctx context.Context, all []talk.Conversation) []talk.Outcome {
	out := make([]talk.Outcome, len(all))
	var wg sync.WaitGroup
	for i := range all {
		c := conversation{all[i]}
		wg.Go(func() {
			start, limit := time.Now(), soon
			if c.End == "silence" {
				limit = again
			}
			if err := c.hold(ctx); err != nil {
				out[i].Error = err.Error()
			}
			// An echo is one packet each way, however long that takes.
			out[i].Void = c.Protocol != "icmp" && time.Since(start) > limit
		})
	}
	wg.Wait()
	return out
}

func (c *conversation) hold(ctx context.Context) error {
	switch c.Protocol {
	case "tcp":
		return c.stream(ctx)
	case "udp":
		return c.datagrams(ctx)
	case "icmp":
		return c.echo()
	}
	return fmt.Errorf("unknown protocol %q", c.Protocol)
}

// wait is how long the next packet of the other side is waited for.
func (c *conversation) wait() time.Duration {
	if c.End == "silence" {
		return silent
	}
	return patience
}

func (c *conversation) dial(ctx context.Context, local net.Addr) (net.Conn, error) {
	d := net.Dialer{FallbackDelay: -1, LocalAddr: local, Timeout: c.wait()}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, c.Protocol, net.JoinHostPort(c.Host, fmt.Sprint(c.Port)))
}

func (c *conversation) stream(ctx context.Context) error {
	s, err := c.dial(ctx, &net.TCPAddr{Port: int(c.From)})
	switch {
	case c.End == "silence" && isTimeout(err), c.End == "closed" && errors.Is(err, syscall.ECONNREFUSED):
		return nil
	case err != nil:
		return err
	}
	defer s.Close()
	if c.End == "silence" || c.End == "closed" {
		return errors.New("the connection was accepted")
	}
	_ = s.SetDeadline(time.Now().Add(patience))
	for range c.Rounds {
		if _, err := s.Write([]byte("ask")); err != nil {
			return err
		}
		if _, err := io.ReadFull(s, make([]byte, 3)); err != nil {
			return err
		}
	}
	if c.End == "reset" {
		return s.(*net.TCPConn).SetLinger(0)
	}
	if err := s.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("want the other side's end, got %w", err)
	}
	return nil
}

func (c *conversation) datagrams(ctx context.Context) error {
	s, err := c.dial(ctx, &net.UDPAddr{Port: int(c.From)})
	if err != nil {
		return err
	}
	defer s.Close()
	for range c.Rounds {
		if _, err := s.Write([]byte("ask")); err != nil {
			return err
		}
		if c.End != "silence" {
			_ = s.SetReadDeadline(time.Now().Add(patience))
			if _, err := s.Read(make([]byte, 3)); err != nil {
				return err
			}
		}
	}
	if c.End != "silence" {
		return nil
	}
	return mute(s)
}

// mute waits for what must not come.
func mute(s net.Conn) error {
	_ = s.SetReadDeadline(time.Now().Add(silent))
	switch _, err := s.Read(make([]byte, 64)); {
	case err == nil:
		return errors.New("want silence, got an answer")
	case !isTimeout(err):
		return fmt.Errorf("want silence: %w", err)
	}
	return nil
}

// echo asks with an identifier of its own: two that share one would be one connection.
func (c *conversation) echo() error {
	s, request, err := c.pingSocket()
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Write(request); err != nil {
		return err
	}
	if c.End == "silence" {
		return mute(s)
	}
	_ = s.SetReadDeadline(time.Now().Add(patience))
	_, err = s.Read(make([]byte, 64))
	return err
}

func (c *conversation) pingSocket() (net.Conn, []byte, error) {
	ip, err := netip.ParseAddr(c.Host)
	if err != nil {
		return nil, nil, err
	}
	var (
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
		kind             = icmp.Type(ipv6.ICMPTypeEchoRequest)
		to, local        = unix.Sockaddr(&unix.SockaddrInet6{Addr: ip.As16()}), unix.Sockaddr(&unix.SockaddrInet6{Port: int(c.From)})
	)
	if ip.Is4() {
		family, protocol, kind = unix.AF_INET, unix.IPPROTO_ICMP, ipv4.ICMPTypeEcho
		to, local = &unix.SockaddrInet4{Addr: ip.As4()}, &unix.SockaddrInet4{Port: int(c.From)}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, nil, fmt.Errorf("socket for echo: %w (needs this group in net.ipv4.ping_group_range)", err)
	}
	file := os.NewFile(uintptr(fd), "echo")
	defer file.Close()
	if err := unix.Bind(fd, local); err != nil {
		return nil, nil, fmt.Errorf("identifier %d: %w", c.From, err)
	}
	if err := unix.Connect(fd, to); err != nil {
		return nil, nil, err
	}
	request, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{Seq: 1, Data: []byte("ask")}}).Marshal(nil)
	if err != nil {
		return nil, nil, err
	}
	s, err := net.FileConn(file)
	return s, request, err
}
