// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"slices"
)

// Direction is the side of a connection that a table judges, always in the connection's original direction. The numbers
// are those of enum side of the programs.
type Direction uint8

const (
	Egress  Direction = 0 // of the source
	Ingress Direction = 1 // of the destination
)

func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// Verdict of a rule or a table. The numbers are those of enum verdict of the programs; 0 is none.
type Verdict uint8

const (
	Allow Verdict = 1
	Deny  Verdict = 2
	// Pass leaves the rest of its tier out; only tables with a Next hold it.
	Pass Verdict = 3
	// Audit decides nothing; no table holds it.
	Audit Verdict = 4
)

func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Deny:
		return "deny"
	case Pass:
		return "pass"
	case Audit:
		return "audit"
	}
	return "none"
}

// Peer is the other end, as a table knows it: 0 is everyone, a number below ClassBit an identity, with ClassBit a class
// of addresses. Identities that are pending are nobody in particular: only Anyone and classes match them.
type Peer uint32

const (
	Anyone   Peer = 0
	ClassBit Peer = 1 << 31
)

// RuleID names what decided. It is made from the content (whose policy, where in it), so it is the same on every node
// and after a restart. 0 means that no policy selects the pod in that direction.
type RuleID uint32

// Key is one entry's place in a table. For one peer the most specific key that covers a protocol and port counts:
// first all bits of the port, then fewer, then any protocol. Among the peers that a packet matches (identity, class,
// anyone) the entry with the better precedence wins.
type Key struct {
	Peer Peer
	// Protocol is the IP protocol number; 0 is any, then Bits and Port are 0.
	Protocol uint8
	// Bits says how many upper bits of Port count: 16 is that port, 0 every port of the protocol.
	Bits uint8
	// Port in host order; the bits that do not count are zero.
	Port uint16
}

// Entry is what a table says at a Key.
type Entry struct {
	Verdict Verdict
	Rule    RuleID
	// Precedence: the smaller number wins; a deny's is smaller than that of an allow of the same tier and priority.
	Precedence uint32
}

// Table is what one pod's policies say in one direction. It is not changed after it was made and may be shared: equal
// pods get the same pointer where that is cheap. A packet that matches no entry is denied by Default.
type Table struct {
	Entries map[Key]Entry
	// Default is the rule of the default deny: the policies that select the pod in this direction.
	Default RuleID
	// Overflows: there are more entries than the limits let any kernel hold. None is here, and the table must not come
	// into force.
	Overflows bool
	// Next is the table of the next tier: asked where a Pass decides, or where nothing matches and Default is 0. Nil for
	// the last one, and always where only NetworkPolicy speaks. A last table without Default allows what it does not
	// match.
	Next *Table
}

// Keys in one order.
func (t *Table) Keys() []Key {
	keys := make([]Key, 0, len(t.Entries))
	for k := range t.Entries {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Bits, b.Bits), cmp.Compare(a.Port, b.Port))
	})
	return keys
}

// Ref names a policy object.
type Ref struct {
	// Kind as kubectl names it: NetworkPolicy, CiliumNetworkPolicy, ...
	Kind string
	// Namespace is empty for kinds of the whole cluster.
	Namespace, Name string
}

func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Origin is where in a policy a rule stands.
type Origin struct {
	Ref
	// Path of the rule in the object, such as spec.ingress[0]; empty for the default deny.
	Path string
}

func (o Origin) String() string {
	if o.Path == "" {
		return o.Ref.String()
	}
	return o.Ref.String() + " " + o.Path
}

// Provenance is what a RuleID stands for. A rule that several policies state alike has several origins.
type Provenance struct {
	Verdict   Verdict
	Direction Direction
	// Default: no rule matched; Origins are the policies that select the pod.
	Default bool
	Origins []Origin
}
