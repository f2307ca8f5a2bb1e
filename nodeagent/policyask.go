// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// policyQuestions asks the API server for the policies of namespaces. To be sure that nothing is newer than its answer
// takes the server up to a tenth of a second (KEP-2340), and pods often come many at once: whoever asks while a question
// is on its way shares the next one with all others that do.
type policyQuestions struct {
	live client.Reader

	mu sync.Mutex
	// last is the question of a namespace that was put last, next the one that is not put yet.
	last, next map[string]*policyQuestion
	// foreseen: pod -> the question that was put when it came to this node.
	foreseen map[types.UID]*foreseenPod
}

type policyQuestion struct {
	// done is closed when the others are set.
	done chan struct{}
	list []networkingv1.NetworkPolicy
	err  error
}

// foreseenPod is a pod whose ADD is yet to come, or has come.
type foreseenPod struct {
	// done is closed when heard is set: the engine has all policies that were there before the pod.
	done  chan struct{}
	heard bool
}

func newPolicyQuestions(live client.Reader) *policyQuestions {
	return &policyQuestions{live: live, last: map[string]*policyQuestion{}, next: map[string]*policyQuestion{}, foreseen: map[types.UID]*foreseenPod{}}
}

// put returns a question that is not answered by anything older than this call.
func (q *policyQuestions) put(namespace string) *policyQuestion {
	q.mu.Lock()
	defer q.mu.Unlock()
	one := q.next[namespace]
	if one == nil {
		one = &policyQuestion{done: make(chan struct{})}
		q.next[namespace] = one
		go q.answer(namespace, one, q.last[namespace])
	}
	return one
}

func (q *policyQuestions) answer(namespace string, one, before *policyQuestion) {
	defer close(one.done)
	if before != nil {
		<-before.done
	}
	q.mu.Lock()
	delete(q.next, namespace)
	q.last[namespace] = one
	q.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), policyPatience)
	defer cancel()
	var list networkingv1.NetworkPolicyList
	one.err = q.live.List(ctx, &list, client.InNamespace(namespace))
	one.list = list.Items
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last[namespace] == one && q.next[namespace] == nil {
		delete(q.last, namespace)
	}
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
	f := &foreseenPod{done: make(chan struct{})}
	q.foreseen[pod.UID] = f
	go func() {
		defer close(f.done)
		one := q.put(pod.Namespace)
		select {
		case <-one.done:
		case <-ctx.Done():
			return
		}
		if one.err != nil {
			return
		}
		ns := p.namespaceOf(ctx, one.list)
		p.applying.Lock()
		defer p.applying.Unlock()
		if f.heard = p.known; f.heard && p.hear(one.list, ns) {
			p.wake.ring()
		}
	}()
}

func (p *Policies) forgetPod(uid types.UID) {
	p.questions.mu.Lock()
	defer p.questions.mu.Unlock()
	delete(p.questions.foreseen, uid)
}

// foreseeFrom is told of this node's pods.
func (p *Policies) foreseeFrom(ctx context.Context, from cache.Cache) error {
	i, err := from.GetInformer(ctx, &corev1.Pod{}, cache.BlockUntilSynced(false))
	if err != nil {
		return err
	}
	_, err = i.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if pod, ok := o.(*corev1.Pod); ok {
				p.foresee(ctx, pod)
			}
		},
		DeleteFunc: func(o any) {
			if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if pod, ok := o.(*corev1.Pod); ok {
				p.forgetPod(pod.UID)
			}
		},
	})
	return err
}

// ask returns the policies of a pod's namespace as the API server has them now; none where they were heard of when the
// pod came, and none when the server does not answer in time.
func (p *Policies) ask(ctx context.Context, namespace string, uid types.UID) []networkingv1.NetworkPolicy {
	if namespace == "" {
		return nil
	}
	q := p.questions
	q.mu.Lock()
	f := q.foreseen[uid]
	q.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, policyPatience)
	defer cancel()
	if f != nil {
		select {
		case <-f.done:
			if f.heard {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
	one := q.put(namespace)
	select {
	case <-one.done:
	case <-ctx.Done():
		return nil
	}
	if one.err != nil {
		p.log.V(1).Info("policies of a new pod come from the cache", "namespace", namespace, "error", one.err.Error())
	}
	return one.list
}

// namespaceOf is the namespace of policies of one; the cache waits where it is not filled yet.
func (p *Policies) namespaceOf(ctx context.Context, list []networkingv1.NetworkPolicy) *corev1.Namespace {
	if len(list) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, policyPatience)
	defer cancel()
	return p.namespace(ctx, list[0].Namespace)
}

// hear takes policies that the cache may not have yet; true: there are new ones. applying is held.
func (p *Policies) hear(list []networkingv1.NetworkPolicy, ns *corev1.Namespace) (news bool) {
	for i := range list {
		if h := p.networks.held[policy.RefOf(&list[i])]; h == nil || h.version < versionOf(&list[i]) {
			p.hold(&list[i], fromLive)
			p.place(&list[i], ns)
			news = true
		}
	}
	return news
}
