// SPDX-License-Identifier: Apache-2.0

// Command conformance holds the NetworkPolicy specs of Kubernetes' own
// end-to-end tests and takes the flags of e2e.test. It is e2e.test without
// storage, cloud providers and all else that these specs do not touch, which
// cuts its first build to a fraction. The specs and their framework are
// Kubernetes' published module, unchanged.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/testinit" // the flags -v and --vmodule
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init" // what a failed spec's namespace held
	e2enode "k8s.io/kubernetes/test/e2e/framework/node"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init" // nodes are ready after each spec
	_ "k8s.io/kubernetes/test/e2e/network/netpol"
	utilnet "k8s.io/utils/net"
)

// verdict is what RunSpecs wants of a *testing.T.
type verdict struct{ failed atomic.Bool }

func (v *verdict) Fail() { v.failed.Store(true) }

// progressFile gets one JSON line a spec, from every process of a parallel run: their own output is shown when all is
// over.
var progressFile = flag.String("progress-file", "", "file to append a JSON line to for each spec that is over")

func main() {
	testing.Init() // the ginkgo command, which runs several of us, sets --test.timeout
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "conformance: what is", flag.Args())
		os.Exit(1)
	}
	framework.AfterReadingAllFlags(&framework.TestContext)
	reportProgress()
	logs.InitLogs()
	klog.EnableContextualLogging(true)
	gomega.RegisterFailHandler(framework.Fail)

	suite, reporter := framework.CreateGinkgoConfig()
	var v verdict
	passed := ginkgo.RunSpecs(&v, "Kubernetes e2e suite", suite, reporter)
	logs.FlushLogs()
	if !passed || v.failed.Load() {
		os.Exit(1)
	}
}

// The suite's preparation is what e2e.test does, as far as these specs read it.
var _ = ginkgo.SynchronizedBeforeSuite(func(ctx context.Context) {
	client, err := framework.LoadClientset()
	framework.ExpectNoError(err, "load the kubeconfig")
	framework.ExpectNoError(e2enode.WaitForAllNodesSchedulable(ctx, client, framework.NewTimeoutContext().NodeSchedulable))
}, func(ctx context.Context) {
	client, err := framework.LoadClientset()
	framework.ExpectNoError(err, "load the kubeconfig")
	nodes, err := e2enode.GetReadySchedulableNodes(ctx, client)
	framework.ExpectNoError(err, "list the nodes")
	framework.TestContext.CloudConfig.NumNodes = len(nodes.Items)
	// The family of a single-family service is the cluster's first family.
	service, err := client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	framework.ExpectNoError(err, "ask for the API server's Service")
	framework.TestContext.IPFamily = "ipv4"
	if utilnet.IsIPv6String(service.Spec.ClusterIP) {
		framework.TestContext.IPFamily = "ipv6"
	}
})

// reportProgress comes after the framework's look at all specs: that leaves the suite with a copy of itself, which lacks
// what was to be called after each spec.
func reportProgress() {
	ginkgo.ReportBeforeSuite(func(r ginkgo.Report) {
		progress(map[string]any{"total": r.PreRunStats.SpecsThatWillRun})
	})
	ginkgo.ReportAfterEach(func(r ginkgo.SpecReport) {
		if r.NumAttempts == 0 {
			return // not chosen
		}
		progress(map[string]any{"spec": r.FullText(), "state": r.State.String(), "seconds": r.RunTime.Seconds(), "message": r.FailureMessage()})
	})
}

// progress appends one line; a short append is whole, whoever else appends.
func progress(line map[string]any) {
	if *progressFile == "" {
		return
	}
	b, err := json.Marshal(line)
	framework.ExpectNoError(err, "encode progress")
	f, err := os.OpenFile(*progressFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	framework.ExpectNoError(err, "open the progress file")
	defer f.Close()
	_, err = f.Write(append(b, '\n'))
	framework.ExpectNoError(err, "write progress")
}
