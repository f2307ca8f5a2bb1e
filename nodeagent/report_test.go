// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"testing"

	apimeta "k8s.io/apimachinery/pkg/api/meta"

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
