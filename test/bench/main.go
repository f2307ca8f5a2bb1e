// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	if err := start(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func start(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "client":
			return client()
		case "server":
			cpu, err := strconv.Atoi(args[1])
			if err != nil {
				return err
			}
			return server(cpu)
		case "cni":
			return cniWorker(os.Stdin, os.Stdout)
		}
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	o := options{}
	fs.IntVar(&o.rounds, "rounds", 200, "rounds over all shapes")
	fs.IntVar(&o.millis, "slice", 30, "milliseconds of one slice")
	fs.StringVar(&o.out, "out", "docs", "folder for benchmarks.md and benchmarks.json")
	fs.StringVar(&o.testCluster, "test-cluster", os.Getenv("TEST_CLUSTER"), "the test-cluster binary")
	fs.StringVar(&o.beside, "beside", "", "another checkout: measure what it builds beside what this one builds, same node and cross, and write nothing")
	fs.StringVar(&o.objects, "objects", "", "folders of BPF objects (as `go generate ./bpf` leaves them; separated by commas): measure the programs of each beside this build's, in turns in one cluster, same node and cross, and write nothing")
	fs.IntVar(&o.times, "times", 4, "with --beside: how often both checkouts, which must stay as they are, are built and brought up; the rounds are shared among these")
	fs.StringVar(&o.kinds, "kinds", "rr,crr,rr-cross,crr-cross,udp,stream", "what is measured between shapes")
	fs.StringVar(&o.cluster, "name", "bench", "name of the cluster that is made for it")
	fs.StringVar(&o.only, "only", "", "some parts: same, cross, bigtcp, cut, cni, memory, programs, flows, policy, enforced; empty: all")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for _, part := range strings.Split(o.only, ",") {
		if o.compares() != nil && part != "" && part != "same" && part != "cross" {
			return fmt.Errorf("--beside and --objects measure same and cross, not %s", part)
		}
	}
	if o.beside != "" && o.objects != "" {
		return errors.New("--beside and --objects: one at a time")
	}
	if o.times < 1 || o.rounds < 1 {
		return errors.New("--rounds and --times must be at least 1")
	}
	o.times = min(o.times, o.rounds)
	if os.Geteuid() != 0 {
		return errors.New("makes namespaces and clusters: needs root")
	}
	if o.testCluster == "" {
		return errors.New("--test-cluster or TEST_CLUSTER must name the test-cluster binary (make bench sets it)")
	}
	for _, path := range []*string{&o.testCluster, &o.beside} {
		if *path == "" {
			continue
		}
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return benchmark(ctx, o)
}
