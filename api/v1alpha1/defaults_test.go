// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// Defaults were written a second time where they are used, and could drift from what the schema says.
func TestSchemaHasTheDefaultsOfTheCode(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "config", "crd", "bases", "kube-cilium.io_ciliumconfigs.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(raw, &crd); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]any{
		"spec.clusterName":                     v1alpha1.DefaultClusterName,
		"spec.flows.reporting":                 v1alpha1.FlowReportingDefault,
		"spec.bigTCP":                          v1alpha1.BigTCPOff,
		"spec.routing.tunnelPort":              v1alpha1.DefaultTunnelPort,
		"spec.conntrack.maxEntries":            v1alpha1.DefaultConntrackMaxEntries,
		"spec.conntrack.unansweredPerEndpoint": v1alpha1.DefaultUnansweredPerEndpoint,
	} {
		at := *crd.Spec.Versions[0].Schema.OpenAPIV3Schema
		for _, name := range strings.Split(path, ".") {
			at = at.Properties[name]
		}
		text, err := json.Marshal(want)
		if err != nil || at.Default == nil || string(at.Default.Raw) != string(text) {
			t.Errorf("%s: the schema has %+v, the code %v", path, at.Default, want)
		}
	}
	absent := (&v1alpha1.CiliumConfigSpec{}).EffectiveIPAM()
	if absent.IPv6 != nil || len(absent.IPv4.CIDRs) != 1 || absent.IPv4.CIDRs[0] != v1alpha1.DefaultIPv4Pool {
		t.Errorf("%+v", absent)
	}
}
