// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

func report(node, inForce string, exceptions ...v1alpha1.PolicyException) v1alpha1.CiliumNodeReport {
	r := v1alpha1.CiliumNodeReport{ObjectMeta: metav1.ObjectMeta{Name: node}}
	r.Status.Policies = []v1alpha1.PolicyProgress{{Kind: "NetworkPolicy", InForce: inForce, Exceptions: exceptions}}
	return r
}

func TestProgressCountsNodesThatCanBeWaitedFor(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	lease := func(node string, age time.Duration) coordinationv1.Lease {
		return coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AgentLeasePrefix + node},
			Spec:       coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: now.Add(-age)}},
		}
	}
	v := View{
		Now: now,
		Reports: []v1alpha1.CiliumNodeReport{
			report("f-never", "200"), report("e-old", "99"), report("d-away", "50"),
			report("c-full", "200", v1alpha1.PolicyException{Namespace: "shop", Name: "web", Reason: "TableFull", Message: "the last one stays"}),
			report("b-other", "200", v1alpha1.PolicyException{Namespace: "shop", Name: "other", Reason: "TableFull"}),
			report("a-well", "100"), {ObjectMeta: metav1.ObjectMeta{Name: "g-silent"}},
		},
		Leases: []coordinationv1.Lease{lease("a-well", 0), lease("b-other", 0), lease("c-full", 0), lease("d-away", time.Hour), lease("e-old", 0), lease("g-silent", 0)},
	}
	got := v.Of("NetworkPolicy", "shop", "web", "100")
	want := Policy{InForce: 2, Wanted: 5, Nodes: []Node{
		{Name: "a-well", State: InForce},
		{Name: "b-other", State: InForce},
		{Name: "c-full", State: Exception, Reason: "TableFull", Message: "the last one stays"},
		{Name: "d-away", State: Unreachable, Message: "nothing was heard from its agent for 1h0m0s"},
		{Name: "e-old", State: Behind, Message: "has come to resourceVersion 99, the policy is at 100"},
		{Name: "f-never", State: Unreachable, Message: "its agent holds no lease"},
		{Name: "g-silent", State: Behind, Message: "its agent has not said anything about policies of this kind yet"},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got.Done() || len(got.In(Unreachable)) != 2 {
		t.Errorf("done %v, unreachable %v", got.Done(), got.In(Unreachable))
	}
}

// 9 is before 10 as a number, after it as a string.
func TestResourceVersionsAreNumbers(t *testing.T) {
	for _, c := range []struct {
		have, want string
		reached    bool
	}{{"10", "9", true}, {"9", "10", false}, {"10", "10", true}, {"", "1", false}, {"x", "1", false}, {"1", "", false}} {
		if got := reached(c.have, c.want); got != c.reached {
			t.Errorf("%q has reached %q: %v", c.have, c.want, got)
		}
	}
}
