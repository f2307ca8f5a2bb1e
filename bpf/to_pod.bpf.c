//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * This file judges what the host's stack sends to a pod, at egress of the
 * host's end of its veth pair. What our other programs deliver does not come
 * here, or carries MARK_DELIVERED.
 *
 * Who sent it: a socket of this host when the packet never came in by a device;
 * else the one named in the mark; else whose the source address is. Never the
 * host by its address alone, nor a pod that speaks through the tunnel.
 */
#include "lib/common.h"
#include "lib/config.h"

#include "lib/arrive.h"
#include "lib/deliver.h"
#include "lib/parse.h"
#include "lib/peers.h"
#include "lib/report.h"

static __always_inline __u32 who_sent(struct __sk_buff *skb, struct pkt *p)
{
	__u32 magic = mark_magic(skb->mark);
	struct endpoint *local;
	struct peer *peer;

	if (!skb->ingress_ifindex)
		return IDENTITY_HOST;
	if (magic == MARK_IDENTITY || magic == MARK_ACCEPTED)
		return mark_identity(skb->mark);
	local = bpf_map_lookup_elem(&endpoints, &p->t.saddr);
	if (local)
		return local->flags & ENDPOINT_HOST ? IDENTITY_PENDING :
						      local->identity;
	/* In the cluster, and came neither natively nor by the tunnel, or it had a mark: an address alone names nobody. */
	peer = peer_of(&p->t.saddr);
	if (peer && peer->flags & PEER_CLUSTER && !(peer->flags & PEER_NATIVE))
		return IDENTITY_PENDING;
	return peer_identity(peer);
}

/* Link-local or to many: not routed to anybody. */
static __always_inline bool on_link(const struct pkt *p)
{
	if (p->ipv6)
		return addr_multicast6(&p->t.daddr) || addr_link_local(&p->t.daddr);
	return p->t.daddr.b[12] >= 224;
}

static __always_inline int hear(struct __sk_buff *skb, struct pkt *p)
{
	struct endpoint *pod;
	int r;

	if (mark_magic(skb->mark) == MARK_DELIVERED) {
		skb->mark = 0;
		return FORWARD_TO_POD;
	}
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return FORWARD_NOT_OURS;
	r = parse(skb, p, ETH_HLEN);
	if (r)
		return r;
	/* The host's own discovery on this link. */
	if (p->nd && !skb->ingress_ifindex)
		return FORWARD_NOT_OURS;
	if (unlikely(p->fragment)) {
		r = fragment_ports(p);
		if (r)
			return r;
	}
	pod = bpf_map_lookup_elem(&endpoints, &p->t.daddr);
	if (!pod || pod->ifindex != skb->ifindex) {
		/* What the host says on this link (mDNS, group queries) ends there. */
		if (!skb->ingress_ifindex && on_link(p))
			return FORWARD_NOT_OURS;
		return DROP_UNKNOWN_TARGET;
	}
	p->src_identity = who_sent(skb, p);
	r = arrive(skb, p, pod, skb->ingress_ifindex ? CONN_STACK : 0);
	return r ?: FORWARD_TO_POD;
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct pkt *p;

	if (decided(skb, HOOK_TO_POD, FORWARD_TO_POD)) {
		skb->mark = 0;
		return TC_NEXT;
	}
	p = begin(skb, HOOK_TO_POD);
	return p ? finish(skb, p, hear(skb, p)) : TC_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
