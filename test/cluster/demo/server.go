// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// largestDatagram is what UDP can carry.
const largestDatagram = 65535

// answer is what the server says of itself and of its caller.
type answer struct {
	Hostname  string   `json:"hostname"`
	Addresses []string `json:"addresses"`
	Caller    string   `json:"caller"`
	Path      string   `json:"path"`
}

func runServer(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	listen := flags.String("listen", ":8080", "address to serve HTTP on")
	echo := flags.String("echo", ":7007", "address to echo TCP and UDP on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e, err := newEcho(*echo)
	if err != nil {
		return err
	}
	e.serve(ctx)
	server := &http.Server{Addr: *listen, Handler: http.HandlerFunc(tell), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	fmt.Printf("serving HTTP on %s, echoing on %s\n", *listen, *echo)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	e.wait()
	return nil
}

// tell answers with JSON when asked to, else with lines for people.
func tell(w http.ResponseWriter, r *http.Request) {
	hostname, _ := os.Hostname()
	a := answer{Hostname: hostname, Addresses: ownAddresses(), Caller: r.RemoteAddr, Path: r.URL.Path}
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "hostname: %s\naddresses: %s\ncaller: %s\n", a.Hostname, strings.Join(a.Addresses, " "), a.Caller)
}

// ownAddresses are those by which others may reach this pod.
func ownAddresses() []string {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []string
	for _, a := range all {
		if ipNet, ok := a.(*net.IPNet); ok && ipNet.IP.IsGlobalUnicast() {
			out = append(out, ipNet.IP.String())
		}
	}
	return out
}

// echo sends back every byte and every datagram.
type echo struct {
	tcp  net.Listener
	udp  *net.UDPConn
	done sync.WaitGroup
}

func newEcho(address string) (*echo, error) {
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("echo: %w", err)
	}
	// The port of TCP, as address may say 0.
	packet, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("echo: %w", err)
	}
	return &echo{tcp: tcp, udp: packet.(*net.UDPConn)}, nil
}

func (e *echo) serve(ctx context.Context) {
	context.AfterFunc(ctx, func() { e.tcp.Close(); e.udp.Close() })
	e.done.Go(e.serveTCP)
	e.done.Go(e.serveUDP)
}

// wait returns when both sockets are closed and no loop is left.
func (e *echo) wait() { e.done.Wait() }

func (e *echo) serveTCP() {
	for {
		conn, err := e.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // no descriptor left: one will end
			continue
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

// serveUDP sends each datagram back to where it came from.
func (e *echo) serveUDP() {
	buffer := make([]byte, largestDatagram)
	for {
		n, from, err := e.udp.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = e.udp.WriteToUDPAddrPort(buffer[:n], from)
		}
	}
}
