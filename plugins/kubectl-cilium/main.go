// SPDX-License-Identifier: Apache-2.0

// Command kubectl-cilium is `kubectl cilium`: it says whether the cluster's network is well, shows what the agents
// made of the cluster's objects, also straight from the kernel, and takes everything away again.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/klog/v2"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/plugins/commandline"
)

// errNotWell ends a verb that has printed what is wrong already.
var errNotWell = errors.New("the network is not well")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)   // the first interrupt is for us, who may have to clean up; a second one ends us
	klog.SetLogger(logr.Discard()) // the client library's own words about streams that end; errors reach us as values
	os.Exit(run(ctx, genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}, commandline.Args(os.Args)))
}

// run is main without the process. The exit code is 0 or, as kubectl's, 1.
func run(ctx context.Context, streams genericiooptions.IOStreams, args []string) int {
	cmd := newRoot(streams)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if !errors.Is(err, errNotWell) {
		fmt.Fprintf(streams.ErrOut, "error: %s\n", flow.Safe(err.Error()))
	}
	return 1
}
