// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Ports that every server listens on.
const (
	portRR   = 7101 // one byte there and back on a lasting connection
	portCRR  = 7102 // connect, one byte there and back, close
	portSink = 7103 // reads what comes
	portUDP  = 7104 // one datagram there and back
)

// job is one slice of work for a client, a line of JSON on its stdin.
type job struct {
	// Kind is rr, crr, stream, udp or watch.
	Kind string `json:"kind"`
	Dst  string `json:"dst"`
	// CPU that the client pins itself to.
	CPU int `json:"cpu"`
	// Millis the slice lasts.
	Millis int `json:"millis"`
}

// tally is what came of it, a line of JSON on the client's stdout.
type tally struct {
	// Units are transactions, or bytes of a stream.
	Units int64 `json:"units"`
	Nanos int64 `json:"nanos"`
	// First and Last are when the first and the last datagram was sent that was answered, of a watch, in Unix
	// nanoseconds.
	First int64  `json:"first,omitempty"`
	Last  int64  `json:"last,omitempty"`
	Error string `json:"error,omitempty"`
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// socket opens a blocking socket: its cost is the system call's, with no poller in between.
func socket(a netip.Addr, typ int) (int, error) {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	timeout := unix.Timeval{Sec: 3}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	if typ == unix.SOCK_STREAM {
		// One congestion control for every shape; the kernel's default differs from machine to machine.
		if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic"); err != nil {
			return -1, errors.Join(fmt.Errorf("choose cubic: %w", err), unix.Close(fd))
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return fd, nil
}

func dialFD(dst netip.AddrPort, typ int) (int, error) {
	fd, err := socket(dst.Addr(), typ)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sockaddr(dst)); err != nil {
		return -1, errors.Join(fmt.Errorf("connect %s: %w", dst, err), unix.Close(fd))
	}
	return fd, nil
}

func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set)
}

// client works through jobs from stdin until it closes.
func client() error {
	runtime.LockOSThread()
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	open := map[job]int{}
	for in.Scan() {
		var j job
		if err := json.Unmarshal(in.Bytes(), &j); err != nil {
			return fmt.Errorf("job %q: %w", in.Text(), err)
		}
		t, err := work(j, open)
		if err != nil {
			t.Error = err.Error()
		}
		if err := out.Encode(t); err != nil {
			return err
		}
	}
	return in.Err()
}

func work(j job, open map[job]int) (tally, error) {
	if err := pin(j.CPU); err != nil {
		return tally{}, err
	}
	ip, err := netip.ParseAddr(j.Dst)
	if err != nil {
		return tally{}, err
	}
	d := time.Duration(j.Millis) * time.Millisecond
	switch j.Kind {
	case "watch":
		return watch(netip.AddrPortFrom(ip, portUDP), d)
	case "crr":
		return repeat(d, 1, func() error { return crr(netip.AddrPortFrom(ip, portCRR)) })
	case "rr", "udp", "stream":
		kept := job{Kind: j.Kind, Dst: j.Dst}
		fd, ok := open[kept]
		if !ok {
			port, typ := map[string]uint16{"rr": portRR, "udp": portUDP, "stream": portSink}[j.Kind], unix.SOCK_STREAM
			if j.Kind == "udp" {
				typ = unix.SOCK_DGRAM
			}
			if fd, err = dialFD(netip.AddrPortFrom(ip, port), typ); err != nil {
				return tally{}, err
			}
			open[kept] = fd
		}
		if j.Kind == "stream" {
			buf := make([]byte, 128<<10)
			return stream(fd, d, buf)
		}
		var one [1]byte
		return repeat(d, 1, func() error {
			if _, err := unix.Write(fd, one[:]); err != nil {
				return err
			}
			_, err := unix.Read(fd, one[:])
			return err
		})
	}
	return tally{}, fmt.Errorf("unknown kind %q", j.Kind)
}

// stream writes for d and then waits until all of it is acknowledged, so that no slice leaves work to the next.
func stream(fd int, d time.Duration, buf []byte) (tally, error) {
	start := time.Now()
	t, err := repeat(d, int64(len(buf)), func() error { return writeAll(fd, buf) })
	for err == nil {
		var left int
		if left, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ); left == 0 {
			break
		}
		if time.Since(start) > d+3*time.Second {
			return t, fmt.Errorf("%d bytes were not acknowledged", left)
		}
		time.Sleep(20 * time.Microsecond)
	}
	t.Nanos = time.Since(start).Nanoseconds()
	return t, err
}

func repeat(d time.Duration, units int64, f func() error) (tally, error) {
	var t tally
	start := time.Now()
	for time.Since(start) < d {
		if err := f(); err != nil {
			return t, err
		}
		t.Units += units
	}
	t.Nanos = time.Since(start).Nanoseconds()
	return t, nil
}

// watch sends a datagram each millisecond and tells when the first and the last that were answered were sent.
func watch(dst netip.AddrPort, d time.Duration) (tally, error) {
	fd, err := dialFD(dst, unix.SOCK_DGRAM)
	if err != nil {
		return tally{}, err
	}
	defer unix.Close(fd)
	var t tally
	start := time.Now()
	read := func() {
		for {
			var m [8]byte
			n, _, err := unix.Recvfrom(fd, m[:], unix.MSG_DONTWAIT)
			if errors.Is(err, unix.ECONNREFUSED) {
				continue
			}
			if err != nil {
				return
			}
			if n != len(m) {
				continue
			}
			sent := int64(binary.BigEndian.Uint64(m[:]))
			if t.First == 0 {
				t.First = sent
			}
			t.Last = max(t.Last, sent)
			t.Units++
		}
	}
	for time.Since(start) < d {
		var m [8]byte
		binary.BigEndian.PutUint64(m[:], uint64(time.Now().UnixNano()))
		_, _ = unix.Write(fd, m[:]) // a refusal of an earlier one is reported here
		time.Sleep(time.Millisecond)
		read()
	}
	time.Sleep(50 * time.Millisecond)
	read()
	t.Nanos = time.Since(start).Nanoseconds()
	return t, nil
}

func crr(dst netip.AddrPort) error {
	fd, err := dialFD(dst, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Close with RST: thousands of connections a second would use up the ports in TIME_WAIT.
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	var one [1]byte
	if _, err := unix.Write(fd, one[:]); err != nil {
		return err
	}
	_, err = unix.Read(fd, one[:])
	return err
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// server answers on every port until stdin closes, pinned to one CPU.
func server(cpu int) error {
	for port, serve := range map[uint16]func(int){portRR: serveRR, portCRR: serveOne, portSink: serveSink} {
		fd, err := socket(netip.IPv6Unspecified(), unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(netip.IPv6Unspecified(), port))); err != nil {
			return fmt.Errorf("bind %d: %w", port, err)
		}
		if err := unix.Listen(fd, 128); err != nil {
			return err
		}
		forever(fd)
		go func() {
			runtime.LockOSThread()
			_ = pin(cpu)
			for {
				c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
				if err != nil {
					continue
				}
				if port == portCRR {
					serve(c)
					continue
				}
				go func() {
					runtime.LockOSThread()
					_ = pin(cpu)
					serve(c)
				}()
			}
		}()
	}
	udp, err := socket(netip.IPv6Unspecified(), unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	if err := unix.Bind(udp, sockaddr(netip.AddrPortFrom(netip.IPv6Unspecified(), portUDP))); err != nil {
		return err
	}
	forever(udp)
	go func() {
		runtime.LockOSThread()
		_ = pin(cpu)
		var b [64]byte
		for {
			if n, from, err := unix.Recvfrom(udp, b[:], 0); err == nil {
				_ = unix.Sendto(udp, b[:n], 0, from)
			}
		}
	}()
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
	return nil
}

// forever takes the receive timeout off a listening socket.
func forever(fd int) {
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{})
}

func serveRR(c int) {
	defer unix.Close(c)
	forever(c)
	var one [1]byte
	for {
		if n, err := unix.Read(c, one[:]); err != nil || n == 0 {
			return
		}
		if _, err := unix.Write(c, one[:]); err != nil {
			return
		}
	}
}

func serveOne(c int) {
	defer unix.Close(c)
	var one [1]byte
	if n, err := unix.Read(c, one[:]); err != nil || n == 0 {
		return
	}
	_, _ = unix.Write(c, one[:])
}

func serveSink(c int) {
	defer unix.Close(c)
	forever(c)
	buf := make([]byte, 1<<20)
	for {
		if n, err := unix.Read(c, buf); err != nil || n == 0 {
			return
		}
	}
}
