// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/kube-cilium/kube-cilium/internal/service"
	"github.com/kube-cilium/kube-cilium/internal/testenv"
)

// frontends remembers the last table.
type frontends struct {
	mu   sync.Mutex
	last []service.Frontend
	sets int
}

func (f *frontends) SetServices(table []service.Frontend) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = table
	f.sets++
	return nil
}

// of gives a service's backends as text; "absent" when it has no frontend.
func (f *frontends) of(name string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fe := range f.last {
		if fe.Service.Name == name {
			return fmt.Sprint(fe.Port, fe.Backends)
		}
	}
	return "absent"
}

func eventually(t *testing.T, what string, f func() string, want string) {
	t.Helper()
	got := ""
	for range 200 {
		if got = f(); got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s: %q, want %q", what, got, want)
}

func TestServicesReachTheTable(t *testing.T) {
	env := testenv.StartEmpty(t)
	mgr, err := ctrl.NewManager(env.Config, ctrl.Options{
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	table := &frontends{}
	if err := NewServiceReconciler(mgr.GetClient(), table).SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error)
	go func() { stopped <- mgr.Start(ctx) }()
	defer func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}()

	c := mgr.GetClient()
	eventually(t, "the default service", func() string {
		if table.of("kubernetes") == "absent" {
			return "absent"
		}
		return "there"
	}, "there")

	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080))}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.7"}}},
	}
	// The slice first: a reference to something missing heals when it comes.
	for _, o := range []client.Object{slice, svc} {
		if err := c.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	web := func() string { return table.of("web") }
	eventually(t, "web", web, "80 [10.0.0.7:8080]")
	slice.Endpoints[0].Conditions.Ready = new(false)
	if err := c.Update(ctx, slice); err != nil {
		t.Fatal(err)
	}
	eventually(t, "web without ready endpoints", web, "80 []")
	if err := c.Delete(ctx, svc); err != nil {
		t.Fatal(err)
	}
	eventually(t, "web deleted", web, "absent")
}
