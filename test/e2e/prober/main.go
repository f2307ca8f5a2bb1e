// SPDX-License-Identifier: Apache-2.0

// Command prober is both ends of every end-to-end test: it serves, it asks once
// (check), it keeps asking with sequence numbers (stream), so that a lost,
// doubled or refused packet is counted and not guessed, it holds conversations
// whose every packet is known (talk), it writes down the time of each message at
// both ends (send, sink), and it misbehaves (flood, bounded). Results are JSON on stdout.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kube-cilium/kube-cilium/internal/probe"
	"github.com/kube-cilium/kube-cilium/test/e2e/talk"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "prober:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("say what to do: serve, check, talk, stream, send, sink or flood")
	}
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	switch args[0] {
	case "serve":
		port := fs.Int("port", 8080, "TCP and UDP echo port")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		return serve(ctx, *port)
	case "check":
		attempts := fs.Int("attempts", 1, "tries of each target before it counts as failed")
		timeout := fs.Duration("timeout", 2*time.Second, "of one try")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		var targets []probe.Target
		if err := json.NewDecoder(os.Stdin).Decode(&targets); err != nil {
			return fmt.Errorf("read targets from stdin: %w", err)
		}
		return json.NewEncoder(os.Stdout).Encode(probe.Check(ctx, targets, probe.Options{Timeout: *timeout, Attempts: *attempts}))
	case "talk":
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		var all []talk.Conversation
		if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil {
			return fmt.Errorf("read conversations from stdin: %w", err)
		}
		return json.NewEncoder(os.Stdout).Encode(converse(ctx, all))
	case "stream":
		proto := fs.String("proto", "udp", "tcp: one long stream; udp: datagrams; connect: new TCP connections; ask: new UDP flows of one datagram")
		dst := fs.String("dst", "", "address:port")
		rate := fs.Int("rate", 100, "messages or connections a second")
		duration := fs.Duration("duration", 10*time.Second, "how long")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		res, err := stream(ctx, *proto, *dst, *rate, *duration)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(res)
	case "send":
		rate := fs.Int("rate", 25, "messages a second on each flow")
		path := fs.String("record", "", "file for what was sent")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		return send(ctx, fs.Args(), *rate, *path)
	case "sink":
		port := fs.Int("port", 8080, "TCP and UDP port")
		path := fs.String("record", "", "file for what arrived")
		stay := fs.Bool("stay", false, "go on when told to end")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		return sink(ctx, *port, *path, *stay)
	case "flood":
		dst := fs.String("dst", "", "IPv4 address:port")
		count := fs.Int("count", 100000, "SYNs to send")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		res, err := flood(ctx, *dst, *count)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(res)
	}
	return fmt.Errorf("unknown verb %q", args[0])
}
