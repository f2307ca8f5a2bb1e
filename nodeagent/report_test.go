// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

// An agent that restarted in a boot whose datapath was ready said DatapathReady=False until it had written its tables.
// One that died then for longer than its lease left a node that worked, and that the operator tainted.
func TestRestartedAgentDoesNotTakeBackDatapathReady(t *testing.T) {
	opened := &datapath.Datapath{}
	noPrefix := fmt.Errorf("%w: none of IPv4", errNoPrefix)
	for name, c := range map[string]struct {
		o           observed
		path, ready string
	}{
		"a first start":                      {observed{}, "False Starting", "False Probing"},
		"a first start, opened":              {observed{datapath: opened}, "False Starting", "False Starting"},
		"a restart":                          {observed{adopted: true}, "True Adopted", "False Probing"},
		"a restart, opened":                  {observed{adopted: true, datapath: opened}, "True Adopted", "False Waiting"},
		"a restart without prefixes":         {observed{adopted: true, datapath: opened, network: inForce{err: noPrefix}}, "True Adopted", "False NoPrefix"},
		"a restart that cannot open":         {observed{adopted: true, datapathErr: datapath.ErrNewerLayout}, "False NewerLayout", "False NotProbed"},
		"written":                            {observed{datapath: opened, network: inForce{configured: true}, serving: true, installed: true}, "True InForce", "True Ready"},
		"written, and a later attempt fails": {observed{datapath: opened, network: inForce{configured: true, err: datapath.ErrNoUplink}, serving: true, installed: true}, "True InForce", "False NoUplink"},
		"a name too long":                    {observed{datapathErr: errLongName}, "False NodeNameTooLong", "False NodeNameTooLong"},
		"another CNI":                        {observed{network: inForce{err: errOtherCNI}, installErr: errOtherCNI}, "False OtherCNI", "False OtherCNI"},
	} {
		all := makeConditions(c.o)
		for kind, want := range map[string]string{v1alpha1.ConditionDatapathReady: c.path, v1alpha1.ConditionReady: c.ready} {
			got := apimeta.FindStatusCondition(all, kind)
			if text := string(got.Status) + " " + got.Reason; text != want {
				t.Errorf("%s: %s is %s, want %s", name, kind, text, want)
			}
		}
	}
}

// statusKept is an API server that keeps the last status it was told.
type statusKept struct {
	client.Client
	knows  *runtime.Scheme
	status statusWriter
}

type statusWriter struct {
	client.SubResourceWriter
	last map[string]any
}

func (s *statusKept) Scheme() *runtime.Scheme          { return s.knows }
func (s *statusKept) Status() client.SubResourceWriter { return &s.status }

func (s *statusWriter) Apply(_ context.Context, obj runtime.ApplyConfiguration, _ ...client.SubResourceApplyOption) error {
	raw, err := json.Marshal(obj)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, &s.last)
}

// The counters of flows went to 0 with every change of a policy, until the next report of counters.
func TestNewsOfPoliciesKeepTheCounters(t *testing.T) {
	o := observed{policies: v1alpha1.PolicyProgress{Kind: "NetworkPolicy", InForce: "7"}}
	knows, err := scheme()
	if err != nil {
		t.Fatal(err)
	}
	kept := &statusKept{knows: knows}
	r := &Report{
		node: "n", writer: NewWriter(kept), observe: func() observed { return o }, standing: func() standing { return standing{} },
		made: true, last: makeReport(o, v1alpha1.CiliumNodeReportStatus{}), written: time.Now(),
	}
	r.last.Maps = []v1alpha1.MapReport{{Name: "conntrack", MaxEntries: 8}}
	r.last.Drops = []v1alpha1.PacketCounter{{Reason: "POLICY", Packets: 3}}
	r.last.Flows = v1alpha1.FlowCounters{Seen: 12, Lost: 1}
	before := r.last
	o.policies.InForce = "8"
	if err := r.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(r.last.Policies) != 1 || r.last.Policies[0].InForce != "8" {
		t.Fatalf("the news were not written: %+v", r.last)
	}
	if !apiequality.Semantic.DeepEqual(before.Flows, r.last.Flows) || !apiequality.Semantic.DeepEqual(before.Maps, r.last.Maps) ||
		!apiequality.Semantic.DeepEqual(before.Drops, r.last.Drops) {
		t.Errorf("flows %+v, maps %+v, drops %+v", r.last.Flows, r.last.Maps, r.last.Drops)
	}
	if flows, _, _ := unstructured.NestedMap(kept.status.last, "status", "flows"); fmt.Sprint(flows["seen"], flows["lost"]) != "12 1" {
		t.Errorf("written: %v", kept.status.last["status"])
	}
}

// A report of counters waited for its share of the budget, for up to a minute after many pods had come, and no policy was
// said to be in force meanwhile.
func TestCountersWithoutRoomDoNotHoldUpPolicies(t *testing.T) {
	o := observed{policies: v1alpha1.PolicyProgress{Kind: "NetworkPolicy", InForce: "7"}}
	knows, err := scheme()
	if err != nil {
		t.Fatal(err)
	}
	kept := &statusKept{knows: knows}
	r := &Report{
		node: "n", writer: NewWriter(kept), observe: func() observed { return o }, standing: func() standing { return standing{} },
		made: true, last: makeReport(o, v1alpha1.CiliumNodeReportStatus{}), written: time.Now().Add(-time.Minute),
	}
	for range budgetWrites {
		r.writer.budget.take(Shared)
		r.writer.budget.take(Background)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	o.endpoints = 100
	if err := r.look(ctx); err != nil || kept.status.last != nil {
		t.Fatalf("counters alone: %v, written %v", err, kept.status.last)
	}
	o.policies.InForce = "8"
	if err := r.look(ctx); err != nil || kept.status.last == nil {
		t.Fatalf("news of policies: %v, written %v", err, kept.status.last)
	}
	if r.last.Endpoints != 100 || r.last.Policies[0].InForce != "8" {
		t.Errorf("written: %+v", r.last)
	}
}

// A condition that turned at every look used up what news of policies have to share with it.
func TestFlappingConditionDoesNotHoldUpPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := observed{policies: v1alpha1.PolicyProgress{Kind: "NetworkPolicy"}}
		knows, err := scheme()
		if err != nil {
			t.Fatal(err)
		}
		r := &Report{
			node: "n", writer: NewWriter(&statusKept{knows: knows}), observe: func() observed { return o }, standing: func() standing { return standing{} },
			made: true,
		}
		for second := range 5 * 60 {
			o.installed, o.serving = second%2 == 0, second%2 == 0
			o.policies.InForce = fmt.Sprint(second + 1)
			if err := r.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			if late := time.Since(r.written); late > ordinaryPace {
				t.Fatalf("second %d: the last report is %v old", second, late)
			}
			time.Sleep(reportLook)
		}
	})
}

// What a repair could not do stood in the agent's log alone.
func TestRepairErrorsAreReported(t *testing.T) {
	o := observed{
		datapath: &datapath.Datapath{}, network: inForce{configured: true}, serving: true, installed: true,
		health: errors.Join(errors.New("route to 10.0.1.0/24: file exists"), errors.New("neighbour 10.0.0.9: no buffer space")),
	}
	got := apimeta.FindStatusCondition(makeConditions(o), v1alpha1.ConditionDatapathReady)
	want := "programs and maps are in force, but: neighbour 10.0.0.9: no buffer space; route to 10.0.1.0/24: file exists"
	if got.Status != metav1.ConditionTrue || got.Reason != v1alpha1.ReasonRepairFailing || got.Message != want {
		t.Errorf("%+v", got)
	}
	if text := oneLine(errors.New(strings.Repeat("é", maxMessage))); len(text) > maxMessage+4 || !utf8.ValidString(text) {
		t.Errorf("%d bytes: %q", len(text), text)
	}
}

// The Lease of a node with a long name was shortened, and the admission policy, which wants it in full, refused it; so
// did the API server the label of its endpoints. What is refused now is the name, with a reason.
func TestALongNodeNameHadALeaseThatNobodyAccepted(t *testing.T) {
	long := strings.Repeat("n", 63)
	if err := checkName(long); err != nil {
		t.Error(err)
	}
	for _, name := range []string{v1alpha1.AgentLeasePrefix + long, sliceName(long, 1<<30)} {
		if wrong := validation.IsDNS1123Subdomain(name); len(wrong) > 0 {
			t.Errorf("%s: %v", name, wrong)
		}
	}
	if err := checkName(long + "n"); !errors.Is(err, errLongName) {
		t.Errorf("64 characters: %v", err)
	}
}
