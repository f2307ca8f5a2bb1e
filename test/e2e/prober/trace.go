// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A trace is about single messages: the sender writes down when it sent each, the sink when each arrived, both by the
// machine's clock, which all namespaces share. So a message can be held against what was in force when it was sent.

// note is one message: 8 bytes of flow number, 8 of the time it was sent in Unix nanoseconds, both big endian.
type note [16]byte

func newNote(flow uint64) (n note, sent int64) {
	sent = time.Now().UnixNano()
	binary.BigEndian.PutUint64(n[:], flow)
	binary.BigEndian.PutUint64(n[8:], uint64(sent))
	return n, sent
}

func (n note) read() (flow uint64, sent int64) {
	return binary.BigEndian.Uint64(n[:]), int64(binary.BigEndian.Uint64(n[8:]))
}

// record appends lines to a file that outlives the pod.
type record struct {
	mu   sync.Mutex
	file *os.File
}

func newRecord(path string) (*record, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	return &record{file: f}, err
}

func (r *record) line(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = fmt.Fprintf(r.file, format+"\n", args...)
}

// traced is one flow to send: NUMBER=PROTO:ADDRESS:PORT, an IPv6 address in brackets.
type traced struct {
	number uint64
	proto  string
	dst    netip.AddrPort
}

func parseTraced(s string) (traced, error) {
	number, rest, _ := strings.Cut(s, "=")
	proto, dst, _ := strings.Cut(rest, ":")
	var f traced
	var err error
	if f.number, err = strconv.ParseUint(number, 10, 64); err != nil {
		return f, fmt.Errorf("flow %q: %w", s, err)
	}
	if f.dst, err = netip.ParseAddrPort(dst); err != nil {
		return f, fmt.Errorf("flow %q: %w", s, err)
	}
	switch f.proto = proto; proto {
	case "udp", "connect", "tcp":
		return f, nil
	}
	return f, fmt.Errorf("flow %q: protocol is udp, connect or tcp", s)
}

// send sends a note on each flow rate times a second until ctx ends, from the first instant on: nothing waits for
// another flow to work. It ends when it cannot write down what it sends.
func send(ctx context.Context, flows []string, rate int, path string) error {
	sent, err := newRecord(path)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, s := range flows {
		f, err := parseTraced(s)
		if err != nil {
			return err
		}
		wg.Go(func() {
			switch f.proto {
			case "udp":
				sendUDP(ctx, f, rate, sent)
			case "connect":
				sendConnects(ctx, f, rate, sent)
			case "tcp":
				for ctx.Err() == nil {
					sendTCP(ctx, f, rate, sent)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// endless is longer than any test.
const endless = time.Hour

func sendUDP(ctx context.Context, f traced, rate int, sent *record) {
	var c net.PacketConn
	pace(ctx, rate, endless, func(int64) bool {
		if c == nil { // an IPv6 address may not be usable yet
			var err error
			if c, err = net.ListenPacket("udp", ":0"); err != nil {
				return true
			}
		}
		n, at := newNote(f.number)
		if _, err := c.WriteTo(n[:], net.UDPAddrFromAddrPort(f.dst)); err == nil {
			sent.line("%d %d", f.number, at)
		}
		return true
	})
	if c != nil {
		c.Close()
	}
}

// sendConnects sends each note on a connection of its own.
func sendConnects(ctx context.Context, f traced, rate int, sent *record) {
	pace(ctx, rate, endless, func(int64) bool {
		n, at := newNote(f.number)
		go func() {
			once, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			c, err := dial(once, "tcp", f.dst.String())
			if err == nil {
				_, err = c.Write(n[:])
				c.Close()
			}
			if err == nil || ctx.Err() == nil { // else we were told to end before it was sent
				sent.line("%d %d", f.number, at)
			}
		}()
		return true
	})
}

// sendTCP sends notes on one connection for as long as it lasts.
func sendTCP(ctx context.Context, f traced, rate int, sent *record) {
	once, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := dial(once, "tcp", f.dst.String())
	if err != nil {
		return
	}
	defer c.Close()
	pace(ctx, rate, endless, func(int64) bool {
		n, at := newNote(f.number)
		if _, err := c.Write(n[:]); err != nil {
			return false
		}
		sent.line("%d %d", f.number, at)
		return true
	})
}

// sink writes down every note that arrives by UDP and TCP on port, from the first instant on and, with stay, until it is
// killed: a pod that is told to end still has a network.
func sink(ctx context.Context, port int, path string, stay bool) error {
	if stay {
		signal.Ignore(syscall.SIGTERM)
	}
	arrived, err := newRecord(path)
	if err != nil {
		return err
	}
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	udp, err := lc.ListenPacket(ctx, "udp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	if err := deepen(udp); err != nil {
		return err
	}
	tcp, err := lc.Listen(ctx, "tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- sinkUDP(udp, arrived) }()
	go func() { failed <- sinkTCP(tcp, arrived) }()
	if stay {
		return <-failed
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

func (r *record) arrival(n note) {
	flow, sent := n.read()
	r.line("%d %d %d", flow, sent, time.Now().UnixNano())
}

func sinkUDP(c net.PacketConn, arrived *record) error {
	var n note
	for {
		got, _, err := c.ReadFrom(n[:])
		switch {
		case errors.Is(err, net.ErrClosed):
			return err
		case err == nil && got == len(n):
			arrived.arrival(n)
		}
	}
}

func sinkTCP(l net.Listener, arrived *record) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var n note
			for {
				if _, err := io.ReadFull(c, n[:]); err != nil {
					return
				}
				arrived.arrival(n)
			}
		}()
	}
}
