// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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

// errPodGone means that the API server does not know the pod for which the runtime asks.
var errPodGone = errors.New("the pod was deleted or replaced")

// liveTimeout bounds a question to the API server while a pod waits for its interface.
const liveTimeout = 3 * time.Second

// Pods tells who the pods of this node are, and keeps the endpoints' identities so.
type Pods struct {
	cache      client.Reader
	live       client.Reader
	identities *Identities
	endpoints  func() *endpoint.Set
	filter     identity.Filter
	wake       bell // of the identities' reconciler
	memory     podMemory
	// learn tells the policies of labels and numbers before they are in force.
	learn func([]endpoint.Who) error
	// relabelled is called when a pod that is there has got other labels or another number: other policies may select it.
	relabelled func()
	// expected tells whether a pod came to this node just now, so that its ADD may be on its way.
	expected func(types.UID) bool
}

// Identify answers for a pod that is about to get its interface. When nobody can be asked the pod is pending: it is
// not refused, since it may be the one that brings the API server back.
func (p *Pods) Identify(ctx context.Context, ref cni.Pod) (endpoint.Who, error) {
	pending := endpoint.Who{Identity: identity.Pending}
	if ref.Namespace == "" || ref.Name == "" {
		return pending, nil
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	pod, err := p.pod(ctx, ref)
	if err == nil && pod == nil {
		return p.memory.recall(ref.UID, pending), nil
	}
	if err != nil {
		return pending, err
	}
	who, err := p.who(ctx, pod)
	if err != nil || who.Labels == nil {
		return pending, err
	}
	if who.Identity = p.identities.Ask(who.Labels); who.Identity == identity.Pending {
		p.wake.ring()
	}
	return who, nil
}

// pod finds a pod in the cache, or asks. It returns nil when nobody can be asked, and errPodGone.
func (p *Pods) pod(ctx context.Context, ref cni.Pod) (*corev1.Pod, error) {
	key := types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
	pod := &corev1.Pod{}
	if err := p.cache.Get(ctx, key, pod); err == nil && isPod(pod, ref.UID) {
		return pod, nil
	}
	switch err := p.live.Get(ctx, key, pod); {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("%w: %s", errPodGone, key)
	case err != nil:
		return nil, nil //nolint:nilerr // the API server is away: pending
	case !isPod(pod, ref.UID):
		return nil, fmt.Errorf("%w: %s has UID %s now", errPodGone, key, pod.UID)
	}
	return pod, nil
}

// isPod tells whether an object is the pod that the runtime means. The runtime knows a static pod by the hash that
// its kubelet made; the API server's mirror of it has another UID and the hash as an annotation.
func isPod(pod *corev1.Pod, uid string) bool {
	return uid == "" || string(pod.UID) == uid || pod.Annotations[corev1.MirrorPodAnnotationKey] == uid
}

// who says who a pod is, all but its number; Labels are nil when its namespace is not known yet.
func (p *Pods) who(ctx context.Context, pod *corev1.Pod) (endpoint.Who, error) {
	var ns corev1.Namespace
	if err := p.cache.Get(ctx, types.NamespacedName{Name: pod.Namespace}, &ns); err != nil {
		if err := p.live.Get(ctx, types.NamespacedName{Name: pod.Namespace}, &ns); err != nil {
			return endpoint.Who{Identity: identity.Pending, Ports: policy.NamedPorts(pod)}, nil //nolint:nilerr // heals when the namespace comes
		}
	}
	var config v1alpha1.CiliumConfig
	cluster := v1alpha1.DefaultClusterName
	if err := p.cache.Get(ctx, types.NamespacedName{Name: v1alpha1.ConfigName}, &config); err == nil && config.Spec.ClusterName != "" {
		cluster = config.Spec.ClusterName
	}
	known, err := policy.FromPod(pod, ns.Labels, cluster, p.filter)
	return endpoint.Who{Identity: identity.Pending, Labels: known.Labels, Subject: known.Whole, Ports: known.Ports}, err
}

func protocolName(number uint8) corev1.Protocol {
	for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		if policy.ProtocolNumber(p) == number {
			return p
		}
	}
	return ""
}

// Reconcile gives every endpoint of this node the identity that its pod has now.
func (p *Pods) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	set := p.endpoints()
	if set == nil {
		return ctrl.Result{}, nil
	}
	var wanted []identity.Labels
	var errs []error
	known := map[string]endpoint.Who{}
	changed := map[cni.Attachment]endpoint.Who{}
	for _, e := range set.List() {
		who := e.Who()
		var pod corev1.Pod
		err := p.cache.Get(ctx, types.NamespacedName{Namespace: e.Pod.Namespace, Name: e.Pod.Name}, &pod)
		if err == nil && isPod(&pod, e.Pod.UID) {
			now, err := p.who(ctx, &pod)
			if err != nil {
				errs = append(errs, fmt.Errorf("pod %s/%s: %w", e.Pod.Namespace, e.Pod.Name, err))
			} else if now.Labels != nil {
				who = now
			}
		}
		if who.Labels == nil {
			continue // stays pending until its pod is seen
		}
		wanted = append(wanted, who.Labels)
		who.Identity = p.identities.Lookup(who.Labels)
		known[e.Pod.UID] = who
		if !who.Equal(e.Who()) {
			changed[e.Attachment] = who
		}
	}
	coming, err := p.coming(ctx)
	errs = append(errs, err)
	if len(changed) > 0 {
		// Tables that name a number come before the number: else its first packets meet a table that does not know it.
		errs = append(errs, p.learn(slices.Collect(maps.Values(changed))))
	}
	for a, who := range changed {
		err := set.SetIdentity(ctx, a, who)
		if errors.Is(err, datapath.ErrNotConfigured) {
			continue // the bell rings when it is
		}
		errs = append(errs, err)
		p.relabelled()
	}
	again, missing := p.identities.Want(wanted, coming)
	errs = append(errs, p.memory.keep(known))
	if missing {
		p.wake.ring()
	}
	return ctrl.Result{RequeueAfter: again}, errors.Join(errs...)
}

// coming is who the pods are whose ADD may be on its way: a number that is confirmed by then spares the pod to be
// pending, and the tables to be written twice.
func (p *Pods) coming(ctx context.Context) ([]identity.Labels, error) {
	var pods corev1.PodList
	if err := p.cache.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("pods of this node: %w", err)
	}
	var out []identity.Labels
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Spec.HostNetwork || pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodPending || !p.expected(pod.UID) {
			continue
		}
		var ns corev1.Namespace // nobody is waited for here: its event comes
		if p.cache.Get(ctx, types.NamespacedName{Name: pod.Namespace}, &ns) != nil {
			continue
		}
		if who, err := p.who(ctx, pod); err == nil && who.Labels != nil { // what is wrong with it is said in its ADD
			out = append(out, who.Labels)
		}
	}
	return out, nil
}
