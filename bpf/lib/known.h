/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file remembers what the tables of addresses said a moment ago, in a few
 * slots of each CPU: a hash lookup costs five times as much. What is remembered
 * holds while settings.addresses stays, which the agent moves on after every
 * change of these tables; a program reads it before anything else (begin()), so
 * what it keeps is never newer than it says.
 */
#ifndef KUBE_CILIUM_KNOWN_H
#define KUBE_CILIUM_KNOWN_H

#include "desk.h"
#include "peers.h"

/* Neighbours in a node's prefix have slots of their own. */
static __always_inline __u32 known_slot(const union addr *addr)
{
	__u32 low = bpf_ntohl(addr->w[3]);

	return (low ^ low >> 10) & (KNOWN_SLOTS - 1);
}

/* The pod behind an interface, or NULL. */
static __always_inline const struct pod_interface *
known_pod(const struct pkt *p, __u32 ifindex)
{
	__u32 slot = ifindex & (KNOWN_SLOTS - 1);
	struct known_interface *k = DESK_SLOT(p, interfaces, slot);
	struct pod_interface *pod;

	if (likely(k->ifindex == ifindex && k->addresses == p->addresses))
		return &k->pod;
	pod = bpf_map_lookup_elem(&pod_interfaces, &ifindex);
	if (!pod)
		return NULL;
	k->ifindex = ifindex;
	k->addresses = p->addresses;
	k->pod = *pod;
	return &k->pod;
}

/* Who has the address on this node, or NULL. */
static __always_inline const struct endpoint *
known_endpoint(const struct pkt *p, const union addr *addr)
{
	__u32 slot = known_slot(addr);
	struct known_endpoint *k = DESK_SLOT(p, endpoints, slot);
	struct endpoint *e;

	if (unlikely(k->addresses != p->addresses ||
		     !addr_equal(&k->addr, addr))) {
		e = bpf_map_lookup_elem(&endpoints, addr);
		k->addr = *addr;
		k->addresses = p->addresses;
		k->from = KNOWN_NOBODY;
		if (e) {
			k->from = KNOWN_EXACT;
			k->endpoint = *e;
		}
	}
	return k->from ? &k->endpoint : NULL;
}

/* What is known of an address elsewhere. */
static __always_inline const struct known_peer *
known_peer(const struct pkt *p, const union addr *addr)
{
	__u32 slot = known_slot(addr);
	struct known_peer *k = DESK_SLOT(p, peers, slot);
	struct peer *peer;

	if (unlikely(k->addresses != p->addresses ||
		     !addr_equal(&k->addr, addr))) {
		k->addr = *addr;
		k->addresses = p->addresses;
		k->from = KNOWN_EXACT;
		peer = peer_exact(addr);
		if (!peer) {
			k->from = KNOWN_PREFIX;
			peer = peer_by_prefix(addr);
		}
		if (peer)
			k->peer = *peer;
		else
			k->from = KNOWN_NOBODY;
	}
	return k;
}

/* The entry behind it, or NULL: the world. */
static __always_inline const struct peer *
peer_known(const struct known_peer *k)
{
	return k && k->from ? &k->peer : NULL;
}

#endif
