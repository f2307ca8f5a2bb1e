// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// rights reads every rule of the roles of one name, as "namespace group/resource: verbs".
func rights(t *testing.T, name string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("rbac", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range bytes.Split(raw, []byte("\n---\n")) {
			var role rbacv1.Role // a ClusterRole reads the same; its namespace is empty
			if err := yaml.Unmarshal(doc, &role); err != nil {
				t.Fatalf("%s: %v", f, err)
			}
			if role.Name != name || (role.Kind != "Role" && role.Kind != "ClusterRole") {
				continue
			}
			for _, r := range role.Rules {
				if len(r.NonResourceURLs) > 0 {
					t.Errorf("%s: a rule that this test does not understand: %v", f, r)
				}
				names := ""
				if len(r.ResourceNames) > 0 {
					names = fmt.Sprint(r.ResourceNames)
				}
				for _, g := range r.APIGroups {
					for _, res := range r.Resources {
						slices.Sort(r.Verbs)
						out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s/%s%s: %s", role.Namespace, g, res, names, strings.Join(r.Verbs, " "))))
					}
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// CVE-2022-29179 (GHSA-fmrf-gvjp-5j5g): an agent whose service account may do much makes one lost node a lost cluster.
// Every right of both service accounts is listed here: whoever adds one has to say so in two places.
func TestCVE_2022_29179_EveryRightIsListed(t *testing.T) {
	want := map[string][]string{
		"cilium-agent": {
			"/namespaces: get list watch",
			"/nodes: get list watch",
			"/pods: get list watch",
			"/services: get list watch",
			"authentication.k8s.io/tokenreviews: create",
			"discovery.k8s.io/endpointslices: get list watch",
			"events.k8s.io/events: create patch",
			"kube-cilium-system coordination.k8s.io/leases: create get patch update",
			"kube-cilium.io/ciliumconfigs: get list watch",
			"kube-cilium.io/ciliumendpoints/status: patch update",
			"kube-cilium.io/ciliumendpoints: create delete get list patch update watch",
			"kube-cilium.io/ciliumendpointslices: create delete get list patch update watch",
			"kube-cilium.io/ciliumidentities: create get list patch update watch",
			"kube-cilium.io/ciliumnodereports/status: patch update",
			"kube-cilium.io/ciliumnodereports: create get list patch update watch",
			"kube-cilium.io/ciliumnodes/status: patch update",
			"kube-cilium.io/ciliumnodes: get list watch",
			"networking.k8s.io/networkpolicies: get list watch",
			"networking.k8s.io/servicecidrs: get list watch",
		},
		"cilium-operator": {
			"/nodes/status: patch",
			"/nodes: get list patch watch",
			"/pods: get list watch",
			"default discovery.k8s.io/endpointslices: get list watch",
			"events.k8s.io/events: create patch",
			"kube-cilium-system /configmaps: create",
			"kube-cilium-system /events: create patch",
			"kube-cilium-system /configmaps[cilium-prefixes]: get list update watch",
			"kube-cilium-system coordination.k8s.io/leases: create delete get list patch update watch",
			"kube-cilium.io/ciliumconfigs/status: patch",
			"kube-cilium.io/ciliumconfigs: get list watch",
			"kube-cilium.io/ciliumendpoints: delete get list watch",
			"kube-cilium.io/ciliumendpointslices: delete get list watch",
			"kube-cilium.io/ciliumidentities: delete get list patch update watch",
			"kube-cilium.io/ciliumnodereports: delete get list watch",
			"kube-cilium.io/ciliumnodes/finalizers: update",
			"kube-cilium.io/ciliumnodes/status: patch",
			"kube-cilium.io/ciliumnodes: create delete get list patch update watch",
			"networking.k8s.io/servicecidrs: get list watch",
		},
	}
	for name, list := range want {
		got := rights(t, name)
		for _, r := range got {
			if !slices.Contains(list, r) {
				t.Errorf("%s: a right that is not listed: %s", name, r)
			}
			if strings.Contains(r, "*") || strings.Contains(r, "secrets") || strings.Contains(r, "/exec") || strings.Contains(r, "impersonate") ||
				strings.Contains(r, "escalate") || strings.Contains(r, "bind") || strings.Contains(r, "serviceaccounts") || strings.Contains(r, "proxy") {
				t.Errorf("%s: a right that leads to the whole cluster: %s", name, r)
			}
		}
		for _, r := range list {
			if !slices.Contains(got, r) {
				t.Errorf("%s: a right that is listed and not given: %s", name, r)
			}
		}
	}
}
