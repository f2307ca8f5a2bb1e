// SPDX-License-Identifier: Apache-2.0

// Package testenv starts a real API server with our kinds for tests. It needs kube-apiserver, etcd and kubectl in the
// folder that KUBEBUILDER_ASSETS names (`make test-kernel` sets it); only tests import it.
package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// Env is one running API server.
type Env struct {
	*rest.Config
	// Kubeconfig is the path of a file for kubectl, as cluster administrator.
	Kubeconfig string

	kubectl string
}

// Start runs an API server with our CRDs until the test ends. Without KUBEBUILDER_ASSETS the test is skipped, or
// fails where KUBE_CILIUM_TEST_ROOT=1 forbids skipping.
func Start(t testing.TB) *Env {
	t.Helper()
	return start(t, &envtest.Environment{
		CRDDirectoryPaths:     []string{filepath.Join(Root(), "config", "crd", "bases")},
		ErrorIfCRDPathMissing: true,
	})
}

// StartEmpty is Start without our CRDs: a cluster before the installation.
func StartEmpty(t testing.TB) *Env {
	t.Helper()
	return start(t, &envtest.Environment{})
}

func start(t testing.TB, e *envtest.Environment) *Env {
	t.Helper()
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		const why = "needs kube-apiserver, etcd and kubectl in KUBEBUILDER_ASSETS (make test-kernel)"
		if os.Getenv("KUBE_CILIUM_TEST_ROOT") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	t.Setenv("KUBECACHEDIR", t.TempDir()) // kubectl and plugins: not the home of who runs the tests
	e.ControlPlaneStartTimeout, e.ControlPlaneStopTimeout = 2*time.Minute, time.Minute
	cfg, err := e.Start()
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Errorf("stop the API server: %v", err)
		}
	})
	if err != nil {
		t.Fatalf("start an API server: %v", err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, e.KubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	return &Env{Config: cfg, Kubeconfig: path, kubectl: filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl")}
}

// Kubectl runs kubectl in the root of the repository and returns what it printed on both outputs.
func (e *Env) Kubectl(args ...string) (string, error) {
	cmd := exec.Command(e.kubectl, append([]string{"--kubeconfig", e.Kubeconfig}, args...)...)
	cmd.Dir = Root()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Root is the folder of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}
