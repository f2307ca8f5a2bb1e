// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// whence is where a policy was read.
type whence int

const (
	fromCache whence = iota
	// fromLive is ahead of the cache.
	fromLive
	// fromDisk may be of a time long gone: whatever the cache has counts more.
	fromDisk
)

// heldPolicy is a NetworkPolicy that the engine knows.
type heldPolicy struct {
	object  networkingv1.NetworkPolicy
	version uint64
	whence  whence
	since   time.Time
	notes   []policy.Note
	// err: this version cannot be had; the one before it is in force, or, where there was none, it isolates and allows
	// nothing.
	err error
	// before is the version that may be in force in place of this one, which may not fit; nil: this one is.
	before *networkingv1.NetworkPolicySpec
	// nobody: it selects no pod, for whom it selects cannot be told.
	nobody bool
	// never was in force, in no version: it isolates.
	never bool
	// lingering: the object is gone with its namespace, and pods of it are still on this node.
	lingering bool
	// namespace is the one in which it is, or was, where somebody knew; another of that name is not its.
	namespace types.UID
}

// networkPolicies is what Policies remembers of NetworkPolicies. held belongs to who holds Policies.applying.
type networkPolicies struct {
	held map[policy.Ref]*heldPolicy
	// newest resourceVersion of a deletion that was taken.
	newest uint64
	// gone are deletions of late: an answer may be older.
	gone map[policy.Ref]deletion
	// unasked are namespaces that may have come back -> the one before: the API server could not say.
	unasked map[string]types.UID

	mu      sync.Mutex
	deleted map[policy.Ref]uint64 // deletions that the cache has told of since the last takeDeleted
}

// deletion of a policy.
type deletion struct {
	// version that it had, or got by being deleted.
	version uint64
	at      time.Time
}

// rememberGone is how long a deletion is remembered; no answer takes as long.
const rememberGone = 10 * time.Minute

func (n *networkPolicies) noteGone(ref policy.Ref, version uint64) {
	n.gone[ref] = deletion{version: max(version, n.gone[ref].version), at: time.Now()}
}

// deletions notes what the cache says was deleted. It has to be there before the controller that asks for it.
func (p *Policies) deletions() toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{DeleteFunc: func(o any) {
		if last, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = last.Obj // its resourceVersion is older than that of the deletion
		}
		if np, ok := o.(*networkingv1.NetworkPolicy); ok {
			p.networks.noteDeleted(np)
		}
	}}
}

// noteDeleted is called by the cache; the object carries the resourceVersion of its deletion.
func (n *networkPolicies) noteDeleted(o *networkingv1.NetworkPolicy) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deleted[policy.RefOf(o)] = versionOf(o)
}

func (n *networkPolicies) takeDeleted() map[policy.Ref]uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.deleted
	n.deleted = map[policy.Ref]uint64{}
	return out
}

// some tells whether the namespace has any policy.
func (n *networkPolicies) some(namespace string) bool {
	for ref := range n.held {
		if ref.Namespace == namespace {
			return true
		}
	}
	return false
}

// hold gives a policy to the engine. Of one that cannot be had the version before goes on; one that never was in force,
// or whose version before was another object's, isolates the pods that it selects: they are not left open for a rule that
// nobody can read.
func (p *Policies) hold(o *networkingv1.NetworkPolicy, from whence) {
	ref := policy.RefOf(o)
	rules, notes, err := policy.FromNetworkPolicy(o)
	kept := networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion},
		Spec:       o.Spec,
	}
	h := &heldPolicy{object: kept, version: versionOf(o), whence: from, since: time.Now(), notes: notes, err: err, nobody: len(rules) == 0}
	last := p.networks.held[ref]
	same := last != nil && last.object.UID == o.UID
	if same {
		h.namespace = last.namespace
	}
	if last != nil && (same || err == nil) {
		if h.before = last.before; h.before == nil && last.err == nil && !last.never {
			h.before = &last.object.Spec
		}
	}
	p.networks.held[ref] = h
	if err == nil || h.before == nil {
		h.err = cmp.Or(err, p.engine.SetPolicy(ref, rules))
		return
	}
	// The one between them, if any, is not to come into force once it fits.
	before := networkingv1.NetworkPolicy{ObjectMeta: kept.ObjectMeta, Spec: *h.before}
	if rules, _, worse := policy.FromNetworkPolicy(&before); worse == nil {
		h.err = cmp.Or(err, p.engine.SetPolicy(ref, rules))
	}
}

// place notes the namespace of a policy. One that is younger than the policy is not its own but a later one of the name:
// the cache has namespaces and policies from two streams. Its own may be known late, so that the last one counts.
func (p *Policies) place(o *networkingv1.NetworkPolicy, ns *corev1.Namespace) {
	h := p.networks.held[policy.RefOf(o)]
	if h == nil || h.object.UID != o.UID || ns.UID == "" || ns.CreationTimestamp.After(o.CreationTimestamp.Time) {
		return
	}
	h.namespace = ns.UID
}

// namespace is one as the cache has it; without UID where it does not.
func (p *Policies) namespace(ctx context.Context, name string) *corev1.Namespace {
	var ns corev1.Namespace
	if err := p.cache.Get(ctx, types.NamespacedName{Name: name}, &ns); err != nil {
		return &corev1.Namespace{} // its coming is told
	}
	return &ns
}

// fate of a policy that the cache does not have. Without one it stays: it may be on its way into the cache, or nobody
// could say yet.
type fate int

const (
	stays fate = iota
	// goes: a person deleted it, or no pod of this node is left that it could be about.
	goes
	// lingers: its namespace is being deleted, or was, and this node still runs pods of it. Namespaces are emptied in any
	// order: a policy may be gone long before the last pod.
	lingers
)

// judgement is what becomes of a policy as it was when that was said.
type judgement struct {
	fate
	held *heldPolicy
}

// missingPolicy is one that the cache does not have, and what it was when that was seen.
type missingPolicy struct {
	heldPolicy
	held *heldPolicy
}

// fates says what becomes of the policies that are not in list. Again tells that it has to be asked again soon.
func (p *Policies) fates(ctx context.Context, list []networkingv1.NetworkPolicy, deleted map[policy.Ref]uint64) (fates map[policy.Ref]judgement, again bool) {
	present := make(map[policy.Ref]types.UID, len(list))
	for i := range list {
		present[policy.RefOf(&list[i])] = list[i].UID
	}
	fates = map[policy.Ref]judgement{}
	type namespace struct {
		name string
		uid  types.UID
	}
	gone := map[namespace][]policy.Ref{}
	missing := map[policy.Ref]missingPolicy{}
	p.applying.Lock()
	inUse := map[string]bool{}
	for _, e := range p.pods() {
		inUse[e.Pod.Namespace] = true
	}
	n := &p.networks
	for name, uid := range n.unasked {
		if inUse[name] {
			gone[namespace{name, uid}] = nil
		}
	}
	maps.DeleteFunc(n.gone, func(_ policy.Ref, d deletion) bool { return time.Since(d.at) > rememberGone })
	for ref, v := range deleted {
		n.newest = max(n.newest, v)
		n.noteGone(ref, v)
		if h := n.held[ref]; h != nil && h.whence == fromLive && h.version <= v {
			h.whence = fromCache // the cache is past it
		}
	}
	for ref, h := range n.held {
		uid, there := present[ref]
		if inUse[ref.Namespace] && (h.lingering || there && uid != h.object.UID) {
			home := namespace{ref.Namespace, h.namespace}
			gone[home] = append(gone[home], ref)
		}
		switch {
		case there:
		case h.whence == fromLive && time.Since(h.since) < seenSafely:
			again = true // it is on its way into the cache
		default:
			missing[ref] = missingPolicy{*h, h}
		}
	}
	p.applying.Unlock()
	if err := p.askForMissing(ctx, missing); err != nil {
		p.log.Info("policies that only this node knows stay until the API server says whether they are there", "error", err.Error())
		again = true
	}
	ask := map[namespace][]policy.Ref{}
	judge := func(ref policy.Ref, f fate) { fates[ref] = judgement{f, missing[ref].held} }
	for ref, h := range missing {
		switch {
		case h.whence != fromCache:
			again = true
		case !inUse[ref.Namespace]:
			judge(ref, goes)
		case h.lingering:
			judge(ref, lingers)
		default:
			home := namespace{ref.Namespace, h.namespace}
			ask[home] = append(ask[home], ref)
		}
	}
	unasked := map[string]types.UID{}
	for home, refs := range gone {
		back, err := p.cameBack(ctx, home.name, home.uid)
		if err != nil {
			p.log.Info("policies of a namespace that went stay until the API server says whether this is another", "namespace", home.name, "error", err.Error())
			again, unasked[home.name] = true, home.uid
			continue
		}
		for _, ref := range refs {
			if back && fates[ref].fate == lingers {
				judge(ref, goes)
			}
		}
	}
	for home, refs := range ask {
		uid, going, err := p.going(ctx, home.name)
		if err == nil && !going && home.uid != uid { // another, or nobody knows which it was
			err = p.closeOrphans(ctx, home.name)
		}
		if err != nil {
			p.log.Info("policies stay until the API server says whether their namespace is being deleted", "namespace", home.name, "error", err.Error())
			again = true
			continue
		}
		for _, ref := range refs {
			if !going {
				judge(ref, goes)
				continue
			}
			judge(ref, lingers)
			if home.uid == "" {
				p.applying.Lock()
				missing[ref].held.namespace = uid
				p.applying.Unlock()
			}
		}
	}
	p.applying.Lock()
	defer p.applying.Unlock()
	n.unasked = unasked
	return fates, again
}

// askForMissing asks for those of the policies which the cache never had, or not in this version. What is not there any
// more it marks as known to the cache, and what is there, as heard anew. The first question without an answer is the last.
func (p *Policies) askForMissing(ctx context.Context, missing map[policy.Ref]missingPolicy) error {
	for ref, h := range missing {
		if h.whence == fromCache {
			continue
		}
		var np networkingv1.NetworkPolicy
		found, err := p.liveGet(ctx, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, &np)
		if err != nil {
			return err
		}
		if !found {
			p.applying.Lock()
			h.held.whence = fromCache
			p.applying.Unlock()
			h.whence = fromCache
			missing[ref] = h
			continue
		}
		now := policyAnswer{policies: []networkingv1.NetworkPolicy{np}, namespace: &corev1.Namespace{}}
		if _, err := p.liveGet(ctx, types.NamespacedName{Name: ref.Namespace}, now.namespace); err != nil {
			return err
		}
		if err := p.makeWay(ctx, now); err != nil {
			return err
		}
		p.applying.Lock()
		p.hear(now)
		p.applying.Unlock()
	}
	return nil
}

// feedNetworkPolicies gives the engine what the cache has, and takes away what goes. It returns the resourceVersion up to
// which the engine now knows everything.
func (p *Policies) feedNetworkPolicies(ctx context.Context, list []networkingv1.NetworkPolicy, fates map[policy.Ref]judgement) uint64 {
	version := p.networks.newest
	order := make([]*networkingv1.NetworkPolicy, len(list))
	for i := range list {
		order[i] = &list[i]
	}
	// Should they not all fit, it is the newest that do not.
	slices.SortStableFunc(order, func(a, b *networkingv1.NetworkPolicy) int { return cmp.Compare(versionOf(a), versionOf(b)) })
	namespaces := map[string]*corev1.Namespace{}
	for _, o := range order {
		v := versionOf(o)
		version = max(version, v)
		h := p.networks.held[policy.RefOf(o)]
		switch {
		case h != nil && h.whence == fromLive && h.version > v:
			// The cache is behind what a new pod has asked for.
		case h != nil && h.version == v && h.version != 0:
			h.whence, h.lingering = fromCache, false
		default:
			p.hold(o, fromCache)
		}
		if namespaces[o.Namespace] == nil {
			namespaces[o.Namespace] = p.namespace(ctx, o.Namespace)
		}
		p.place(o, namespaces[o.Namespace])
	}
	for ref, f := range fates {
		switch h := p.networks.held[ref]; {
		case h == nil || h != f.held || f.fate == stays: // or something else was heard of since
		case f.fate == lingers:
			if !h.lingering {
				p.log.Info("a policy of a namespace that is being deleted stays for its pods", "policy", ref.String())
			}
			h.lingering = true
		default:
			p.engine.DeletePolicy(ref)
			delete(p.networks.held, ref)
			p.networks.noteGone(ref, h.version)
		}
	}
	return version
}

// going tells whether a namespace is being deleted or gone, and which it is, where somebody knows. Where the cache does
// not say so, it may be behind: the deletion of a namespace comes before that of what is in it, so the API server knows
// it by now.
func (p *Policies) going(ctx context.Context, namespace string) (types.UID, bool, error) {
	var cached, ns corev1.Namespace
	if err := p.cache.Get(ctx, types.NamespacedName{Name: namespace}, &cached); err == nil && cached.DeletionTimestamp != nil {
		return cached.UID, true, nil
	}
	found, err := p.liveGet(ctx, types.NamespacedName{Name: namespace}, &ns)
	if err != nil || !found {
		return cached.UID, !found, err
	}
	return ns.UID, ns.DeletionTimestamp != nil, nil
}

// cameBack tells whether there is a namespace again under the name of one that went, and then closes what the one before
// has left.
func (p *Policies) cameBack(ctx context.Context, namespace string, before types.UID) (bool, error) {
	var ns corev1.Namespace
	if err := p.cache.Get(ctx, types.NamespacedName{Name: namespace}, &ns); err != nil || before != "" && ns.UID == before {
		return false, nil //nolint:nilerr // none, or none yet: its coming is told
	}
	ns = corev1.Namespace{}
	if found, err := p.liveGet(ctx, types.NamespacedName{Name: namespace}, &ns); err != nil || !found {
		return false, err
	}
	if ns.UID == before || before == "" && ns.DeletionTimestamp != nil {
		return false, nil
	}
	return true, p.closeOrphans(ctx, namespace)
}

// closeOrphans closes the pods of a namespace whose objects are gone. Where the namespace was deleted and made again they
// are those of the one before: what they were promised has no object any more.
func (p *Policies) closeOrphans(ctx context.Context, namespace string) error {
	p.applying.Lock()
	endpoints := p.pods()
	p.applying.Unlock()
	var orphans []cni.Attachment
	for _, e := range endpoints {
		if e.Pod.Namespace != namespace {
			continue
		}
		var pod corev1.Pod
		found, err := p.liveGet(ctx, types.NamespacedName{Namespace: namespace, Name: e.Pod.Name}, &pod)
		if err != nil {
			return err
		}
		if !found || !isPod(&pod, e.Pod.UID) {
			orphans = append(orphans, e.Attachment)
			p.wake.ring()
			p.log.Info("a pod is closed: its namespace is gone, and another has the name", "namespace", namespace, "pod", e.Pod.Name)
		}
	}
	p.applying.Lock()
	defer p.applying.Unlock()
	for _, a := range orphans {
		p.orphans[a] = true
	}
	return nil
}

// liveGet asks the API server whether it has an object.
func (p *Policies) liveGet(ctx context.Context, key types.NamespacedName, o client.Object) (found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, policyPatience)
	defer cancel()
	switch err := p.live.Get(ctx, key, o); {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ask for %s: %w", key, err)
	}
	return true, nil
}
