/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file answers who an address is: an exact entry of `peers` first, then
 * the longest prefix. No entry means the world. An address in the cluster's
 * pools is never the world: its prefix says pending.
 */
#ifndef KUBE_CILIUM_PEERS_H
#define KUBE_CILIUM_PEERS_H

#include "packet.h"

static __always_inline struct peer *peer_exact(const union addr *addr)
{
	return bpf_map_lookup_elem(&peers, addr);
}

static __always_inline struct peer *peer_by_prefix(const union addr *addr)
{
	struct prefix_key key = { .prefixlen = 128 };

	__builtin_memcpy(&key.addr, addr, sizeof(key.addr));
	return bpf_map_lookup_elem(&prefixes, &key);
}

static __always_inline struct peer *peer_of(const union addr *addr)
{
	return peer_exact(addr) ?: peer_by_prefix(addr);
}

static __always_inline __u32 peer_identity(const struct peer *peer)
{
	return peer ? peer->identity : IDENTITY_WORLD;
}

#endif
