// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/types"
)

// Protocol is an IP protocol number: 6 TCP, 17 UDP.
type Protocol uint8

const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// String gives the name that Kubernetes uses.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	}
	return "unknown"
}

// Address is what a client dials. Port is in host byte order.
type Address struct {
	IP       netip.Addr
	Port     uint16
	Protocol Protocol
}

// Frontend is one port of one address of a Service and who answers there. It is immutable.
type Frontend struct {
	Address
	// Service and PortName say whose it is, for people.
	Service  types.NamespacedName
	PortName string
	// Backends are sorted and unique, of the frontend's own family; empty: nobody answers.
	Backends []netip.AddrPort
}
