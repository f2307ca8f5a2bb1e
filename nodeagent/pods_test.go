// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

// CVE-2023-39347: labels that a user writes on a pod decided which namespace's policies it was under.
func TestIdentify(t *testing.T) {
	a := newAPI(t)
	p := &Pods{
		cache: a.cache, live: a.client, identities: a.agent(t), endpoints: func() *endpoint.Set { return nil },
		filter: identity.DefaultFilter(), wake: newBell(), memory: podMemory{stateDir: t.TempDir(), bootID: "boot"},
	}
	nodetest.Must(t, a.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "tenant", Labels: map[string]string{"team": "a"}}}))
	nodetest.Must(t, a.client.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant", Name: "default"}}))
	web := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "tenant", Name: "web", Labels: map[string]string{
			"app": "web", "io.kubernetes.pod.namespace": "kube-system", "io.cilium.k8s.namespace.labels.team": "b", "pod-template-hash": "x",
		}, Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "hash-of-a-file"}},
		Spec: corev1.PodSpec{NodeName: "node", ServiceAccountName: "default", Containers: []corev1.Container{{Name: "c", Image: "i", Ports: []corev1.ContainerPort{
			{Name: "web", ContainerPort: 8080}, {ContainerPort: 9000}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
		}}}},
	}
	nodetest.Must(t, a.client.Create(t.Context(), web))

	for _, uid := range []string{string(web.UID), "", "hash-of-a-file"} {
		who, err := p.Identify(t.Context(), cni.Pod{Namespace: "tenant", Name: "web", UID: uid})
		nodetest.Must(t, err)
		want := identity.Labels{
			"k8s:app": "web", "k8s:io.kubernetes.pod.namespace": "tenant", "k8s:io.cilium.k8s.namespace.labels.team": "a",
			"k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": "tenant",
			"k8s:io.cilium.k8s.policy.serviceaccount":                        "default", "k8s:io.cilium.k8s.policy.cluster": "default",
		}
		whole := maps.Clone(want)
		whole["k8s:pod-template-hash"] = "x" // no part of the identity; selectors of policies may use it
		ports := []policy.NamedPort{{Name: "dns", Protocol: 17, Port: 53}, {Name: "web", Protocol: 6, Port: 8080}}
		if !who.Equal(endpoint.Who{Labels: want, Subject: whole, Ports: ports, Identity: identity.Pending}) {
			t.Errorf("%q: %v", uid, who)
		}
	}
	for _, ref := range []cni.Pod{
		{Namespace: "tenant", Name: "web", UID: "of-its-namesake"}, {Namespace: "tenant", Name: "gone", UID: "x"},
	} {
		if _, err := p.Identify(t.Context(), ref); !errors.Is(err, errPodGone) {
			t.Errorf("%v: %v", ref, err)
		}
	}
	if who, err := p.Identify(t.Context(), cni.Pod{}); err != nil || who.Identity != identity.Pending || who.Labels != nil {
		t.Errorf("a runtime that names no pod: %v, %v", who, err)
	}

	// Nobody can be asked: who was known in this boot is still known, everybody else is pending.
	p.live = failing{a.client}
	p.cache = failing{a.client}
	known := endpoint.Who{Labels: identity.Labels{"k8s:app": "old"}, Identity: 300}
	nodetest.Must(t, p.memory.keep(map[string]endpoint.Who{"known": known}))
	for uid, want := range map[string]endpoint.Who{"known": known, "new": {Identity: identity.Pending}} {
		who, err := p.Identify(t.Context(), cni.Pod{Namespace: "tenant", Name: "web", UID: uid})
		if err != nil || !reflect.DeepEqual(who, want) {
			t.Errorf("%s: %v, %v", uid, who, err)
		}
	}
}

func TestPodThatComesHasItsNumberBeforeItsADD(t *testing.T) {
	a := newAPI(t)
	expected := map[types.UID]bool{}
	p := &Pods{
		cache: a.cache, live: a.client, identities: a.agent(t), endpoints: func() *endpoint.Set { return &endpoint.Set{} },
		filter: identity.DefaultFilter(), wake: newBell(), memory: podMemory{stateDir: t.TempDir(), bootID: "boot"},
		expected: func(uid types.UID) bool { return expected[uid] },
	}
	nodetest.Must(t, a.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "coming"}}))
	nodetest.Must(t, a.client.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "coming", Name: "default"}}))
	for _, name := range []string{"new", "old"} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "coming", Name: name, Labels: map[string]string{"app": name}},
			Spec:       corev1.PodSpec{NodeName: "node", ServiceAccountName: "default", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}
		nodetest.Must(t, a.client.Create(t.Context(), pod))
		expected[pod.UID] = name == "new"
	}
	_, err := p.Reconcile(t.Context(), ctrl.Request{})
	nodetest.Must(t, err)
	_, err = p.identities.Reconcile(t.Context(), ctrl.Request{})
	nodetest.Must(t, err)
	for name, allocated := range map[string]bool{"new": true, "old": false} {
		who, err := p.Identify(t.Context(), cni.Pod{Namespace: "coming", Name: name})
		if err != nil || who.Identity.Allocated() != allocated {
			t.Errorf("%s: %v, %v", name, who, err)
		}
	}
}

// failing is an API server that is away.
type failing struct{ client.Reader }

func (failing) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return fmt.Errorf("connection refused")
}

func TestPodMemoryIsOfItsBoot(t *testing.T) {
	dir := t.TempDir()
	known := map[string]endpoint.Who{"uid": {Labels: identity.Labels{"k8s:app": "web"}, Identity: 300}}
	m := &podMemory{stateDir: dir, bootID: "one"}
	nodetest.Must(t, m.keep(known))
	if got := (&podMemory{stateDir: dir, bootID: "one"}).load(); !reflect.DeepEqual(got, known) {
		t.Errorf("%v", got)
	}
	if got := (&podMemory{stateDir: dir, bootID: "two"}).load(); got != nil {
		t.Errorf("another boot: %v", got)
	}
}

// After a power loss a file of the agent may be cut off. That is said once, and is no error; nor do files stay that an agent
// had not finished when it was killed.
func TestMemoriesAfterAPowerLoss(t *testing.T) {
	for name, load := range map[string]func(dir string, log logr.Logger) bool{
		lastPodsFile: func(dir string, log logr.Logger) bool {
			return (&podMemory{stateDir: dir, bootID: "one", log: log}).load() != nil
		},
		lastPoliciesFile: func(dir string, log logr.Logger) bool {
			_, ok := (&policyMemory{stateDir: dir, bootID: "one", log: log}).load()
			return ok
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			nodetest.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(`{"bootID":"one","po`), 0o600))
			for _, left := range []string{"." + name + ".4711", name + ".new"} {
				nodetest.Must(t, os.WriteFile(filepath.Join(dir, left), []byte("{"), 0o600))
			}
			var said []string
			log := funcr.New(func(_, text string) { said = append(said, text) }, funcr.Options{})
			for range 3 {
				if load(dir, log) {
					t.Error("it was taken up")
				}
			}
			if len(said) != 1 || strings.Contains(said[0], `"error"=`) || !strings.Contains(said[0], name) {
				t.Errorf("said: %q", said)
			}
			if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
				t.Errorf("left: %v %v", files, err)
			}
		})
	}
}
