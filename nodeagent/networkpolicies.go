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
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
)

// whence is where a policy was read.
type whence int

const (
	fromCache whence = iota
	// fromLive is ahead of the cache.
	fromLive
	// fromDisk was in force before this agent, which may be long ago.
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
	// never was in force, in no version, as far as this agent has seen: it isolates.
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
	// uid of the object, where it was the API server that said so and the cache may still have it.
	uid types.UID
}

// rememberGone is how long a deletion is remembered; no answer takes as long.
const rememberGone = 10 * time.Minute

func (n *networkPolicies) noteGone(ref policy.Ref, version uint64, uid types.UID) {
	n.gone[ref] = deletion{version: max(version, n.gone[ref].version), at: time.Now(), uid: uid}
}

// stale tells what the cache still has and the API server has said to be gone.
func (n *networkPolicies) stale(o *networkingv1.NetworkPolicy) bool {
	d, ok := n.gone[policy.RefOf(o)]
	return ok && d.uid != "" && d.uid == o.UID && versionOf(o) <= d.version
}

// deletions notes what the cache says was deleted. It has to be there before the controller that asks for it.
func (p *Policies) deletions() toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{DeleteFunc: func(o any) {
		if last, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = last.Obj // its resourceVersion is older than that of the deletion
		}
		if np, ok := o.(*networkingv1.NetworkPolicy); ok {
			p.networks.noteDeleted(np)
			p.wake.ring() // the controller may have been told first, and looked already
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

// giveBack what was taken and not looked at.
func (n *networkPolicies) giveBack(deleted map[policy.Ref]uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for ref, v := range deleted {
		n.deleted[ref] = max(v, n.deleted[ref])
	}
}

// byRef finds policies by what they are called.
func byRef(list []networkingv1.NetworkPolicy) map[policy.Ref]*networkingv1.NetworkPolicy {
	found := make(map[policy.Ref]*networkingv1.NetworkPolicy, len(list))
	for i := range list {
		found[policy.RefOf(&list[i])] = &list[i]
	}
	return found
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

// home is a namespace that has, or had, policies; without UID where nobody knows which it was.
type home struct {
	name string
	uid  types.UID
}

// absence is what the cache does not have, and what becomes of it.
type absence struct {
	missing map[policy.Ref]*heldPolicy // read with applying held
	// left are homes that may be gone and have a successor -> their policies.
	left map[home][]policy.Ref
	// inUse are the namespaces of this node's pods, and of those that are about to come (awaited).
	inUse, awaited map[string]bool
	fates          map[policy.Ref]judgement
	// again: some may come into the cache yet, or nobody could say what becomes of them.
	again bool
}

func (a *absence) judge(ref policy.Ref, f fate) { a.fates[ref] = judgement{f, a.missing[ref]} }

// fates says what becomes of the policies that are not in list. Again tells that it has to be asked again soon.
func (p *Policies) fates(ctx context.Context, list []networkingv1.NetworkPolicy, deleted map[policy.Ref]uint64) (fates map[policy.Ref]judgement, again bool) {
	a := p.absent(list, deleted)
	if err := p.askForMissing(ctx, a.missing); err != nil {
		p.log.Info("policies that only this node knows stay until the API server says whether they are there", "error", err.Error())
		a.again = true
	}
	unclear := p.judgeFromMemory(a)
	p.judgeLingering(ctx, a)
	p.judgeByNamespace(ctx, a, unclear)
	return a.fates, a.again
}

// judgeFromMemory judges where nobody has to be asked, and returns the others by their homes.
func (p *Policies) judgeFromMemory(a *absence) (unclear map[home][]policy.Ref) {
	p.applying.Lock()
	defer p.applying.Unlock()
	unclear = map[home][]policy.Ref{}
	for ref, h := range a.missing {
		a.again = a.again || a.awaited[ref.Namespace]
		switch {
		case h.whence != fromCache: // it is there, or nobody could say
			a.again = true
		case !a.inUse[ref.Namespace]:
			a.judge(ref, goes)
		case h.lingering:
			a.judge(ref, lingers)
		default:
			unclear[home{ref.Namespace, h.namespace}] = append(unclear[home{ref.Namespace, h.namespace}], ref)
		}
	}
	return unclear
}

// judgeLingering lets those go whose home has a successor.
func (p *Policies) judgeLingering(ctx context.Context, a *absence) {
	unasked := map[string]types.UID{}
	for home, refs := range a.left {
		back, err := p.cameBack(ctx, home.name, home.uid)
		if err != nil {
			p.log.Info("policies of a namespace that went stay until the API server says whether this is another", "namespace", home.name, "error", err.Error())
			a.again, unasked[home.name] = true, home.uid
			continue
		}
		for _, ref := range refs {
			if back && a.fates[ref].fate == lingers {
				a.judge(ref, goes)
			}
		}
	}
	p.applying.Lock()
	defer p.applying.Unlock()
	p.networks.unasked = unasked
}

// judgeByNamespace lets those linger whose namespace is being deleted, and the others go.
func (p *Policies) judgeByNamespace(ctx context.Context, a *absence, unclear map[home][]policy.Ref) {
	for home, refs := range unclear {
		uid, going, err := p.going(ctx, home.name)
		if err == nil && !going && home.uid != uid { // another, or nobody knows which it was
			err = p.closeOrphans(ctx, home.name)
		}
		if err != nil {
			p.log.Info("policies stay until the API server says whether their namespace is being deleted", "namespace", home.name, "error", err.Error())
			a.again = true
			continue
		}
		for _, ref := range refs {
			if !going {
				a.judge(ref, goes)
				continue
			}
			a.judge(ref, lingers)
			p.settle(a.missing[ref], uid)
		}
	}
}

// absent looks at what list lacks, and takes note of deletions.
func (p *Policies) absent(list []networkingv1.NetworkPolicy, deleted map[policy.Ref]uint64) *absence {
	present := byRef(list)
	p.applying.Lock()
	defer p.applying.Unlock()
	a := &absence{
		missing: map[policy.Ref]*heldPolicy{}, left: map[home][]policy.Ref{}, inUse: p.questions.awaited(), awaited: map[string]bool{},
		fates: map[policy.Ref]judgement{},
	}
	maps.Copy(a.awaited, a.inUse)
	for _, e := range p.pods() {
		a.inUse[e.Pod.Namespace] = true
		delete(a.awaited, e.Pod.Namespace)
	}
	n := &p.networks
	for name, uid := range n.unasked {
		if a.inUse[name] {
			a.left[home{name, uid}] = nil
		}
	}
	maps.DeleteFunc(n.gone, func(_ policy.Ref, d deletion) bool { return time.Since(d.at) > rememberGone })
	for ref, v := range deleted {
		n.newest = max(n.newest, v)
		n.noteGone(ref, v, "")
		if h := n.held[ref]; h != nil && h.version <= v {
			h.whence = fromCache // the cache is past it
		}
	}
	for ref, h := range n.held {
		now, there := present[ref]
		if a.inUse[ref.Namespace] && (h.lingering || there && now.UID != h.object.UID) {
			was := home{ref.Namespace, h.namespace}
			a.left[was] = append(a.left[was], ref)
		}
		switch {
		case there && (h.whence == fromCache || versionOf(now) >= h.version):
		case h.whence == fromLive && time.Since(h.since) < seenSafely:
			a.again = true
		default:
			a.missing[ref] = h
		}
	}
	return a
}

// settle notes which namespace a policy was in, where nobody knew.
func (p *Policies) settle(h *heldPolicy, namespace types.UID) {
	p.applying.Lock()
	defer p.applying.Unlock()
	if h.namespace == "" {
		h.namespace = namespace
	}
}

// askForMissing asks for the policies of the namespaces that have some of which the cache never had, or not in this
// version. What is not there any more it marks as known to the cache, and what is there, as heard anew: also where it is
// older, for somebody has put the cluster back. The first question without an answer is the last.
func (p *Policies) askForMissing(ctx context.Context, missing map[policy.Ref]*heldPolicy) error {
	ahead := map[string][]policy.Ref{}
	p.applying.Lock()
	for ref, h := range missing {
		if h.whence != fromCache {
			ahead[ref.Namespace] = append(ahead[ref.Namespace], ref)
		}
	}
	p.applying.Unlock()
	for namespace, refs := range ahead {
		now, err := p.askLive(namespace)
		if err != nil {
			return err
		}
		if err := p.makeWay(ctx, now); err != nil {
			return err
		}
		there := byRef(now.policies)
		p.applying.Lock()
		for _, ref := range refs {
			h := missing[ref]
			switch o := there[ref]; {
			case o == nil:
				h.whence = fromCache
				p.networks.noteGone(ref, h.version, h.object.UID)
			case versionOf(o) < h.version && p.networks.held[ref] == h:
				p.hold(o, fromLive)
			}
		}
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
		case p.networks.stale(o):
			continue
		case h != nil && h.whence != fromCache && h.version > v:
			// The cache is behind what a new pod has asked for, or what was in force before this agent.
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
			p.networks.noteGone(ref, h.version, p.networks.gone[ref].uid)
		}
	}
	present := byRef(list)
	for ref, h := range p.networks.held {
		if present[ref] == nil && h.whence != fromLive && !h.lingering { // it is gone, and counts as long as nobody says why
			return min(version, p.InForce().version)
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

// makeWay comes before hear: where policies here are of another namespace than those of the answer, its pods are
// closed before the answer's policies count. What they were promised has no object any more.
func (p *Policies) makeWay(ctx context.Context, a policyAnswer) error {
	if a.namespace == nil || a.namespace.UID == "" {
		return nil
	}
	p.applying.Lock()
	other := p.networks.ofAnother(a)
	p.applying.Unlock()
	if !other {
		return nil
	}
	return p.closeOrphans(ctx, a.namespace.Name)
}

// ofAnother tells whether policies are of another namespace of that name, or may be: nobody knows which, and the answer does
// not have them.
func (n *networkPolicies) ofAnother(a policyAnswer) bool {
	there := byRef(a.policies)
	for ref, h := range n.held {
		if ref.Namespace == a.namespace.Name && h.namespace != a.namespace.UID && (h.namespace != "" || h.lingering || there[ref] == nil || there[ref].UID != h.object.UID) {
			return true
		}
	}
	return false
}

// hear takes policies that the cache may not have yet; true: there are new ones. applying is held.
func (p *Policies) hear(a policyAnswer) (news bool) {
	for i := range a.policies {
		o := &a.policies[i]
		ref, v := policy.RefOf(o), versionOf(o)
		if gone, ok := p.networks.gone[ref]; ok && v <= gone.version {
			continue // the answer is older
		}
		switch h := p.networks.held[ref]; {
		case h == nil || h.version < v:
			p.hold(o, fromLive)
			news = true
		case h.version == v && h.whence != fromCache:
			h.whence, h.since = fromLive, time.Now()
		}
		p.place(o, a.namespace)
	}
	return news
}

// closeOrphans closes the pods of a namespace whose objects are gone. Where the namespace was deleted and made again they
// are those of the one before: what they were promised has no object any more.
func (p *Policies) closeOrphans(ctx context.Context, namespace string) error {
	p.applying.Lock()
	endpoints := slices.DeleteFunc(p.pods(), func(e *endpoint.Endpoint) bool { return p.orphans[e.Attachment] })
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
		}
	}
	p.applying.Lock()
	defer p.applying.Unlock()
	for _, e := range p.pods() { // those that were taken down meanwhile are none
		if a := e.Attachment; slices.Contains(orphans, a) && !p.orphans[a] {
			p.orphans[a] = true
			p.wake.ring()
			p.log.Info("a pod is closed: its namespace is gone, and another has the name", "namespace", namespace, "pod", e.Pod.Name)
		}
	}
	return nil
}

// releaseOrphans opens static pods that were closed while they had no mirror: theirs comes back, in the new namespace.
func (p *Policies) releaseOrphans(ctx context.Context) error {
	p.applying.Lock()
	endpoints := slices.DeleteFunc(p.pods(), func(e *endpoint.Endpoint) bool { return !p.orphans[e.Attachment] })
	p.applying.Unlock()
	for _, e := range endpoints {
		key := types.NamespacedName{Namespace: e.Pod.Namespace, Name: e.Pod.Name}
		var cached, pod corev1.Pod
		if err := p.cache.Get(ctx, key, &cached); err != nil || !isPod(&cached, e.Pod.UID) {
			continue // its coming is told
		}
		found, err := p.liveGet(ctx, key, &pod)
		if err != nil {
			return err
		}
		if found && isPod(&pod, e.Pod.UID) {
			p.applying.Lock()
			delete(p.orphans, e.Attachment)
			p.applying.Unlock()
		}
	}
	return nil
}

// liveGet asks the API server whether it has an object.
func (p *Policies) liveGet(ctx context.Context, key types.NamespacedName, o client.Object) (found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.patience)
	defer cancel()
	switch err := p.live.Get(ctx, key, o); {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ask for %s: %w", key, err)
	}
	return true, nil
}
