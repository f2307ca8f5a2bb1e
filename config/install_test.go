// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kube-cilium/kube-cilium/internal/testenv"
)

func TestDefaultApplies(t *testing.T) {
	for name, how := range map[string][]string{"client side": nil, "server side": {"--server-side"}} {
		t.Run(name, func(t *testing.T) {
			env := testenv.StartEmpty(t)
			for range 2 { // the second time changes nothing
				out, err := env.Kubectl(append([]string{"apply", "--validate=strict", "-k", "config/default"}, how...)...)
				if err != nil {
					t.Fatalf("kubectl apply: %v\n%s", err, out)
				}
			}
			out, err := env.Kubectl("get", "validatingadmissionpolicies", "-o", `jsonpath={range .items[*]}{.metadata.name}: {.status.typeChecking}{"\n"}{end}`)
			if err != nil || strings.Contains(out, "warning") {
				t.Errorf("the admission policy does not type-check: %v\n%s", err, out)
			}
		})
	}
}

// kubectl apply keeps a copy of the object in an annotation of at most 256 KiB.
func TestKindsAreSmall(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("crd", "bases", "*.yaml"))
	if err != nil || len(files) < 6 {
		t.Fatalf("found %d kinds: %v", len(files), err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() >= 200<<10 {
			t.Errorf("%s: %d bytes, want less than 200 KiB", f, info.Size())
		}
	}
}
