// SPDX-License-Identifier: Apache-2.0

// Command cilium-operator decides what is decided once for the cluster: prefixes of nodes, taints, the status of the
// CiliumConfig, and what is left over and deleted. It is never in a packet's path.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/controllers"
	"github.com/kube-cilium/kube-cilium/internal/apiserver"
	"github.com/kube-cilium/kube-cilium/internal/version"
)

const runDir = "/run/cilium-operator"

type options struct {
	leaderElect bool
	namespace   string
	metrics     string
	health      string
	kubeconfig  string
	verbose     bool
}

func main() {
	var o options
	flags := flag.NewFlagSet(os.Args[0], flag.ExitOnError) // a library of ours defines flags in the common set
	flags.BoolVar(&o.leaderElect, "leader-elect", false, "act only while holding the Lease cilium-operator")
	flags.StringVar(&o.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace of that Lease")
	flags.StringVar(&o.metrics, "metrics-bind-address", ":9963", "address of /metrics; 0 for none")
	flags.StringVar(&o.health, "health-socket", runDir+"/health.sock", "UNIX socket of /healthz and /readyz, which `cilium-operator probe healthz` asks")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig, to run outside a pod")
	flags.BoolVar(&o.verbose, "v", false, "log details")
	showVersion := flags.Bool("version", false, "print the version")
	_ = flags.Parse(os.Args[1:]) // ends the process on an error

	var err error
	switch {
	case *showVersion:
		fmt.Println("cilium-operator", version.Version)
	case flags.Arg(0) == "probe":
		err = probe(o.health, flags.Arg(1))
	case flags.NArg() > 0:
		err = fmt.Errorf("unknown command %q (probe, or none)", flags.Arg(0))
	default:
		err = run(ctrl.SetupSignalHandler(), o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cilium-operator:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := logr.FromSlogHandler(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	log.Info("starting", "version", version.Version)

	// Alive from here on: while the API server is away a restart would help nobody.
	var synced atomic.Pointer[func(context.Context) bool]
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if err := serveHealth(ctx, o.health, &synced); err != nil {
			cancel(err)
		}
	}()
	err := manage(ctx, o, log, &synced)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// manage runs the reconcilers until ctx ends or the Lease is lost.
func manage(ctx context.Context, o options, log logr.Logger, synced *atomic.Pointer[func(context.Context) bool]) error {
	cfg, servers, err := connect(ctx, o)
	if err != nil {
		return err
	}
	scheme, err := controllers.Scheme()
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(cfg, ctrl.Options{
		Scheme:                        scheme,
		Cache:                         controllers.CacheOptions(),
		Controller:                    config.Controller{EnableWarmup: ptr(true)},
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress:        "0",
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              v1alpha1.OperatorFieldManager,
		LeaderElectionNamespace:       o.namespace,
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return fmt.Errorf("make the manager: %w", err)
	}
	if err := controllers.Setup(mgr); err != nil {
		return err
	}
	if servers != nil {
		if err := (&apiserver.Follower{Client: mgr.GetClient(), Servers: servers}).SetupWithManager(mgr); err != nil {
			return fmt.Errorf("follow the API servers: %w", err)
		}
	}
	if o.metrics != "0" {
		if err := mgr.Add(serveMetrics(o.metrics, log)); err != nil {
			return err
		}
	}
	wait := mgr.GetCache().WaitForCacheSync
	synced.Store(&wait)
	return mgr.Start(ctx)
}

// connect finds the API server and waits until it answers.
func connect(ctx context.Context, o options) (cfg *rest.Config, servers *apiserver.Servers, err error) {
	if o.kubeconfig != "" {
		if cfg, err = clientcmd.BuildConfigFromFlags("", o.kubeconfig); err == nil {
			cfg.QPS = -1 // as in a pod: the API server's own fairness limits us
		}
	} else if servers, err = apiserver.Open(ctx, stateDir()); err == nil {
		cfg = servers.Config()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find the API server: %w", err)
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("find the API server: %w", err)
	}
	for {
		resp, err := client.Get(cfg.Host + "/version")
		if err == nil {
			resp.Body.Close()
			return cfg, servers, nil
		}
		ctrl.Log.Info("waiting for the API server", "why", err.Error())
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

// stateDir keeps the addresses of the API servers over a restart of the container, where the pod has the folder.
func stateDir() string {
	if _, err := os.Stat(runDir); err != nil {
		return ""
	}
	return runDir
}

// everyReplica runs on each replica, leader or not.
type everyReplica func(context.Context) error

func (r everyReplica) Start(ctx context.Context) error { return r(ctx) }
func (r everyReplica) NeedLeaderElection() bool        { return false }

// serveHealth answers on a socket in the pod: two replicas may share a node and so its ports.
func serveHealth(ctx context.Context, socket string, synced *atomic.Pointer[func(context.Context) bool]) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("health socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("health socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		switch f := synced.Load(); {
		case f == nil:
			http.Error(w, "the API server has not answered", http.StatusServiceUnavailable)
		case !(*f)(ctx):
			http.Error(w, "caches are not synced", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "ok")
		}
	})
	return serve(ctx, l, mux)
}

// serveMetrics waits for its port: another replica on this node may have it.
func serveMetrics(addr string, log logr.Logger) everyReplica {
	return func(ctx context.Context) error {
		for first := true; ; first = false {
			l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
			if err == nil {
				mux := http.NewServeMux()
				mux.Handle("/metrics", promhttp.HandlerFor(metrics.Registry, promhttp.HandlerOpts{}))
				return serve(ctx, l, mux)
			}
			if first {
				log.Info("metrics wait for their port", "address", addr, "why", err.Error())
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(15 * time.Second):
			}
		}
	}
}

func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// probe asks a running operator, for kubelet.
func probe(socket, what string) error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Get("http://operator/" + what)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", what, body)
	}
	return nil
}

func ptr[T any](v T) *T { return &v }
