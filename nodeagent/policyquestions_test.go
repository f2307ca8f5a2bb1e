// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

// comes is a pod that is bound to this node; it tells whether its policies were heard.
func (p *policed) comes(uid types.UID) bool {
	p.t.Helper()
	p.comings(p.t.Context()).OnAdd(podOf(uid, corev1.PodPending), false)
	f := p.questions.foreseenOf(uid)
	if f == nil {
		return false
	}
	<-f.done
	return f.heard
}

func podOf(uid types.UID, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", UID: uid}, Status: corev1.PodStatus{Phase: phase}}
}

// adds is the ADD of a pod, and tells how often the API server was asked for it.
func (p *policed) adds(id uint16, uid string) (asked int) {
	p.t.Helper()
	before := p.live.asked
	e := p.endpoint(id, "a", "web", 300)
	e.Pod.UID = uid
	nodetest.Must(p.t, p.Admit(p.t.Context(), e)())
	return p.live.asked - before
}

// A new pod's ADD waited for the API server to be sure that nothing is newer, up to a tenth of a second.
func TestPoliciesAreHeardWhenThePodComes(t *testing.T) {
	p := newPoliced(t)
	p.reconcile()
	deny := p.policy("a", "deny", closed)
	p.live.policies = []networkingv1.NetworkPolicy{deny} // not in the cache yet
	if !p.comes("one") {
		t.Fatal("not heard")
	}
	if asked := p.adds(1, "one"); asked != 0 {
		t.Errorf("ADD asked %d times more", asked)
	}
	p.expectIngress(1, true, 0)

	// Gone since, it does not come back with an ADD.
	p.cache.policies = p.live.policies
	p.reconcile()
	p.cache.policies, p.live.policies = nil, nil
	p.networks.noteDeleted(&deny)
	p.reconcile()
	p.expectIngress(1, false, 0)
	p.adds(1, "one")
	p.expectIngress(1, false, 0)

	// Who was not foreseen, or of whom nobody could say, or too long ago, asks.
	p.live.policies = []networkingv1.NetworkPolicy{p.policy("a", "again", closed)}
	p.comings(t.Context()).OnAdd(podOf("running", corev1.PodRunning), true)
	if p.questions.foreseenOf("running") != nil {
		t.Error("a pod that runs is foreseen")
	}
	p.live.away = errors.New("connection refused")
	if p.comes("two") {
		t.Error("heard of nobody")
	}
	p.live.away = nil
	if asked := p.adds(2, "two"); asked == 0 {
		t.Error("not asked")
	}
	p.expectIngress(2, true, 0)
	p.questions.foreseen["one"].at = time.Now().Add(-foreseenFor)
	if asked := p.adds(1, "one"); asked == 0 {
		t.Error("not asked again after so long")
	}

	handler := p.comings(t.Context())
	handler.OnUpdate(podOf("two", corev1.PodPending), podOf("three", corev1.PodPending)) // one went, another came
	if f := p.questions.foreseenOf("three"); f == nil {
		t.Error("not foreseen")
	} else {
		<-f.done
	}
	handler.OnDelete(podOf("one", corev1.PodRunning))
	handler.OnDelete(toolscache.DeletedFinalStateUnknown{Obj: podOf("three", corev1.PodRunning)})
	if n := len(p.questions.foreseen) + len(p.questions.last) + len(p.questions.next); n != 0 {
		t.Errorf("%d questions are left", n)
	}
}

// Who asks while a question is on its way shares the next one: no answer is older than who gets it.
func TestQuestionsAreShared(t *testing.T) {
	began, answers := make(chan struct{}), make(chan int32)
	var asked atomic.Int32
	q := newPolicyQuestions(func(string) (policyAnswer, error) {
		n := asked.Add(1)
		began <- struct{}{}
		<-answers
		return policyAnswer{policies: make([]networkingv1.NetworkPolicy, n)}, nil
	}, func(policyAnswer) error { return nil })
	first := q.put("a")
	<-began
	second, third, other := q.put("a"), q.put("a"), q.put("b")
	if second == first || second != third || other == second {
		t.Error("a question on its way is shared, or one that waits is not")
	}
	<-began // b does not wait for a
	answers <- 0
	answers <- 0
	<-began
	answers <- 0
	for _, one := range []*policyQuestion{first, second, other} {
		<-one.done
	}
	if asked.Load() != 3 || len(first.answer.policies) != 1 || len(second.answer.policies) != 3 {
		t.Errorf("asked %d times, answers %d and %d", asked.Load(), len(first.answer.policies), len(second.answer.policies))
	}
}

// What was heard of before the cache was given up after some seconds, also while the cache was behind or nobody could be
// asked: a pod that came then was open.
func TestHeardPolicyStaysUntilTheServerSaysOtherwise(t *testing.T) {
	p := newPoliced(t)
	p.reconcile()
	deny := p.policy("a", "deny", closed)
	p.live.policies = []networkingv1.NetworkPolicy{deny}
	if !p.comes("one") {
		t.Fatal("not heard")
	}
	later := func(again bool) {
		t.Helper()
		if h := p.networks.held[policy.RefOf(&deny)]; h != nil {
			h.since = time.Now().Add(-seenSafely)
		}
		if r := p.reconcile(); (r.RequeueAfter > 0) != again {
			t.Errorf("again %v, want %t", r.RequeueAfter, again)
		}
	}
	later(true) // the cache is behind
	p.live.away = context.DeadlineExceeded
	later(true)
	p.adds(1, "one")
	p.expectIngress(1, true, 0)
	// A version that nobody has told of yet counts from then on.
	p.live.away, p.live.policies[0] = nil, p.policy("a", "deny", allow(fromBlock("0.0.0.0/0")))
	later(true)
	p.expectIngress(1, true, 1)
	p.live.policies = nil // deleted, and the cache has never known it
	later(false)
	p.expectIngress(1, false, 0)
	asked := p.live.asked
	later(false)
	if p.live.asked != asked {
		t.Error("a policy that is gone is asked for again")
	}
}

// What the API server says is gone does not come back in the older version that the cache still has.
func TestGoneWhileTheCacheHasAnOlderVersion(t *testing.T) {
	p := newPoliced(t)
	before, heard := p.policy("a", "open", allow(fromBlock("10.0.0.0/8"))), p.policy("a", "open", allow(fromBlock("11.0.0.0/8")))
	before.UID, heard.UID = "1", "1"
	deny := p.policy("a", "deny", closed)
	p.cache.policies, p.live.policies = []networkingv1.NetworkPolicy{before, deny}, []networkingv1.NetworkPolicy{heard, deny}
	p.reconcile()
	if !p.comes("one") {
		t.Fatal("not heard")
	}
	p.adds(1, "one")
	p.expectIngress(1, true, 1)
	p.live.policies = p.live.policies[1:]
	for range 3 {
		if h := p.networks.held[policy.RefOf(&heard)]; h != nil {
			h.since = time.Now().Add(-seenSafely)
		}
		p.reconcile()
		p.expectIngress(1, true, 0)
	}
	again := p.policy("a", "open", allow(fromBlock("12.0.0.0/8")))
	again.UID = "2"
	p.cache.policies = []networkingv1.NetworkPolicy{again, deny}
	p.reconcile()
	p.expectIngress(1, true, 1)
}

// hooked is an API server that something happens to while it is asked for an object.
type hooked struct {
	client.Reader
	asked func(client.Object)
}

func (h *hooked) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	h.asked(o)
	return h.Reader.Get(ctx, key, o, opts...)
}

// What became of a policy was said of its name: its successor, heard of meanwhile, was taken away in its place.
func TestHeardWhileItsPredecessorGoes(t *testing.T) {
	p := newPoliced(t)
	first := p.policy("a", "deny", closed)
	first.UID = "1"
	p.cache.policies = []networkingv1.NetworkPolicy{first}
	p.reconcile()
	p.admit(1, "a", "web", 300)
	gone, again := p.policy("a", "deny", closed), p.policy("a", "deny", closed)
	again.UID = "2"
	p.cache.policies, p.live.policies = nil, []networkingv1.NetworkPolicy{again}
	p.deletions().OnDelete(&gone)
	heard := false
	p.Policies.live = &hooked{Reader: p.live, asked: func(o client.Object) {
		if _, ok := o.(*corev1.Namespace); !ok || heard {
			return
		}
		if heard = true; !p.comes("two") {
			t.Error("not heard")
		}
	}}
	p.reconcile()
	p.adds(2, "two")
	p.expectIngress(2, true, 0)
}

// An answer that waited while the cache told of a deletion put the policy in force again.
func TestAnswerOlderThanADeletion(t *testing.T) {
	p := newPoliced(t)
	deny, open := p.policy("a", "deny", closed), p.policy("a", "open", allow(fromBlock("0.0.0.0/0")))
	p.cache.policies = []networkingv1.NetworkPolicy{deny, open}
	p.reconcile()
	p.admit(1, "a", "web", 300)
	p.expectIngress(1, true, 1)
	old := policyAnswer{policies: []networkingv1.NetworkPolicy{deny, open}, namespace: &corev1.Namespace{}}
	gone := p.policy("a", "open", closed)
	p.cache.policies = p.cache.policies[:1]
	p.deletions().OnDelete(&gone)
	p.reconcile()
	p.expectIngress(1, true, 0)
	p.applying.Lock()
	if p.hear(old) {
		t.Error("what was deleted is news")
	}
	p.applying.Unlock()
	p.reconcile()
	p.expectIngress(1, true, 0)
}

// Policies of a namespace that came back count for its pods alone, also where a pod's coming is heard of before the
// cache knows them: those of the namespace before are closed first.
func TestHeardBeforeTheCacheAfterTheNamespaceCameBack(t *testing.T) {
	for name, of := range map[string]string{"of the same name": "deny", "of another name": "open"} {
		for _, cacheBehind := range []bool{false, true} {
			p := newPoliced(t)
			p.cache.born = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			p.cache.uids, p.live.uids = map[string]types.UID{"a": "first"}, map[string]types.UID{"a": "first", "a/web-1": "old"}
			first := p.policy("a", "deny", closed)
			first.UID, first.CreationTimestamp = "first", metav1.Time{Time: p.cache.born.Add(time.Minute)}
			p.cache.policies = []networkingv1.NetworkPolicy{first}
			p.reconcile()
			p.adds(1, "old")
			if !cacheBehind {
				p.cache.namespaces["a"], p.live.namespaces["a"] = true, true
				p.cache.policies = nil
				p.reconcile() // it lingers
				p.expectIngress(1, true, 0)
				p.cache.uids = map[string]types.UID{"a": "second"}
			}
			p.cache.namespaces["a"], p.live.namespaces["a"] = false, false
			next := p.policy("a", of, allow(fromBlock("0.0.0.0/0")))
			next.UID, next.CreationTimestamp = "second", metav1.Time{Time: p.cache.born.Add(2 * time.Hour)}
			p.live.uids = map[string]types.UID{"a": "second", "a/web-2": "new"}
			p.live.policies = []networkingv1.NetworkPolicy{next}
			check := func(when string) {
				t.Helper()
				if in := p.kernel.pods[1].Ingress; in == nil || len(in.Entries) > 0 {
					t.Errorf("%s, cache behind %t, %s: the pod of the namespace before is open", name, cacheBehind, when)
				}
			}
			p.kernel.moment = func() { check("at every moment") }
			if !p.comes("new") {
				t.Error("not heard")
			}
			p.reconcile()
			p.adds(2, "new")
			p.cache.policies, p.cache.uids = p.live.policies, map[string]types.UID{"a": "second"}
			for range 3 {
				p.reconcile()
			}
			check("at the end")
			if in := p.kernel.pods[2].Ingress; in == nil || len(in.Entries) == 0 {
				t.Errorf("%s: the new pod has %+v", name, in)
			}
		}
	}
}

// What an exception says is in force is.
func TestInvalidAfterWhatNeverWas(t *testing.T) {
	invalid := allow(fromBlock("ten"))
	wide := allow(fromBlock("10.0.0.0/8"))
	for _, c := range []string{"11.0.0.0/8", "12.0.0.0/8", "13.0.0.0/8"} {
		wide.Ingress[0].From = append(wide.Ingress[0].From, fromBlock(c))
	}
	narrow := allow(fromBlock("10.0.0.0/8"))
	unreadable := closed
	unreadable.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Near"}}
	for name, c := range map[string]struct {
		versions []networkingv1.NetworkPolicySpec
		uids     []types.UID
		entries  int // of the pod's ingress table; -1: it is not isolated
		says     string
	}{
		"the one before never fitted":               {versions: []networkingv1.NetworkPolicySpec{wide, invalid}, says: "it isolates"},
		"the one before does not fit":               {versions: []networkingv1.NetworkPolicySpec{narrow, wide, invalid}, entries: 1, says: "the version before"},
		"the one before is in force":                {versions: []networkingv1.NetworkPolicySpec{narrow, invalid}, entries: 1, says: "the version before"},
		"twice":                                     {versions: []networkingv1.NetworkPolicySpec{narrow, invalid, invalid}, entries: 1, says: "the version before"},
		"the one before is another object":          {versions: []networkingv1.NetworkPolicySpec{narrow, invalid}, uids: []types.UID{"1", "2"}, says: "it isolates"},
		"nobody can tell whom it selects":           {versions: []networkingv1.NetworkPolicySpec{unreadable}, entries: -1, says: "it selects no pod"},
		"it selected somebody, now nobody can tell": {versions: []networkingv1.NetworkPolicySpec{narrow, unreadable}, entries: 1, says: "the version before"},
	} {
		p := newPoliced(t)
		p.kernel.limits = policy.Limits{Prefixes: 4}
		p.restart()
		p.reconcile()
		p.admit(1, "a", "web", 300)
		for i, spec := range c.versions {
			np := p.policy("a", "web", spec)
			if c.uids != nil {
				np.UID = c.uids[i]
			}
			p.cache.policies = []networkingv1.NetworkPolicy{np}
			p.reconcile()
		}
		p.kernel.limits = policy.Limits{Prefixes: 100} // room comes: what is not to be in force stays out
		p.engine.SetLimits(p.kernel.limits)
		p.reconcile()
		x := p.Progress().Exceptions
		if len(x) != 1 || x[0].Reason != reasonInvalid || !strings.HasPrefix(x[0].Message, c.says) {
			t.Errorf("%s: %+v", name, x)
		}
		switch in := p.kernel.pods[1].Ingress; {
		case (in == nil) != (c.entries < 0):
			t.Errorf("%s: isolated %t", name, in != nil)
		case in != nil && len(in.Entries) != c.entries:
			t.Errorf("%s: %d entries, want %d", name, len(in.Entries), c.entries)
		}
	}
}
