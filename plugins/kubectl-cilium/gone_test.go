// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// served are kinds of Kubernetes by their group and version, as name of the resource and kind.
var served = map[string][]string{
	"v1":                     {"pods Pod", "namespaces Namespace", "services Service", "nodes Node"},
	"networking.k8s.io/v1":   {"networkpolicies NetworkPolicy"},
	"discovery.k8s.io/v1":    {"endpointslices EndpointSlice"},
	"coordination.k8s.io/v1": {"leases Lease"},
}

// withoutOurs is an API server whose lists are empty and from which our kinds are gone. A stale one still tells of them,
// as what a client has kept of discovery does for hours.
func withoutOurs(stale bool) http.Handler {
	known := maps.Clone(served)
	if stale {
		known[v1alpha1.GroupVersion.String()] = []string{"ciliumnodes CiliumNode", "ciliumnodereports CiliumNodeReport",
			"ciliumconfigs CiliumConfig", "ciliumidentities CiliumIdentity"}
	}
	mux := http.NewServeMux()
	answer := func(path, text string) {
		mux.HandleFunc(path+"/{$}", func(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) })
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, text)
		})
	}
	answer("/api", `{"kind":"APIVersions","versions":["v1"]}`)
	var groups []string
	for _, gv := range slices.Sorted(maps.Keys(known)) {
		path := "/apis/" + gv
		if group, version, found := strings.Cut(gv, "/"); found {
			v := fmt.Sprintf(`{"groupVersion":%q,"version":%q}`, gv, version)
			groups = append(groups, fmt.Sprintf(`{"name":%q,"versions":[%s],"preferredVersion":%s}`, group, v, v))
		} else {
			path = "/api/" + gv
		}
		var resources []string
		for _, r := range known[gv] {
			name, kind, _ := strings.Cut(r, " ")
			resources = append(resources, fmt.Sprintf(`{"name":%q,"kind":%q,"verbs":["list"]}`, name, kind))
			if _, there := served[gv]; there {
				answer(path+"/"+name, fmt.Sprintf(`{"kind":"%sList","apiVersion":%q,"items":[]}`, kind, gv))
			}
		}
		answer(path, fmt.Sprintf(`{"kind":"APIResourceList","groupVersion":%q,"resources":[%s]}`, gv, strings.Join(resources, ",")))
	}
	answer("/apis", `{"kind":"APIGroupList","apiVersion":"v1","groups":[`+strings.Join(groups, ",")+`]}`)
	return mux
}

// After uninstall, lists of our kinds said up to three times that the server could not find the requested resource.
func TestListsOfWhatIsNotInstalled(t *testing.T) {
	for _, stale := range []bool{false, true} {
		server := httptest.NewServer(withoutOurs(stale))
		defer server.Close()
		config := filepath.Join(t.TempDir(), "config")
		text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "shop-eu", "clusters": [{"name": "c", "cluster": {"server": %q}}],
			"contexts": [{"name": "shop-eu", "context": {"cluster": "c"}}]}`, server.URL)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range []string{"policy list -A", "identity list", "identity get 16385", "node list -o json"} {
			s := testStreams()
			all := append([]string{"--kubeconfig", config, "--cache-dir", t.TempDir()}, strings.Fields(args)...)
			code := run(t.Context(), s, all)
			out, said := s.Out.(*bytes.Buffer).String(), s.ErrOut.(*bytes.Buffer).String()
			if want := "error: kube-cilium is not installed in this cluster (context shop-eu)\n"; code != 1 || said != want || out != "" {
				t.Errorf("stale %t: %s: exit %d, %q, stderr %q", stale, args, code, out, said)
			}
		}
	}
}
