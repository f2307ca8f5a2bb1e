// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Target is one question: can Addr be reached by Proto with Size bytes?
type Target struct {
	Name string `json:"name"`
	// Proto is tcp, udp, icmp or who.
	Proto string `json:"proto"`
	Addr  string `json:"addr"`
	Port  int    `json:"port"`
	// Size of the payload in bytes, echoed whole and compared.
	Size int `json:"size"`
}

// Result is the answer.
type Result struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	// Answer of a who target: "HOSTNAME CALLER".
	Answer string `json:"answer,omitempty"`
	// Attempts until it worked.
	Attempts int `json:"attempts"`
}

func checkAll(ctx context.Context, targets []Target, attempts int, timeout time.Duration) []Result {
	results := make([]Result, len(targets))
	var wg sync.WaitGroup
	gate := make(chan struct{}, 8)
	for i, t := range targets {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			results[i] = check(ctx, t, attempts, timeout)
		})
	}
	wg.Wait()
	return results
}

func check(ctx context.Context, t Target, attempts int, timeout time.Duration) Result {
	r := Result{Name: t.Name}
	for r.Attempts = 1; ; r.Attempts++ {
		once, cancel := context.WithTimeout(ctx, timeout)
		answer, err := ask(once, t)
		cancel()
		if err == nil {
			r.OK, r.Answer, r.Error = true, answer, ""
			return r
		}
		r.Error = err.Error()
		if r.Attempts >= attempts || ctx.Err() != nil {
			return r
		}
	}
}

func ask(ctx context.Context, t Target) (string, error) {
	dst := net.JoinHostPort(t.Addr, strconv.Itoa(t.Port))
	switch t.Proto {
	case "tcp", "udp":
		return "", echo(ctx, t.Proto, dst, t.Size)
	case "icmp":
		return "", ping(ctx, t.Addr, t.Size)
	case "who":
		return askWho(ctx, dst)
	}
	return "", fmt.Errorf("unknown protocol %q", t.Proto)
}

func echo(ctx context.Context, proto, dst string, size int) error {
	c, err := dial(ctx, proto, dst)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	want := make([]byte, max(size, 1))
	_, _ = rand.Read(want)
	got := make([]byte, len(want))
	sent := make(chan error, 1)
	go func() { _, err := c.Write(want); sent <- err }()
	if _, err := io.ReadFull(c, got); err != nil {
		return errors.Join(err, <-sent)
	}
	if !bytes.Equal(want, got) {
		return errors.New("the echo differs from what was sent")
	}
	return nil
}

func dial(ctx context.Context, proto, dst string) (net.Conn, error) {
	d := net.Dialer{FallbackDelay: -1}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, proto, dst)
}

func askWho(ctx context.Context, dst string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+dst+"/", nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	return strings.TrimSpace(string(b)), err
}

// ping sends one echo request from a raw socket and waits for its reply.
func ping(ctx context.Context, addr string, size int) error {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return err
	}
	network, reqType, repType, proto := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply), 1
	if ip.Is6() {
		network, reqType, repType, proto = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	c, err := icmp.ListenPacket(network, "")
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	var id [2]byte
	_, _ = rand.Read(id[:])
	body := &icmp.Echo{ID: int(id[0])<<8 | int(id[1]), Seq: os.Getpid() & 0xffff, Data: make([]byte, size)}
	_, _ = rand.Read(body.Data)
	out, err := (&icmp.Message{Type: reqType, Body: body}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(out, &net.IPAddr{IP: ip.AsSlice()}); err != nil {
		return err
	}
	buf := make([]byte, 65536)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || m.Type != repType {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == body.ID && bytes.Equal(e.Data, body.Data) {
			return nil
		}
	}
}
