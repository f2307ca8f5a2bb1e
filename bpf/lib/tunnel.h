/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file speaks VXLAN: it builds the header itself over IPv4, or gives the
 * packet to the collect_md device, and takes the header off again. The VNI is
 * the sender's identity. A device stays up on the port in both cases: NICs and
 * GRO know the port from it, and it takes what we leave to it.
 */
#ifndef KUBE_CILIUM_TUNNEL_H
#define KUBE_CILIUM_TUNNEL_H

#include "conntrack.h"
#include "deliver.h"
#include "known.h"
#include "peers.h"

/* Linux 6.3; Debian 12's headers are older. */
#define ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)

#define ECN_MASK 3
#define ECN_NONE 0
#define ECN_ECT1 1
#define ECN_ECT0 2
#define ECN_CE 3

/* What may stand in a VNI. */
static __always_inline bool wire_identity(__u32 identity)
{
	return identity >= IDENTITY_MIN_ALLOCATED ||
	       identity == IDENTITY_REMOTE_NODE || identity == IDENTITY_PENDING;
}

/* What a sender of this node is called on the wire. */
static __always_inline __u32 to_wire_identity(__u32 identity)
{
	if (identity == IDENTITY_HOST)
		return IDENTITY_REMOTE_NODE;
	return identity >= IDENTITY_MIN_ALLOCATED ? identity : IDENTITY_PENDING;
}

static __always_inline __u16 ip_checksum(const struct iphdr *ip)
{
	const __u16 *w = (const void *)ip;
	__u32 sum = 0;
	int i;

#pragma unroll
	for (i = 0; i < 10; i++)
		sum += w[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The device builds the header: fallback, IPv6 underlay, several uplinks without a route we can ask. */
static __always_inline int encap_by_device(struct __sk_buff *skb, struct pkt *p,
					   const union addr *node,
					   __u32 identity)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = identity,
		.tunnel_tos = p->tos,
		.tunnel_ttl = 64,
	};
	__u64 flags;

	if (!overlay_ifindex)
		return DROP_NO_TUNNEL_ENDPOINT;
	if (addr_is_ipv4(node)) {
		key.remote_ipv4 = bpf_ntohl(node->w[3]);
		key.local_ipv4 = bpf_ntohl(node_ipv4.w[3]);
		flags = BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT;
	} else {
		__builtin_memcpy(key.remote_ipv6, node, 16);
		key.local_ipv6[0] = node_ipv6.w[0];
		key.local_ipv6[1] = node_ipv6.w[1];
		key.local_ipv6[2] = node_ipv6.w[2];
		key.local_ipv6[3] = node_ipv6.w[3];
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return DROP_WRITE;
	return 0;
}

/*
 * The header of the way to p->node, with lengths 0, and the uplink that leads
 * there. 0: the device has to build it.
 */
static __always_inline __u32 encap_header(struct __sk_buff *skb,
					  const struct pkt *p, struct encap *h)
{
	const union addr *node = &p->node;
	struct iphdr ip = {};
	__u32 hash, out;
	union addr own;

	if (!encap_in_bpf || !have_redirect_neigh || !addr_is_ipv4(node))
		return 0;
	own_addr(&own, false);
	out = uplink_towards(skb, false, &own, node, 0);
	if (!out)
		return 0;
	hash = bpf_get_hash_recalc(skb);
	__builtin_memset(h, 0, sizeof(*h));
	ip.version = 4;
	ip.ihl = 5;
	ip.tos = p->tos;	/* DSCP and, as RFC 6040 wants it, ECN as they are inside */
	ip.frag_off = bpf_htons(IP_DF);
	ip.ttl = 64;
	ip.protocol = IPPROTO_UDP;
	ip.saddr = node_ipv4.w[3];
	ip.daddr = node->w[3];
	ip.check = ip_checksum(&ip);
	h->ip = ip;
	h->udp.source = bpf_htons(0x8000 | ((hash ^ hash >> 16) & 0x7fff));
	h->udp.dest = bpf_htons(tunnel_port);
	h->vxlan.flags = bpf_htonl(VXLAN_VNI_VALID);
	h->vxlan.vni = bpf_htonl(to_wire_identity(p->src_identity) << 8);
	h->eth.h_dest[0] = 2;
	h->eth.h_source[0] = 2;
	h->eth.h_proto = p->ipv6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	return out;
}

/*
 * Puts a header with lengths 0 before the packet, takes a hop, and sends it.
 * Returns a reason; or FORWARD_UNKNOWN: the kernel refuses, and nothing has
 * changed. EALREADY: the frame came out of a tunnel itself. ENOTSUPP: a UDP
 * segment that this kernel cannot wrap.
 */
static __always_inline int encap_send(struct __sk_buff *skb, struct pkt *p,
				      const struct encap *h, __u32 out)
{
	__u32 len = p->len - ETH_HLEN + ENCAP_LEN, sum, i;
	struct ethhdr *eth;
	struct encap *to;
	union addr node;
	int r;

	/* Beyond 64 KiB with the header (BIG TCP): the kernel cuts it in front of the device. */
	if (unlikely(len > 0xffff))
		return FORWARD_UNKNOWN;
	if (bpf_skb_adjust_room(skb, ENCAP_LEN, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
				BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
				BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
				BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) |
				BPF_F_ADJ_ROOM_FIXED_GSO))
		return FORWARD_UNKNOWN;
	eth = (void *)(long)skb->data;
	to = (void *)(eth + 1);
	if ((void *)(to + 1) > (void *)(long)skb->data_end)
		return DROP_WRITE;
	/* In large steps: the struct is packed, and the compiler would go byte by byte. */
#pragma unroll
	for (i = 0; i + 8 <= sizeof(*h); i += 8)
		*(__u64 *)((void *)to + i) = *(__u64 *)((void *)h + i);
	*(__u16 *)((void *)to + i) = *(__u16 *)((void *)h + i);
	sum = (__u16)~h->ip.check + bpf_htons(len);
	to->ip.check = ~(sum + (sum >> 16));
	to->ip.tot_len = bpf_htons(len);
	to->udp.len = bpf_htons(len - sizeof(to->ip));
	eth->h_proto = bpf_htons(ETH_P_IP);
	addr_set_ipv4(&node, h->ip.daddr);
	r = hop_at(skb, p, ETH_HLEN + ENCAP_LEN);
	if (r)
		return r;
	return to_wire(skb, p, out, &node, false, FORWARD_TO_TUNNEL);
}

/* Takes a hop, and has the device send a pod's packet to p->node. Returns a reason. */
static __always_inline int send_by_device(struct __sk_buff *skb, struct pkt *p)
{
	int r = hop(skb, p);

	if (r)
		return r;
	r = encap_by_device(skb, p, &p->node, to_wire_identity(p->src_identity));
	if (r)
		return r;
	p->target = overlay_ifindex;
	skb->mark = MARK_DELIVERED;
	p->action = bpf_redirect(overlay_ifindex, 0);
	return p->action == TC_REDIRECT ? FORWARD_TO_TUNNEL : DROP_REDIRECT;
}

/* addr_equal() with a constant of config.h, which is volatile. */
static __always_inline bool same_addr(const union addr *a,
				      const volatile union addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

/*
 * May the node at `outer` send from the address `inner` with this identity?
 * The address must be the node's own, or lie where the node's addresses are.
 * Returns 0 or a drop.
 */
static __always_inline int accept_tunnel(const struct pkt *p,
					 const union addr *outer,
					 const union addr *inner, __u32 vni)
{
	const struct peer *peer;

	if (!wire_identity(vni))
		return DROP_INVALID_IDENTITY;
	peer = peer_known(known_peer(p, inner));
	if (!peer || !addr_equal(&peer->node, outer))
		return DROP_UNKNOWN_SENDER;
	/* A host speaks as a host, and nobody else does. */
	if (!!(peer->flags & PEER_NODE) != (vni == IDENTITY_REMOTE_NODE))
		return DROP_INVALID_IDENTITY;
	return 0;
}

/*
 * RFC 6040, 4.2: what the inner packet's ECN becomes. Returns the new field or
 * -1 when the packet must go.
 */
static __always_inline int ecn_decap(__u8 outer, __u8 inner)
{
	outer &= ECN_MASK;
	inner &= ECN_MASK;
	if (outer == ECN_CE)
		return inner == ECN_NONE ? -1 : ECN_CE;
	if (outer == ECN_ECT1 && inner == ECN_ECT0)
		return ECN_ECT1;
	return inner;
}

/* Writes p->tos's ECN field. */
static __always_inline int set_ecn(struct __sk_buff *skb, struct pkt *p, int ecn)
{
	__u8 tos = (p->tos & ~ECN_MASK) | ecn;

	if (tos == p->tos)
		return 0;
	if (p->ipv6) {
		__be16 head, old;

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &old, 2))
			return DROP_WRITE;
		head = (old & bpf_htons(0xf00f)) | bpf_htons((__u16)tos << 4);
		/* Nothing in the header makes up for it, so what a card summed up changes too. */
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &head, 2, BPF_F_RECOMPUTE_CSUM))
			return DROP_WRITE;
	} else {
		__be16 old = bpf_htons(0x4500 | p->tos);
		__be16 new = bpf_htons(0x4500 | tos);

		if (bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), old, new, 2) ||
		    bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, tos), &tos, 1, 0))
			return DROP_WRITE;
	}
	p->tos = tos;
	return 0;
}

#endif
