// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/go-logr/logr"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

const lastPoliciesFile = "last-policies.json"

// policyMemory keeps on disk what the policies of the cluster were. An agent that starts while the API server is away
// gives new pods their policy from it, and one that starts while a namespace is being deleted still knows what its pods
// were promised.
type policyMemory struct {
	stateDir, bootID string
	log              logr.Logger
	// written is the hash of what the file holds, as far as this process wrote it.
	written [sha256.Size]byte
}

// lastPolicies is the file.
type lastPolicies struct {
	BootID     string         `json:"bootID"`
	Policies   []lastPolicy   `json:"policies"`
	Identities []lastIdentity `json:"identities"`
	// Orphans are the endpoints that are closed since their namespace is gone and another has its name.
	Orphans []cni.Attachment `json:"orphans,omitempty"`
}

type lastPolicy struct {
	networkingv1.NetworkPolicy
	Lingering bool `json:"lingering,omitempty"`
	// NamespaceUID of the namespace in which it is, or was.
	NamespaceUID types.UID `json:"namespaceUID,omitempty"`
	// InForce is the version before, which is in force because this one does not fit or cannot be had.
	InForce *networkingv1.NetworkPolicySpec `json:"inForce,omitempty"`
}

type lastIdentity struct {
	Number identity.Number    `json:"number"`
	Labels identity.Labels    `json:"labels"`
	Ports  []policy.NamedPort `json:"ports,omitempty"`
}

// load reads, once, what was kept in this boot; a file that is missing or damaged is none.
func (m *policyMemory) load() (last lastPolicies, ok bool) {
	if !takeUp(filepath.Join(m.stateDir, lastPoliciesFile), &last, m.log) || last.BootID != m.bootID {
		return lastPolicies{}, false
	}
	return last, true
}

// keep replaces the whole memory.
func (m *policyMemory) keep(last lastPolicies) error {
	last.BootID = m.bootID
	slices.SortFunc(last.Policies, func(a, b lastPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(last.Orphans, func(a, b cni.Attachment) int { return cmp.Compare(a.ContainerID, b.ContainerID) })
	slices.SortFunc(last.Identities, func(a, b lastIdentity) int { return cmp.Compare(a.Number, b.Number) })
	data, err := json.Marshal(last)
	if err != nil {
		return fmt.Errorf("last policies: %w", err)
	}
	sum := sha256.Sum256(data)
	if sum == m.written {
		return nil
	}
	if err := cni.WriteFileOfThisBoot(filepath.Join(m.stateDir, lastPoliciesFile), data, 0o600); err != nil {
		return fmt.Errorf("last policies: %w", err)
	}
	m.written = sum
	return nil
}
