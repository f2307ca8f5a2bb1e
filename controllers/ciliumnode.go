// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	metaac "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	ac "github.com/kube-cilium/kube-cilium/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
)

// PrefixRest and PrefixRestLimit bound how long the prefixes of a deleted node are given to nobody: at least the
// first, then until every live agent has acted on the deletion, at most the second.
const (
	PrefixRest      = time.Minute
	PrefixRestLimit = 10 * time.Minute
)

// restPoll is how often confirmations are looked at while a prefix rests.
const restPoll = 5 * time.Second

// CiliumNodes keeps one CiliumNode per Node, with prefixes. All nodes are decided in one pass, one at a time, because
// no two may get the same prefix. What was decided stands in the ledger before it stands anywhere else. It writes the
// spec and the condition PrefixesAssigned; all other status is the agent's.
type CiliumNodes struct {
	client.Client
	// Live reads past the cache: a prefix is never cut from a list that may be old.
	Live     client.Reader
	Recorder events.EventRecorder
	Clock    func() time.Time
	// Rest and RestLimit are PrefixRest and PrefixRestLimit outside tests.
	Rest, RestLimit time.Duration
	// HasServiceCIDRs is false on clusters before Kubernetes 1.33, which do not say which ranges are Services'.
	HasServiceCIDRs bool
}

// SetupWithManager starts the reconciler with the manager.
func (r *CiliumNodes) SetupWithManager(mgr ctrl.Manager) error {
	moved := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		old, now := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
		return old.UID != now.UID || !slices.Equal(old.Status.Addresses, now.Status.Addresses)
	}}
	b := ctrl.NewControllerManagedBy(mgr).
		Named("ciliumnodes").
		Watches(&corev1.ConfigMap{}, wholeCluster). // the ledger alone: see CacheOptions
		Watches(&corev1.Node{}, wholeCluster, builder.WithPredicates(moved)).
		Watches(&v1alpha1.CiliumNode{}, wholeCluster).
		Watches(&v1alpha1.CiliumConfig{}, wholeCluster, builder.WithPredicates(predicate.GenerationChangedPredicate{}))
	if r.HasServiceCIDRs {
		b = b.Watches(&networkingv1.ServiceCIDR{}, wholeCluster)
	}
	return b.Complete(r)
}

// wholeCluster turns any event into the one request of a reconciler that looks at everything.
var wholeCluster = handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
	return []reconcile.Request{clusterRequest}
})

var clusterRequest = reconcile.Request{NamespacedName: client.ObjectKey{Name: "cluster"}}

// Reconcile decides for all nodes at once.
func (r *CiliumNodes) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	w, err := r.look(ctx, r.Client)
	if err != nil {
		return ctrl.Result{}, err
	}
	plan := planNodes(w)
	if !plan.ledger.equal(w.ledger) {
		// Another operator, or this one a moment ago, may have written what the cache does not show yet.
		if w, err = r.look(ctx, r.Live); err != nil {
			return ctrl.Result{}, err
		}
		plan = planNodes(w)
		if err := r.writeLedger(ctx, w, plan.ledger); err != nil {
			return ctrl.Result{}, err
		}
	}
	var errs []error
	for _, cn := range plan.gone {
		errs = append(errs, r.remove(ctx, cn))
	}
	errs = append(errs, each(ctx, plan.write, r.write), each(ctx, plan.desired, r.report))
	return ctrl.Result{RequeueAfter: plan.requeue}, errors.Join(errs...)
}

// each does something for every node, a few at a time: a cluster that starts asks for thousands of writes at once. It
// goes on after an error and returns the first few.
func each(ctx context.Context, nodes []desiredNode, do func(context.Context, desiredNode) error) error {
	const atOnce, told = 8, 5
	var (
		mu   sync.Mutex
		errs []error
		wg   sync.WaitGroup
		next = make(chan desiredNode)
	)
	for range min(atOnce, len(nodes)) {
		wg.Go(func() {
			for d := range next {
				if err := do(ctx, d); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, d := range nodes {
		if ctx.Err() != nil {
			break
		}
		next <- d
	}
	close(next)
	wg.Wait()
	if len(errs) > told {
		errs = append(errs[:told], fmt.Errorf("and %d more", len(errs)-told))
	}
	return errors.Join(errs...)
}

// nodeWorld is everything that decides about CiliumNodes.
type nodeWorld struct {
	now         time.Time
	nodes       []corev1.Node
	ciliumNodes []v1alpha1.CiliumNode
	spec        v1alpha1.CiliumConfigSpec
	services    []netip.Prefix
	ledger      ledger
	// ledgerObject is what the ledger was read from, nil where there is none yet.
	ledgerObject *corev1.ConfigMap
	// version of the list of CiliumNodes: what was absent from it was deleted before.
	version string
	// confirmed is agent's node -> resourceVersion up to which it has seen CiliumNodes; "" for one that is alive and
	// has not said. Agents that are not alive are absent.
	confirmed       map[string]string
	rest, restLimit time.Duration
}

func (r *CiliumNodes) look(ctx context.Context, reader client.Reader) (nodeWorld, error) {
	w := nodeWorld{now: r.Clock(), rest: r.Rest, restLimit: r.RestLimit, confirmed: map[string]string{}}
	var (
		nodes   corev1.NodeList
		cns     v1alpha1.CiliumNodeList
		config  v1alpha1.CiliumConfig
		cidrs   networkingv1.ServiceCIDRList
		reports v1alpha1.CiliumNodeReportList
		leases  coordinationv1.LeaseList
		book    corev1.ConfigMap
	)
	switch err := reader.Get(ctx, ledgerKey, &book); {
	case err == nil:
		w.ledgerObject, w.ledger = &book, readLedger(book.Data)
	case client.IgnoreNotFound(err) != nil:
		return w, fmt.Errorf("get ConfigMap %s: %w", ledgerKey, err)
	}
	if err := reader.List(ctx, &cns); err != nil {
		return w, fmt.Errorf("list CiliumNodes: %w", err)
	}
	if err := r.List(ctx, &nodes); err != nil {
		return w, fmt.Errorf("list nodes: %w", err)
	}
	if err := reader.Get(ctx, client.ObjectKey{Name: v1alpha1.ConfigName}, &config); client.IgnoreNotFound(err) != nil {
		return w, fmt.Errorf("get CiliumConfig: %w", err)
	}
	if r.HasServiceCIDRs {
		if err := r.List(ctx, &cidrs); err != nil {
			return w, fmt.Errorf("list ServiceCIDRs: %w", err)
		}
	}
	if err := r.List(ctx, &reports); err != nil {
		return w, fmt.Errorf("list CiliumNodeReports: %w", err)
	}
	if err := r.List(ctx, &leases, client.InNamespace(v1alpha1.AgentLeaseNamespace)); err != nil {
		return w, fmt.Errorf("list leases: %w", err)
	}
	w.nodes, w.ciliumNodes, w.spec, w.version = nodes.Items, cns.Items, config.Spec, cns.ResourceVersion
	for _, c := range cidrs.Items {
		w.services = append(w.services, parsePrefixes(c.Spec.CIDRs)...)
	}
	alive := map[string]bool{}
	for i := range leases.Items {
		if node, ok := strings.CutPrefix(leases.Items[i].Name, v1alpha1.AgentLeasePrefix); ok && fresh(&leases.Items[i], w.now) {
			alive[node] = true
			w.confirmed[node] = ""
		}
	}
	for _, rep := range reports.Items {
		if alive[rep.Name] {
			w.confirmed[rep.Name] = rep.Status.ObservedNodes
		}
	}
	return w, nil
}

// desiredNode is what one CiliumNode is to be.
type desiredNode struct {
	node     *corev1.Node
	existing *v1alpha1.CiliumNode // nil where it has to be created
	prefixes []string
	problem  error
}

// nodePlan is what has to be done, in this order.
type nodePlan struct {
	ledger  ledger
	gone    []*v1alpha1.CiliumNode // delete: their Node is not there
	write   []desiredNode
	desired []desiredNode // every node, for its condition
	requeue time.Duration // 0: not needed
}

// planNodes depends on nothing but what it is given.
func planNodes(w nodeWorld) nodePlan {
	plan := nodePlan{ledger: ledger{}}
	demand := ipam.Demand{Pools: poolsOf(&w.spec), Held: map[string][]netip.Prefix{}, Avoid: slices.Clone(w.services)}
	nodes := map[string]*corev1.Node{}
	for i := range w.nodes {
		n := &w.nodes[i]
		nodes[n.Name] = n
		demand.Nodes = append(demand.Nodes, n.Name)
		demand.Avoid = append(demand.Avoid, hostRanges(n, w.spec.IPAM == nil)...)
	}
	existing := map[string]*v1alpha1.CiliumNode{}
	for i := range w.ciliumNodes {
		cn := &w.ciliumNodes[i]
		existing[cn.Name] = cn
		if nodes[cn.Name] == nil && cn.DeletionTimestamp == nil {
			plan.gone = append(plan.gone, cn)
		}
		if _, known := w.ledger[cn.Name]; !known { // the ledger was lost: what nodes have is kept
			demand.Held[cn.Name] = parsePrefixes(cn.Spec.PodCIDRs)
		}
	}
	for name, e := range w.ledger {
		if nodes[name] != nil || existing[name] != nil {
			demand.Held[name] = e.prefixes // of a node that came back under its name, too
			continue
		}
		if e.freed.IsZero() {
			e.freed, e.after = w.now, w.version
		}
		if over, wait := restOver(w, name, e); !over {
			demand.Resting = append(demand.Resting, e.prefixes...)
			plan.ledger[name] = e
			if plan.requeue == 0 || wait < plan.requeue {
				plan.requeue = wait
			}
		}
	}
	got := ipam.Assign(demand)
	for name, prefixes := range got.Prefixes {
		if len(prefixes) > 0 {
			plan.ledger[name] = entry{prefixes: prefixes}
		}
	}
	for _, n := range w.nodes {
		d := desiredNode{node: nodes[n.Name], existing: existing[n.Name], problem: got.Problems[n.Name]}
		for _, p := range got.Prefixes[n.Name] {
			d.prefixes = append(d.prefixes, p.String())
		}
		plan.desired = append(plan.desired, d)
		switch {
		case d.existing != nil && d.existing.DeletionTimestamp != nil: // comes again when it is gone
		case d.existing == nil, !slices.Equal(d.existing.Spec.PodCIDRs, d.prefixes), !ownedBy(d.existing, d.node):
			plan.write = append(plan.write, d)
		}
	}
	return plan
}

// restOver tells whether the prefixes of a node that is gone may be given away, or when to look again.
func restOver(w nodeWorld, name string, e entry) (bool, time.Duration) {
	age := w.now.Sub(e.freed)
	if age >= w.restLimit {
		return true, 0
	}
	if age < w.rest {
		return false, w.rest - age
	}
	for node, seen := range w.confirmed {
		if node == name {
			continue
		}
		if c, err := resourceversion.CompareResourceVersion(seen, e.after); err != nil || c < 0 {
			return false, min(restPoll, w.restLimit-age)
		}
	}
	return true, 0
}

// poolsOf reads the pools; what CEL let through parses.
func poolsOf(spec *v1alpha1.CiliumConfigSpec) []ipam.Pool {
	effective := spec.EffectiveIPAM()
	var out []ipam.Pool
	for _, p := range []*v1alpha1.AddressPool{effective.IPv4, effective.IPv6} {
		if p != nil {
			out = append(out, ipam.Pool{CIDRs: parsePrefixes(p.CIDRs), MaskSize: int(*p.MaskSize)})
		}
	}
	return out
}

// hostRanges are addresses that pods cannot have because a host has them.
func hostRanges(n *corev1.Node, defaultPool bool) []netip.Prefix {
	var out []netip.Prefix
	for _, addr := range hostAddresses(n) {
		out = append(out, ipam.HostRange(addr, defaultPool))
	}
	return out
}

func hostAddresses(n *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil { // else a host name
			out = append(out, addr.Unmap())
		}
	}
	return out
}

func parsePrefixes(texts []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func ownedBy(cn *v1alpha1.CiliumNode, n *corev1.Node) bool {
	return slices.ContainsFunc(cn.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == n.UID })
}

func (r *CiliumNodes) write(ctx context.Context, d desiredNode) error {
	want := ac.CiliumNode(d.node.Name).
		WithOwnerReferences(metaac.OwnerReference().WithAPIVersion("v1").WithKind("Node").WithName(d.node.Name).WithUID(d.node.UID)).
		WithSpec(ac.CiliumNodeSpec().WithPodCIDRs(d.prefixes...))
	if d.existing != nil {
		want.WithUID(d.existing.UID).WithResourceVersion(d.existing.ResourceVersion)
	}
	if err := r.Apply(ctx, want, client.FieldOwner(v1alpha1.OperatorFieldManager), client.ForceOwnership); err != nil {
		return fmt.Errorf("write CiliumNode %s: %w", d.node.Name, err)
	}
	return nil
}

// report writes the condition PrefixesAssigned, and an Event on the Node when it turns False.
func (r *CiliumNodes) report(ctx context.Context, d desiredNode) error {
	if d.existing == nil {
		return nil // its creation brings us back
	}
	c := metav1.Condition{Type: v1alpha1.ConditionPrefixesAssigned, Status: metav1.ConditionTrue, Reason: "Assigned",
		Message: "the node holds " + strings.Join(d.prefixes, ", "), ObservedGeneration: d.existing.Generation}
	if d.problem != nil {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "PoolExhausted", d.problem.Error()
		if errors.Is(d.problem, ipam.ErrPrefixConflict) {
			c.Reason = "PrefixConflict"
		}
	}
	conditions := slices.Clone(d.existing.Status.Conditions)
	was := meta.FindStatusCondition(conditions, c.Type)
	turned := d.problem != nil && (was == nil || was.Status != metav1.ConditionFalse)
	if !meta.SetStatusCondition(&conditions, c) {
		return nil
	}
	status := ac.CiliumNode(d.node.Name).WithStatus(ac.CiliumNodeStatus().WithConditions(applied(*meta.FindStatusCondition(conditions, c.Type))))
	err := r.Status().Apply(ctx, status, client.FieldOwner(v1alpha1.OperatorFieldManager), client.ForceOwnership)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of CiliumNode %s: %w", d.node.Name, err)
	}
	if turned {
		r.Recorder.Eventf(d.node, nil, corev1.EventTypeWarning, c.Reason, "AssignPrefixes", "%s", c.Message)
	}
	return nil
}

// remove deletes the CiliumNode of a Node that the API server, not only the cache, says is gone.
func (r *CiliumNodes) remove(ctx context.Context, cn *v1alpha1.CiliumNode) error {
	node := &metav1.PartialObjectMetadata{}
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	err := r.Live.Get(ctx, client.ObjectKey{Name: cn.Name}, node)
	if err == nil {
		return nil // its event is on the way
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("look for node %s: %w", cn.Name, err)
	}
	return deleteAsSeen(ctx, r.Client, cn)
}

// deleteAsSeen deletes an object unless it has changed since it was read. What is gone already is no error.
func deleteAsSeen(ctx context.Context, c client.Writer, o client.Object) error {
	uid, rv := o.GetUID(), o.GetResourceVersion()
	err := c.Delete(ctx, o, client.Preconditions{UID: &uid, ResourceVersion: &rv})
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("delete %T %s: %w", o, client.ObjectKeyFromObject(o), err)
}

// applied turns a condition into its form for server-side apply.
func applied(c metav1.Condition) *metaac.ConditionApplyConfiguration {
	return metaac.Condition().WithType(c.Type).WithStatus(c.Status).WithReason(c.Reason).WithMessage(c.Message).
		WithObservedGeneration(c.ObservedGeneration).WithLastTransitionTime(c.LastTransitionTime)
}

// fresh tells whether the holder of a Lease is alive.
func fresh(l *coordinationv1.Lease, now time.Time) bool {
	return now.Before(expiry(l))
}

// expiry is when a Lease that nobody renews ends; the zero time for one that was never renewed.
func expiry(l *coordinationv1.Lease) time.Time {
	if l.Spec.RenewTime == nil {
		return time.Time{}
	}
	seconds := int32(40)
	if l.Spec.LeaseDurationSeconds != nil {
		seconds = *l.Spec.LeaseDurationSeconds
	}
	return l.Spec.RenewTime.Add(time.Duration(seconds) * time.Second)
}
