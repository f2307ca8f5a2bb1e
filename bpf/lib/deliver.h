/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file sends packets away: to a pod of this node, to the host's stack,
 * out of an uplink, or back where they came from. Each sets p->action and
 * returns a reason.
 *
 * A packet that our next program would see again carries MARK_DELIVERED. The
 * mark never leaves the node: it is wiped when a packet enters another network
 * namespace, and by to_netdev.
 */
#ifndef KUBE_CILIUM_DELIVER_H
#define KUBE_CILIUM_DELIVER_H

#include "packet.h"

/* linux/socket.h has none of them. */
#define AF_INET 2
#define AF_INET6 10

/*
 * A router's duty: one hop less. The caller has seen that there is one left.
 * Written straight into the frame: the kernel makes its headers ours to write
 * once, when the program begins, and a helper would ask for each write.
 *
 * A network card may have summed up all from the IP header on
 * (CHECKSUM_COMPLETE). An IPv4 header's sum stays the same, since it holds its
 * own checksum; of an IPv6 header's change the kernel is told, or it sums up the
 * packet again and calls the card's sum faulty.
 */
static __always_inline int hop_at(struct __sk_buff *skb, const struct pkt *p,
				  __u32 l3)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (p->ipv6) {
		struct ipv6hdr *ip = data + l3;

		if ((void *)(ip + 1) > end)
			return DROP_WRITE;
		ip->hop_limit--;
		/* Refused where there is no such sum. */
		bpf_csum_update(skb, ~(__u32)bpf_htons(1));
	} else {
		struct iphdr *ip = data + l3;
		__u32 sum;

		if ((void *)(ip + 1) > end)
			return DROP_WRITE;
		/* RFC 1624: the word that holds the TTL lost 0x0100. */
		sum = (__u32)ip->check + bpf_htons(0x0100);
		ip->ttl--;
		ip->check = sum + (sum >= 0xffff);
	}
	return 0;
}

static __always_inline int hop(struct __sk_buff *skb, const struct pkt *p)
{
	return hop_at(skb, p, ETH_HLEN);
}

/* To the pod behind the interface ifindex. hop() was done or is not due. */
static __always_inline int to_local(struct __sk_buff *skb, struct pkt *p,
				    __u32 ifindex, const __u8 *mac,
				    const __u8 *host_mac)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return DROP_WRITE;
	__builtin_memcpy(eth->h_dest, mac, 6);
	__builtin_memcpy(eth->h_source, host_mac, 6);
	p->target = ifindex;
	if (have_redirect_peer) {
		skb->mark = 0;
		p->action = bpf_redirect_peer(ifindex, 0);
	} else {
		skb->mark = MARK_DELIVERED;
		p->action = bpf_redirect(ifindex, 0);
	}
	return p->action == TC_REDIRECT ? FORWARD_TO_POD : DROP_REDIRECT;
}

/*
 * Without redirect_peer a packet crosses the veth pair, which drops what is
 * larger than its MTU without a word. The stack cuts it, or tells.
 */
static __always_inline bool needs_cutting(struct __sk_buff *skb,
					  const struct pkt *p)
{
	return !have_redirect_peer && !skb->gso_size &&
	       p->len - ETH_HLEN > device_mtu;
}

/* Back to the pod that sent it. */
static __always_inline int send_back(struct __sk_buff *skb, struct pkt *p)
{
	p->target = skb->ifindex;
	skb->mark = MARK_DELIVERED;
	p->action = bpf_redirect(p->target, 0);
	return p->action == TC_REDIRECT ? FORWARD_ANSWERED : DROP_REDIRECT;
}

/* To the host's stack, which sees who sent it. */
static __always_inline int to_stack(struct __sk_buff *skb, struct pkt *p,
				    __u32 magic)
{
	skb->mark = mark_of(magic, p->src_identity);
	p->action = TC_NEXT;
	return FORWARD_TO_STACK;
}

/*
 * The uplink towards an address; 0: no route, or it is not for us to say. known
 * is the one that the connection had before, or 0.
 */
static __always_inline __u32 uplink_towards(struct __sk_buff *skb, bool ipv6,
					    const union addr *saddr,
					    const union addr *daddr,
					    __u32 known)
{
	struct bpf_fib_lookup fib = {};
	long r;

	if (uplink_ifindex)
		return uplink_ifindex;
	if (known)
		return known;
	fib.ifindex = skb->ifindex;
	if (ipv6) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, saddr, 16);
		__builtin_memcpy(fib.ipv6_dst, daddr, 16);
	} else {
		fib.family = AF_INET;
		fib.ipv4_src = saddr->w[3];
		fib.ipv4_dst = daddr->w[3];
	}
	r = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (r != BPF_FIB_LKUP_RET_SUCCESS && r != BPF_FIB_LKUP_RET_NO_NEIGH)
		return 0;
	return fib.ifindex;
}

static __always_inline bool in_prefix(const union addr *a,
				      const volatile union addr *prefix,
				      const volatile union addr *mask)
{
	return (prefix->d[0] | prefix->d[1]) &&
	       (a->d[0] & mask->d[0]) == prefix->d[0] &&
	       (a->d[1] & mask->d[1]) == prefix->d[1];
}

/*
 * Out of an uplink. The kernel finds the next hop's MAC; and the next hop, by
 * the routes, unless next is on the uplink's own link. Zero: nobody special.
 * A family that is not the packet's own is the routes' to find too.
 */
static __always_inline int to_wire(struct __sk_buff *skb, struct pkt *p,
				   __u32 ifindex, const union addr *next,
				   bool ipv6, int reason)
{
	struct bpf_redir_neigh hop = {};

	p->target = ifindex;
	skb->mark = MARK_DELIVERED;
	if (!uplink_ifindex) {
		p->action = bpf_redirect_neigh(ifindex, NULL, 0, 0);
	} else if (!ipv6 && in_prefix(next, &on_link_ipv4, &on_link_ipv4_mask)) {
		hop.nh_family = AF_INET;
		hop.ipv4_nh = next->w[3];
		p->action = bpf_redirect_neigh(ifindex, &hop, sizeof(hop), 0);
	} else if (ipv6 && in_prefix(next, &on_link_ipv6, &on_link_ipv6_mask)) {
		hop.nh_family = AF_INET6;
		__builtin_memcpy(hop.ipv6_nh, next, sizeof(*next));
		p->action = bpf_redirect_neigh(ifindex, &hop, sizeof(hop), 0);
	} else {
		p->action = bpf_redirect_neigh(ifindex, NULL, 0, 0);
	}
	return p->action == TC_REDIRECT ? reason : DROP_REDIRECT;
}

#endif
