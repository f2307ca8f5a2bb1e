// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// echoPort is where every namespace answers, on TCP and UDP.
const echoPort = 7777

// listen starts the echo servers of a namespace. TCP says who it sees, one line, then how many bytes it got until
// the other side closed its half. UDP says who it sees and how many bytes it got.
func (s *space) listen() {
	s.t.Helper()
	var tcp net.Listener
	var udp *net.UDPConn
	s.do(func() (err error) {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		if tcp, err = lc.Listen(context.Background(), "tcp", fmt.Sprintf("[::]:%d", echoPort)); err != nil {
			return err
		}
		udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv6zero, Port: echoPort})
		return err
	})
	s.t.Cleanup(func() { tcp.Close(); udp.Close() })
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				ap := c.RemoteAddr().(*net.TCPAddr).AddrPort()
				fmt.Fprintln(c, ap.Addr().Unmap())
				n, _ := io.Copy(io.Discard, c)
				fmt.Fprintln(c, n)
			}()
		}
	}()
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			answer := fmt.Sprintf("%v %d", from.Addr().Unmap(), n)
			pad := make([]byte, max(0, n-len(answer)-1))
			_, _ = udp.WriteToUDPAddrPort(append([]byte(answer+"\n"), pad...), from)
		}
	}()
}

// dialer dials from within the namespace only.
func dialer() net.Dialer { return net.Dialer{Timeout: 3 * time.Second, FallbackDelay: -1} }

// tcp sends size bytes to the echo server at an address and returns whom it saw.
func (s *space) tcp(to netip.Addr, size int) (from netip.Addr, err error) {
	var c net.Conn
	err = s.try(func() error {
		d := dialer()
		var err error
		c, err = d.Dial("tcp", netip.AddrPortFrom(to, echoPort).String())
		return err
	})
	if err != nil {
		return from, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return from, err
	}
	if from, err = netip.ParseAddr(strings.TrimSpace(line)); err != nil {
		return from, err
	}
	if _, err := c.Write(make([]byte, size)); err != nil {
		return from, err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return from, err
	}
	if line, err = r.ReadString('\n'); err != nil {
		return from, err
	}
	if got := strings.TrimSpace(line); got != fmt.Sprint(size) {
		return from, fmt.Errorf("server got %s bytes of %d", got, size)
	}
	return from, nil
}

// udp sends one datagram to the echo server, which answers with as many bytes.
func (s *space) udp(to netip.Addr, size int) (from netip.Addr, err error) {
	var c net.Conn
	err = s.try(func() error {
		d := dialer()
		var err error
		c, err = d.Dial("udp", netip.AddrPortFrom(to, echoPort).String())
		return err
	})
	if err != nil {
		return from, err
	}
	defer c.Close()
	buf := make([]byte, 65536)
	for range 3 {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err = c.Write(make([]byte, size)); err != nil {
			return from, err
		}
		var n int
		if n, err = c.Read(buf); err != nil {
			// Too big: the kernel has learnt the path's MTU and cuts smaller the next time.
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.EMSGSIZE) {
				continue
			}
			return from, err
		}
		line, _, _ := strings.Cut(string(buf[:n]), "\n")
		var seen string
		var got int
		if _, err := fmt.Sscan(line, &seen, &got); err != nil {
			return from, err
		}
		if got != size || n < size {
			return from, fmt.Errorf("server got %d bytes of %d, we %d", got, size, n)
		}
		return netip.ParseAddr(seen)
	}
	return from, err
}

// ping sends two echo requests, of which one must be answered: the first may be told that it is too big.
func (s *space) ping(to netip.Addr, args ...string) error {
	all := append([]string{"--net=/var/run/netns/" + s.name, "ping", "-c2", "-i0.2", "-W2", "-n"}, args...)
	out, err := exec.Command("nsenter", append(all, to.String())...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// refused tells whether a UDP socket hears that nobody listens.
func (s *space) refused(to netip.Addr, port uint16) error {
	var c net.Conn
	if err := s.try(func() (err error) {
		d := dialer()
		c, err = d.Dial("udp", netip.AddrPortFrom(to, port).String())
		return err
	}); err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return fmt.Errorf("no refusal: %w", err)
}
