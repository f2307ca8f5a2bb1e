// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// errLongName means that this node's objects cannot carry its name in their label LabelNode, by which the admission
// policy tells whose they are; a shortened one would be another node's as well. Kubelet's own label
// kubernetes.io/hostname has the same bound, so such names are rare.
var errLongName = errors.New("the name of this node is too long (register it with a shorter one: kubelet --hostname-override)")

// checkName returns errLongName for a node whose name cannot be written where it has to stand. Names that pass also fit
// into those of the Lease and the slices.
func checkName(node string) error {
	if n := len(node); n > validation.LabelValueMaxLength {
		return fmt.Errorf("%w: %d characters, and the label %s takes %d", errLongName, n, v1alpha1.LabelNode, validation.LabelValueMaxLength)
	}
	return nil
}
