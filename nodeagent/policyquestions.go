// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// foreseenFor is how long before its ADD a pod may have been foreseen. Who comes later asks again: a pod that gets
// another sandbox has been there for long.
const foreseenFor = 30 * time.Second

var errWayNotMade = errors.New("pods of the namespace that had the name before are not told from those of this one yet")

// policyQuestions asks the API server for the policies of namespaces. To be sure that nothing is newer than its answer
// takes the server up to a tenth of a second (KEP-2340), and pods often come many at once: whoever asks while a question
// is on its way shares the next one with all others that do.
type policyQuestions struct {
	// ask for the policies of a namespace, and then make way for them.
	ask func(namespace string) (policyAnswer, error)
	way func(policyAnswer) error

	mu sync.Mutex
	// last is the question of a namespace that was put last, next the one that is not put yet.
	last, next map[string]*policyQuestion
	// foreseen: pod -> what was asked when it came to this node.
	foreseen map[types.UID]*foreseenPod
}

// policyAnswer is what the API server has.
type policyAnswer struct {
	policies []networkingv1.NetworkPolicy
	// namespace that they are of: nil where there are none, without UID where it went meanwhile.
	namespace *corev1.Namespace
	// way is why nobody knows whether pods here are of another namespace of that name: the policies must not count yet.
	way error
}

type policyQuestion struct {
	// answered: only the way is to be made.
	answered atomic.Bool
	// done is closed when the others are set.
	done   chan struct{}
	answer policyAnswer
	err    error
}

// foreseenPod is a pod whose ADD is to come, or has come.
type foreseenPod struct {
	namespace string
	at        time.Time
	question  *policyQuestion
	// done is closed when heard is set: the engine has all policies that were there before the pod.
	done  chan struct{}
	heard bool
}

func newPolicyQuestions(ask func(namespace string) (policyAnswer, error), way func(policyAnswer) error) *policyQuestions {
	return &policyQuestions{ask: ask, way: way, last: map[string]*policyQuestion{}, next: map[string]*policyQuestion{}, foreseen: map[types.UID]*foreseenPod{}}
}

// put returns a question that is not answered by anything older than this call.
func (q *policyQuestions) put(namespace string) *policyQuestion {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.putLocked(namespace)
}

func (q *policyQuestions) putLocked(namespace string) *policyQuestion {
	one := q.next[namespace]
	if one == nil {
		one = &policyQuestion{done: make(chan struct{})}
		q.next[namespace] = one
		go q.run(namespace, one, q.last[namespace])
	}
	return one
}

func (q *policyQuestions) run(namespace string, one, before *policyQuestion) {
	defer close(one.done)
	if before != nil {
		<-before.done
	}
	q.mu.Lock()
	delete(q.next, namespace) // from here on the answer may be older than who asks
	q.last[namespace] = one
	q.mu.Unlock()
	if one.answer, one.err = q.ask(namespace); one.err == nil {
		one.answered.Store(true)
		one.answer.way = q.way(one.answer)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last[namespace] == one && q.next[namespace] == nil {
		delete(q.last, namespace)
	}
}

// foreseenOf is what is known of a pod's question; nil: nobody asked, or too long ago.
func (q *policyQuestions) foreseenOf(pod types.UID) *foreseenPod {
	q.mu.Lock()
	defer q.mu.Unlock()
	if f := q.foreseen[pod]; f != nil && time.Since(f.at) < foreseenFor {
		return f
	}
	return nil
}

// expected tells whether a pod was foreseen and may have its ADD before it.
func (p *Policies) expected(pod types.UID) bool { return p.questions.foreseenOf(pod) != nil }

// awaited are the namespaces of the pods whose ADD may come soon.
func (q *policyQuestions) awaited() map[string]bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := map[string]bool{}
	for _, f := range q.foreseen {
		if time.Since(f.at) < foreseenFor {
			out[f.namespace] = true
		}
	}
	return out
}

func (q *policyQuestions) forget(pod types.UID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.foreseen, pod)
}

// foresee begins to gather what Admit needs for a pod that came to this node: the policies that were there before it.
// Those that come later are told as ever.
func (p *Policies) foresee(ctx context.Context, pod *corev1.Pod) {
	if pod.Spec.HostNetwork || pod.Status.Phase != corev1.PodPending && pod.Status.Phase != "" {
		return
	}
	q := p.questions
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.foreseen[pod.UID] != nil {
		return
	}
	one := q.putLocked(pod.Namespace)
	f := &foreseenPod{namespace: pod.Namespace, at: time.Now(), question: one, done: make(chan struct{})}
	q.foreseen[pod.UID] = f
	go func() {
		defer close(f.done)
		select {
		case <-one.done:
		case <-ctx.Done():
			return
		}
		if err := cmp.Or(one.err, one.answer.way); err != nil {
			p.log.V(1).Info("policies of a pod that comes are asked for in its ADD", "namespace", pod.Namespace, "pod", pod.Name, "error", err.Error())
			return
		}
		p.applying.Lock()
		defer p.applying.Unlock()
		if f.heard = p.known; f.heard && p.hear(one.answer) {
			p.wake.ring()
		}
	}()
}

// foreseePods is told of this node's pods.
func (p *Policies) foreseePods(ctx context.Context, from cache.Cache) error {
	i, err := from.GetInformer(ctx, &corev1.Pod{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch Pods: %w", err)
	}
	if _, err := i.AddEventHandler(p.comings(ctx)); err != nil {
		return fmt.Errorf("watch Pods: %w", err)
	}
	return nil
}

func (p *Policies) comings(ctx context.Context) toolscache.ResourceEventHandler {
	comes := func(o any) {
		if pod, ok := o.(*corev1.Pod); ok {
			p.foresee(ctx, pod)
			if pod.Annotations[corev1.MirrorPodAnnotationKey] != "" {
				p.wake.ring() // it may have been closed for want of it
			}
		}
	}
	goes := func(o any) {
		if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if pod, ok := o.(*corev1.Pod); ok {
			p.questions.forget(pod.UID)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: comes,
		UpdateFunc: func(before, now any) {
			a, ok := before.(*corev1.Pod)
			b, both := now.(*corev1.Pod)
			if ok && both && a.UID != b.UID { // the one's end and the other's coming were missed
				goes(before)
				comes(now)
			}
		},
		DeleteFunc: goes,
	}
}

// ask returns the policies of a pod's namespace as the API server has them now; none where they were heard when the
// pod came, and none when the server does not answer in time. Policies that are known and cannot count yet are an answer
// whose way is not made.
func (p *Policies) ask(ctx context.Context, namespace string, pod types.UID) policyAnswer {
	if namespace == "" {
		return policyAnswer{}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*p.patience) // one question, and the one before it
	defer cancel()
	late := func(one *policyQuestion) policyAnswer {
		if one.answered.Load() {
			return policyAnswer{way: errWayNotMade}
		}
		return policyAnswer{}
	}
	if f := p.questions.foreseenOf(pod); f != nil {
		select {
		case <-f.done:
			if f.heard {
				return policyAnswer{}
			}
		case <-ctx.Done():
			return late(f.question)
		}
	}
	one := p.questions.put(namespace)
	select {
	case <-one.done:
	case <-ctx.Done():
		return late(one)
	}
	if one.err != nil {
		p.log.V(1).Info("policies of a new pod come from the cache", "namespace", namespace, "error", one.err.Error())
	}
	return one.answer
}

// askLive asks the API server for the policies of a namespace, and which namespace it is. It is bounded by patience and by no
// caller's context: several may wait for one answer, and none of them may end it for the others.
func (p *Policies) askLive(namespace string) (policyAnswer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), p.patience)
	defer cancel()
	var list networkingv1.NetworkPolicyList
	if err := p.live.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return policyAnswer{}, fmt.Errorf("ask for the policies of %s: %w", namespace, err)
	}
	if len(list.Items) == 0 {
		return policyAnswer{}, nil
	}
	var ns corev1.Namespace
	if _, err := p.liveGet(ctx, types.NamespacedName{Name: namespace}, &ns); err != nil {
		return policyAnswer{}, err
	}
	return policyAnswer{policies: list.Items, namespace: &ns}, nil
}
