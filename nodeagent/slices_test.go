// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

func TestPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want []v1alpha1.SliceEndpoint
		have := map[string][]v1alpha1.SliceEndpoint{}
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			numbers := rapid.SliceOfNDistinct(rapid.IntRange(1, 250), 0, 200, rapid.ID).Draw(t, "pods")
			want = nil
			for _, n := range numbers {
				want = append(want, pod(fmt.Sprint(n), 300+int64(rapid.IntRange(0, 1).Draw(t, "identity")), fmt.Sprintf("10.0.0.%d", n)))
			}
			got := place("node", have, want)
			all := map[string]v1alpha1.SliceEndpoint{}
			for name, list := range got {
				if len(list) == 0 || len(list) > v1alpha1.MaxEndpointsPerSlice {
					t.Fatalf("%s holds %d", name, len(list))
				}
				for _, e := range list {
					all[e.Addresses[0]] = e
				}
			}
			if len(all) != len(want) {
				t.Fatalf("%d of %d pods have a place", len(all), len(want))
			}
			for _, e := range want {
				if !reflect.DeepEqual(all[e.Addresses[0]], e) {
					t.Fatalf("%v became %v", e, all[e.Addresses[0]])
				}
			}
			// Who had a place has kept it.
			for name, list := range have {
				for _, e := range list {
					if _, still := all[e.Addresses[0]]; still && !slices.ContainsFunc(got[name], func(x v1alpha1.SliceEndpoint) bool {
						return x.Addresses[0] == e.Addresses[0]
					}) {
						t.Fatalf("%s has left %s", e.Addresses[0], name)
					}
				}
			}
			if again := place("node", got, want); !reflect.DeepEqual(again, got) {
				t.Fatal("not stable")
			}
			have = maps.Clone(got)
		}
	})
}

func TestPlaceHealsForeignSlices(t *testing.T) {
	// A slice that somebody overfilled, and one pod in two of them.
	var many []v1alpha1.SliceEndpoint
	for i := range 70 {
		many = append(many, pod("p", 300, fmt.Sprintf("10.0.1.%d", i+1)))
	}
	have := map[string][]v1alpha1.SliceEndpoint{"node-1": many, "node-2": many[:1], "odd": {{Name: "no address"}}}
	got := place("node", have, many)
	if len(got["node-1"]) != 64 || len(got["node-2"])+len(got["odd"]) != 6 {
		t.Errorf("%d, %d, %d", len(got["node-1"]), len(got["node-2"]), len(got["odd"]))
	}
}

func TestSliceNamesAreApart(t *testing.T) {
	if a, b := sliceName("a", 11), sliceName("a-1", 1); a == b {
		t.Errorf("%s is of both", a)
	}
}
