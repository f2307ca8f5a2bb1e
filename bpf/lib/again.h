/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file sends the packets of a connection that is going on. Where the whole
 * way was taken once, its end is remembered on this CPU, and for the rest of the
 * tick the connection's other packets in this direction are looked at no
 * further: the tables would say the same. What is remembered holds
 *
 * - in its tick: conntrack is touched once in each, so nothing ages unseen;
 * - with the generation of the verdicts, the number of the addresses and the
 *   interval of reports that the way was taken with;
 * - for packets that change nothing of the connection: TCP or UDP whole and
 *   without options of IP, no SYN, FIN or RST nor another flag that was not
 *   seen before, a hop left, and no larger than the way allows;
 * - for packets that come from where the remembered one came from.
 *
 * All else goes the whole way. So does a connection that was not answered, or has
 * a side that was not allowed by its entry alone, or that is masqueraded or
 * crosses the host's stack. So does one whose way its addresses alone do not
 * tell: the next connection of its name, perhaps in this very tick, may go
 * another, and what each CPU remembers nobody else can take back.
 */
#ifndef KUBE_CILIUM_AGAIN_H
#define KUBE_CILIUM_AGAIN_H

#include "conntrack.h"
#include "desk.h"
#include "parse.h"

static __always_inline struct again *again_slot(const struct pkt *p,
						 const struct sight *s)
{
	__u32 slot = (s->saddr.w[3] ^ s->ports) * 0x9e3779b1 ^ s->daddr.w[3];

	slot = slot * 0x85ebca6b >> 22;
	return DESK_SLOT(p, again, slot & (AGAIN_SLOTS - 1));
}

/* What is read of a packet beside its sight. */
struct glimpse {
	__u32 payload;		/* offset */
	__u8 tcp_flags;
	__u8 tos;
};

/*
 * Reads the packet whose IP header is at l3 (a constant). false: not one for
 * this file; parse() says what it is. from and outer are the caller's.
 */
static __always_inline bool glance(struct __sk_buff *skb, __u32 l3,
				   struct sight *s, struct glimpse *g)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 len, head;
	__u8 proto, ttl;
	__be16 type;
	__u8 *l4;

	if (data + l3 + sizeof(struct iphdr) > end)
		return false;
	type = *(__be16 *)(data + l3 - 2);
	if (type == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + l3;

		if (*(__u8 *)ip != 0x45 ||
		    ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
			return false;
		addr_set_ipv4(&s->saddr, ip->saddr);
		addr_set_ipv4(&s->daddr, ip->daddr);
		len = bpf_ntohs(ip->tot_len);
		proto = ip->protocol;
		if (unlikely(!len) && proto == IPPROTO_TCP &&
		    beyond_64k(skb, skb->len - l3))
			len = skb->len - l3;
		ttl = ip->ttl;
		g->tos = ip->tos;
		head = sizeof(*ip);
		s->kind = proto;
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + l3;

		if ((void *)(ip + 1) > end || ip->version != 6)
			return false;
		__builtin_memcpy(&s->saddr, &ip->saddr, 16);
		__builtin_memcpy(&s->daddr, &ip->daddr, 16);
		/* 0, a jumbogram, is too short for what follows. */
		len = ip->payload_len ? bpf_ntohs(ip->payload_len) + sizeof(*ip) : 0;
		proto = ip->nexthdr;
		ttl = ip->hop_limit;
		g->tos = (*(__u8 *)ip & 0xf) << 4 | ip->flow_lbl[0] >> 4;
		head = sizeof(*ip);
		s->kind = proto | AGAIN_IPV6;
	} else {
		return false;
	}
	l4 = data + l3 + head;
	if (ttl <= 1 || l3 + len > skb->len)
		return false;
	if (proto == IPPROTO_TCP) {
		if (len < head + sizeof(struct tcphdr) ||
		    (void *)l4 + sizeof(struct tcphdr) > end || l4[12] >> 4 < 5)
			return false;
		g->tcp_flags = l4[13];
		g->payload = l3 + head + (l4[12] >> 4) * 4;
	} else if (proto == IPPROTO_UDP) {
		if (len < head + sizeof(struct udphdr) ||
		    (void *)l4 + sizeof(struct udphdr) > end)
			return false;
		g->tcp_flags = 0;
		g->payload = l3 + head + sizeof(struct udphdr);
	} else {
		return false;
	}
	s->ports = *(__u32 *)l4;
	return true;
}

/* What was remembered for such a packet and still holds, or NULL. */
static __always_inline const struct again *
again_find(const struct pkt *p, const struct sight *s, const struct glimpse *g)
{
	const struct again *a;

	/* Ends of connections, before anything is looked up. */
	if (g->tcp_flags & TCP_REPORTED)
		return NULL;
	a = again_slot(p, s);
	if (a->now != p->now || a->generation != p->generation ||
	    a->addresses != p->addresses || a->interval != p->interval ||
	    !addr_equal(&a->sight.saddr, &s->saddr) ||
	    !addr_equal(&a->sight.daddr, &s->daddr) ||
	    a->sight.ports != s->ports || a->sight.kind != s->kind ||
	    a->sight.from != s->from || a->sight.outer != s->outer ||
	    g->tcp_flags & ~a->tcp_flags)
		return NULL;
	return a;
}

/*
 * A slot for the packet at hand, which went the whole way, where what holds for
 * it holds for those that follow; or NULL. The caller fills in the way.
 */
static __subprogram struct again *again_begin(struct pkt *p,
						 __u32 from)
{
	__u32 l4 = ETH_HLEN + (p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	bool came = p->event_flags & EVENT_INGRESS && p->tunnel;
	struct sight s;
	struct again *a;

	/* glance() knows no others, and headers between IP and transport are looked at each time. */
	if ((p->t.proto != IPPROTO_TCP && p->t.proto != IPPROTO_UDP) ||
	    p->l4 != (came ? l4 + ENCAP_LEN : l4))
		return NULL;
	if (!p->lasting || p->tcp_flags & (TCP_FIN | TCP_RST) || p->fragment ||
	    p->masquerade || p->by_connection)
		return NULL;
	s.saddr = p->t.saddr;
	s.daddr = p->t.daddr;
	s.ports = p->t.sport | (__u32)p->t.dport << 16;
	s.kind = p->t.proto | (p->ipv6 ? AGAIN_IPV6 : 0) | (came ? AGAIN_TUNNEL : 0);
	s.from = from;
	s.outer = came ? p->node.w[3] : 0;
	a = again_slot(p, &s);
	a->sight = s;
	a->now = p->now;
	a->generation = p->generation;
	a->addresses = p->addresses;
	a->interval = p->interval;
	a->tcp_flags = p->tcp_seen | TCP_PSH;
	return a;
}

/* To a pod of this node. */
static __always_inline void again_to_pod(struct pkt *p, __u32 from,
					 __u32 ifindex, const __u8 *mac,
					 const __u8 *host_mac)
{
	struct again *a;

	if (!have_redirect_peer)
		return;
	a = again_begin(p, from);
	if (!a)
		return;
	a->way = AGAIN_POD;
	a->target = ifindex;
	__builtin_memcpy(a->pod.mac, mac, 6);
	__builtin_memcpy(a->pod.host_mac, host_mac, 6);
}

/* Out of the only uplink as it is, towards next. */
static __always_inline void again_to_network(struct pkt *p, __u32 from,
					     const union addr *next)
{
	struct again *a;

	if (!uplink_ifindex || !have_redirect_neigh)
		return;
	a = again_begin(p, from);
	if (!a)
		return;
	a->way = AGAIN_NETWORK;
	a->target = uplink_ifindex;
	a->mtu = p->mtu;
	a->next = *next;
}

/* Into the tunnel by the header h, with lengths 0. */
static __always_inline void again_to_node(struct pkt *p, __u32 from,
					  const struct encap *h, __u32 hash)
{
	struct again *a;

	if (!uplink_ifindex)
		return;
	a = again_begin(p, from);
	if (!a)
		return;
	a->way = AGAIN_NODE;
	a->target = uplink_ifindex;
	a->mtu = p->mtu;
	a->node.encap = *h;
	a->node.hash = hash;
}

#endif
