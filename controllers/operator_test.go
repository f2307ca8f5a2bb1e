// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/testenv"
)

// plane is a real API server and a client of its administrator that reads past every cache.
type plane struct {
	*testenv.Env
	client.Client
	t *testing.T
}

func startPlane(t *testing.T) *plane {
	t.Helper()
	env := testenv.Start(t)
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(env.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{Env: env, Client: c, t: t}
	p.make(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AgentLeaseNamespace}})
	return p
}

func (p *plane) make(o client.Object) {
	p.t.Helper()
	status := o.DeepCopyObject().(client.Object)
	if err := p.Create(p.t.Context(), o); err != nil {
		p.t.Fatal(err)
	}
	status.SetResourceVersion(o.GetResourceVersion())
	status.SetUID(o.GetUID())
	switch o.(type) {
	case *corev1.Node, *v1alpha1.CiliumNode, *v1alpha1.CiliumNodeReport, *v1alpha1.CiliumEndpoint:
		if err := p.Status().Update(p.t.Context(), status); err != nil {
			p.t.Fatal(err)
		}
	}
}

// get reads an object again; false when it is gone.
func (p *plane) get(o client.Object) bool {
	p.t.Helper()
	err := p.Get(p.t.Context(), client.ObjectKeyFromObject(o), o)
	if apierrors.IsNotFound(err) {
		return false
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return true
}

// await polls until something is so.
func (p *plane) await(what string, so func() bool) {
	p.t.Helper()
	for range 150 {
		if so() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.t.Fatalf("waited in vain: %s", what)
}

// startOperator runs the whole operator with the rights of its own service account.
func (p *plane) startOperator() {
	p.t.Helper()
	if out, err := p.Kubectl("apply", "--server-side", "-k", "config/rbac"); err != nil {
		p.t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
	ctx := p.t.Context()
	token, err := kubernetes.NewForConfigOrDie(p.Config).CoreV1().ServiceAccounts(v1alpha1.AgentLeaseNamespace).
		CreateToken(ctx, "cilium-operator", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	cfg := rest.AnonymousClientConfig(p.Config)
	cfg.BearerToken = token.Status.Token
	mgr, err := ctrl.NewManager(cfg, ctrl.Options{
		Scheme: p.Scheme(), Cache: CacheOptions(), Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		LeaderElection: true, LeaderElectionID: "cilium-operator", LeaderElectionNamespace: v1alpha1.AgentLeaseNamespace, LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := Setup(mgr); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- mgr.Start(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("operator: %v", err)
		}
	})
}

func (p *plane) condition(o client.Object, list *[]metav1.Condition, kind string) string {
	if !p.get(o) {
		return "gone"
	}
	c := meta.FindStatusCondition(*list, kind)
	if c == nil {
		return "absent"
	}
	return string(c.Status) + " " + c.Reason
}

func TestOperator(t *testing.T) {
	p := startPlane(t)
	ctx := t.Context()
	two := int32(25)
	config := &v1alpha1.CiliumConfig{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.CiliumConfigSpec{
		IPAM: &v1alpha1.IPAMConfig{IPv4: &v1alpha1.AddressPool{CIDRs: []string{"10.1.0.0/24"}, MaskSize: &two}, IPv6: &v1alpha1.AddressPool{CIDRs: []string{"fd00::/112"}}}}}
	p.make(config)
	p.startOperator()

	newNode := func(name string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
			{Key: v1alpha1.TaintAgentNotReady, Effect: corev1.TaintEffectNoSchedule}, {Key: "other", Effect: corev1.TaintEffectNoSchedule}}}}
		n.Status.NodeInfo.BootID = "boot"
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue}, {Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		p.make(n)
		return n
	}
	nodes := map[string]*corev1.Node{"a": newNode("a"), "b": newNode("b")}
	cn := func(name string) *v1alpha1.CiliumNode {
		return &v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}

	var all []netip.Prefix
	for name := range nodes {
		o := cn(name)
		p.await("prefixes of "+name, func() bool { return p.get(o) && len(o.Spec.PodCIDRs) == 2 })
		for _, c := range o.Spec.PodCIDRs {
			prefix := netip.MustParsePrefix(c)
			if slices.ContainsFunc(all, prefix.Overlaps) {
				t.Errorf("%s is held twice", prefix)
			}
			all = append(all, prefix)
		}
		if len(o.Finalizers) > 0 {
			t.Errorf("%s has finalizers %v: our kinds could not be deleted after the operator", name, o.Finalizers)
		}
		if len(o.OwnerReferences) != 1 || o.OwnerReferences[0].UID != nodes[name].UID {
			t.Errorf("owners of %s: %v", name, o.OwnerReferences)
		}
		p.await("condition of "+name, func() bool {
			return p.condition(o, &o.Status.Conditions, v1alpha1.ConditionPrefixesAssigned) == "True Assigned"
		})
	}

	// The agent of a becomes ready; that of b does not.
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.AgentLeaseNamespace, Name: "cilium-agent-a"}}
	at, seconds := metav1.NowMicro(), int32(3600)
	lease.Spec.RenewTime, lease.Spec.LeaseDurationSeconds = &at, &seconds
	p.make(lease)
	r := nodeReport("a", "boot", v1alpha1.ConditionReady, v1alpha1.ConditionDatapathReady)
	r.Status.ObservedConfigGeneration = config.Generation
	for i := range r.Status.Conditions {
		r.Status.Conditions[i].LastTransitionTime = metav1.Now()
	}
	p.make(r)
	p.await("taint of a removed, the other one kept", func() bool {
		return p.get(nodes["a"]) && !slices.ContainsFunc(nodes["a"].Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintAgentNotReady })
	})
	if !slices.ContainsFunc(nodes["a"].Spec.Taints, func(t corev1.Taint) bool { return t.Key == "other" }) {
		t.Errorf("taints of a: %v", nodes["a"].Spec.Taints)
	}
	p.await("NetworkUnavailable=False on a", func() bool {
		return p.get(nodes["a"]) && networkUnavailable(nodes["a"]) == corev1.ConditionFalse && len(nodes["a"].Status.Conditions) == 2
	})
	p.await("1/2 ready", func() bool {
		return p.condition(config, &config.Status.Conditions, v1alpha1.ConditionReady) == "False NodesNotReady" && config.Status.Nodes == "1/2"
	})
	if p.get(nodes["b"]); !slices.ContainsFunc(nodes["b"].Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintAgentNotReady }) || networkUnavailable(nodes["b"]) != corev1.ConditionTrue {
		t.Errorf("b was opened: %v", nodes["b"].Spec.Taints)
	}

	// The machine of a reboots and its agent does not come back.
	r.Status.BootID = "boot before"
	at = metav1.NewMicroTime(time.Now().Add(-2 * time.Hour))
	p.get(lease)
	lease.Spec.RenewTime = &at
	if err := p.Update(ctx, lease); err != nil {
		t.Fatal(err)
	}
	p.get(r)
	r.Status.BootID = "boot before"
	if err := p.Status().Update(ctx, r); err != nil {
		t.Fatal(err)
	}
	p.await("taint of a set again", func() bool {
		return p.get(nodes["a"]) && slices.ContainsFunc(nodes["a"].Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintAgentNotReady })
	})

	// A third node finds the IPv4 pool empty: conditions and an Event say so, and it gets its IPv6 prefix.
	nodes["c"] = newNode("c")
	o := cn("c")
	p.await("c lacks a prefix", func() bool {
		return p.condition(o, &o.Status.Conditions, v1alpha1.ConditionPrefixesAssigned) == "False PoolExhausted" && len(o.Spec.PodCIDRs) == 1
	})
	p.await("the configuration says so", func() bool {
		return p.condition(config, &config.Status.Conditions, v1alpha1.ConditionPrefixesAssigned) == "False PoolExhausted" &&
			p.condition(config, &config.Status.Conditions, v1alpha1.ConditionStalled) == "True PoolExhausted"
	})
	p.await("the node's events say so", func() bool {
		var list eventsv1.EventList
		if err := p.List(ctx, &list); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool {
			return e.Regarding.Name == "c" && e.Reason == "PoolExhausted" && strings.Contains(e.Note, "no free /25")
		})
	})
	// A range is added: it heals.
	p.get(config)
	config.Spec.IPAM.IPv4.CIDRs = append(config.Spec.IPAM.IPv4.CIDRs, "10.9.0.0/24")
	if err := p.Update(ctx, config); err != nil {
		t.Fatal(err)
	}
	p.await("c healed", func() bool {
		return p.condition(o, &o.Status.Conditions, v1alpha1.ConditionPrefixesAssigned) == "True Assigned" &&
			slices.Equal(o.Spec.PodCIDRs, []string{"10.9.0.0/25", "fd00::200/120"})
	})

	// Somebody deletes the CiliumNode of a living node: it comes back with the same prefixes.
	before := cn("a")
	p.get(before)
	if err := p.Delete(ctx, cn("a")); err != nil {
		t.Fatal(err)
	}
	after := cn("a")
	p.await("a comes back", func() bool { return p.get(after) && after.UID != before.UID })
	if !slices.Equal(after.Spec.PodCIDRs, before.Spec.PodCIDRs) {
		t.Errorf("a had %v and came back with %v", before.Spec.PodCIDRs, after.Spec.PodCIDRs)
	}

	// The node b goes: its prefixes rest on the object, and a new node gets others.
	if err := p.Delete(ctx, nodes["b"]); err != nil {
		t.Fatal(err)
	}
	gone := cn("b")
	p.get(gone)
	p.await("b is gone", func() bool { return !p.get(cn("b")) })
	book := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ledgerKey.Namespace, Name: ledgerKey.Name}}
	p.await("b rests", func() bool { return p.get(book) && strings.Contains(book.Data["b"], "freed=") })
	newNode("d")
	o = cn("d")
	p.await("d has prefixes", func() bool { return p.get(o) && len(o.Spec.PodCIDRs) == 2 })
	if slices.ContainsFunc(o.Spec.PodCIDRs, func(c string) bool { return slices.Contains(gone.Spec.PodCIDRs, c) }) {
		t.Errorf("d was given %v while %v rests", o.Spec.PodCIDRs, gone.Spec.PodCIDRs)
	}
	// It comes back, as another machine under its name, and has what it had.
	newNode("b")
	back := cn("b")
	p.await("b has its prefixes back", func() bool { return p.get(back) && slices.Equal(back.Spec.PodCIDRs, gone.Spec.PodCIDRs) })
}

// Two operators decide at once, each before it sees what the other did: the second one's ledger is refused.
func TestTwoOperatorsCutOnePrefixOnce(t *testing.T) {
	p := startPlane(t)
	ctx := t.Context()
	for _, name := range []string{"a", "b"} {
		n := coreNode(name)
		n.UID = ""
		p.make(&n)
	}
	one := &CiliumNodes{Client: p.Client, Live: p.Client, Clock: time.Now, Rest: time.Minute, RestLimit: time.Hour}
	for _, first := range []bool{true, false} { // an absent ledger, then one that stands
		w, err := one.look(ctx, p.Client)
		if err != nil {
			t.Fatal(err)
		}
		mine, other := maps.Clone(w.ledger), maps.Clone(w.ledger)
		if first {
			mine, other = ledger{}, ledger{}
		}
		next := fmt.Sprintf("10.%d.0.0/24", len(mine)+3)
		mine["x"+next[:4]], other["y"+next[:4]] = entry{prefixes: parsePrefixes([]string{next})}, entry{prefixes: parsePrefixes([]string{next})}
		if err := one.writeLedger(ctx, w, mine); err != nil {
			t.Fatal(err)
		}
		if err := one.writeLedger(ctx, w, other); !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			t.Errorf("one prefix was given twice: %v", err)
		}
	}
}

// The agent applies its own conditions of a CiliumNode; neither writer takes away what the other wrote.
func TestOneWriterPerCondition(t *testing.T) {
	p := startPlane(t)
	node := coreNode("a")
	node.UID = ""
	p.make(&node)
	nodes := &CiliumNodes{Client: p.Client, Live: p.Client, Clock: time.Now, Rest: time.Minute, RestLimit: time.Hour}
	if _, err := nodes.Reconcile(t.Context(), clusterRequest); err != nil {
		t.Fatal(err)
	}
	agent := `{"apiVersion":"kube-cilium.io/v1alpha1","kind":"CiliumNode","metadata":{"name":"a"},"status":{"bootID":"boot","conditions":[
		{"type":"Ready","status":"True","reason":"X","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
	cn := &v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	apply := func() {
		t.Helper()
		err := p.Status().Patch(t.Context(), cn, client.RawPatch("application/apply-patch+yaml", []byte(agent)), client.FieldOwner(v1alpha1.AgentFieldManager), client.ForceOwnership)
		if err != nil {
			t.Fatal(err)
		}
	}
	apply()
	if _, err := nodes.Reconcile(t.Context(), clusterRequest); err != nil {
		t.Fatal(err)
	}
	apply()
	p.get(cn)
	if len(cn.Status.Conditions) != 2 || cn.Status.BootID != "boot" || len(cn.Spec.PodCIDRs) != 1 {
		t.Errorf("spec %+v status %+v", cn.Spec, cn.Status)
	}
}

// racing is a client whose next deletion or patch comes after something else happened.
type racing struct {
	client.Client
	first atomic.Pointer[func()]
}

func (r *racing) Delete(ctx context.Context, o client.Object, opts ...client.DeleteOption) error {
	r.race()
	return r.Client.Delete(ctx, o, opts...)
}

func (r *racing) Patch(ctx context.Context, o client.Object, patch client.Patch, opts ...client.PatchOption) error {
	r.race()
	return r.Client.Patch(ctx, o, patch, opts...)
}

func (r *racing) race() {
	if f := r.first.Swap(nil); f != nil {
		(*f)()
	}
}

func TestIdentityLife(t *testing.T) {
	p := startPlane(t)
	ctx := t.Context()
	now := time.Now().Truncate(time.Second)
	c := &racing{Client: p.Client}
	gc := &Identities{Client: c, Live: p.Client, Clock: func() time.Time { return now }, Grace: 15 * time.Minute, Tombstone: time.Hour}
	sweep := func(after time.Duration) {
		t.Helper()
		now = now.Add(after)
		if _, err := gc.Reconcile(ctx, clusterRequest); err != nil {
			t.Fatal(err)
		}
	}
	number := 1000
	newIdentity := func() *v1alpha1.CiliumIdentity {
		number++
		o := &v1alpha1.CiliumIdentity{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(number)}, Spec: v1alpha1.CiliumIdentitySpec{Labels: map[string]string{"k8s:app": "web"}}}
		p.make(o)
		return o
	}
	dead := func(o *v1alpha1.CiliumIdentity) bool {
		_, ok := o.Annotations[v1alpha1.AnnotationTombstone]
		return ok
	}
	adopt := func(o *v1alpha1.CiliumIdentity) {
		t.Helper()
		patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q,%q:null}}}`, v1alpha1.AnnotationAdopted, now.Format(time.RFC3339Nano), v1alpha1.AnnotationTombstone)
		if err := p.Patch(ctx, o.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
			t.Fatal(err)
		}
	}
	use := func(o *v1alpha1.CiliumIdentity) *v1alpha1.CiliumEndpointSlice {
		t.Helper()
		var id int64
		fmt.Sscan(o.Name, &id)
		s := &v1alpha1.CiliumEndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "slice-" + o.Name}, Spec: v1alpha1.CiliumEndpointSliceSpec{Node: "a",
			Endpoints: []v1alpha1.SliceEndpoint{{Namespace: "default", Name: "p", Addresses: []string{"10.0.0.1"}, Identity: id}}}}
		p.make(s)
		return s
	}

	t.Run("grace, tombstone, gone", func(t *testing.T) {
		o := newIdentity()
		sweep(0)
		sweep(14 * time.Minute)
		if p.get(o); dead(o) {
			t.Fatal("dead within the grace")
		}
		sweep(time.Minute)
		if p.get(o); !dead(o) {
			t.Fatal("not dead after the grace")
		}
		// The number is taken while the tombstone stands.
		err := p.Create(ctx, &v1alpha1.CiliumIdentity{ObjectMeta: metav1.ObjectMeta{Name: o.Name}, Spec: v1alpha1.CiliumIdentitySpec{Labels: map[string]string{"k8s:app": "db"}}})
		if !apierrors.IsAlreadyExists(err) {
			t.Fatalf("a dead number went to other labels: %v", err)
		}
		sweep(59 * time.Minute)
		if !p.get(o) {
			t.Fatal("gone within the hour")
		}
		sweep(time.Minute)
		if p.get(o) {
			t.Fatal("still there after the hour")
		}
	})
	t.Run("used by a slice", func(t *testing.T) {
		o := newIdentity()
		s := use(o)
		sweep(0)
		sweep(24 * time.Hour)
		if p.get(o); dead(o) {
			t.Fatal("dead although a slice names it")
		}
		p.Delete(ctx, s)
		sweep(0)
		sweep(15 * time.Minute)
		if p.get(o); !dead(o) {
			t.Fatal("alive although nobody uses it")
		}
	})
	t.Run("used by an endpoint whose slice is late", func(t *testing.T) {
		o := newIdentity()
		e := &v1alpha1.CiliumEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}}
		fmt.Sscan(o.Name, &e.Status.Identity.ID)
		p.make(e)
		sweep(0)
		sweep(24 * time.Hour)
		if p.get(o); dead(o) {
			t.Fatal("dead although an endpoint names it")
		}
		p.Delete(ctx, e)
	})
	t.Run("adopted while the operator buries it", func(t *testing.T) {
		o := newIdentity()
		sweep(0)
		race := func() { adopt(o) }
		c.first.Store(&race)
		sweep(15 * time.Minute)
		if p.get(o); dead(o) {
			t.Fatal("buried over an adoption")
		}
		sweep(14 * time.Minute)
		if p.get(o); dead(o) {
			t.Fatal("the grace did not start again with the adoption")
		}
	})
	t.Run("adopted back while the operator deletes it", func(t *testing.T) {
		o := newIdentity()
		sweep(0)
		sweep(15 * time.Minute)
		race := func() { adopt(o) }
		c.first.Store(&race)
		sweep(time.Hour)
		if !p.get(o) || dead(o) {
			t.Fatal("deleted over an adoption")
		}
	})
	t.Run("created again while the operator deletes it", func(t *testing.T) {
		o := newIdentity()
		sweep(0)
		sweep(15 * time.Minute)
		again := o.DeepCopy()
		again.ResourceVersion, again.UID, again.Annotations = "", "", nil
		race := func() {
			p.Delete(ctx, o)
			p.make(again)
		}
		c.first.Store(&race)
		sweep(time.Hour)
		if !p.get(again) {
			t.Fatal("deleted a namesake that was created in between")
		}
	})
	t.Run("a slice names the dead", func(t *testing.T) {
		o := newIdentity()
		sweep(0)
		sweep(15 * time.Minute)
		use(o)
		sweep(time.Hour)
		if !p.get(o) || dead(o) {
			t.Fatal("an identity in use stayed dead or was deleted")
		}
	})
	t.Run("one label set under two numbers", func(t *testing.T) {
		one, two := newIdentity(), newIdentity()
		use(one)
		sweep(0)
		sweep(15 * time.Minute)
		p.get(one)
		p.get(two)
		if dead(one) || !dead(two) {
			t.Fatal("the used one dies or the unused one lives")
		}
	})
	t.Run("a new leader starts the grace again", func(t *testing.T) {
		o := newIdentity()
		sweep(0)
		gc.unused = nil
		sweep(15 * time.Minute)
		if p.get(o); dead(o) {
			t.Fatal("dead without this process having watched the grace")
		}
	})
}

func TestOrphans(t *testing.T) {
	p := startPlane(t)
	ctx := t.Context()
	c := &racing{Client: p.Client}
	gc := &Orphans{Client: c, Live: p.Client, Clock: time.Now, Interval: time.Hour, Grace: time.Nanosecond}
	sweep := func() {
		t.Helper()
		if _, err := gc.Reconcile(ctx, clusterRequest); err != nil {
			t.Fatal(err)
		}
	}
	node := coreNode("here")
	node.UID = ""
	p.make(&node)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "here"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	p.make(pod)
	endpoint := func(name string, owner *corev1.Pod) *v1alpha1.CiliumEndpoint {
		e := &v1alpha1.CiliumEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		if owner != nil {
			e.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: owner.Name, UID: owner.UID}}
		}
		p.make(e)
		return e
	}
	onNode := func(node string) (out []client.Object) {
		at := metav1.NowMicro()
		for _, o := range []client.Object{
			&v1alpha1.CiliumNodeReport{ObjectMeta: metav1.ObjectMeta{Name: node}},
			&v1alpha1.CiliumEndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: node + "-0"}, Spec: v1alpha1.CiliumEndpointSliceSpec{Node: node}},
			&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.AgentLeaseNamespace, Name: v1alpha1.AgentLeasePrefix + node}, Spec: coordinationv1.LeaseSpec{RenewTime: &at}},
		} {
			p.make(o)
			out = append(out, o)
		}
		return out
	}
	other := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.AgentLeaseNamespace, Name: "cilium-operator"}}
	p.make(other)
	stay := append(onNode("here"), endpoint("here", pod), other)
	go1 := append(onNode("gone"), endpoint("gone", nil))

	old := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "again", UID: "former"}}
	pod2 := pod.DeepCopy()
	pod2.Name, pod2.UID, pod2.ResourceVersion = "again", "", ""
	p.make(pod2)
	go1 = append(go1, endpoint("again", old)) // of a pod whose namesake lives

	young := *gc
	young.Grace = time.Hour
	if _, err := young.Reconcile(ctx, clusterRequest); err != nil {
		t.Fatal(err)
	}
	for _, o := range slices.Concat(stay, go1) {
		if !p.get(o) {
			t.Errorf("%T %s went although it is young", o, o.GetName())
		}
	}
	sweep()
	for _, o := range stay {
		if !p.get(o) {
			t.Errorf("%T %s went although its pod or node lives", o, o.GetName())
		}
	}
	for _, o := range go1 {
		if p.get(o) {
			t.Errorf("%T %s stays although its pod or node is gone", o, o.GetName())
		}
	}

	// The agent writes to an endpoint while the operator deletes it: the next sweep decides anew.
	e := endpoint("late", nil)
	race := func() {
		p.get(e)
		e.Status.ID = 7
		if err := p.Status().Update(ctx, e); err != nil {
			t.Error(err)
		}
	}
	c.first.Store(&race)
	if _, err := gc.Reconcile(ctx, clusterRequest); !apierrors.IsConflict(err) || !p.get(e) {
		t.Errorf("deleted what had changed since it was seen: %v", err)
	}
	sweep()
	if p.get(e) {
		t.Error("the next sweep left it")
	}
}
