// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
)

const (
	// policyPatience bounds the question for the policies of a new pod's namespace; after it the cache has to do.
	policyPatience = time.Second
	// policyRetry is when something that did not fit, or somebody who did not answer, is tried again.
	policyRetry = 5 * time.Second
	// maxPasses bounds how often tables and classes are written for one change. Three are enough for a policy that gives
	// up one prefix for another; each policy that had no room, and finds it in what another gave up, takes two or three more.
	maxPasses = 64
	// learnedRest is how long an identity that was told of stays without a pod or an object that has it.
	learnedRest = 30 * time.Second
)

var errRestless = fmt.Errorf("tables and classes do not come to rest in %d passes", maxPasses)

// policyDatapath is what Policies needs of the datapath.
type policyDatapath interface {
	SetPolicy(map[uint16]datapath.PodPolicy, map[netip.Prefix]policy.Peer) (failed map[uint16]error, err error)
	SetPodPolicy(uint16, datapath.PodPolicy) error
	DropPodPolicy(uint16) error
	Classes() (map[netip.Prefix]policy.Peer, error)
	PolicyLimits() policy.Limits
}

// labelled is what the engine was told of an identity.
type labelled struct {
	labels identity.Labels
	ports  []policy.NamedPort
}

func (l labelled) equal(o labelled) bool {
	return l.labels.Equal(o.labels) && slices.Equal(l.ports, o.ports)
}

// learned is an identity that is about to be used on this node.
type learned struct {
	labelled
	at time.Time
}

// policyInForce is what the datapath was last given.
type policyInForce struct {
	// version is the resourceVersion up to which every NetworkPolicy counts; 0 before the first time.
	version uint64
	// count of policies.
	count int
	// pods by endpoint id: what is in the kernel, and why not what should be.
	pods   map[uint16]datapath.PodPolicy
	failed map[uint16]error
	// leftOut are the policies that did not fit, or of which no rules can be made.
	leftOut map[policy.Ref]policy.LeftOut
	// exceptions are the policies of which something is not in force.
	exceptions []v1alpha1.PolicyException
	at         time.Time
	// err of the last attempt.
	err error
}

// Policies keeps the verdict tables of this node's pods what the policies say. Methods may be called from several
// goroutines.
type Policies struct {
	cache, live client.Reader
	endpoints   func() *endpoint.Set
	engine      *policy.Engine
	datapath    policyDatapath // nil before writeTo
	memory      policyMemory
	networks    networkPolicies
	questions   *policyQuestions
	// patience bounds each question to the API server.
	patience time.Duration
	// changed is called, without locks held, after something else is in force than before.
	changed func()
	// dismissed is told of every endpoint that is gone.
	dismissed func(uint16)
	// took is told how long each success took, in seconds.
	took func(float64)
	// wake makes Reconcile run; dirty makes what is in force be written down.
	wake, dirty bell
	log         logr.Logger

	// ready is closed after the first time that everything, from synced caches, is in force.
	ready     chan struct{}
	readyOnce sync.Once

	// applying is held by who feeds the engine and writes the datapath, so that what is written is what was fed.
	applying   sync.Mutex
	identities map[identity.Number]labelled // as the engine knows them
	learned    map[identity.Number]learned
	// wiring are endpoints that are admitted and not in the set yet.
	wiring map[uint16]*endpoint.Endpoint
	// orphans are endpoints whose namespace is gone and has a successor of its name: they are closed.
	orphans map[cni.Attachment]bool
	// classes are the prefixes in the kernel: as Restore found them, then as they were written.
	classes map[netip.Prefix]policy.Peer
	// known: the policies are those of the cluster, or what was in force when there was one to ask; whole: the former.
	known, whole bool
	restored     bool

	mu     sync.Mutex
	inside policyInForce
}

// NewPolicies reads the cache, and asks live where the cache may be behind. It is told later, once, where to write.
func NewPolicies(cache, live client.Reader, endpoints func() *endpoint.Set, memory policyMemory, changed func(), log logr.Logger) *Policies {
	p := &Policies{
		cache: cache, live: live, patience: policyPatience, endpoints: endpoints, engine: policy.NewEngine(), memory: memory, changed: changed, took: func(float64) {}, dismissed: func(uint16) {},
		wake: newBell(), dirty: newBell(), log: log, ready: make(chan struct{}),
		networks:   networkPolicies{held: map[policy.Ref]*heldPolicy{}, deleted: map[policy.Ref]uint64{}, gone: map[policy.Ref]deletion{}},
		identities: map[identity.Number]labelled{}, learned: map[identity.Number]learned{}, wiring: map[uint16]*endpoint.Endpoint{}, orphans: map[cni.Attachment]bool{},
	}
	p.questions = newPolicyQuestions(p.askLive, func(a policyAnswer) error { return p.makeWay(context.Background(), a) })
	return p
}

// writeTo says where tables go, before any endpoint is made or restored.
func (p *Policies) writeTo(d policyDatapath) {
	p.datapath = d
	p.engine.SetLimits(d.PolicyLimits())
}

// Restore takes up the policies that were in force when the agent before this one, of the same boot, last wrote them
// down for the endpoints found, and the classes that are in the kernel: these as they are, for a table that does not know
// a class of the kernel is about other addresses than it says. Nothing is written: pods keep the tables that are pinned.
func (p *Policies) Restore(found []*endpoint.Endpoint) error {
	p.applying.Lock()
	defer p.applying.Unlock()
	var err error
	if p.classes, err = p.datapath.Classes(); err != nil {
		return fmt.Errorf("restore policies: %w", err)
	}
	// Both before the policies: what the kernel has needs no room, and neither does what no pod is selected by.
	p.engine.ClassesInForce(p.classes)
	p.engine.Retain(subjectsOf(found))
	last, ok := p.memory.load()
	if p.restored = ok; !ok {
		return nil
	}
	for i := range last.Policies {
		o := &last.Policies[i]
		var versions []*networkingv1.NetworkPolicy
		if o.InForce != nil {
			versions = append(versions, &networkingv1.NetworkPolicy{ObjectMeta: o.ObjectMeta, Spec: *o.InForce})
		}
		for _, version := range append(versions, &o.NetworkPolicy) {
			p.hold(version, fromDisk)
		}
		if h := p.networks.held[policy.RefOf(&o.NetworkPolicy)]; h != nil {
			h.lingering, h.namespace = o.Lingering, o.NamespaceUID
		}
	}
	for _, a := range last.Orphans {
		if slices.ContainsFunc(found, func(e *endpoint.Endpoint) bool { return e.Attachment == a }) {
			p.orphans[a] = true
		}
	}
	for _, who := range last.Identities {
		p.identities[who.Number] = labelled{who.Labels, who.Ports}
		p.engine.SetIdentity(who.Number, who.Labels, who.Ports)
	}
	return nil
}

// FromDisk serves new pods from what Restore took up: the API server is away. What the kernel has of other pods stays.
func (p *Policies) FromDisk() error {
	p.applying.Lock()
	defer p.applying.Unlock()
	if !p.restored {
		return errors.New("last policies: there are none of this boot")
	}
	p.known = true
	return nil
}

// InForce is what the datapath was last given. It must not be changed.
func (p *Policies) InForce() policyInForce {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inside
}

// Rule says what a rule's number stands for.
func (p *Policies) Rule(id uint32) (policy.Provenance, bool) {
	return p.engine.Provenance(policy.RuleID(id))
}

// Reconcile brings everything to what the objects say now: policies, identities, tables.
func (p *Policies) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	set := p.endpoints()
	if set == nil {
		return ctrl.Result{}, nil
	}
	began := time.Now()
	deleted := p.networks.takeDeleted()
	var list networkingv1.NetworkPolicyList
	var identities v1alpha1.CiliumIdentityList
	var shares v1alpha1.CiliumEndpointSliceList
	err := errors.Join(
		p.cache.List(ctx, &list, client.UnsafeDisableDeepCopy),
		p.cache.List(ctx, &identities, client.UnsafeDisableDeepCopy),
		p.cache.List(ctx, &shares, client.UnsafeDisableDeepCopy),
	)
	if err != nil {
		p.networks.giveBack(deleted)
		return ctrl.Result{}, fmt.Errorf("policies: %w", err)
	}
	fates, again := p.fates(ctx, list.Items, deleted)
	if err := p.releaseOrphans(ctx); err != nil {
		p.log.Info("pods that are closed stay so until the API server says whether they have come back", "error", err.Error())
		again = true
	}

	p.applying.Lock()
	version := p.feedNetworkPolicies(ctx, list.Items, fates)
	p.setIdentities(p.wantedIdentities(identities.Items, shares.Items))
	failed, err := p.applyAll()
	if err == nil {
		p.known, p.whole = true, true
	}
	p.applying.Unlock()

	p.mu.Lock()
	p.inside.err = err
	if err == nil {
		p.inside.version, p.inside.at = version, time.Now()
	}
	p.mu.Unlock()
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("policies: %w", err)
	}
	p.took(time.Since(began).Seconds())
	p.readyOnce.Do(func() { close(p.ready) })
	p.dirty.ring()
	p.changed()
	if again || len(failed) > 0 {
		return ctrl.Result{RequeueAfter: policyRetry}, nil
	}
	return ctrl.Result{}, nil
}

// wantedIdentities are those of the cluster with their named ports, and those of this node's pods, which are not in the
// cache yet when they are new.
func (p *Policies) wantedIdentities(objects []v1alpha1.CiliumIdentity, list []v1alpha1.CiliumEndpointSlice) map[identity.Number]labelled {
	wanted := make(map[identity.Number]labelled, len(objects))
	for i := range objects {
		if n, err := identity.ParseNumber(objects[i].Name); err == nil {
			wanted[n] = labelled{labels: objects[i].Spec.Labels}
		}
	}
	ports := map[identity.Number][]policy.NamedPort{}
	for i := range list {
		for j := range list[i].Spec.Endpoints {
			e := &list[i].Spec.Endpoints[j]
			for _, port := range e.Ports {
				if number := policy.ProtocolNumber(corev1.Protocol(port.Protocol)); number != 0 && port.Port > 0 && port.Port <= 65535 {
					n := identity.Number(e.Identity)
					ports[n] = append(ports[n], policy.NamedPort{Name: port.Name, Protocol: number, Port: uint16(port.Port)})
				}
			}
		}
	}
	for _, e := range p.pods() {
		if e.Identity.Allocated() && e.Labels != nil {
			wanted[e.Identity] = labelled{labels: e.Labels}
			ports[e.Identity] = append(ports[e.Identity], e.Ports...)
		}
	}
	for n, l := range p.learned {
		if _, ok := wanted[n]; ok || time.Since(l.at) > learnedRest {
			delete(p.learned, n)
			continue
		}
		wanted[n] = l.labelled
	}
	for n, list := range ports {
		if l, ok := wanted[n]; ok {
			l.ports = policy.UniquePorts(list)
			wanted[n] = l
		}
	}
	return wanted
}

// setIdentities tells the engine what has changed.
func (p *Policies) setIdentities(wanted map[identity.Number]labelled) {
	for n, l := range wanted {
		if old, ok := p.identities[n]; !ok || !old.equal(l) {
			p.engine.SetIdentity(n, l.labels, l.ports)
		}
	}
	for n := range p.identities {
		if _, ok := wanted[n]; !ok {
			p.engine.DeleteIdentity(n)
		}
	}
	p.identities = wanted
}

// learn tells the engine of an identity that this node is about to use, and whether that was news.
func (p *Policies) learn(who endpoint.Who) bool {
	if !who.Identity.Allocated() || who.Labels == nil {
		return false
	}
	known, ok := p.identities[who.Identity]
	now := labelled{who.Labels, policy.UniquePorts(append(slices.Clone(known.ports), who.Ports...))}
	p.learned[who.Identity] = learned{labelled: now, at: time.Now()}
	if ok && known.equal(now) {
		return false
	}
	p.identities[who.Identity] = now
	p.engine.SetIdentity(who.Identity, now.labels, now.ports)
	return true
}

// Learn puts tables that know the given numbers in force, before the numbers are.
func (p *Policies) Learn(list []endpoint.Who) error {
	p.applying.Lock()
	defer p.applying.Unlock()
	news := false
	for _, who := range list {
		news = p.learn(who) || news
	}
	if !news || !p.whole {
		return nil
	}
	_, err := p.apply(func() bool { return true }) // numbers ask for no classes
	return err
}

// pods are this node's endpoints, and those that are being made.
func (p *Policies) pods() []*endpoint.Endpoint {
	var out []*endpoint.Endpoint
	if set := p.endpoints(); set != nil {
		out = set.List()
	}
	for _, e := range out {
		if w, ok := p.wiring[e.ID]; ok && w.Attachment == e.Attachment {
			delete(p.wiring, e.ID)
		}
	}
	return append(out, slices.Collect(maps.Values(p.wiring))...)
}

// policyOf is what policies say of a pod; false when they may say something and nobody knows who the pod is: it stays
// closed.
func (p *Policies) policyOf(e *endpoint.Endpoint) (datapath.PodPolicy, bool) {
	if p.orphans[e.Attachment] {
		return datapath.PodPolicy{Ingress: &policy.Table{}, Egress: &policy.Table{}}, true
	}
	s, known := subjectOf(e)
	if !known {
		return datapath.PodPolicy{}, !p.networks.some(e.Pod.Namespace)
	}
	ingress, egress := p.engine.Tables(s)
	return datapath.PodPolicy{Ingress: ingress, Egress: egress}, true
}

// subjectOf is a pod as its policies see it; false: nobody knows who it is.
func subjectOf(e *endpoint.Endpoint) (policy.Subject, bool) {
	s := policy.Pod{Labels: e.Labels, Whole: e.Subject, Ports: e.Ports}.Subject()
	return s, s.Labels != nil
}

func subjectsOf(pods []*endpoint.Endpoint) []policy.Subject {
	var out []policy.Subject
	for _, e := range pods {
		if s, known := subjectOf(e); known {
			out = append(out, s)
		}
	}
	return out
}

// apply makes passes until nothing changes any more, or until one that began with enough: the rest is then Reconcile's.
func (p *Policies) apply(enough func() bool) (failed map[uint16]error, err error) {
	for range maxPasses {
		last := enough()
		failed, again, err := p.pass()
		if err != nil || !again {
			return failed, err
		}
		if last {
			p.wake.ring()
			return failed, nil
		}
	}
	return failed, errRestless
}

// applyAll makes passes until nothing changes any more. Between them others have the lock, once they know enough to use
// it: a new pod waits for a pass or two, and not for every policy that finds room in what another gives up.
func (p *Policies) applyAll() (failed map[uint16]error, err error) {
	for range maxPasses {
		failed, again, err := p.pass()
		if err != nil || !again {
			return failed, err
		}
		if p.whole {
			p.applying.Unlock()
			p.applying.Lock()
		}
	}
	return failed, errRestless
}

// pass writes the tables of every pod and the classes of addresses. A table never stands in the kernel together with
// classes that it does not know: classes that are new come after the tables that know both, and those that go, before
// the tables forget them. Where a table did not fit, no class goes: the table in its place may need it. Again: by what
// the kernel knows now, tables are others.
func (p *Policies) pass() (failed map[uint16]error, again bool, err error) {
	p.engine.Retain(subjectsOf(p.pods()))
	pods := p.tables()
	wanted := p.engine.Classes()
	classes := maps.Clone(p.classes)
	maps.Copy(classes, wanted)
	shrinks := len(classes) > len(wanted)
	if failed, err = p.datapath.SetPolicy(pods, classes); err != nil {
		return failed, false, err
	}
	if shrinks && len(failed) == 0 {
		classes = wanted
		if failed, err = p.datapath.SetPolicy(pods, classes); err != nil {
			return failed, false, err
		}
	}
	p.classes = classes
	again = p.engine.ClassesInForce(classes)
	p.note(pods, failed)
	return failed, again, nil
}

func (p *Policies) tables() map[uint16]datapath.PodPolicy {
	out := map[uint16]datapath.PodPolicy{}
	for _, e := range p.pods() {
		if now, ok := p.policyOf(e); ok {
			out[e.ID] = now
		}
	}
	return out
}

// note keeps what is in force: of a pod whose table did not fit, what it had.
func (p *Policies) note(pods map[uint16]datapath.PodPolicy, failed map[uint16]error) {
	leftOut := p.engine.LeftOut()
	for ref, h := range p.networks.held {
		if h.err != nil {
			noRoom, out := leftOut[ref]
			leftOut[ref] = policy.LeftOut{Err: h.err, Before: h.before != nil && (!out || noRoom.Before), Nobody: h.nobody}
		}
		h.never = leftOut[ref].Err != nil && !leftOut[ref].Before
		if !leftOut[ref].Before {
			if h.err != nil && h.before != nil { // that never was in force, and is not to be once it fits
				rules, _, _ := policy.FromNetworkPolicy(&h.object)
				h.err = cmp.Or(p.engine.SetPolicy(ref, rules), h.err)
				p.wake.ring()
			}
			h.before = nil
		}
	}
	exceptions := p.exceptions(failed, pods, leftOut)
	p.mu.Lock()
	defer p.mu.Unlock()
	now := maps.Clone(pods)
	for id, err := range failed {
		if old, ok := p.inside.pods[id]; ok {
			now[id] = old
		} else {
			delete(now, id)
		}
		if _, before := p.inside.failed[id]; !before {
			p.log.Error(err, "the policy of a pod is not in force", "endpoint", id)
		}
	}
	for ref, why := range leftOut {
		if _, before := p.inside.leftOut[ref]; !before {
			p.log.Error(why.Err, "a policy is left out", "policy", ref.String(), "versionBefore", why.Before)
		}
	}
	p.inside.pods, p.inside.failed, p.inside.leftOut, p.inside.count, p.inside.exceptions = now, failed, leftOut, len(p.networks.held), exceptions
}

// Admit asks for the policies of the pod's namespace: one that was made just before the pod may not be in the cache.
func (p *Policies) Admit(ctx context.Context, e *endpoint.Endpoint) func() error {
	answer := make(chan policyAnswer, 1)
	go func() {
		answer <- p.ask(ctx, e.Pod.Namespace, types.UID(e.Pod.UID))
	}()
	return func() error {
		found := <-answer
		if found.way != nil {
			return fmt.Errorf("%w: pods of a namespace that is gone have policies: %w", endpoint.ErrNotReady, found.way)
		}
		p.applying.Lock()
		defer p.applying.Unlock()
		if !p.known {
			return fmt.Errorf("%w: the policies are not known", endpoint.ErrNotReady)
		}
		news := p.hear(found)
		news = p.learn(e.Who()) || news
		p.wiring[e.ID] = e
		return p.admit(e, news)
	}
}

// admit writes one pod's tables, or all when there is news that concerns others too.
func (p *Policies) admit(e *endpoint.Endpoint, news bool) error {
	now, ok := p.policyOf(e)
	if !ok {
		p.log.Info("a pod that nobody can name yet stays closed: its namespace has policies", "namespace", e.Pod.Namespace, "pod", e.Pod.Name)
		return p.datapath.DropPodPolicy(e.ID) // whatever the pod had that held the number before
	}
	switch waiting := p.engine.Waiting(); {
	case (news || waiting || p.engine.Early()) && p.whole:
		failed, err := p.apply(p.settledFor(e))
		if err == nil && errors.Is(failed[e.ID], datapath.ErrPolicyFull) {
			now, _ = p.policyOf(e)
			return p.admitClosed(e, now, failed[e.ID])
		}
		return errors.Join(err, failed[e.ID])
	case waiting: // its tables would be without the policy that waits
		return fmt.Errorf("%w: a policy waits for the first look at all of them", endpoint.ErrNotReady)
	}
	err := p.datapath.SetPodPolicy(e.ID, now)
	if errors.Is(err, datapath.ErrPolicyFull) {
		return p.admitClosed(e, now, err)
	}
	if err == nil {
		p.noteOne(e.ID, now, nil)
	}
	return err
}

// settledFor tells, when it is asked, whether the policies that select a pod and were on their way into force are.
func (p *Policies) settledFor(e *endpoint.Endpoint) func() bool {
	s, known := subjectOf(e)
	if !known {
		return func() bool { return true }
	}
	pending := p.engine.Pending(s)
	return func() bool {
		now := p.engine.Pending(s)
		return !slices.ContainsFunc(pending, func(ref policy.Ref) bool { return slices.Contains(now, ref) })
	}
}

// admitClosed lets a new pod begin although not all that policies allow it fits: in the directions that do not fit it is
// denied everything, as one is that no rule allows anything.
func (p *Policies) admitClosed(e *endpoint.Endpoint, now datapath.PodPolicy, full error) error {
	if !denies(now.Ingress) || !denies(now.Egress) {
		return full
	}
	closed := func(t *policy.Table) *policy.Table {
		if t == nil {
			return nil
		}
		return &policy.Table{Default: t.Default}
	}
	for _, less := range []datapath.PodPolicy{
		{Ingress: closed(now.Ingress), Egress: now.Egress}, {Ingress: now.Ingress, Egress: closed(now.Egress)},
		{Ingress: closed(now.Ingress), Egress: closed(now.Egress)},
	} {
		switch err := p.datapath.SetPodPolicy(e.ID, less); {
		case err == nil:
			p.log.Error(full, "a new pod begins closed, its policy does not fit", "namespace", e.Pod.Namespace, "pod", e.Pod.Name)
			p.noteOne(e.ID, less, full)
			p.wake.ring()
			return nil
		case !errors.Is(err, datapath.ErrPolicyFull):
			return err
		}
	}
	return full
}

// denies tells whether a table without its entries lets nothing pass.
func denies(t *policy.Table) bool { return t == nil || t.Default != 0 && t.Next == nil }

// noteOne keeps what is in force for one pod, and why it is not what should be.
func (p *Policies) noteOne(id uint16, now datapath.PodPolicy, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pods := maps.Clone(p.inside.pods)
	if pods == nil {
		pods = map[uint16]datapath.PodPolicy{}
	}
	pods[id] = now
	p.inside.pods = pods
	if why != nil {
		failed := maps.Clone(p.inside.failed)
		if failed == nil {
			failed = map[uint16]error{}
		}
		failed[id] = why
		p.inside.failed = failed
	}
}

// Dismiss closes the id of an endpoint that is gone.
func (p *Policies) Dismiss(e *endpoint.Endpoint) error {
	p.applying.Lock()
	defer p.applying.Unlock()
	delete(p.wiring, e.ID)
	delete(p.orphans, e.Attachment)
	p.dismissed(e.ID)
	return p.datapath.DropPodPolicy(e.ID)
}

// Remember writes down what is in force, soon after it has changed and at most once a second, until ctx ends.
func (p *Policies) Remember(ctx context.Context) error {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-p.dirty:
		}
		last, ok := p.lastPolicies()
		if !ok {
			continue
		}
		if err := p.memory.keep(last); err != nil {
			p.log.Error(err, "the last policies are not kept")
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

// lastPolicies are what is in force; false while that is not all known.
func (p *Policies) lastPolicies() (lastPolicies, bool) {
	p.applying.Lock()
	defer p.applying.Unlock()
	if !p.whole {
		return lastPolicies{}, false
	}
	var out lastPolicies
	for _, h := range p.networks.held {
		out.Policies = append(out.Policies, lastPolicy{NetworkPolicy: h.object, Lingering: h.lingering, NamespaceUID: h.namespace, InForce: h.before})
	}
	for a := range p.orphans {
		out.Orphans = append(out.Orphans, a)
	}
	for n, l := range p.identities {
		out.Identities = append(out.Identities, lastIdentity{Number: n, Labels: l.labels, Ports: l.ports})
	}
	return out, true
}

// versionOf is an object's resourceVersion as a number; 0 where it is none.
func versionOf(o client.Object) uint64 {
	v, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return v
}
