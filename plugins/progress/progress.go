// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// State of a policy on a node.
type State string

const (
	// InForce: every change of the policy up to now is enforced.
	InForce State = "InForce"
	// Behind: the node has not come as far as the policy's last change.
	Behind State = "Behind"
	// Exception: the node says that a part of the policy is not in force.
	Exception State = "Exception"
	// Unreachable: nothing was heard from the node's agent lately. Nobody waits for it; what was in force there stays.
	Unreachable State = "Unreachable"
)

// Node is how far one node is.
type Node struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Reason and Message say more, where there is more to say.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// Policy is how far one policy is.
type Policy struct {
	// InForce of Wanted nodes enforce it; unreachable ones do not count for either.
	InForce int `json:"inForce"`
	Wanted  int `json:"wanted"`
	// Nodes by name.
	Nodes []Node `json:"nodes"`
}

// Done says that nobody needs to be waited for.
func (p Policy) Done() bool { return p.InForce == p.Wanted }

// Counts is n/n.
func (p Policy) Counts() string { return fmt.Sprintf("%d/%d", p.InForce, p.Wanted) }

// In are the nodes in a state.
func (p Policy) In(states ...State) []Node {
	var all []Node
	for _, n := range p.Nodes {
		if slices.Contains(states, n.State) {
			all = append(all, n)
		}
	}
	return all
}

// View is what the cluster's agents say at one time.
type View struct {
	Now     time.Time
	Reports []v1alpha1.CiliumNodeReport
	// Leases of the agents' namespace.
	Leases []coordinationv1.Lease
}

// grace is how long a lease counts where it does not say.
const grace = 40 * time.Second

// silent is how long ago a node was heard from, where that is too long; "" while its lease is fresh.
func (v *View) silent(node string) string {
	i := slices.IndexFunc(v.Leases, func(l coordinationv1.Lease) bool { return l.Name == v1alpha1.AgentLeasePrefix+node })
	if i < 0 || v.Leases[i].Spec.RenewTime == nil {
		return "its agent holds no lease"
	}
	spec, limit := &v.Leases[i].Spec, grace
	if spec.LeaseDurationSeconds != nil {
		limit = time.Duration(*spec.LeaseDurationSeconds) * time.Second
	}
	if age := v.Now.Sub(spec.RenewTime.Time); age > limit {
		return fmt.Sprintf("nothing was heard from its agent for %s", age.Round(time.Second))
	}
	return ""
}

// Of says how far a policy of a kind is, of which the API server has the given resourceVersion.
func (v *View) Of(kind, namespace, name, resourceVersion string) Policy {
	out := Policy{Nodes: []Node{}}
	for i := range v.Reports {
		r := &v.Reports[i]
		n := Node{Name: r.Name}
		if why := v.silent(r.Name); why != "" {
			n.State, n.Message = Unreachable, why
			out.Nodes = append(out.Nodes, n)
			continue
		}
		out.Wanted++
		n.judge(r, kind, namespace, name, resourceVersion)
		if n.State == InForce {
			out.InForce++
		}
		out.Nodes = append(out.Nodes, n)
	}
	slices.SortFunc(out.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (n *Node) judge(r *v1alpha1.CiliumNodeReport, kind, namespace, name, resourceVersion string) {
	i := slices.IndexFunc(r.Status.Policies, func(p v1alpha1.PolicyProgress) bool { return p.Kind == kind })
	if i < 0 {
		n.State, n.Message = Behind, "its agent has not said anything about policies of this kind yet"
		return
	}
	p := &r.Status.Policies[i]
	e := slices.IndexFunc(p.Exceptions, func(e v1alpha1.PolicyException) bool { return e.Namespace == namespace && e.Name == name })
	switch {
	case e >= 0:
		n.State, n.Reason, n.Message = Exception, p.Exceptions[e].Reason, p.Exceptions[e].Message
	case !reached(p.InForce, resourceVersion):
		n.State, n.Message = Behind, fmt.Sprintf("has come to resourceVersion %s, the policy is at %s", orNone(p.InForce), resourceVersion)
	default:
		n.State = InForce
	}
}

// reached compares as numbers, which the API server promises since Kubernetes 1.35.
func reached(inForce, wanted string) bool {
	have, err := strconv.ParseUint(inForce, 10, 64)
	if err != nil {
		return false
	}
	want, err := strconv.ParseUint(wanted, 10, 64)
	return err == nil && have >= want
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
