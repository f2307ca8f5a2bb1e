// SPDX-License-Identifier: Apache-2.0

// Command demo is a small application for a cluster: a server that says where
// it runs and who called, a client that calls it again and again, and flows,
// which keeps connections of every kind busy and counts what was lost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// errUsage says that the command line names no mode.
var errUsage = errors.New("usage: demo server|client|flows [flags] (demo MODE -h says more)")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// run is a mode: server unless said, so that the image does something by itself.
func run(ctx context.Context, args []string) error {
	mode := "server"
	if len(args) > 0 {
		mode, args = args[0], args[1:]
	}
	switch mode {
	case "server":
		return runServer(ctx, args)
	case "client":
		return runClient(ctx, args)
	case "flows":
		return runFlows(ctx, args)
	}
	return fmt.Errorf("%w: %q", errUsage, mode)
}
