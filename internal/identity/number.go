// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// ErrBadNumber means that a text is not the number of a CiliumIdentity.
var ErrBadNumber = errors.New("not an identity number")

// Number is an identity in host byte order. It fits 24 bits, so that it travels as the VNI. Numbers below Min are
// reserved.
type Number uint32

// The reserved numbers that the agent itself uses. They mean what Hubble's API means by them; Pending is ours.
const (
	Unknown    Number = 0
	Host       Number = 1
	World      Number = 2
	RemoteNode Number = 6
	Pending    Number = 127

	Min Number = 256
	Max Number = 1<<24 - 1
)

func (n Number) String() string { return strconv.FormatUint(uint64(n), 10) }

// Allocated tells whether the number is one that a CiliumIdentity can have.
func (n Number) Allocated() bool { return n >= Min && n <= Max }

// ParseNumber reads the name of a CiliumIdentity: decimal, without leading zeroes or signs. It returns ErrBadNumber.
func ParseNumber(name string) (Number, error) {
	v, err := strconv.ParseUint(name, 10, 32)
	n := Number(v)
	if err != nil || !n.Allocated() || n.String() != name {
		return 0, fmt.Errorf("%w: %q (want %d to %d)", ErrBadNumber, name, Min, Max)
	}
	return n, nil
}

// Key is the cluster's hash key. With it, who does not know the cluster cannot choose labels whose number collides
// with another workload's.
type Key [sha256.Size]byte

// KeyFromCluster derives the key from the UID of the namespace kube-system: every agent can read it, it never changes
// while the cluster lives, and two clusters do not share it.
func KeyFromCluster(uid string) Key {
	return sha256.Sum256([]byte("kube-cilium identity\x00" + uid))
}

// Candidate is the number to ask for at the n-th attempt, from 0; another label set may hold the earlier ones. Every
// agent of the cluster walks the same numbers for the same set.
func (k Key) Candidate(l Labels, attempt int) Number {
	mac := hmac.New(sha256.New, k[:])
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(attempt))
	mac.Write(n[:])
	mac.Write([]byte(l.Canonical()))
	sum := binary.BigEndian.Uint64(mac.Sum(nil))
	return Min + Number(sum%uint64(Max-Min+1))
}
