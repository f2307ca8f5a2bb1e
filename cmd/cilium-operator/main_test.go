// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/controllers"
	"github.com/kube-cilium/kube-cilium/internal/testenv"
)

// start runs an operator in this process until the test or the returned function ends it.
func start(t *testing.T, o options) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, o) }()
	stopped := false
	stop = func() error {
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if !stopped {
			if err := stop(); err != nil {
				t.Errorf("operator: %v", err)
			}
		}
	})
	return stop
}

func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	for range 300 {
		if so() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("waited in vain: %s", what)
}

// While the API server is away kubelet must not restart the operator: it is alive and not ready.
func TestAliveWithoutAnAPIServer(t *testing.T) {
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	content := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://" + addr + "'}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u}]\ncurrent-context: c\n"
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options{kubeconfig: kubeconfig, health: filepath.Join(dir, "health.sock"), metrics: "0"}
	stop := start(t, o)
	await(t, "healthz", func() bool { return probe(o.health, "healthz") == nil })
	if err := probe(o.health, "readyz"); err == nil || !strings.Contains(err.Error(), "has not answered") {
		t.Errorf("readyz: %v", err)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// A replica leads, is ready and shows its metrics; a port that another replica has does not end it; when it stops, the
// Lease is free at once.
func TestReplicaOnASharedNode(t *testing.T) {
	env := testenv.Start(t)
	scheme, err := controllers.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(env.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AgentLeaseNamespace}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	o := options{kubeconfig: env.Kubeconfig, leaderElect: true, namespace: ns.Name, metrics: metrics, health: filepath.Join(dir, "1.sock")}
	stop := start(t, o)
	await(t, "first ready", func() bool { return probe(o.health, "readyz") == nil })
	await(t, "metrics", func() bool {
		resp, err := http.Get("http://" + metrics + "/metrics")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
	holder := func() string {
		var lease coordinationv1.Lease
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns.Name, Name: "cilium-operator"}, &lease); err != nil || lease.Spec.HolderIdentity == nil {
			return ""
		}
		return *lease.Spec.HolderIdentity
	}
	await(t, "a leader", func() bool { return holder() != "" })
	first := holder()

	// controller-runtime refuses two controllers of one name in one process, so here the other replica is a listener.
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := other.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serveMetrics(taken, logr.Discard())(ctx) }()
	select {
	case err := <-done:
		t.Errorf("a taken port ended the operator: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	other.Close()
	if err := stop(); err != nil {
		t.Errorf("operator: %v", err)
	}
	await(t, "the Lease to be free", func() bool { return holder() != first })
}
