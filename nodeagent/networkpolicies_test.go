// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

// A restarted agent whose first list came from an API server that is behind put an older version in force than the one
// before the restart.
func TestCacheThatIsBehindWhatWasInForce(t *testing.T) {
	p := newPoliced(t)
	open := p.policy("a", "web", allow(fromBlock("0.0.0.0/0")))
	deny := p.policy("a", "web", closed)
	p.cache.policies = []networkingv1.NetworkPolicy{deny}
	p.live.policies = []networkingv1.NetworkPolicy{deny}
	p.reconcile()
	web := p.admit(1, "a", "web", 300)
	p.expectIngress(1, true, 0)
	p.remember()
	p.cache.policies = []networkingv1.NetworkPolicy{open} // the watch cache of another server, which is behind
	p.restart()
	p.wiring[1] = web
	p.reconcile()
	p.expectIngress(1, true, 0)
}

// CVE-2024-7598, for a pod that is still to come: its namespace is deleted while its sandbox is made.
func TestForeseenPodOfATerminatingNamespace(t *testing.T) {
	p := newPoliced(t)
	deny := p.policy("a", "deny", closed)
	p.cache.policies, p.live.policies = []networkingv1.NetworkPolicy{deny}, []networkingv1.NetworkPolicy{deny}
	p.reconcile()
	if !p.comes("one") {
		t.Fatal("not heard")
	}
	p.cache.policies, p.live.policies = nil, nil
	p.cache.namespaces["a"], p.live.namespaces["a"] = true, true
	gone := p.policy("a", "deny", closed)
	p.deletions().OnDelete(&gone)
	p.reconcile()
	p.adds(1, "one")
	p.expectIngress(1, true, 0)
}

// mirrors is an API server that has mirror pods.
type mirrors struct {
	client.Reader
	pods map[string]string // namespace/name -> hash
}

func (m *mirrors) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	if pod, ok := o.(*corev1.Pod); ok {
		hash, ok := m.pods[key.String()]
		if !ok {
			return apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, key.Name)
		}
		pod.UID, pod.Annotations = "mirror", map[string]string{corev1.MirrorPodAnnotationKey: hash}
		return nil
	}
	return m.Reader.Get(ctx, key, o, opts...)
}

// A static pod lives through the deletion of its namespace, and its mirror comes back after a moment: it was closed for
// ever.
func TestStaticPodIsNoOrphanForEver(t *testing.T) {
	p := newPoliced(t)
	p.cache.born = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p.cache.uids, p.live.uids = map[string]types.UID{"a": "first"}, map[string]types.UID{"a": "first"}
	m := &mirrors{Reader: p.live, pods: map[string]string{"a/web-1": "hash"}}
	p.Policies.live = m
	first := p.policy("a", "deny", closed)
	first.UID, first.CreationTimestamp = "first", metav1.Time{Time: p.cache.born.Add(time.Minute)}
	p.cache.policies, p.live.policies = []networkingv1.NetworkPolicy{first}, []networkingv1.NetworkPolicy{first}
	p.reconcile()
	p.adds(1, "hash")
	p.expectIngress(1, true, 0)
	// The namespace is gone and back; a pod comes; kubelet has not made the mirror yet.
	delete(m.pods, "a/web-1")
	next := p.policy("a", "open", allow(fromBlock("0.0.0.0/0")))
	next.UID, next.CreationTimestamp = "second", metav1.Time{Time: p.cache.born.Add(2 * time.Hour)}
	p.live.uids, p.live.policies = map[string]types.UID{"a": "second"}, []networkingv1.NetworkPolicy{next}
	p.comes("new")
	p.cache.uids, p.cache.policies = p.live.uids, p.live.policies
	p.reconcile()
	m.pods["a/web-1"] = "hash"
	p.cache.uids["a/web-1"] = "hash"
	for range 5 {
		p.reconcile()
	}
	p.expectIngress(1, true, 1)
	if p.kernel.pods[1].Egress != nil {
		t.Error("it cannot send, for ever")
	}
}

// As TestHeardBeforeTheCacheAfterTheNamespaceCameBack, and nobody knows of which namespace the policy was: clocks of
// two API servers are a second apart.
func TestNamespaceCameBackWhereNobodyKnewIt(t *testing.T) {
	for _, of := range []string{"deny", "open"} {
		p := newPoliced(t)
		p.cache.born = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		p.cache.uids, p.live.uids = map[string]types.UID{"a": "first"}, map[string]types.UID{"a": "first", "a/web-1": "old"}
		first := p.policy("a", "deny", closed)
		first.UID, first.CreationTimestamp = "first", metav1.Time{Time: p.cache.born.Add(-time.Second)}
		p.cache.policies = []networkingv1.NetworkPolicy{first}
		p.reconcile()
		p.adds(1, "old")
		next := p.policy("a", of, allow(fromBlock("0.0.0.0/0")))
		next.UID, next.CreationTimestamp = "second", metav1.Time{Time: p.cache.born.Add(2 * time.Hour)}
		p.live.uids = map[string]types.UID{"a": "second", "a/web-2": "new"}
		p.live.policies = []networkingv1.NetworkPolicy{next}
		check := func(when string) {
			t.Helper()
			if in := p.kernel.pods[1].Ingress; in == nil || len(in.Entries) > 0 {
				t.Errorf("%s, %s: the pod of the namespace before is open", of, when)
			}
		}
		if !p.comes("new") {
			t.Error("not heard")
		}
		p.reconcile()
		check("heard")
		p.adds(2, "new")
		p.cache.policies, p.cache.uids = p.live.policies, map[string]types.UID{"a": "second"}
		for range 3 {
			p.reconcile()
		}
		check("at the end")
	}
}

// The bell rang before the orphan was one: the pass that it asks for had run by then.
func TestOrphansAreClosedWhenTheBellRings(t *testing.T) {
	p := newPoliced(t)
	p.cache.uids, p.live.uids = map[string]types.UID{"a": "first"}, map[string]types.UID{"a": "first"}
	p.cache.policies = []networkingv1.NetworkPolicy{p.policy("a", "deny", allow(fromBlock("0.0.0.0/0")))}
	p.reconcile()
	for id := range uint16(200) {
		uid := fmt.Sprint(id + 1)
		p.live.uids["a/web-"+uid] = types.UID(uid)
		p.adds(id+1, uid)
	}
	delete(p.live.uids, "a/web-1")
	for len(p.wake) > 0 {
		<-p.wake
	}
	p.Policies.live = &hooked{Reader: p.live, asked: func(o client.Object) {
		if _, ok := o.(*corev1.Pod); ok && len(p.wake) > 0 { // 10 ms later
			<-p.wake
			p.reconcile()
		}
	}}
	nodetest.Must(t, p.closeOrphans(t.Context(), "a"))
	for len(p.wake) > 0 {
		<-p.wake
		p.reconcile()
	}
	p.expectIngress(1, true, 0)
}

// Orphans that went while they were asked about, or with the last agent, were remembered for ever.
func TestOrphansAreForgotten(t *testing.T) {
	p := newPoliced(t)
	p.live.uids = map[string]types.UID{}
	p.reconcile()
	e := p.endpoint(1, "a", "web", 300)
	e.Pod.UID = "1"
	nodetest.Must(t, p.Admit(t.Context(), e)())
	p.Policies.live = &hooked{Reader: p.live, asked: func(o client.Object) {
		if _, ok := o.(*corev1.Pod); ok {
			nodetest.Must(t, p.Dismiss(e))
		}
	}}
	nodetest.Must(t, p.closeOrphans(t.Context(), "a"))
	if len(p.orphans) != 0 {
		t.Errorf("dismissed while asked: %v", p.orphans)
	}
	p.remember()
	p.restart()
	p.reconcile()
	if last, _ := p.lastPolicies(); len(last.Orphans) > 0 {
		t.Errorf("no endpoint of the last agent is left: %v", last.Orphans)
	}
}

// They are asked for by namespace.
func TestThousandPoliciesThatTheCacheDoesNotHave(t *testing.T) {
	p := newPoliced(t)
	p.reconcile()
	for i := range 1000 {
		p.live.policies = append(p.live.policies, p.policy("a", fmt.Sprint(i), closed))
	}
	if !p.comes("one") {
		t.Fatal("not heard")
	}
	for range 2 {
		for _, h := range p.networks.held {
			h.since = time.Now().Add(-seenSafely)
		}
		before := p.live.asked
		p.reconcile()
		if n := p.live.asked - before; n > 10 {
			t.Errorf("asked %d times, one by one, in one Reconcile", n)
		}
	}
}

// Pods that come to a namespace that came back asked about each old pod, each time.
func TestWaveOfPodsAsksOnce(t *testing.T) {
	p := newPoliced(t)
	p.cache.born = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p.cache.uids, p.live.uids = map[string]types.UID{"a": "first"}, map[string]types.UID{"a": "first"}
	first := p.policy("a", "deny", closed)
	first.UID, first.CreationTimestamp = "first", metav1.Time{Time: p.cache.born.Add(time.Minute)}
	p.cache.policies = []networkingv1.NetworkPolicy{first}
	p.reconcile()
	for i := range 50 {
		e := p.endpoint(uint16(i+1), "a", "web", 300)
		e.Pod.UID = fmt.Sprint("old", i)
		nodetest.Must(t, p.Admit(t.Context(), e)())
	}
	next := p.policy("a", "open", closed)
	next.UID, next.CreationTimestamp = "second", metav1.Time{Time: p.cache.born.Add(2 * time.Hour)}
	p.live.uids, p.live.policies = map[string]types.UID{"a": "second"}, []networkingv1.NetworkPolicy{next}
	before := p.live.asked
	for i := range 50 {
		p.comes(types.UID(fmt.Sprint("new", i)))
	}
	if n := p.live.asked - before; n > 300 {
		t.Errorf("50 pods come: asked %d times", n)
	}
}

// slow is an API server that takes its time for lists.
type slow struct {
	client.Reader
	began chan struct{}
	takes time.Duration
}

func (s *slow) List(ctx context.Context, o client.ObjectList, opts ...client.ListOption) error {
	select {
	case s.began <- struct{}{}:
	default:
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(s.takes):
	}
	return s.Reader.List(ctx, o, opts...)
}

// It waits for the question of the first and for its own, and began without the policy that was there before it.
func TestSecondPodOfASlowServer(t *testing.T) {
	t.Parallel() // it takes some seconds
	p := newPoliced(t)
	p.reconcile()
	p.patience = 3 * time.Second
	s := &slow{Reader: p.live, began: make(chan struct{}, 1), takes: p.patience * 6 / 10}
	p.live.policies = []networkingv1.NetworkPolicy{p.policy("a", "deny", closed)}
	p.Policies.live = s
	first := p.questions.put("a")
	<-s.began
	e := p.endpoint(2, "a", "web", 300)
	e.Pod.UID = "two"
	nodetest.Must(t, p.Admit(t.Context(), e)())
	<-first.done
	p.expectIngress(2, true, 0)
}

// A deletion that was taken while the cache could not list counts.
func TestDeletionIsNotLostWithAnError(t *testing.T) {
	p := newPoliced(t)
	open := p.policy("a", "open", allow(fromBlock("0.0.0.0/0")))
	p.live.policies = []networkingv1.NetworkPolicy{open}
	p.reconcile()
	p.admit(1, "a", "web", 300)
	p.expectIngress(1, true, 1)
	old := policyAnswer{policies: []networkingv1.NetworkPolicy{open}, namespace: &corev1.Namespace{}}
	p.live.policies = nil
	gone := p.policy("a", "open", closed)
	p.deletions().OnDelete(&gone)
	p.cache.away = errors.New("cache")
	_, _ = p.Reconcile(t.Context(), ctrl.Request{})
	p.cache.away = nil
	p.reconcile()
	p.expectIngress(1, false, 0)
	p.applying.Lock()
	if p.hear(old) {
		t.Error("came back")
	}
	p.applying.Unlock()
}

// The answer is there in time; before it counts, old pods are asked about, and where that takes too long ADD has to come
// again. It went on with the policies of the namespace before.
func TestADDWaitsForWayToBeMade(t *testing.T) {
	t.Parallel() // it takes some seconds
	p := newPoliced(t)
	p.cache.born = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p.cache.uids, p.live.uids = map[string]types.UID{"a": "first"}, map[string]types.UID{"a": "first", "a/web-1": "1", "a/web-2": "2", "a/web-3": "3", "a/web-4": "4"}
	first := p.policy("a", "open", allow(fromBlock("0.0.0.0/0")))
	first.UID, first.CreationTimestamp = "first", metav1.Time{Time: p.cache.born.Add(time.Minute)}
	p.cache.policies = []networkingv1.NetworkPolicy{first}
	p.reconcile()
	for id := range uint16(4) {
		p.adds(id+1, strconv.Itoa(int(id)+1))
	}
	next := p.policy("a", "open", closed)
	next.UID, next.CreationTimestamp = "second", metav1.Time{Time: p.cache.born.Add(2 * time.Hour)}
	p.live.uids, p.live.policies = map[string]types.UID{"a": "second"}, []networkingv1.NetworkPolicy{next}
	p.patience = 3 * time.Second
	p.Policies.live = &hooked{Reader: p.live, asked: func(o client.Object) {
		if _, ok := o.(*corev1.Pod); ok {
			time.Sleep(p.patience * 6 / 10) // a busy API server
		}
	}}
	p.comings(t.Context()).OnAdd(podOf("new", corev1.PodPending), false)
	e := p.endpoint(5, "a", "web", 300)
	e.Pod.UID = "new"
	if err := p.Admit(t.Context(), e)(); !errors.Is(err, errWayNotMade) || !errors.Is(err, endpoint.ErrNotReady) {
		t.Errorf("the policies of the namespace before would count: %v", err)
	}
	<-p.questions.foreseenOf("new").done
}

// A deletion was said to count while the policy that was deleted still did.
func TestProgressOfADeletionThatStays(t *testing.T) {
	p := newPoliced(t)
	p.cache.policies = []networkingv1.NetworkPolicy{p.policy("a", "deny", closed)}
	p.reconcile()
	p.admit(1, "a", "web", 300)
	gone := p.policy("a", "deny", closed) // 102
	p.cache.policies, p.live.away = nil, errors.New("connection refused")
	p.deletions().OnDelete(&gone)
	p.reconcile()
	if in := p.kernel.pods[1].Ingress; in != nil && p.Progress().InForce == gone.ResourceVersion && len(p.Progress().Exceptions) == 0 {
		t.Errorf("the deletion is in force, says %+v", p.Progress())
	}
	// The same for what was on disk.
	p = newPoliced(t)
	deny, other := p.policy("a", "deny", closed), p.policy("b", "deny", closed)
	p.cache.policies = []networkingv1.NetworkPolicy{deny}
	p.reconcile()
	web := p.admit(1, "a", "web", 300)
	p.remember()
	p.cache.policies, p.live.away = []networkingv1.NetworkPolicy{other}, errors.New("connection refused")
	p.restart(web)
	p.reconcile()
	if in := p.kernel.pods[1].Ingress; in == nil || p.Progress().InForce == other.ResourceVersion {
		t.Errorf("what came after the deletion is in force, says %+v", p.Progress())
	}
	p.live.away = nil
	p.reconcile()
	if p.kernel.pods[1].Ingress != nil || p.Progress().InForce != other.ResourceVersion {
		t.Errorf("%+v", p.Progress())
	}
}

// The controller may be told of a deletion before it is noted.
func TestDeletionNotedAfterTheLook(t *testing.T) {
	p := newPoliced(t)
	p.cache.policies = []networkingv1.NetworkPolicy{p.policy("a", "deny", closed)}
	p.reconcile()
	gone := p.policy("a", "deny", closed)
	p.cache.policies = nil
	p.reconcile() // the controller's listener was first
	p.deletions().OnDelete(&gone)
	for len(p.wake) > 0 {
		<-p.wake
		p.reconcile()
	}
	if got := p.Progress().InForce; got != gone.ResourceVersion {
		t.Errorf("the deletion %s counts, and %s is said", gone.ResourceVersion, got)
	}
}

// As TestInvalidAfterWhatNeverWas with a restart between, or both heard before a pass.
func TestInvalidAfterWhatNeverWasRestarted(t *testing.T) {
	for _, restart := range []bool{true, false} {
		wide := allow(fromBlock("10.0.0.0/8"))
		for _, c := range []string{"11.0.0.0/8", "12.0.0.0/8", "13.0.0.0/8"} {
			wide.Ingress[0].From = append(wide.Ingress[0].From, fromBlock(c))
		}
		p := newPoliced(t)
		p.kernel.limits = policy.Limits{Prefixes: 4}
		p.restart()
		p.reconcile()
		web := p.admit(1, "a", "web", 300)
		never := p.policy("a", "web", wide)
		if restart {
			p.cache.policies = []networkingv1.NetworkPolicy{never}
			p.reconcile()
			p.remember()
			p.restart(web)
		} else {
			p.applying.Lock()
			p.hear(policyAnswer{policies: []networkingv1.NetworkPolicy{never}, namespace: &corev1.Namespace{}})
			p.applying.Unlock()
		}
		p.cache.policies = []networkingv1.NetworkPolicy{p.policy("a", "web", allow(fromBlock("ten")))}
		p.reconcile()
		p.kernel.limits = policy.Limits{Prefixes: 100}
		p.engine.SetLimits(p.kernel.limits)
		p.reconcile()
		in := p.kernel.pods[1].Ingress
		if n := len(in.Entries); n > 0 {
			t.Errorf("restart %t: %d entries of a version that never was in force, and says %+v", restart, n, p.Progress().Exceptions)
		}
	}
}
