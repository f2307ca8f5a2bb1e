// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/internal/probe"
)

// Stream is what became of a stream of numbered messages.
type Stream struct {
	Proto string `json:"proto"`
	Sent  int64  `json:"sent"`
	// Received counts messages that came back, each once.
	Received int64 `json:"received"`
	Lost     int64 `json:"lost"`
	Doubled  int64 `json:"doubled"`
	// Resets counts connections that were refused or reset.
	Resets int64 `json:"resets"`
	// Again counts connections on which a packet had to be sent again.
	Again int64 `json:"again,omitempty"`
	// MaxGap is the longest time between two answers, in milliseconds.
	MaxGap int64  `json:"maxGapMillis"`
	Error  string `json:"error,omitempty"`
}

// settle is how long answers may still come after the last message.
const settle = 2 * time.Second

func stream(ctx context.Context, proto, dst string, rate int, d time.Duration) (Stream, error) {
	if rate < 1 || rate > 10000 {
		return Stream{}, fmt.Errorf("rate %d is outside 1 to 10000", rate)
	}
	switch proto {
	case "connect":
		return streamNew(ctx, proto, rate, d, func(ctx context.Context) (bool, error) { return connect(ctx, dst) }), nil
	case "ask":
		to, err := probe.ParseTarget("udp://" + dst)
		if err != nil {
			return Stream{}, err
		}
		return streamNew(ctx, proto, rate, d, func(ctx context.Context) (bool, error) {
			_, err := probe.Ask(ctx, to)
			return false, err
		}), nil
	case "tcp", "udp":
		return streamEcho(ctx, proto, dst, rate, d)
	}
	return Stream{}, fmt.Errorf("unknown protocol %q", proto)
}

func streamEcho(ctx context.Context, proto, dst string, rate int, d time.Duration) (Stream, error) {
	s := Stream{Proto: proto}
	c, err := dial(ctx, proto, dst)
	if err != nil {
		return s, err
	}
	defer c.Close()
	if u, ok := c.(*net.UDPConn); ok {
		if err := deepen(u); err != nil {
			return s, err
		}
	}
	seen := make([]bool, int(d.Seconds()+1)*rate+1)
	done := make(chan error, 1)
	go func() {
		last := time.Now()
		var m [8]byte
		for {
			var err error
			if proto == "udp" {
				_, err = c.Read(m[:])
			} else {
				_, err = io.ReadFull(c, m[:])
			}
			if err != nil {
				if proto == "udp" && errors.Is(err, syscall.ECONNREFUSED) {
					s.Resets++
					continue
				}
				done <- err
				return
			}
			s.MaxGap = max(s.MaxGap, time.Since(last).Milliseconds())
			last = time.Now()
			n := binary.BigEndian.Uint64(m[:])
			switch {
			case n >= uint64(len(seen)):
			case seen[n]:
				s.Doubled++
			default:
				seen[n] = true
				s.Received++
			}
		}
	}()
	var sent int64
	pace(ctx, rate, d, func(n int64) bool {
		if n >= int64(len(seen)) {
			return false
		}
		var m [8]byte
		binary.BigEndian.PutUint64(m[:], uint64(n))
		if _, err := c.Write(m[:]); err != nil && proto == "tcp" {
			return false
		}
		sent++
		return true
	})
	_ = c.SetReadDeadline(time.Now().Add(settle))
	if err := <-done; err != nil && !isTimeout(err) {
		s.Error = err.Error()
		s.Resets++
	}
	s.Sent = sent
	s.Lost = s.Sent - s.Received
	return s, nil
}

func dial(ctx context.Context, proto, dst string) (net.Conn, error) {
	d := net.Dialer{FallbackDelay: -1}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, proto, dst)
}

// streamNew begins something new at a rate, and waits until it was answered.
func streamNew(ctx context.Context, proto string, rate int, d time.Duration, begin func(context.Context) (again bool, err error)) Stream {
	s := Stream{Proto: proto}
	var received, resets, again, pending atomic.Int64
	var lastErr atomic.Value
	pace(ctx, rate, d, func(int64) bool {
		s.Sent++
		pending.Add(1)
		go func() {
			defer pending.Add(-1)
			once, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			twice, err := begin(once)
			if twice {
				again.Add(1)
			}
			switch {
			case err == nil:
				received.Add(1)
			case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
				resets.Add(1)
				fallthrough
			default:
				lastErr.Store(err.Error())
			}
		}()
		return true
	})
	for deadline := time.Now().Add(6 * time.Second); pending.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	s.Received, s.Resets, s.Again = received.Load(), resets.Load(), again.Load()
	s.Lost = s.Sent - s.Received
	if e, ok := lastErr.Load().(string); ok {
		s.Error = e
	}
	return s
}

// connect opens a connection, and has a byte come back on it. again: one of its packets was sent more than once.
func connect(ctx context.Context, dst string) (again bool, err error) {
	c, err := dial(ctx, "tcp", dst)
	if err != nil {
		return false, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	if _, err := c.Write([]byte{1}); err != nil {
		return false, err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return false, err
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return false, err
	}
	var info *unix.TCPInfo
	var asked error
	err = raw.Control(func(fd uintptr) { info, asked = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err := errors.Join(err, asked); err != nil {
		return false, err
	}
	return info.Total_retrans > 0, nil
}

// pace calls f for message 0, 1, 2, ... at rate a second until d is over, ctx ends or f says no. A late tick sends
// what is due, so that the rate holds on a busy machine.
func pace(ctx context.Context, rate int, d time.Duration, f func(n int64) bool) {
	start := time.Now()
	tick := time.NewTicker(time.Second / time.Duration(min(rate, 1000)))
	defer tick.Stop()
	var n int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		elapsed := time.Since(start)
		for due := int64(min(elapsed, d).Seconds() * float64(rate)); n < due; n++ {
			if !f(n) {
				return
			}
		}
		if elapsed >= d {
			return
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
