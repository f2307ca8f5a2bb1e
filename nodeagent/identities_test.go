// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/testenv"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

// api is a real API server, a cache of it, and the cluster's key.
type api struct {
	client client.Client
	cache  cache.Cache
	key    identity.Key
}

func newAPI(t *testing.T) *api {
	t.Helper()
	env := testenv.Start(t)
	s, err := scheme()
	nodetest.Must(t, err)
	c, err := client.New(env.Config, client.Options{Scheme: s})
	nodetest.Must(t, err)
	k, err := cache.New(env.Config, cache.Options{Scheme: s, Mapper: mapper()})
	nodetest.Must(t, err)
	nodetest.Must(t, indexFields(t.Context(), k))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Start(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	for _, o := range []client.Object{&corev1.Namespace{}} {
		_, err := k.GetInformer(t.Context(), o)
		nodetest.Must(t, err)
	}
	a := &api{client: c, cache: k}
	waitFor(t, "kube-system", func() error {
		var ns corev1.Namespace
		err := k.Get(t.Context(), client.ObjectKey{Name: metav1.NamespaceSystem}, &ns)
		a.key = identity.KeyFromCluster(string(ns.UID))
		return err
	})
	return a
}

func (a *api) agent(t *testing.T) *Identities {
	t.Helper()
	return NewIdentities(a.cache, a.client, NewWriter(a.client), func() {})
}

func waitFor(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	for range 200 {
		if err = try(); err == nil {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("%s: %v", what, err)
}

// resolve reconciles until the set has a number.
func resolve(t *testing.T, i *Identities, l identity.Labels) (n identity.Number) {
	t.Helper()
	waitFor(t, "an identity for "+l.Canonical(), func() error {
		if n = i.Lookup(l); n != identity.Pending {
			return nil
		}
		if _, err := i.Reconcile(t.Context(), ctrl.Request{}); err != nil {
			return err
		}
		return fmt.Errorf("%s is pending", l.Canonical())
	})
	return n
}

func (a *api) get(t *testing.T, n identity.Number) *v1alpha1.CiliumIdentity {
	t.Helper()
	o := &v1alpha1.CiliumIdentity{}
	nodetest.Must(t, a.client.Get(t.Context(), client.ObjectKey{Name: n.String()}, o))
	return o
}

// seen waits until the cache is as far as the server.
func (a *api) seen(t *testing.T, n identity.Number, there bool) {
	t.Helper()
	waitFor(t, "the cache", func() error {
		err := a.cache.Get(t.Context(), client.ObjectKey{Name: n.String()}, &v1alpha1.CiliumIdentity{})
		if (err == nil) != there {
			return fmt.Errorf("identity %d: %w", n, err)
		}
		return nil
	})
}

// away is an API server that does not answer.
type away struct{}

func (away) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return errors.New("away")
}

func (away) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return errors.New("away")
}

func TestIdentities(t *testing.T) {
	a := newAPI(t)
	set := func(name string) identity.Labels {
		return identity.Labels{"k8s:app": name, "k8s:io.kubernetes.pod.namespace": "default"}
	}

	t.Run("agents that do not know of each other agree", func(t *testing.T) {
		numbers := make([]identity.Number, 4)
		var work sync.WaitGroup
		for n := range numbers {
			agent := a.agent(t)
			work.Go(func() { numbers[n] = resolve(t, agent, set("same")) })
		}
		work.Wait()
		for _, n := range numbers {
			if n != a.key.Candidate(set("same"), 0) {
				t.Errorf("%v, the candidate is %d", numbers, a.key.Candidate(set("same"), 0))
			}
		}
	})

	t.Run("a number that another set holds is passed over", func(t *testing.T) {
		taken := a.key.Candidate(set("late"), 0)
		nodetest.Must(t, a.client.Create(t.Context(), &v1alpha1.CiliumIdentity{
			ObjectMeta: metav1.ObjectMeta{Name: taken.String()}, Spec: v1alpha1.CiliumIdentitySpec{Labels: set("early")},
		}))
		if n := resolve(t, a.agent(t), set("late")); n != a.key.Candidate(set("late"), 1) {
			t.Errorf("%d", n)
		}
		// And the set that holds it is found where it is.
		a.seen(t, taken, true)
		if n := resolve(t, a.agent(t), set("early")); n != taken {
			t.Errorf("early has %d, not %d", n, taken)
		}
	})

	t.Run("adoption fails a deletion that was decided before", func(t *testing.T) {
		n := resolve(t, a.agent(t), set("adopted"))
		a.seen(t, n, true)
		before := a.get(t, n)
		if resolve(t, a.agent(t), set("adopted")) != n {
			t.Fatal("another number")
		}
		if a.get(t, n).ResourceVersion == before.ResourceVersion {
			t.Fatal("adoption wrote nothing")
		}
		err := a.client.Delete(t.Context(), before, client.Preconditions{UID: &before.UID, ResourceVersion: &before.ResourceVersion})
		if err == nil {
			t.Error("the deletion went through")
		}
	})

	t.Run("a tombstone is taken away", func(t *testing.T) {
		n := resolve(t, a.agent(t), set("buried"))
		o := a.get(t, n)
		o.Annotations[v1alpha1.AnnotationTombstone] = time.Now().Format(time.RFC3339)
		nodetest.Must(t, a.client.Update(t.Context(), o))
		waitFor(t, "the cache", func() error {
			var got v1alpha1.CiliumIdentity
			_ = a.cache.Get(t.Context(), client.ObjectKey{Name: n.String()}, &got)
			if got.Annotations[v1alpha1.AnnotationTombstone] == "" {
				return fmt.Errorf("no tombstone yet")
			}
			return nil
		})
		if resolve(t, a.agent(t), set("buried")) != n {
			t.Error("another number")
		}
		if a.get(t, n).Annotations[v1alpha1.AnnotationTombstone] != "" {
			t.Error("the tombstone is still there")
		}
	})

	t.Run("what is used comes back when it is deleted", func(t *testing.T) {
		agent := a.agent(t)
		n := resolve(t, agent, set("deleted"))
		a.seen(t, n, true)
		nodetest.Must(t, a.client.Delete(t.Context(), a.get(t, n)))
		a.seen(t, n, false)
		agent.Deleted(n)
		agent.clock = func() time.Time { return time.Now().Add(seenSoon) }
		_, err := agent.Reconcile(t.Context(), ctrl.Request{})
		nodetest.Must(t, err)
		if got := a.get(t, n); !set("deleted").Equal(got.Spec.Labels) {
			t.Errorf("%v", got.Spec.Labels)
		}
		if agent.Lookup(set("deleted")) != n {
			t.Error("its number has changed")
		}
		// Once no pod needs it, it is left alone.
		agent.Want(nil, nil)
		a.seen(t, n, true)
		nodetest.Must(t, a.client.Delete(t.Context(), a.get(t, n)))
		_, err = agent.Reconcile(t.Context(), ctrl.Request{})
		nodetest.Must(t, err)
		a.seen(t, n, false)
	})

	t.Run("a pod that gets its interface keeps the number that it was told", func(t *testing.T) {
		agent := a.agent(t)
		n := resolve(t, agent, set("on-its-way"))
		if got := agent.Ask(set("on-its-way")); got != n {
			t.Fatalf("told %d, want %d", got, n)
		}
		if again, _ := agent.Want(nil, nil); again != askedFor || agent.Lookup(set("on-its-way")) != n {
			t.Errorf("it is let go before anybody can count the pod; again after %v", again)
		}
		agent.clock = func() time.Time { return time.Now().Add(askedFor) }
		if again, _ := agent.Want(nil, nil); again != 0 || agent.Lookup(set("on-its-way")) != identity.Pending {
			t.Errorf("a pod that never came keeps it; again after %v", again)
		}
	})

	// Whoever may bind pods to a node had its agent use up all that it may write, and the pods that waited for their numbers
	// waited for a minute.
	t.Run("pods that come leave room for those that are there", func(t *testing.T) {
		agent := a.agent(t)
		var early []identity.Labels
		for n := range 2 * sharedShare {
			early = append(early, set(fmt.Sprintf("early-%03d", n)))
		}
		agent.Want([]identity.Labels{set("waits")}, early)
		result, err := agent.Reconcile(t.Context(), ctrl.Request{})
		nodetest.Must(t, err)
		if agent.Lookup(set("waits")) == identity.Pending || result.RequeueAfter <= 0 {
			t.Errorf("number %d; again after %v", agent.Lookup(set("waits")), result.RequeueAfter)
		}
		numbers := 0
		for _, l := range early {
			if agent.held[l.Canonical()].number.Allocated() {
				numbers++
			}
		}
		if numbers != earlyShare {
			t.Errorf("%d of %d pods have their numbers early, want %d", numbers, len(early), earlyShare)
		}
		if _, missing := agent.Want(nil, early); !missing {
			t.Error("none is missing")
		}
		// Its ADD comes.
		last := early[len(early)-1]
		agent.Ask(last)
		_, err = agent.Reconcile(t.Context(), ctrl.Request{})
		nodetest.Must(t, err)
		if agent.Ask(last) == identity.Pending {
			t.Error("a pod that waits has no number")
		}
		// And those that never come are let go.
		agent.clock = func() time.Time { return time.Now().Add(askedFor) }
		if again, missing := agent.Want(nil, nil); again != 0 || missing || len(agent.held) != 0 {
			t.Errorf("again after %v, %v, %d are kept", again, missing, len(agent.held))
		}
	})

	t.Run("a deleted number rests", func(t *testing.T) {
		agent := a.agent(t)
		first := a.key.Candidate(set("resting"), 0)
		agent.Deleted(first)
		if n := resolve(t, agent, set("resting")); n == first {
			t.Error("it was given again at once")
		}
		later := a.agent(t)
		later.Deleted(a.key.Candidate(set("rested"), 0))
		later.clock = func() time.Time { return time.Now().Add(tombstoneRest) }
		if n := resolve(t, later, set("rested")); n != a.key.Candidate(set("rested"), 0) {
			t.Error("it rests for ever")
		}
	})

	t.Run("one that a slice names needs no write", func(t *testing.T) {
		n := resolve(t, a.agent(t), set("shared"))
		nodetest.Must(t, a.client.Create(t.Context(), &v1alpha1.CiliumEndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: "other-1"},
			Spec:       v1alpha1.CiliumEndpointSliceSpec{Node: "other", Endpoints: []v1alpha1.SliceEndpoint{pod("p", int64(n), "10.0.0.1")}},
		}))
		a.seen(t, n, true)
		waitFor(t, "the cache", func() error {
			var list v1alpha1.CiliumEndpointSliceList
			if err := a.cache.List(t.Context(), &list, client.MatchingFields{indexIdentity: n.String()}); err != nil || len(list.Items) == 0 {
				return fmt.Errorf("no slice: %w", err)
			}
			return nil
		})
		before := a.get(t, n).ResourceVersion
		if resolve(t, a.agent(t), set("shared")) != n || a.get(t, n).ResourceVersion != before {
			t.Error("it was written to")
		}
	})

	// cilium #28645, #24502: after a restart identities had other numbers, or were let go before all
	// that used them had been read.
	t.Run("#28645: a restart changes no number", func(t *testing.T) {
		before := map[string]identity.Number{}
		first := a.agent(t)
		names := []string{"one", "two", "three"}
		for _, name := range names {
			before[name] = resolve(t, first, set(name))
		}
		slices.Reverse(names)
		second := a.agent(t) // remembers nothing, and meets them in another order
		for _, name := range names {
			if n := resolve(t, second, set(name)); n != before[name] {
				t.Errorf("%s has %d, it had %d", name, n, before[name])
			}
		}
		third := a.agent(t) // remembers, and has not read its pods yet
		third.cache, third.live = away{}, away{}
		for _, name := range names {
			third.Restore(set(name), before[name])
		}
		_, _ = third.Reconcile(t.Context(), ctrl.Request{}) // whatever it says of the cache
		for _, name := range names {
			if n := third.Lookup(set(name)); n != before[name] {
				t.Errorf("%s has %d without an API server, it had %d", name, n, before[name])
			}
			a.get(t, before[name])
		}
	})

	t.Run("restored numbers are used at once", func(t *testing.T) {
		agent := a.agent(t)
		agent.Restore(set("restored"), 4711)
		if agent.Lookup(set("restored")) != 4711 {
			t.Error("pending")
		}
		agent.Restore(set("pending"), identity.Pending)
		if agent.Lookup(set("pending")) != identity.Pending {
			t.Error("pending became a number")
		}
	})
}
