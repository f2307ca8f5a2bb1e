// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

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
