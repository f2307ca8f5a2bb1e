// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
)

// Reasons of what is not in force.
const (
	reasonTableFull = "TableFull"
	reasonInvalid   = "Invalid"
	reasonWrite     = "WriteFailed"
	reasonManyPorts = "TooManyPorts"
)

// Ready says why the policies are not in force yet.
func (p *Policies) Ready() error {
	select {
	case <-p.ready:
		return nil
	default:
	}
	if err := p.InForce().err; err != nil {
		return err
	}
	return errNoPolicies
}

// Progress is how far NetworkPolicies are in force.
func (p *Policies) Progress() v1alpha1.PolicyProgress {
	now := p.InForce()
	out := v1alpha1.PolicyProgress{Kind: policy.KindNetworkPolicy, Count: int32(now.count)}
	// More exceptions than can be listed: no policy is said to be in force, or those left out would be taken for it.
	if !now.at.IsZero() && len(now.exceptions) <= v1alpha1.MaxPolicyExceptions {
		out.InForce = strconv.FormatUint(now.version, 10)
	}
	out.Exceptions = now.exceptions[:min(len(now.exceptions), v1alpha1.MaxPolicyExceptions)]
	return out
}

// exceptions are the policies of which something is not in force, in one order.
func (p *Policies) exceptions(failed map[uint16]error, wanted map[uint16]datapath.PodPolicy, leftOut map[policy.Ref]policy.LeftOut) []v1alpha1.PolicyException {
	found := map[policy.Ref]v1alpha1.PolicyException{}
	for ref, why := range leftOut {
		found[ref] = exception(ref, leftOutReason(why), why.String())
	}
	names := map[uint16]*endpoint.Endpoint{}
	for _, e := range p.pods() {
		names[e.ID] = e
	}
	for _, id := range sortedIDs(failed) {
		e := names[id]
		if e == nil {
			continue
		}
		for _, ref := range p.selecting(wanted[id].Ingress, wanted[id].Egress) {
			if _, ok := found[ref]; !ok {
				found[ref] = exception(ref, reasonTableFull, fullText(e, failed[id]))
			}
		}
	}
	out := make([]v1alpha1.PolicyException, 0, len(found))
	for _, x := range found {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b v1alpha1.PolicyException) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func exception(ref policy.Ref, reason, message string) v1alpha1.PolicyException {
	if len(message) > maxMessage {
		message = message[:maxMessage]
	}
	return v1alpha1.PolicyException{Namespace: ref.Namespace, Name: ref.Name, Reason: reason, Message: message}
}

func fullText(e *endpoint.Endpoint, err error) string {
	return fmt.Sprintf("pod %s/%s goes on with the policy that it had (a new pod: closed where it is isolated): %v", e.Pod.Namespace, e.Pod.Name, err)
}

func leftOutReason(why policy.LeftOut) string {
	if errors.Is(why.Err, policy.ErrNoRoom) {
		return reasonTableFull
	}
	return reasonInvalid
}

func sortedIDs(failed map[uint16]error) []uint16 {
	out := make([]uint16, 0, len(failed))
	for id := range failed {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// selecting are the policies that made the given tables.
func (p *Policies) selecting(tables ...*policy.Table) []policy.Ref {
	var out []policy.Ref
	for _, t := range tables {
		if t == nil {
			continue
		}
		if why, ok := p.engine.Provenance(t.Default); ok {
			for _, o := range why.Origins {
				if !slices.Contains(out, o.Ref) {
					out = append(out, o.Ref)
				}
			}
		}
	}
	return out
}

// leftOutOf are those of a pod's policies that are left out.
func (p *Policies) leftOutOf(leftOut map[policy.Ref]policy.LeftOut, has datapath.PodPolicy) []policy.Ref {
	if len(leftOut) == 0 {
		return nil
	}
	return slices.DeleteFunc(p.selecting(has.Ingress, has.Egress), func(ref policy.Ref) bool { _, out := leftOut[ref]; return !out })
}

// Shown is what is in force for an endpoint, for people.
func (p *Policies) Shown(e *endpoint.Endpoint) (v1alpha1.EndpointPolicy, metav1.Condition) {
	now := p.InForce()
	has, ok := now.pods[e.ID]
	out := p.leftOutOf(now.leftOut, has)
	shown := v1alpha1.EndpointPolicy{Ingress: p.direction(has.Ingress), Egress: p.direction(has.Egress)}
	c := metav1.Condition{Type: v1alpha1.ConditionPolicyEnforced, Status: metav1.ConditionTrue, Reason: "InForce", Message: "the policies that select the pod are in force"}
	switch err := now.failed[e.ID]; {
	case errors.Is(err, datapath.ErrPolicyFull):
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, reasonTableFull, fullText(e, err)
	case err != nil:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, reasonWrite, fullText(e, err)
	case len(out) > 0:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, leftOutReason(now.leftOut[out[0]]), fmt.Sprintf("%s: %s", out[0], now.leftOut[out[0]])
	case !ok:
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, "Waiting", "the pod's policy is not written yet, and the pod has what it had before: nothing, if it is new"
	case len(e.Ports) > v1alpha1.MaxPortsPerEndpoint:
		c.Status, c.Reason = metav1.ConditionFalse, reasonManyPorts
		c.Message = fmt.Sprintf("the pod has %d ports with a name; to pods of other nodes only the first %d in the order of names are known by it, from %s to %s",
			len(e.Ports), v1alpha1.MaxPortsPerEndpoint, e.Ports[0].Name, e.Ports[v1alpha1.MaxPortsPerEndpoint-1].Name)
	case !shown.Ingress.Enforced && !shown.Egress.Enforced:
		c.Reason, c.Message = "NotSelected", "no policy selects the pod: everything is allowed"
	}
	return shown, c
}

// maxShown bounds the policies of one direction, as the CRD does.
const maxShown = 64

func (p *Policies) direction(t *policy.Table) v1alpha1.DirectionPolicy {
	if t == nil {
		return v1alpha1.DirectionPolicy{}
	}
	out := v1alpha1.DirectionPolicy{Enforced: true, Entries: int32(len(t.Entries))}
	for _, ref := range p.selecting(t) {
		out.Policies = append(out.Policies, ref.String())
	}
	slices.Sort(out.Policies)
	out.Policies = out.Policies[:min(len(out.Policies), maxShown)]
	return out
}
