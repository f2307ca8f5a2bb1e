// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// End is one end of a connection.
type End struct {
	// Pod is set for a pod: then its own policies judge this side.
	Pod *Subject
	// Identity as the datapath knows it: of pods too, Host for a socket of the other end's own node, Pending for an
	// address of the cluster that is not known yet. 0 with Pod: the other side sees the pod's own labels and ports.
	Identity identity.Number
	Addr     netip.Addr
}

// Flow is a question: may Source open this to Destination?
type Flow struct {
	Source, Destination End
	// Protocol is the IP protocol number; Port of the destination, in host order, 0 where the protocol has none.
	Protocol uint8
	Port     uint16
}

// Side is what one end's policies say.
type Side struct {
	// Judged: some policy selects the pod in this direction. Otherwise the side allows, without a rule.
	Judged  bool
	Verdict Verdict
	Rule    RuleID
	// Provenance of Rule.
	Provenance Provenance
	// Pending: denied because it is not known yet who the other end is, and a deny could be about it.
	Pending bool
}

// Decision is a verdict and what decided on each side.
type Decision struct {
	Verdict Verdict
	// Egress is the source's side, Ingress the destination's.
	Egress, Ingress Side
}

// Walk is a decision with the way to it.
type Walk struct {
	Decision
	// Egress and Ingress hold the policies that select the pod of that side, and each of their rules in that direction.
	EgressSteps, IngressSteps []Step
	// Nearest is the rule that came nearest to another verdict where the flow was denied; nil where it was not.
	Nearest *Miss
}

// Step is one rule that was tried.
type Step struct {
	Origin
	Verdict Verdict
	// Matched, or why not.
	Matched bool
	Why     []Mismatch
}

// Mismatch is one respect in which a rule is not about a flow.
type Mismatch struct {
	// Aspect in one word.
	Aspect Aspect
	// Text is a sentence about it, without the policy's name.
	Text string
}

// Aspect of a rule.
type Aspect string

// Miss is the nearest rule that would have allowed, or what is missing altogether.
type Miss struct {
	// Side that denied.
	Side Direction
	Origin
	Mismatch
}

func (m Miss) String() string {
	where := m.Ref.String()
	if m.Path != "" {
		where += " " + m.Path
	}
	return where + ": " + m.Text
}
