/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file names every way in which a packet can end. Below 128 it went on,
 * from 128 it was dropped. Drop numbers are those of Hubble's API where the
 * meaning agrees; from 224 on they are our own. A number is never used again
 * for something else. The comment of each line is its text for people: Go
 * reads it from here (go generate).
 */
#ifndef KUBE_CILIUM_REASONS_H
#define KUBE_CILIUM_REASONS_H

enum reason {
	FORWARD_UNKNOWN = 0,		/* forwarded */
	FORWARD_TO_POD = 1,		/* delivered to a pod of this node */
	FORWARD_TO_STACK = 2,		/* handed to the host's stack */
	FORWARD_TO_TUNNEL = 3,		/* sent to another node through the tunnel */
	FORWARD_TO_NETWORK = 4,		/* sent out of an uplink */
	FORWARD_NOT_OURS = 5,		/* not a packet that this program judges */
	FORWARD_ANSWERED = 6,		/* answered by the program itself */
	FORWARD_TRANSLATED = 7,		/* a service's address was replaced by a backend's */

	DROP_INVALID_SOURCE = 132,	/* the source address is not the pod's */
	DROP_POLICY = 133,		/* no policy allows it */
	DROP_INVALID_PACKET = 134,	/* the headers are cut short or make no sense */
	DROP_NOT_SUPPORTED_L3 = 139,	/* neither IPv4, IPv6 nor ARP */
	DROP_NO_PROGRAM = 140,		/* no program is in force at this hook */
	DROP_WRITE = 141,		/* the packet could not be rewritten */
	DROP_UNKNOWN_L4 = 142,		/* a protocol that cannot be masqueraded */
	DROP_UNKNOWN_TARGET = 150,	/* no pod of this node has the address */
	DROP_STALE = 151,		/* an answer to a connection that is no longer known */
	DROP_CONNTRACK_FULL = 155,	/* the connection could not be recorded */
	DROP_NO_SERVICE_BACKEND = 158,	/* the service has no such port or no ready backend */
	DROP_NO_TUNNEL_ENDPOINT = 160,	/* the address is in the cluster's pools and no node holds it */
	DROP_NO_MAPPING = 167,		/* no free port for masquerade */
	DROP_FIB = 169,			/* no route */
	DROP_ENCAP_PROHIBITED = 170,	/* a pod spoke to the tunnel port of a node */
	DROP_INVALID_IDENTITY = 171,	/* the tunnel's identity is not allowed on the wire */
	DROP_UNKNOWN_SENDER = 172,	/* the tunnel packet is not from the node that holds its source */
	DROP_FRAGMENT_NOT_FOUND = 175,	/* a later fragment came without its first */
	DROP_FORBIDDEN_ICMP6 = 176,	/* a router advertisement, redirect or forged neighbour advertisement from a pod */
	DROP_POLICY_DENY = 181,		/* a policy denies it */
	DROP_INVALID_TC_BUFFER = 184,	/* the packet lost its notes on the way */
	DROP_TTL_EXCEEDED = 196,	/* hop limit used up */
	DROP_HOST_NOT_READY = 202,	/* the host's state is not known yet */
	DROP_ENDPOINT_NOT_READY = 203,	/* the pod's interface is not known yet */

	DROP_OWN_SOURCE = 224,		/* a packet from outside claims an address of this node */
	DROP_SPOOFED_ARP = 225,		/* ARP that is not the pod's own */
	DROP_DHCP_SERVER = 226,		/* a DHCP or DHCPv6 server's answer from a pod */
	DROP_TOO_BIG = 227,		/* larger than the path's MTU; the sender was told */
	DROP_MARTIAN = 228,		/* a loopback, unspecified, link-local or multicast address where none may be */
	DROP_PENDING_DENY = 229,	/* the peer is not known yet and a deny rule could apply */
	DROP_REDIRECT = 230,		/* the kernel refused the redirect */

	DROP_NO_POLICY_YET = 231,	/* the pod is closed until its policy is in the kernel */

	REASON_MAX = 232,
};

#endif
