//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * This file tells the VXLAN device where a packet goes and who sent it, for
 * what the host's stack routes into the tunnel: the host's own, and pods'
 * packets that took the stack.
 */
#include "lib/common.h"
#include "lib/config.h"

#include "lib/deliver.h"
#include "lib/parse.h"
#include "lib/peers.h"
#include "lib/report.h"
#include "lib/tunnel.h"

static __always_inline __u32 who_sent(struct __sk_buff *skb, struct pkt *p)
{
	__u32 magic = mark_magic(skb->mark);
	struct endpoint *local;

	if (!skb->ingress_ifindex)
		return IDENTITY_HOST;
	if (magic == MARK_IDENTITY || magic == MARK_ACCEPTED)
		return mark_identity(skb->mark);
	local = bpf_map_lookup_elem(&endpoints, &p->t.saddr);
	return local && !(local->flags & ENDPOINT_HOST) ? local->identity :
							  IDENTITY_PENDING;
}

static __always_inline int pack(struct __sk_buff *skb, struct pkt *p)
{
	struct peer *peer;
	int r;

	/* from_pod has said where it goes. The mark stays: to_netdev sees the outer packet. */
	if (mark_magic(skb->mark) == MARK_DELIVERED)
		return FORWARD_TO_TUNNEL;
	r = parse(skb, p, ETH_HLEN);
	/* The device's own chatter; without a tunnel key it goes nowhere. */
	if (r == DROP_NOT_SUPPORTED_L3 || p->nd)
		return FORWARD_NOT_OURS;
	if (r)
		return r;
	p->src_identity = who_sent(skb, p);
	peer = peer_of(&p->t.daddr);
	p->dst_identity = peer_identity(peer);
	if (!peer || !(peer->flags & PEER_TUNNEL) || addr_zero(&peer->node))
		return DROP_NO_TUNNEL_ENDPOINT;
	p->node = peer->node;
	p->event_flags = EVENT_TUNNEL;
	r = encap_by_device(skb, p, &p->node, to_wire_identity(p->src_identity));
	if (r)
		return r;
	skb->mark = MARK_DELIVERED;
	return FORWARD_TO_TUNNEL;
}

SEC("tc")
int to_overlay(struct __sk_buff *skb)
{
	struct pkt *p;

	/* The mark stays: to_netdev sees the outer packet. */
	if (decided(skb, HOOK_TO_OVERLAY, FORWARD_TO_TUNNEL))
		return TC_NEXT;
	p = begin(skb, HOOK_TO_OVERLAY);
	return p ? finish(skb, p, pack(skb, p)) : TC_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
