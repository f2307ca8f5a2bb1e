// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

// freePorts are ports that nobody uses right now.
func freePorts(t *testing.T, n int) []uint16 {
	t.Helper()
	var ports []uint16
	for range n {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, uint16(l.Addr().(*net.TCPAddr).Port))
	}
	return ports
}

func TestServeAnswersWhatCheckAsks(t *testing.T) {
	ports := freePorts(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Serve(ctx, ports, nil, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	var targets []Target
	for _, port := range ports {
		for _, host := range []string{"127.0.0.1", "::1"} {
			for _, size := range []int{0, 9000} {
				targets = append(targets, Target{TCP, host, port, size}, Target{UDP, host, port, size}, Target{Connect, host, port, 0})
			}
		}
	}
	results := Check(t.Context(), targets, Options{Timeout: 5 * time.Second, Attempts: 2})
	for i, r := range results {
		if !r.OK || r.Target != targets[i].String() {
			t.Errorf("%s: %+v", targets[i], r)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("a server that was told to end says %v", err)
	}
}

// A datagram to one of several addresses has to be answered from that address, whatever the routes prefer.
func TestServeAnswersFromTheAddressThatWasAsked(t *testing.T) {
	ports := freePorts(t, 1)
	ready := make(chan struct{})
	go func() { _ = Serve(t.Context(), ports, nil, func() { close(ready) }) }()
	<-ready
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	asked := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 77), Port: int(ports[0])}
	if _, err := c.WriteToUDP([]byte("who"), asked); err != nil {
		t.Fatal(err)
	}
	_, from, err := c.ReadFromUDP(make([]byte, 16))
	if err != nil || !from.IP.Equal(asked.IP) {
		t.Errorf("answer from %v, %v", from, err)
	}
}

func TestCheckSaysWhy(t *testing.T) {
	closed := Target{TCP, "127.0.0.1", freePorts(t, 1)[0], 0}
	silent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	mute := Target{UDP, "127.0.0.1", uint16(silent.LocalAddr().(*net.UDPAddr).Port), 0}
	results := Check(t.Context(), []Target{closed, mute}, Options{Timeout: 50 * time.Millisecond, Attempts: 2})
	if r := results[0]; r.OK || r.Error != "connection refused" || r.Attempts != 2 {
		t.Errorf("closed port: %+v", r)
	}
	if r := results[1]; r.OK || !strings.Contains(r.Error, "no answer within 50ms") {
		t.Errorf("silent port: %+v", r)
	}
}

func TestTargets(t *testing.T) {
	for _, text := range []string{
		"tcp://10.0.0.1:80", "udp://[fd00::1]:8080?size=100", "icmp://[fd00::1]", "icmp://10.0.0.1", "dns4://a.b.svc", "connect://example.com:443",
	} {
		got, err := ParseTarget(text)
		if err != nil || got.String() != text {
			t.Errorf("%q became %q, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "tcp://", "tcp://10.0.0.1", "tcp://10.0.0.1:0", "tcp://10.0.0.1:99999", "icmp://10.0.0.1:7", "http://10.0.0.1:80", "10.0.0.1:80",
		"tcp://10.0.0.1:80/path", "udp://10.0.0.1:80?size=70000", "udp://10.0.0.1:80?size=x",
	} {
		if got, err := ParseTarget(text); err == nil {
			t.Errorf("%q became %+v", text, got)
		}
	}
}
