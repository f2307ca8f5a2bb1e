// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"testing"

	"github.com/kube-cilium/kube-cilium/internal/testenv"
)

func TestSamplesApply(t *testing.T) {
	env := testenv.Start(t)
	for _, how := range [][]string{{"--server-side"}, {}} {
		out, err := env.Kubectl(append([]string{"apply", "--validate=strict", "-k", "config/samples"}, how...)...)
		if err != nil {
			t.Fatalf("kubectl apply %v: %v\n%s", how, err, out)
		}
	}
}
