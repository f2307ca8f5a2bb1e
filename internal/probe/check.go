// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// errDiffers means that somebody answered, but not with what was sent: it is not our server.
var errDiffers = errors.New("the answer differs from what was sent (somebody else listens there?)")

// Options say how patient a check is.
type Options struct {
	// Timeout of one attempt.
	Timeout time.Duration
	// Attempts of each target before it counts as unreachable; 0 is one.
	Attempts int
}

// parallel is how many targets are asked at once.
const parallel = 16

// Check asks all targets and answers in their order.
func Check(ctx context.Context, targets []Target, o Options) []Result {
	results := make([]Result, len(targets))
	gate := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			results[i] = check(ctx, t, o)
		})
	}
	wg.Wait()
	return results
}

func check(ctx context.Context, t Target, o Options) Result {
	r := Result{Target: t.String()}
	for {
		r.Attempts++
		once, cancel := context.WithTimeout(ctx, o.Timeout)
		start := time.Now()
		addresses, err := Ask(once, t)
		r.Micros = time.Since(start).Microseconds()
		cancel()
		if err == nil {
			r.OK, r.Error, r.Addresses = true, "", addresses
			return r
		}
		r.Error = words(err, o.Timeout)
		if r.Attempts >= o.Attempts || ctx.Err() != nil {
			return r
		}
	}
}

// words says why without the addresses, which the target has.
func words(err error, timeout time.Duration) string {
	var network net.Error
	if errors.As(err, &network) && network.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %s", timeout)
	}
	var number syscall.Errno
	if errors.As(err, &number) {
		return number.Error()
	}
	return err.Error()
}

// Ask asks once. It returns the addresses that a name has, for DNS.
func Ask(ctx context.Context, t Target) ([]string, error) {
	switch t.Protocol {
	case TCP, UDP:
		return nil, echo(ctx, t)
	case Connect:
		c, err := dial(ctx, TCP, t)
		if err != nil {
			return nil, err
		}
		return nil, c.Close()
	case ICMP:
		return nil, ping(ctx, t)
	case DNS4, DNS6:
		return resolve(ctx, t)
	}
	return nil, fmt.Errorf("target %q: %w", t, ErrTarget)
}

func resolve(ctx context.Context, t Target) ([]string, error) {
	network := "ip4"
	if t.Protocol == DNS6 {
		network = "ip6"
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, network, t.Host)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, netip.Addr.Compare)
	var all []string
	for _, a := range found {
		all = append(all, a.Unmap().String())
	}
	return all, nil
}

func dial(ctx context.Context, network string, t Target) (net.Conn, error) {
	d := net.Dialer{FallbackDelay: -1}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, network, net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))))
}

func echo(ctx context.Context, t Target) error {
	c, err := dial(ctx, t.Protocol, t)
	if err != nil {
		return err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	want := make([]byte, max(t.Size, 16))
	_, _ = rand.Read(want)
	sent := make(chan error, 1)
	go func() { _, err := c.Write(want); sent <- err }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return errors.Join(err, <-sent)
	}
	if !bytes.Equal(want, got) {
		return errDiffers
	}
	return nil
}

// ping sends one echo request and waits for its reply. It needs no capability where net.ipv4.ping_group_range of the
// network namespace holds our group (for IPv6 too), else CAP_NET_RAW.
func ping(ctx context.Context, t Target) error {
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", t.Host)
	if err != nil {
		return err
	}
	ip := found[0].Unmap()
	c, raw, err := listenICMP(ip)
	if err != nil {
		return err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	var to net.Addr = &net.UDPAddr{IP: ip.AsSlice(), Zone: ip.Zone()}
	if raw {
		to = &net.IPAddr{IP: ip.AsSlice(), Zone: ip.Zone()}
	}
	kind, want, protocol := icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply), 1
	if ip.Is6() {
		kind, want, protocol = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	// The kernel puts its own identifier into requests from an unprivileged socket, so the random body tells ours.
	body := &icmp.Echo{ID: int(randomUint16()), Seq: 1, Data: make([]byte, max(t.Size, 16))}
	_, _ = rand.Read(body.Data)
	request, err := (&icmp.Message{Type: kind, Body: body}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(request, to); err != nil {
		return err
	}
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := c.ReadFrom(buffer)
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(protocol, buffer[:n])
		if err != nil || m.Type != want {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && bytes.Equal(e.Data, body.Data) {
			return nil
		}
	}
}

// listenICMP prefers the socket that needs no privilege; raw says that it had to be the other.
func listenICMP(ip netip.Addr) (c *icmp.PacketConn, raw bool, err error) {
	networks := [2]string{"udp4", "ip4:icmp"}
	if ip.Is6() {
		networks = [2]string{"udp6", "ip6:ipv6-icmp"}
	}
	if c, err = icmp.ListenPacket(networks[0], ""); err == nil || !errors.Is(err, os.ErrPermission) {
		return c, false, err
	}
	c, err = icmp.ListenPacket(networks[1], "")
	if err != nil {
		err = fmt.Errorf("%w (needs this group in net.ipv4.ping_group_range, or CAP_NET_RAW)", err)
	}
	return c, true, err
}

func randomUint16() uint16 {
	var b [2]byte
	_, _ = rand.Read(b[:])
	return binary.BigEndian.Uint16(b[:])
}
