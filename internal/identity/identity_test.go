// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func genLabels(t *rapid.T, name string) map[string]string {
	key := rapid.OneOf(
		rapid.StringMatching(`[a-z]{1,6}(\.[a-z]{1,4})?(/[a-z]{1,6})?`),
		rapid.SampledFrom([]string{
			KeyNamespace, KeyServiceAccount, KeyCluster, KeyNamespaceLabels + "team",
			"reserved:host", "reserved.host", "k8s:" + KeyNamespace, "reserved", "host",
			"io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", "pod-template-hash", "app.kubernetes.io/name",
		}),
	)
	return rapid.MapOfN(key, rapid.StringMatching(`[a-z0-9]{0,5}`), 0, 8).Draw(t, name)
}

// GHSA-pfhr-pccp-hwmh and CVE-2023-39347: labels that a user writes on a pod must not decide what namespace it is
// taken to be in, nor make it a reserved one.
func TestUserLabelsNeverReachWhatIsNotTheirs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := Workload{Namespace: "tenant", NamespaceLabels: genLabels(t, "namespace"), ServiceAccount: "default", Cluster: "c"}
		without, err := ForPod(w, DefaultFilter())
		if err != nil {
			t.Fatal(err)
		}
		w.Labels = genLabels(t, "pod")
		with, err := ForPod(w, DefaultFilter())
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range without {
			if with[k] != v {
				t.Fatalf("%s: %q became %q by pod labels %v", k, v, with[k], w.Labels)
			}
		}
		for k := range with {
			if strings.HasPrefix(k, SourceReserved+":") {
				t.Fatalf("reserved label %s from pod labels %v", k, w.Labels)
			}
			if _, ok := without[k]; !ok && (k == "k8s:"+KeyNamespace || strings.HasPrefix(k, "k8s:io.cilium.k8s.")) {
				t.Fatalf("a pod label became %s", k)
			}
		}
	})
}

func TestCanonicalIsOneToOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := Labels(genLabels(t, "a")), Labels(genLabels(t, "b"))
		if (a.Canonical() == b.Canonical()) != a.Equal(b) {
			t.Fatalf("%v and %v: %q and %q", a, b, a.Canonical(), b.Canonical())
		}
	})
	a := Labels{"k8s:a": "b1:c1=d"}
	b := Labels{"k8s:a": "b", "c": "d"}
	if a.Canonical() == b.Canonical() {
		t.Error("a value that looks like the next label is taken for it")
	}
}

func TestCandidates(t *testing.T) {
	key, other := KeyFromCluster("uid-1"), KeyFromCluster("uid-2")
	rapid.Check(t, func(t *rapid.T) {
		l := Labels(genLabels(t, "labels"))
		seen := map[Number]bool{}
		for attempt := range 8 {
			n := key.Candidate(l, attempt)
			if !n.Allocated() {
				t.Fatalf("candidate %d", n)
			}
			if n != key.Candidate(maps.Clone(l), attempt) {
				t.Fatal("the same set gave two numbers")
			}
			seen[n] = true
		}
		if len(seen) < 7 {
			t.Fatalf("probing stays in one place: %v", seen)
		}
	})
	l := Labels{"k8s:app": "web"}
	if key.Candidate(l, 0) == other.Candidate(l, 0) {
		t.Error("two clusters share a key")
	}
}

func TestCandidatesSpread(t *testing.T) {
	key := KeyFromCluster("uid")
	buckets := make([]int, 16)
	for i := range 16000 {
		n := key.Candidate(Labels{"k8s:app": fmt.Sprint(i)}, 0)
		buckets[int(n)*16>>24]++
	}
	for b, n := range buckets {
		if n < 800 || n > 1200 {
			t.Errorf("bucket %d holds %d of 16000", b, n)
		}
	}
}

func TestFilter(t *testing.T) {
	for key, want := range map[string]bool{
		"app":                                      true,
		"app.kubernetes.io/name":                   true,
		"security.example.com/zone":                true,
		"kubernetes.io/os":                         false,
		"io.kubernetes.container.name":             false,
		"pod-template-hash":                        false,
		"controller-revision-hash":                 false,
		"statefulset.kubernetes.io/pod-name":       false,
		"apps.kubernetes.io/pod-index":             false,
		"batch.kubernetes.io/job-completion-index": false,
		"batch.kubernetes.io/job-name":             true,
		"failure-domain.beta.kubernetes.io/zone":   false,
		"topology.kubernetes.io/zone":              false,
	} {
		if got := DefaultFilter().Keeps(key); got != want {
			t.Errorf("%s: keeps %v", key, got)
		}
	}
}

func TestParse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, err := ForPod(Workload{Namespace: "ns", Labels: genLabels(t, "l")}, DefaultFilter())
		if err != nil {
			t.Fatal(err)
		}
		back, err := Parse(l.Strings())
		if err != nil || !back.Equal(l) {
			t.Fatalf("%v: %v, %v", l, back, err)
		}
	})
	for _, bad := range []string{"", "app=web", ":a=b", "k8s:"} {
		if _, err := Parse([]string{bad}); !errors.Is(err, ErrBadLabel) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseNumber(t *testing.T) {
	for _, bad := range []string{"", "0", "255", "16777216", "0256", "+300", "-1", "1e3", "4294967552", "abc"} {
		if n, err := ParseNumber(bad); !errors.Is(err, ErrBadNumber) {
			t.Errorf("%q: %d, %v", bad, n, err)
		}
	}
	for _, good := range []Number{Min, 300, Max} {
		if n, err := ParseNumber(good.String()); err != nil || n != good {
			t.Errorf("%d: %d, %v", good, n, err)
		}
	}
}

func TestTooManyLabels(t *testing.T) {
	w := Workload{Namespace: "ns", Labels: map[string]string{}}
	for i := range MaxLabels {
		w.Labels[fmt.Sprintf("l%d", i)] = ""
	}
	if _, err := ForPod(w, DefaultFilter()); !errors.Is(err, ErrTooManyLabels) {
		t.Error(err)
	}
}
