// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

// objects are what a cache or an API server holds.
type objects struct {
	policies   []networkingv1.NetworkPolicy
	identities []v1alpha1.CiliumIdentity
	slices     []v1alpha1.CiliumEndpointSlice
	namespaces map[string]bool      // -> being deleted
	uids       map[string]types.UID // of namespaces, and of pods as namespace/name
	born       time.Time            // of namespaces
	away       error
	asked      int
}

func (o *objects) Get(_ context.Context, key client.ObjectKey, out client.Object, _ ...client.GetOption) error {
	o.asked++
	if o.away != nil {
		return o.away
	}
	if pod, ok := out.(*corev1.Pod); ok {
		if pod.UID, ok = o.uids[key.String()]; !ok {
			return apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, key.Name)
		}
		return nil
	}
	if np, ok := out.(*networkingv1.NetworkPolicy); ok {
		for i := range o.policies {
			if client.ObjectKeyFromObject(&o.policies[i]) == key {
				*np = o.policies[i]
				return nil
			}
		}
		return apierrors.NewNotFound(schema.GroupResource{Resource: "networkpolicies"}, key.Name)
	}
	going, ok := o.namespaces[key.Name]
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, key.Name)
	}
	ns := out.(*corev1.Namespace)
	ns.Name, ns.UID, ns.CreationTimestamp = key.Name, o.uids[key.Name], metav1.Time{Time: o.born}
	if going {
		ns.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	}
	return nil
}

func (o *objects) List(_ context.Context, out client.ObjectList, options ...client.ListOption) error {
	o.asked++
	if o.away != nil {
		return o.away
	}
	var how client.ListOptions
	how.ApplyOptions(options)
	switch out := out.(type) {
	case *networkingv1.NetworkPolicyList:
		for _, np := range o.policies {
			if how.Namespace == "" || how.Namespace == np.Namespace {
				out.Items = append(out.Items, np)
			}
		}
	case *v1alpha1.CiliumIdentityList:
		out.Items = o.identities
	case *v1alpha1.CiliumEndpointSliceList:
		out.Items = o.slices
	}
	return nil
}

// kernel is a datapath that remembers what it was given.
type kernel struct {
	pods    map[uint16]datapath.PodPolicy
	classes map[netip.Prefix]policy.Peer
	// writes are the calls: how many pods and classes.
	writes []string
	full   map[uint16]bool
	// moment is called whenever packets may meet something else than before.
	moment func()
	limits policy.Limits
}

func (k *kernel) PolicyLimits() policy.Limits { return k.limits }

// fits: a table without entries always does.
func (k *kernel) fits(id uint16, now datapath.PodPolicy) bool {
	for _, t := range []*policy.Table{now.Ingress, now.Egress} {
		if t != nil && (t.Overflows || k.full[id] && len(t.Entries) > 0) {
			return false
		}
	}
	return true
}

func (k *kernel) SetPolicy(pods map[uint16]datapath.PodPolicy, classes map[netip.Prefix]policy.Peer) (map[uint16]error, error) {
	failed := map[uint16]error{}
	for id, now := range pods {
		if !k.fits(id, now) {
			failed[id] = datapath.ErrPolicyFull
			continue
		}
		k.pods[id] = now
	}
	if k.moment != nil {
		k.moment() // tables come before classes
		defer k.moment()
	}
	k.classes = maps.Clone(classes)
	k.writes = append(k.writes, fmt.Sprintf("%d pods, %d classes", len(pods), len(classes)))
	return failed, nil
}

func (k *kernel) SetPodPolicy(id uint16, now datapath.PodPolicy) error {
	if !k.fits(id, now) {
		return datapath.ErrPolicyFull
	}
	k.pods[id] = now
	k.writes = append(k.writes, fmt.Sprintf("pod %d", id))
	return nil
}

func (k *kernel) Classes() (map[netip.Prefix]policy.Peer, error) { return maps.Clone(k.classes), nil }

// allows tells whether an address of nobody's gets in to a pod.
func (k *kernel) allows(id uint16, address string) bool {
	a, class, bits := netip.MustParseAddr(address), policy.Anyone, -1
	for prefix, n := range k.classes {
		if prefix.Contains(a) && prefix.Bits() > bits {
			class, bits = n, prefix.Bits()
		}
	}
	return k.pods[id].Ingress.Lookup([]policy.Peer{policy.Peer(identity.World), class, policy.Anyone}, 6, 80).Verdict == policy.Allow
}

func (k *kernel) DropPodPolicy(id uint16) error {
	delete(k.pods, id)
	return nil
}

// The rest of what endpoints need of a datapath.
func (k *kernel) PodMTU() int                      { return 1450 }
func (k *kernel) DeviceMTU() int                   { return 1450 }
func (k *kernel) MaxSegment() datapath.SegmentSize { return datapath.OrdinarySegments() }
func (k *kernel) SetPods([]datapath.Pod) error     { return nil }
func (k *kernel) ExpectPod(int) error              { return nil }
func (k *kernel) AddPod(datapath.Pod) error        { return nil }
func (k *kernel) RemovePod(uint16) error           { return nil }
func (k *kernel) CheckPod(datapath.Pod) error      { return nil }

// policed is an agent's policies on a node without interfaces.
type policed struct {
	*Policies
	t           *testing.T
	kernel      *kernel
	cache, live *objects
	stateDir    string
	version     int
}

func newPoliced(t *testing.T) *policed {
	p := &policed{
		t: t, kernel: &kernel{pods: map[uint16]datapath.PodPolicy{}, classes: map[netip.Prefix]policy.Peer{}, full: map[uint16]bool{}}, stateDir: t.TempDir(), version: 100,
		cache: &objects{namespaces: map[string]bool{"a": false, "b": false}}, live: &objects{namespaces: map[string]bool{"a": false, "b": false}},
	}
	p.restart()
	return p
}

// restart is the next agent of the same boot, which finds the given endpoints.
func (p *policed) restart(found ...*endpoint.Endpoint) {
	p.t.Helper()
	log := testr.New(p.t)
	var set *endpoint.Set
	p.Policies = NewPolicies(p.cache, p.live, func() *endpoint.Set { return set }, policyMemory{stateDir: p.stateDir, bootID: "boot"}, func() {}, log)
	p.writeTo(p.kernel)
	var err error
	set, err = endpoint.New(endpoint.Options{
		StateDir: p.stateDir, BootID: "boot", Datapath: p.kernel, Policy: p.Policies, Addresses: ipam.NewAllocator(time.Now),
		Identify: func(context.Context, cni.Pod) (endpoint.Who, error) {
			return endpoint.Who{}, errors.New("not asked here")
		},
		Changed: func() {}, Log: log,
	})
	nodetest.Must(p.t, err)
	nodetest.Must(p.t, p.Policies.Restore(found))
	for _, e := range found {
		p.wiring[e.ID] = e
	}
}

// remember is what the agent does a moment after each change.
func (p *policed) remember() {
	p.t.Helper()
	last, ok := p.lastPolicies()
	if !ok {
		p.t.Fatal("nothing to remember")
	}
	nodetest.Must(p.t, p.memory.keep(last))
}

func (p *policed) reconcile() ctrl.Result {
	p.t.Helper()
	r, err := p.Reconcile(p.t.Context(), ctrl.Request{})
	nodetest.Must(p.t, err)
	return r
}

func whoIs(namespace, app string, n identity.Number, ports ...policy.NamedPort) endpoint.Who {
	l, err := identity.ForPod(identity.Workload{Namespace: namespace, Labels: map[string]string{"app": app}, Cluster: "default", ServiceAccount: "default"}, identity.DefaultFilter())
	if err != nil {
		panic(err)
	}
	return endpoint.Who{Labels: l, Subject: l, Identity: n, Ports: ports}
}

// admitted is an endpoint whose interface is about to be made: for policies it is there.
func (p *policed) admit(id uint16, namespace, app string, n identity.Number, ports ...policy.NamedPort) *endpoint.Endpoint {
	p.t.Helper()
	e := p.endpoint(id, namespace, app, n, ports...)
	nodetest.Must(p.t, p.Admit(p.t.Context(), e)())
	return e
}

func (p *policed) endpoint(id uint16, namespace, app string, n identity.Number, ports ...policy.NamedPort) *endpoint.Endpoint {
	who := whoIs(namespace, app, n, ports...)
	return &endpoint.Endpoint{
		ID: id, Pod: cni.Pod{Namespace: namespace, Name: fmt.Sprintf("%s-%d", app, id)}, Labels: who.Labels, Subject: who.Subject,
		Identity: who.Identity, Ports: who.Ports, Attachment: cni.Attachment{ContainerID: strconv.Itoa(int(id)), IfName: "eth0"},
	}
}

func (p *policed) policy(namespace, name string, spec networkingv1.NetworkPolicySpec) networkingv1.NetworkPolicy {
	p.version++
	return networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, ResourceVersion: strconv.Itoa(p.version)}, Spec: spec,
	}
}

// closed selects every pod of its namespace and allows nothing in.
var closed = networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}

func allow(peer networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicySpec {
	s := closed
	s.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{peer}}}
	return s
}

func fromApp(app string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}}
}

func fromBlock(cidr string, except ...string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}
}

func (p *policed) expectIngress(id uint16, isolated bool, entries int) {
	p.t.Helper()
	now, ok := p.kernel.pods[id]
	if !ok {
		p.t.Fatalf("pod %d has no policy: closed", id)
	}
	if got := now.Ingress != nil; got != isolated {
		p.t.Fatalf("pod %d: isolated %t, want %t", id, got, isolated)
	}
	if isolated && len(now.Ingress.Entries) != entries {
		p.t.Fatalf("pod %d: %v, want %d entries", id, now.Ingress.Entries, entries)
	}
}

// NCC-E003660-XE9: nobody could tell whether a policy is enforced. Progress says up to where.
func TestPoliciesFollowTheObjects(t *testing.T) {
	p := newPoliced(t)
	if err := p.Ready(); !errors.Is(err, errNoPolicies) {
		t.Errorf("before the first time: %v", err)
	}
	p.reconcile()
	nodetest.Must(t, p.Ready())
	p.admit(1, "a", "web", 300)
	p.expectIngress(1, false, 0)

	p.cache.policies = append(p.cache.policies, p.policy("a", "web", allow(fromApp("client"))))
	p.reconcile()
	p.expectIngress(1, true, 0)
	p.cache.identities = append(p.cache.identities, v1alpha1.CiliumIdentity{
		ObjectMeta: metav1.ObjectMeta{Name: "400"}, Spec: v1alpha1.CiliumIdentitySpec{Labels: whoIs("a", "client", 400).Labels},
	})
	p.reconcile()
	p.expectIngress(1, true, 1)
	if e := p.kernel.pods[1].Ingress.Entries[policy.Key{Peer: 400}]; e.Verdict != policy.Allow {
		t.Errorf("%v", p.kernel.pods[1].Ingress.Entries)
	}
	if got := p.Progress(); got.InForce != "101" || got.Count != 1 || len(got.Exceptions) > 0 {
		t.Errorf("progress %+v", got)
	}
	// A client that is new on this node is allowed before its number is in force.
	nodetest.Must(t, p.Learn([]endpoint.Who{whoIs("a", "client", 401)}))
	p.expectIngress(1, true, 2)

	p.cache.identities = nil
	p.cache.policies = nil
	deleted := p.policy("a", "web", closed)
	p.deletions().OnDelete(&deleted)
	p.reconcile()
	p.expectIngress(1, false, 0)
	if got := p.Progress(); got.InForce != "102" || got.Count != 0 {
		t.Errorf("a deletion counts too: %+v", got)
	}
	nodetest.Must(t, p.Dismiss(p.endpoint(1, "a", "web", 300)))
	if _, there := p.kernel.pods[1]; there {
		t.Error("the id of a pod that is gone is not closed")
	}
}

// A policy was made just before the pod, and the cache does not have it yet: the pod's first packets are under it.
func TestNewPodIsUnderAPolicyThatTheCacheDoesNotHave(t *testing.T) {
	p := newPoliced(t)
	p.reconcile()
	p.live.policies = append(p.live.policies, p.policy("a", "deny", closed), p.policy("b", "other", closed))
	p.admit(1, "a", "web", 300)
	p.expectIngress(1, true, 0)
	// Neither does the cache take it away again while it is behind ...
	if r := p.reconcile(); r.RequeueAfter == 0 {
		t.Error("nobody looks again")
	}
	p.expectIngress(1, true, 0)
	// ... nor does an older version that it has meanwhile.
	older := p.live.policies[0]
	older.ResourceVersion, older.Spec = "99", allow(fromBlock("0.0.0.0/0"))
	p.cache.policies = append(p.cache.policies, older)
	p.reconcile()
	p.expectIngress(1, true, 0)
	// Deleted before the cache ever had it.
	p.cache.policies, p.live.policies = nil, nil
	deleted := p.policy("a", "deny", closed)
	p.deletions().OnDelete(&deleted)
	p.reconcile()
	p.expectIngress(1, false, 0)

	// The API server is away: what the cache has counts.
	p.live.away = errors.New("connection refused")
	p.cache.policies = append(p.cache.policies, p.policy("a", "deny", closed))
	p.reconcile()
	p.admit(2, "a", "web", 300)
	p.expectIngress(2, true, 0)
}

// Nobody could say who a pod is. In a namespace with policies it stays closed until somebody can; elsewhere it may be
// the pod that brings the API server back.
func TestPodThatNobodyCanNameStaysClosed(t *testing.T) {
	p := newPoliced(t)
	p.cache.policies = append(p.cache.policies, p.policy("a", "web", allow(fromApp("client"))))
	p.reconcile()
	for id, namespace := range map[uint16]string{1: "a", 2: "b"} {
		e := p.endpoint(id, namespace, "web", identity.Pending)
		e.Labels, e.Subject = nil, nil
		nodetest.Must(t, p.Admit(t.Context(), e)())
	}
	p.reconcile()
	if _, open := p.kernel.pods[1]; open {
		t.Error("a pod of a namespace with policies is open before anybody knows who it is")
	}
	p.expectIngress(2, false, 0)
}

// CVE-2024-7598: when a namespace was deleted its policies went before its pods, which ran on without.
func TestCVE_2024_7598_PoliciesOfATerminatingNamespaceStayForItsPods(t *testing.T) {
	for name, row := range map[string]struct {
		// what the cache and the API server say of the namespace after the policy went
		cache, live map[string]bool
		away        error
		stays       bool
		restart     bool
	}{
		"a person deletes the policy":              {cache: map[string]bool{"a": false}, live: map[string]bool{"a": false}},
		"the namespace is being deleted":           {cache: map[string]bool{"a": true}, live: map[string]bool{"a": true}, stays: true},
		"the cache is behind":                      {cache: map[string]bool{"a": false}, live: map[string]bool{"a": true}, stays: true},
		"the namespace is gone already":            {cache: map[string]bool{"a": false}, live: map[string]bool{}, stays: true},
		"nobody can be asked":                      {cache: map[string]bool{"a": false}, away: errors.New("connection refused"), stays: true},
		"the agent is restarted after the policy":  {cache: map[string]bool{"a": true}, live: map[string]bool{"a": true}, stays: true, restart: true},
		"a person deletes it, agent starting anew": {cache: map[string]bool{"a": false}, live: map[string]bool{"a": false}, restart: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPoliced(t)
			p.cache.policies = append(p.cache.policies, p.policy("a", "deny", closed), p.policy("a", "deny-too", closed), p.policy("b", "deny", closed))
			p.reconcile()
			web, other := p.admit(1, "a", "web", 300), p.admit(2, "b", "web", 301)
			p.expectIngress(1, true, 0)
			p.remember()

			p.cache.policies = p.cache.policies[1:] // one, then the others
			p.cache.namespaces, p.live.namespaces, p.live.away = row.cache, row.live, row.away
			p.cache.namespaces["b"] = false
			p.reconcile()
			p.expectIngress(1, true, 0)
			p.cache.policies = p.cache.policies[1:]
			p.reconcile()
			p.expectIngress(1, row.stays, 0)
			p.expectIngress(2, true, 0)
			if row.restart {
				p.remember()
				before := len(p.kernel.writes)
				p.restart()
				p.wiring[1], p.wiring[2] = web, other
				if len(p.kernel.writes) != before {
					t.Fatal("written before the caches were read")
				}
			}
			for range 3 {
				p.reconcile()
				p.expectIngress(1, row.stays, 0)
			}
			// The last pod goes, and with it the policy.
			nodetest.Must(t, p.Dismiss(web))
			p.reconcile()
			if p.networks.some("a") {
				t.Error("the policies outlive the last pod")
			}
			p.live.away = nil
			p.admit(3, "a", "web", 300)
			p.expectIngress(3, false, 0)
		})
	}
}

// A namespace came back while a pod of the one before was still being taken down: the policy that was kept for that pod
// was in force for the new ones, and for as long as the namespace had any.
func TestPoliciesOfANamespaceDoNotOutliveIt(t *testing.T) {
	for name, row := range map[string]struct {
		// known: the namespace was seen while it was being deleted.
		known, restart, deletedAgain bool
		// policies of the new namespace, which let everybody in.
		policies int
	}{
		"seen while it was deleted":           {known: true},
		"gone when somebody looked":           {},
		"the agent is restarted":              {known: true, restart: true},
		"the new one has policies, too":       {known: true, policies: 3},
		"the new one is already deleted, too": {known: true, deletedAgain: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPoliced(t)
			uids := func(namespace types.UID) map[string]types.UID {
				return map[string]types.UID{"a": namespace, "b": "other"}
			}
			p.cache.uids, p.live.uids = uids("first"), uids("first")
			p.cache.policies = append(p.cache.policies, p.policy("a", "deny", closed), p.policy("b", "deny", closed))
			p.reconcile()
			old := p.endpoint(1, "a", "web", 300)
			old.Pod.UID = "old"
			nodetest.Must(t, p.Admit(t.Context(), old)())
			// The namespace and all its objects are gone; the runtime has not taken the pod down.
			p.cache.policies = p.cache.policies[1:]
			p.cache.namespaces["a"] = row.known
			delete(p.live.namespaces, "a")
			p.reconcile()
			p.expectIngress(1, true, 0)
			if row.restart {
				p.remember()
				p.restart()
				p.wiring[1] = old
			}
			// The cache still has the old one, or none: nobody knows of another.
			p.cache.namespaces["a"] = false
			p.live.namespaces["a"], p.live.uids = false, uids("second")
			if row.known {
				p.reconcile()
				p.expectIngress(1, true, 0)
			}
			delete(p.cache.namespaces, "a")
			p.reconcile()
			p.expectIngress(1, true, 0)

			p.cache.namespaces["a"], p.cache.uids = row.deletedAgain, uids("second")
			p.live.namespaces["a"] = row.deletedAgain
			p.live.uids["a/web-2"] = "new"
			young := p.endpoint(2, "a", "web", 300)
			young.Pod.UID = "new"
			nodetest.Must(t, p.Admit(t.Context(), young)())
			for i := range row.policies {
				p.cache.policies = append(p.cache.policies, p.policy("a", fmt.Sprintf("open-%d", i), allow(fromBlock("0.0.0.0/0"))))
			}
			p.live.away = errors.New("connection refused")
			if r := p.reconcile(); r.RequeueAfter == 0 {
				t.Error("nobody asks again")
			}
			p.expectIngress(1, true, min(row.policies, 1))
			p.live.away = nil
			for range 2 {
				p.reconcile()
				p.expectIngress(2, row.policies > 0, min(row.policies, 1))
				for side, table := range map[string]*policy.Table{"ingress": p.kernel.pods[1].Ingress, "egress": p.kernel.pods[1].Egress} {
					if table == nil || len(table.Entries) > 0 {
						t.Errorf("%s of the pod of a namespace that is gone: %+v, want closed", side, table)
					}
				}
				p.remember()
				p.restart(old, young)
			}
			p.reconcile()
			nodetest.Must(t, p.Dismiss(old))
			p.reconcile()
			p.expectIngress(2, row.policies > 0, min(row.policies, 1))
			if p.networks.held[policy.Ref{Kind: policy.KindNetworkPolicy, Namespace: "a", Name: "deny"}] != nil {
				t.Error("the first namespace's policy is still there")
			}
			if last, _ := p.lastPolicies(); len(last.Orphans) > 0 {
				t.Errorf("remembered for ever: %v", last.Orphans)
			}
		})
	}
}

// As before, but nobody looked while the namespace was away: its policy is gone or has the name of one of the new one's,
// and what the pod that is left had was nobody's any more. It was open, always or when its policy was seen only once.
func TestPodOfANamespaceThatCameBackUnseenIsClosed(t *testing.T) {
	for name, after := range map[string][]networkingv1.NetworkPolicySpec{
		"without policies":           nil,
		"with a policy of that name": {allow(fromBlock("0.0.0.0/0"))},
	} {
		for before, prepare := range map[string]func(p *policed, first networkingv1.NetworkPolicy){
			"seen again": func(p *policed, _ networkingv1.NetworkPolicy) { p.reconcile() },
			"seen once":  func(*policed, networkingv1.NetworkPolicy) {},
			"just changed": func(p *policed, first networkingv1.NetworkPolicy) {
				next := p.policy("a", "deny", closed)
				next.UID, next.CreationTimestamp = first.UID, first.CreationTimestamp
				p.cache.policies[0] = next
				p.reconcile()
			},
			"asked for by a pod": func(p *policed, first networkingv1.NetworkPolicy) {
				live := p.policy("a", "live", closed)
				live.UID, live.CreationTimestamp = "live", first.CreationTimestamp
				p.live.policies = append(p.live.policies, live)
				p.admit(3, "a", "web", 300)
				p.live.policies = nil
				nodetest.Must(p.t, p.Dismiss(p.endpoint(3, "a", "web", 300)))
				if got := p.networks.held[policy.RefOf(&live)].namespace; got != "first" {
					p.t.Errorf("a policy that the cache does not have is of namespace %q", got)
				}
			},
			"the cache has the new namespace before the policy goes": func(p *policed, _ networkingv1.NetworkPolicy) {
				p.cache.uids, p.cache.born = map[string]types.UID{"a": "second"}, p.cache.born.Add(time.Hour)
				p.reconcile()
			},
			"the cache never had the namespace": func(p *policed, _ networkingv1.NetworkPolicy) {
				for _, h := range p.networks.held {
					h.namespace = ""
				}
			},
			"nobody can be asked at first": func(*policed, networkingv1.NetworkPolicy) {},
		} {
			for _, restart := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, restart %t", name, before, restart), func(t *testing.T) {
					p := newPoliced(t)
					p.cache.born = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
					p.cache.uids, p.live.uids = map[string]types.UID{"a": "first"}, map[string]types.UID{"a": "first", "a/web-1": "old"}
					first := p.policy("a", "deny", closed)
					first.UID, first.CreationTimestamp = "first", metav1.Time{Time: p.cache.born.Add(time.Minute)}
					p.cache.policies = append(p.cache.policies, first)
					p.reconcile()
					old := p.endpoint(1, "a", "web", 300)
					old.Pod.UID = "old"
					nodetest.Must(t, p.Admit(t.Context(), old)())
					prepare(p, first)
					if restart {
						p.remember()
						p.restart()
						p.wiring[1] = old
					}
					p.cache.policies = nil
					for _, spec := range after {
						next := p.policy("a", "deny", spec)
						next.UID, next.CreationTimestamp = "second", metav1.Time{Time: p.cache.born.Add(2 * time.Hour)}
						p.cache.policies = append(p.cache.policies, next)
					}
					p.cache.uids = map[string]types.UID{"a": "second"}
					p.live.uids = map[string]types.UID{"a": "second", "a/web-2": "new"}
					young := p.endpoint(2, "a", "web", 300)
					young.Pod.UID = "new"
					p.wiring[2] = young
					if before == "nobody can be asked at first" {
						p.live.away = errors.New("connection refused")
						if r := p.reconcile(); r.RequeueAfter == 0 {
							t.Error("nobody asks again")
						}
						p.live.away = nil
					}
					p.reconcile()
					if before != "asked for by a pod" { // that policy may be on its way into the cache
						p.expectIngress(2, len(after) > 0, len(after))
					}
					p.expectIngress(1, true, 0)
					if p.kernel.pods[1].Egress == nil {
						t.Error("it may still send")
					}
				})
			}
		}
	}
}

// An agent starts while the API server is away: nothing is written over what is pinned, and a new pod gets the policy
// that was in force.
func TestPoliciesFromDisk(t *testing.T) {
	p := newPoliced(t)
	if err := p.FromDisk(); err == nil {
		t.Error("an agent that never knew the policies serves without")
	}
	if err := p.Admit(t.Context(), p.endpoint(1, "a", "web", 300))(); !errors.Is(err, endpoint.ErrNotReady) {
		t.Errorf("a pod before the policies are known: %v", err)
	}
	p.cache.policies = append(p.cache.policies, p.policy("a", "web", allow(fromApp("client"))), p.policy("a", "out", allow(fromBlock("192.0.2.0/24", "192.0.2.128/25"))))
	p.cache.identities = append(p.cache.identities, v1alpha1.CiliumIdentity{
		ObjectMeta: metav1.ObjectMeta{Name: "400"}, Spec: v1alpha1.CiliumIdentitySpec{Labels: whoIs("a", "client", 400).Labels},
	})
	p.reconcile()
	p.admit(1, "a", "web", 300)
	p.expectIngress(1, true, 2)
	p.remember()
	want, writes := p.kernel.pods[1].Ingress.Entries, len(p.kernel.writes)

	p.cache, p.live = &objects{away: errors.New("not synced")}, &objects{away: errors.New("connection refused")}
	p.restart()
	nodetest.Must(t, p.FromDisk())
	if len(p.kernel.writes) != writes {
		t.Error("an agent without an API server wrote over what is pinned")
	}
	p.admit(2, "a", "web", 300)
	if got := p.kernel.pods[2].Ingress; got == nil || !maps.Equal(got.Entries, want) {
		t.Errorf("a new pod during the outage got %v, want %v", got, want)
	}

	file := filepath.Join(p.stateDir, lastPoliciesFile)
	data, err := os.ReadFile(file)
	nodetest.Must(t, err)
	var last map[string]any
	nodetest.Must(t, json.Unmarshal(data, &last))
	last["bootID"] = "another"
	data, err = json.Marshal(last)
	nodetest.Must(t, err)
	for _, bad := range [][]byte{data, []byte("{")} {
		nodetest.Must(t, os.WriteFile(file, bad, 0o600))
		p.restart()
		if err := p.FromDisk(); err == nil {
			t.Errorf("taken up: %s", bad)
		}
	}
}

// What an agent remembered of the classes in the kernel was up to a second old, or nothing: its successor's tables did not
// know those that were there, and for a moment addresses were let in that neither policy meant, or kept out that both did.
func TestClassesAreThoseOfTheKernel(t *testing.T) {
	blocks := func(peers ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicySpec {
		s := closed
		s.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers}}
		return s
	}
	wide, gap := fromBlock("10.0.0.0/8", "10.1.0.0/16"), fromBlock("10.1.0.0/16", "10.1.2.0/24")
	for name, row := range map[string]struct {
		before, after      networkingv1.NetworkPolicySpec
		allowed, forbidden string
	}{
		"a class comes with an exception": {before: blocks(wide), after: blocks(gap), forbidden: "10.1.2.3"},
		"a class goes":                    {before: blocks(fromBlock("10.0.0.0/8"), gap), after: blocks(fromBlock("10.0.0.0/8")), allowed: "10.1.3.4"},
	} {
		for _, memory := range []string{"up to date", "none", "of before"} {
			t.Run(name+", memory "+memory, func(t *testing.T) {
				p := newPoliced(t)
				p.reconcile()
				if memory == "of before" {
					p.remember()
				}
				p.cache.policies = []networkingv1.NetworkPolicy{p.policy("a", "web", row.before)}
				p.reconcile()
				e := p.admit(1, "a", "web", 300)
				if memory == "up to date" {
					p.remember()
				}
				p.cache.policies = []networkingv1.NetworkPolicy{p.policy("a", "web", row.after)}
				p.restart()
				p.wiring[1] = e
				p.kernel.moment = func() {
					if row.allowed != "" && !p.kernel.allows(1, row.allowed) {
						t.Errorf("%s is kept out: %v, classes %v", row.allowed, p.kernel.pods[1].Ingress.Entries, p.kernel.classes)
					}
					if row.forbidden != "" && p.kernel.allows(1, row.forbidden) {
						t.Errorf("%s is let in: %v, classes %v", row.forbidden, p.kernel.pods[1].Ingress.Entries, p.kernel.classes)
					}
				}
				p.kernel.moment()
				p.reconcile()
				if want := p.engine.Classes(); !maps.Equal(p.kernel.classes, want) {
					t.Errorf("classes %v, want %v", p.kernel.classes, want)
				}
			})
		}
	}
}

// Where a table does not fit the pod keeps what it had, and everybody who looks is told.
func TestTableThatDoesNotFit(t *testing.T) {
	p := newPoliced(t)
	p.cache.policies = append(p.cache.policies, p.policy("a", "first", closed))
	p.reconcile()
	e := p.admit(1, "a", "web", 300)
	before := p.kernel.pods[1].Ingress
	p.kernel.full[1] = true
	p.cache.policies = append(p.cache.policies, p.policy("a", "second", allow(fromBlock("10.0.0.0/8", "10.1.0.0/16"))))
	if r := p.reconcile(); r.RequeueAfter == 0 {
		t.Error("nobody tries again")
	}
	if p.kernel.pods[1].Ingress != before {
		t.Error("the table before is gone")
	}
	progress := p.Progress()
	if len(progress.Exceptions) != 2 || progress.Exceptions[1].Name != "second" || progress.Exceptions[1].Reason != reasonTableFull ||
		!strings.Contains(progress.Exceptions[1].Message, "pod a/web-1 goes on with the policy that it had") {
		t.Errorf("%+v", progress)
	}
	if c := policyCondition(progress, nil); c.Status != metav1.ConditionFalse || c.Reason != reasonTableFull {
		t.Errorf("report: %+v", c)
	}
	shown, c := p.Shown(e)
	if c.Status != metav1.ConditionFalse || c.Reason != reasonTableFull || !slices.Equal(shown.Ingress.Policies, []string{"NetworkPolicy a/first"}) {
		t.Errorf("endpoint: %+v %+v", c, shown)
	}
	// No class goes while an old table may need it.
	held := len(p.kernel.classes)
	p.cache.policies[1] = p.policy("a", "second", allow(fromBlock("10.2.0.0/16")))
	p.live.namespaces["a"] = false
	p.reconcile()
	if len(p.kernel.classes) != held+1 {
		t.Errorf("%d classes of %d are left although a table of before is in force", len(p.kernel.classes), held)
	}
	// A pod that is new begins, and nothing passes that its policies might forbid.
	p.kernel.full[2] = true
	closedPod := p.admit(2, "a", "web", 300)
	p.expectIngress(2, true, 0)
	if p.kernel.pods[2].Ingress.Default == 0 || p.kernel.pods[2].Egress != nil {
		t.Errorf("a new pod: %+v", p.kernel.pods[2])
	}
	p.reconcile()
	p.expectIngress(2, true, 0)
	if _, c := p.Shown(closedPod); c.Status != metav1.ConditionFalse || c.Reason != reasonTableFull {
		t.Errorf("a new pod: %+v", c)
	}
	nodetest.Must(t, p.Dismiss(closedPod))
	p.cache.policies = p.cache.policies[:1]
	p.kernel.full = map[uint16]bool{}
	p.reconcile()
	if _, c := p.Shown(e); c.Status != metav1.ConditionTrue || len(p.Progress().Exceptions) > 0 {
		t.Errorf("after there was room: %+v %+v", c, p.Progress())
	}
	if len(p.kernel.classes) != 0 {
		t.Errorf("classes that nobody names are left: %v", p.kernel.classes)
	}
}

// What a name of a port stands for differs from pod to pod of one identity during a rollout: both count.
func TestNamedPortsOfAnIdentity(t *testing.T) {
	p := newPoliced(t)
	spec := networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		Egress: []networkingv1.NetworkPolicyEgressRule{{
			Ports: []networkingv1.NetworkPolicyPort{{Port: portNamed("web")}},
			To:    []networkingv1.NetworkPolicyPeer{fromApp("server")},
		}},
	}
	p.cache.policies = append(p.cache.policies, p.policy("a", "out", spec))
	p.cache.identities = append(p.cache.identities, v1alpha1.CiliumIdentity{
		ObjectMeta: metav1.ObjectMeta{Name: "400"}, Spec: v1alpha1.CiliumIdentitySpec{Labels: whoIs("a", "server", 400).Labels},
	})
	port := func(n int32) v1alpha1.SliceEndpoint {
		return v1alpha1.SliceEndpoint{Namespace: "a", Name: "server", Identity: 400, Ports: []v1alpha1.SlicePort{{Name: "web", Protocol: "TCP", Port: n}}}
	}
	p.cache.slices = append(p.cache.slices, v1alpha1.CiliumEndpointSlice{Spec: v1alpha1.CiliumEndpointSliceSpec{Endpoints: []v1alpha1.SliceEndpoint{port(8080), port(9090), port(8080)}}})
	p.reconcile()
	p.admit(1, "a", "client", 300)
	var ports []int
	for k := range p.kernel.pods[1].Egress.Entries {
		ports = append(ports, int(k.Port))
	}
	slices.Sort(ports)
	if !slices.Equal(ports, []int{8080, 9090}) {
		t.Errorf("%v", p.kernel.pods[1].Egress.Entries)
	}
}

// Only the first 16 named ports of a pod were known to other nodes, and nobody was told.
func TestPodWithManyNamedPorts(t *testing.T) {
	p := newPoliced(t)
	p.reconcile()
	for id, row := range map[uint16]struct {
		ports, known int
		status       metav1.ConditionStatus
	}{
		1: {ports: 40, known: 40, status: metav1.ConditionTrue},
		2: {ports: v1alpha1.MaxPortsPerEndpoint, known: v1alpha1.MaxPortsPerEndpoint, status: metav1.ConditionTrue},
		3: {ports: v1alpha1.MaxPortsPerEndpoint + 1, known: v1alpha1.MaxPortsPerEndpoint, status: metav1.ConditionFalse},
	} {
		var ports []policy.NamedPort
		for i := range row.ports {
			ports = append(ports, policy.NamedPort{Name: fmt.Sprintf("a-long-port-%03d", i), Protocol: 132, Port: uint16(10000 + i)})
		}
		e := p.admit(id, "a", "web", 300, ports...)
		e.IPv4, e.IPv6 = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00:1234:1234:1234:1234:1234:1234:1234")
		shared := sliceEndpoints([]*endpoint.Endpoint{e})
		if len(shared) != 1 || len(shared[0].Ports) != row.known {
			t.Fatalf("of %d ports others know %+v", row.ports, shared)
		}
		if _, c := p.Shown(e); c.Status != row.status || row.status == metav1.ConditionFalse && (c.Reason != reasonManyPorts || !strings.Contains(c.Message, "257 ports with a name")) {
			t.Errorf("%d ports: %+v", row.ports, c)
		}
		full := v1alpha1.CiliumEndpointSlice{Spec: v1alpha1.CiliumEndpointSliceSpec{Endpoints: slices.Repeat(shared, v1alpha1.MaxEndpointsPerSlice)}}
		data, err := json.Marshal(full)
		nodetest.Must(t, err)
		if most := 3 << 19; len(data) > most { // etcd's own bound on a request
			t.Errorf("a full slice of pods with %d ports has %d bytes, the data store takes %d", row.ports, len(data), most)
		}
	}
}

func portNamed(name string) *intstr.IntOrString {
	port := intstr.FromString(name)
	return &port
}

// A policy with more exceptions than fit once stopped every policy and every new pod of every node.
func TestPolicyThatDoesNotFitStopsNobodyElse(t *testing.T) {
	p := newPoliced(t)
	p.kernel.limits = policy.Limits{Prefixes: 20, Singles: 100, Ranges: 100}
	p.restart()
	many := func(first, n int) networkingv1.NetworkPolicySpec {
		var except []string
		for i := range n {
			except = append(except, fmt.Sprintf("10.%d.0.0/16", first+i))
		}
		s := allow(fromBlock("10.0.0.0/8", except...))
		s.PodSelector = metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
		return s
	}
	exception := func(names ...string) {
		t.Helper()
		var got []string
		for _, x := range p.Progress().Exceptions {
			got = append(got, x.Name)
			if x.Reason != reasonTableFull {
				t.Errorf("%+v", x)
			}
		}
		if !slices.Equal(got, names) {
			t.Fatalf("exceptions %v, want %v", got, names)
		}
	}
	// No pod of the node is selected: nothing is written, and nobody hears of it.
	p.cache.policies = append(p.cache.policies, p.policy("a", "large", many(0, 30)), p.policy("b", "other", allow(fromBlock("192.0.2.0/24"))))
	p.admitAfterReconcile(1, "b", "db", 301)
	p.expectIngress(1, true, 1)
	exception()
	if len(p.kernel.classes) != 1 {
		t.Errorf("classes of policies that select nobody: %v", p.kernel.classes)
	}
	// Its first pod begins closed, and everybody else goes on.
	web := p.admit(2, "a", "web", 300)
	p.expectIngress(2, true, 0)
	p.admit(3, "a", "free", 302)
	p.expectIngress(3, false, 0)
	exception("large")
	if x := p.Progress().Exceptions[0]; !strings.HasPrefix(x.Message, "it isolates the pods that it selects and allows them nothing, for it does not fit: ") || !strings.Contains(x.Message, "31 prefixes") {
		t.Errorf("%+v", x)
	}
	if _, c := p.Shown(web); c.Status != metav1.ConditionFalse || c.Reason != reasonTableFull {
		t.Errorf("%+v", c)
	}
	p.cache.policies[1] = p.policy("b", "other", allow(fromBlock("198.51.100.0/24", "198.51.100.7/32")))
	p.reconcile()
	if _, ok := p.kernel.classes[netip.MustParsePrefix("198.51.100.7/32")]; !ok || len(p.kernel.classes) != 2 {
		t.Errorf("another policy did not come into force: %v", p.kernel.classes)
	}
	if got := p.Progress(); got.InForce != strconv.Itoa(p.version) {
		t.Errorf("%+v", got)
	}
	// A version that fits, and then one that does not: the one before stays, also over a restart and for a new pod.
	p.cache.policies[0] = p.policy("a", "large", many(0, 5))
	p.reconcile()
	exception()
	before := p.kernel.pods[2].Ingress.Entries
	if len(before) != 1 {
		t.Fatalf("%v", before)
	}
	p.cache.policies[0] = p.policy("a", "large", many(100, 30))
	p.reconcile()
	exception("large")
	p.remember()
	p.restart(p.endpoint(1, "b", "db", 301), web)
	p.reconcile()
	exception("large")
	if !strings.HasPrefix(p.Progress().Exceptions[0].Message, "the version before stays in force, for it does not fit: ") {
		t.Errorf("%+v", p.Progress())
	}
	p.admit(4, "a", "web", 300)
	for _, id := range []uint16{2, 4} {
		if !maps.Equal(p.kernel.pods[id].Ingress.Entries, before) {
			t.Errorf("pod %d: %v, want %v", id, p.kernel.pods[id].Ingress.Entries, before)
		}
	}
	// It goes, and nothing of it is left.
	p.cache.policies = p.cache.policies[1:]
	p.reconcile()
	exception()
	p.expectIngress(2, false, 0)
	if len(p.kernel.classes) != 2 {
		t.Errorf("%v", p.kernel.classes)
	}
}

// A policy that could not be made into rules, and never had been, left the pods open that it selects.
func TestPolicyThatCannotBeHadLeavesNobodyOpen(t *testing.T) {
	p := newPoliced(t)
	says := func(e *endpoint.Endpoint, want string) {
		t.Helper()
		got := p.Progress().Exceptions
		_, c := p.Shown(e)
		if want == "" {
			if len(got) > 0 || c.Status != metav1.ConditionTrue {
				t.Fatalf("%+v %+v", got, c)
			}
			return
		}
		want += `, for not a rule: spec.ingress[0].from[0].ipBlock.cidr: "ten" is no prefix`
		if len(got) != 1 || got[0].Name != "web" || got[0].Reason != reasonInvalid || got[0].Message != want {
			t.Fatalf("%+v", got)
		}
		if c.Status != metav1.ConditionFalse || c.Reason != reasonInvalid || c.Message != "NetworkPolicy a/web: "+want {
			t.Fatalf("%+v", c)
		}
	}
	bad, good := allow(fromBlock("ten")), allow(fromBlock("10.0.0.0/8"))
	p.reconcile()
	p.live.policies = []networkingv1.NetworkPolicy{p.policy("a", "web", bad)} // just before the pod
	e := p.admit(1, "a", "web", 300)
	p.expectIngress(1, true, 0)
	p.cache.policies = slices.Clone(p.live.policies)
	p.reconcile()
	p.expectIngress(1, true, 0)
	if p.kernel.pods[1].Egress != nil {
		t.Error("isolated in a direction that the policy is not about")
	}
	says(e, "it isolates the pods that it selects and allows them nothing")

	p.cache.policies[0] = p.policy("a", "web", good)
	p.reconcile()
	p.expectIngress(1, true, 1)
	says(e, "")
	// What was in force stays, however often it is got wrong, and over a restart.
	for range 2 {
		p.cache.policies[0] = p.policy("a", "web", bad)
		p.reconcile()
	}
	p.expectIngress(1, true, 1)
	says(e, "the version before stays in force")
	p.remember()
	p.live.policies = nil
	p.restart(e)
	p.reconcile()
	p.admit(2, "a", "web", 300)
	p.expectIngress(1, true, 1)
	p.expectIngress(2, true, 1)
	says(e, "the version before stays in force")
	p.cache.policies[0] = p.policy("a", "web", good)
	p.reconcile()
	says(e, "")
}

func (p *policed) admitAfterReconcile(id uint16, namespace, app string, n identity.Number) {
	p.t.Helper()
	p.reconcile()
	p.admit(id, namespace, app, n)
}

// Policies that find room one after the other, each in what the one before gives up, kept new pods waiting until the last
// had: for more than a hundred writes.
func TestNewPodDoesNotWaitForPoliciesThatFindRoomInTurn(t *testing.T) {
	const count, prefixes = 30, 64
	p := newPoliced(t)
	p.kernel.limits = policy.Limits{Prefixes: count*prefixes + 2*prefixes} // one more at a time
	p.restart()
	version := func(i, round int) networkingv1.NetworkPolicy {
		s := closed
		var peers []networkingv1.NetworkPolicyPeer
		for n := range prefixes {
			peers = append(peers, fromBlock(fmt.Sprintf("10.%d.%d.%d/32", round, i, n)))
		}
		s.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers}}
		return p.policy("a", fmt.Sprintf("p-%02d", i), s)
	}
	for i := range count {
		p.cache.policies = append(p.cache.policies, version(i, 1))
	}
	p.admitAfterReconcile(1, "a", "web", 300)
	for i := range count {
		p.cache.policies[i] = version(i, 2)
	}
	var young *endpoint.Endpoint
	admitted, first, during := make(chan error, 1), len(p.kernel.writes), 0
	p.kernel.moment = func() {
		if young != nil {
			return
		}
		young = p.endpoint(2, "a", "web", 300)
		asked := make(chan struct{})
		go func() {
			begin := p.Admit(t.Context(), young)
			close(asked)
			err := begin()
			p.applying.Lock()
			during = len(p.kernel.writes)
			p.applying.Unlock()
			admitted <- err
		}()
		<-asked
	}
	p.reconcile()
	nodetest.Must(t, <-admitted)
	total := len(p.kernel.writes)
	if total-first < 2*count {
		t.Fatalf("%d writes: they did not find room in turn", total-first)
	}
	if during-first > (total-first)/2 {
		t.Errorf("a new pod began after %d writes of %d", during-first, total-first)
	}
	if got := p.Progress().Exceptions; len(got) > 0 {
		t.Errorf("%+v", got)
	}
	for _, id := range []uint16{1, 2} {
		p.expectIngress(id, true, count*prefixes)
	}

	// Nor does it make their passes itself: those that wait for others do so beside it.
	for i := range count {
		p.cache.policies[i] = version(i, 3)
	}
	p.applying.Lock()
	p.feedNetworkPolicies(t.Context(), p.cache.policies, nil)
	p.applying.Unlock()
	before := len(p.kernel.writes)
	p.admit(3, "a", "web", 300)
	if got := len(p.kernel.writes) - before; got > 8 {
		t.Errorf("a new pod made %d writes", got)
	}
	p.expectIngress(3, true, count*prefixes)
	p.reconcile()
	p.expectIngress(3, true, count*prefixes)
	if got := p.Progress().Exceptions; len(got) > 0 {
		t.Errorf("%+v", got)
	}
}
