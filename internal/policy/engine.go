// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"sync"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// Engine holds the policies and the identities, and answers from them. It is safe for use by several goroutines.
type Engine struct {
	mu sync.Mutex
}

// NewEngine makes an engine that knows nothing: every pod is allowed everything.
func NewEngine() *Engine { return &Engine{} }

// SetPolicy replaces what the policy says. It returns ErrBadRule, and then has changed nothing.
func (e *Engine) SetPolicy(ref Ref, rules []Rule) error { return nil }

// DeletePolicy forgets a policy; what it does not know it leaves.
func (e *Engine) DeletePolicy(ref Ref) {}

// SetIdentity says which labels a number stands for, and which named ports the pods of it have between them.
func (e *Engine) SetIdentity(n identity.Number, l identity.Labels, ports []NamedPort) {}

// DeleteIdentity forgets a number: no rule by labels is about it from now on.
func (e *Engine) DeleteIdentity(n identity.Number) {}

// Tables are what the policies say about a pod. Nil: no policy selects it in that direction, and it is allowed
// everything. While the content is the same, so is the pointer, also for another subject.
func (e *Engine) Tables(s Subject) (ingress, egress *Table) { return nil, nil }

// Classes are the prefixes that policies name, with the class of the addresses for which each is the longest. A prefix
// has the same number for as long as it stays, also after a restart (collisions apart).
func (e *Engine) Classes() map[netip.Prefix]Peer { return nil }

// ClassesInForce tells the engine which prefixes the kernel knows from now on: at the start what was read back, later
// what Classes said once it was written. It returns true when tables have changed by this, so that Tables and Classes
// must be asked and written again: tables first, then classes, then this.
func (e *Engine) ClassesInForce(inForce map[netip.Prefix]Peer) (again bool) { return false }

// Provenance says what a rule's number stands for, also for some time after the rule is gone.
func (e *Engine) Provenance(id RuleID) (Provenance, bool) { return Provenance{}, false }

// Evaluate answers a question from the rules.
func (e *Engine) Evaluate(f Flow) Decision { return Decision{} }

// Explain answers it with the way to the answer.
func (e *Engine) Explain(f Flow) Walk { return Walk{} }

// FromNetworkPolicy turns a NetworkPolicy into rules. It returns ErrBadRule for what the API server would not have let
// pass.
func FromNetworkPolicy(np *networkingv1.NetworkPolicy) ([]Rule, []Note, error) { return nil, nil, nil }
