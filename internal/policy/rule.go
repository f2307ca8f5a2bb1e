// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// ErrBadRule means that a rule cannot be had in a table: nothing of its policy was taken.
var ErrBadRule = errors.New("not a rule")

// Tier is the first thing that orders rules: what administrators say stands before what namespaces say, and that before
// the baseline.
type Tier uint8

const (
	Admin Tier = iota
	Normal
	Baseline

	tiers = 3
)

func (t Tier) String() string {
	return [...]string{"admin", "normal", "baseline"}[t]
}

// MaxPriority bounds Rule.Priority, so that a tier, a priority and the difference of deny and allow fit the 32 bits that
// the kernel compares. The smaller priority stands first.
const MaxPriority int64 = 1<<28 - 1

// Rule is what every kind of policy becomes: whom it is about, in which direction, who the other end is, on which ports,
// and what then. It is not changed after it was given to an Engine.
type Rule struct {
	Tier     Tier
	Priority int64
	// Verdict is 0 for a rule that only isolates.
	Verdict Verdict
	// Isolates: what no rule allows is denied to the pods that Subject selects, in Direction.
	Isolates  bool
	Subject   PodSelector
	Direction Direction
	// AnyPeer: whoever it is. Otherwise one of Peers must match: no peers match nobody.
	AnyPeer bool
	Peers   []PeerSelector
	// AnyPort: every protocol and port, also protocols without ports. Otherwise one of Ports must match.
	AnyPort bool
	Ports   []PortSelector
	// Path of the rule in its object, such as spec.ingress[0]; empty for a rule that only isolates.
	Path string
}

// PeerSelector is one of *PodSelector, Block and Entity. Pods, nodes and addresses are told apart by type: the labels of
// one never select another.
type PeerSelector interface{ peer() }

// PodSelector selects pods by their namespace and their own labels. Everything that is set must match; the zero value
// selects every pod of the cluster.
type PodSelector struct {
	// Namespace is compared with where the pod is, which no label of a user can change; empty: any.
	Namespace string
	// NamespaceLabels and Labels are requirements on the labels of the namespace and of the pod, by the keys that users
	// write there.
	NamespaceLabels []Requirement
	Labels          []Requirement
}

// Block selects addresses, whoever has them: inside CIDR and in none of Except. Prefixes are masked.
type Block struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// Entity selects one reserved identity.
type Entity identity.Number

func (*PodSelector) peer() {}
func (Block) peer()        {}
func (Entity) peer()       {}

// Operator of a Requirement; the words are those of Kubernetes.
type Operator string

const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Requirement on one label. Values are sorted.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string
}

// PortSelector selects ports of one protocol: those from First to Last, or the one that the destination pod calls Name.
type PortSelector struct {
	// Protocol is the IP protocol number: 6, 17 or 132.
	Protocol uint8
	// First and Last, both included, in host order; 0 to 65535 is every port of the protocol.
	First, Last uint16
	Name        string
}

// NamedPort is a container port that has a name. Port is in host order.
type NamedPort struct {
	Name     string
	Protocol uint8
	Port     uint16
}

// Subject is a pod as its own policies see it.
type Subject struct {
	Labels identity.Labels
	// Whole: Labels also hold the keys that identities leave out (identity.ForPod with a zero Filter). Then selectors of
	// these keys select exactly; otherwise such a policy isolates every pod that it may be about.
	Whole bool
	Ports []NamedPort
}

// Note is something that the writer of an accepted policy should know.
type Note struct {
	// Path of the field, such as spec.ingress[0].from[1].podSelector.
	Path string
	Text string
}

func (n Note) String() string { return n.Path + ": " + n.Text }

func (r *Rule) validate() error {
	switch {
	case r.Tier >= tiers:
		return fmt.Errorf("%w: %s: tier %d", ErrBadRule, r.Path, r.Tier)
	case r.Priority < 0 || r.Priority > MaxPriority:
		return fmt.Errorf("%w: %s: priority %d (0 to %d)", ErrBadRule, r.Path, r.Priority, MaxPriority)
	case r.Verdict > Audit, r.Verdict == 0 && !r.Isolates:
		return fmt.Errorf("%w: %s: verdict %d", ErrBadRule, r.Path, r.Verdict)
	case r.Direction > Ingress:
		return fmt.Errorf("%w: %s: direction %d", ErrBadRule, r.Path, r.Direction)
	}
	for _, p := range r.Ports {
		if p.Protocol == 0 || p.Last < p.First || p.Name != "" && (p.First != 0 || p.Last != 0) {
			return fmt.Errorf("%w: %s: port %+v", ErrBadRule, r.Path, p)
		}
	}
	return nil
}
