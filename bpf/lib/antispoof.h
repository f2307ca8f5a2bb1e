/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file holds a pod to its own name: addresses, ARP, neighbour and router
 * discovery, DHCP, and the tunnel port. It also answers for the gateway, so
 * that a pod never hears another pod's or the host's neighbour tables.
 */
#ifndef KUBE_CILIUM_ANTISPOOF_H
#define KUBE_CILIUM_ANTISPOOF_H

#include "icmp.h"
#include "parse.h"
#include "peers.h"

struct arp {
	__be16 hardware, protocol;
	__u8 hardware_len, protocol_len;
	__be16 op;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] &&
	       a[4] == b[4] && a[5] == b[5];
}

/* ARP from a pod: its own only; the gateway's address is ours to give. */
static __subprogram int from_pod_arp(struct __sk_buff *skb, struct pkt *p,
				   const struct pod_interface *pod)
{
	struct {
		struct ethhdr eth;
		struct arp arp;
	} __attribute__((packed)) h, back = {};
	__be32 sender, target, gateway = bpf_htonl(GATEWAY_IPV4);

	if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)))
		return DROP_INVALID_PACKET;
	if (h.arp.hardware != bpf_htons(1) ||
	    h.arp.protocol != bpf_htons(ETH_P_IP) || h.arp.hardware_len != 6 ||
	    h.arp.protocol_len != 4)
		return DROP_INVALID_PACKET;
	__builtin_memcpy(&sender, h.arp.sender, 4);
	__builtin_memcpy(&target, h.arp.target, 4);
	addr_set_ipv4(&p->t.saddr, sender);
	addr_set_ipv4(&p->t.daddr, target);

	if (!mac_equal(h.arp.sender_mac, pod->mac) ||
	    !mac_equal(h.eth.h_source, pod->mac))
		return DROP_SPOOFED_ARP;
	/* Sender 0.0.0.0 asks whether its own address is taken (RFC 5227). */
	if (!addr_equal(&p->t.saddr, &pod->ipv4) &&
	    !(sender == 0 && addr_equal(&p->t.daddr, &pod->ipv4)))
		return DROP_SPOOFED_ARP;
	if (h.arp.op != bpf_htons(1) || target != gateway) {
		p->action = TC_NEXT;
		return FORWARD_TO_STACK;
	}

	__builtin_memcpy(back.eth.h_dest, pod->mac, 6);
	__builtin_memcpy(back.eth.h_source, pod->host_mac, 6);
	back.eth.h_proto = bpf_htons(ETH_P_ARP);
	back.arp.hardware = bpf_htons(1);
	back.arp.protocol = bpf_htons(ETH_P_IP);
	back.arp.hardware_len = 6;
	back.arp.protocol_len = 4;
	back.arp.op = bpf_htons(2);
	__builtin_memcpy(back.arp.sender_mac, pod->host_mac, 6);
	__builtin_memcpy(back.arp.sender, &gateway, 4);
	__builtin_memcpy(back.arp.target_mac, pod->mac, 6);
	__builtin_memcpy(back.arp.target, &sender, 4);
	if (bpf_skb_store_bytes(skb, 0, &back, sizeof(back), 0))
		return DROP_WRITE;
	return send_back(skb, p);
}

/* The address that the kernel makes from a MAC (RFC 4291, appendix A). */
static __always_inline void link_local_of(union addr *a, const __u8 *mac)
{
	a->d[0] = bpf_cpu_to_be64(0xfe80000000000000ULL);
	a->b[8] = mac[0] ^ 2;
	a->b[9] = mac[1];
	a->b[10] = mac[2];
	a->b[11] = 0xff;
	a->b[12] = 0xfe;
	a->b[13] = mac[3];
	a->b[14] = mac[4];
	a->b[15] = mac[5];
}

/* Tells the pod the MAC of fe80::1. */
static __subprogram int answer_solicitation(struct __sk_buff *skb, struct pkt *p,
					  const struct pod_interface *pod)
{
	struct {
		struct ethhdr eth;
		struct ipv6hdr ip;
		struct {
			__u8 type, code;
			__u16 check;
			__be32 flags;
			union addr target;
			__u8 option, option_len;
			__u8 mac[6];
		} na;
	} __attribute__((packed)) h = {};
	struct {
		union addr saddr, daddr;
		__be32 len, next;
	} pseudo = {};
	bool solicited = !addr_zero(&p->t.saddr);
	__s64 sum;

	gateway_ipv6(&pseudo.saddr);
	if (solicited) {
		pseudo.daddr = p->t.saddr;
	} else {
		pseudo.daddr.w[0] = bpf_htonl(0xff020000);
		pseudo.daddr.w[3] = bpf_htonl(1);
	}
	pseudo.len = bpf_htonl(sizeof(h.na));
	pseudo.next = bpf_htonl(NEXTHDR_ICMP6);

	__builtin_memcpy(h.eth.h_dest, pod->mac, 6);
	__builtin_memcpy(h.eth.h_source, pod->host_mac, 6);
	h.eth.h_proto = bpf_htons(ETH_P_IPV6);
	h.ip.version = 6;
	h.ip.payload_len = bpf_htons(sizeof(h.na));
	h.ip.nexthdr = NEXTHDR_ICMP6;
	h.ip.hop_limit = 255;
	__builtin_memcpy(&h.ip.saddr, &pseudo.saddr, 16);
	__builtin_memcpy(&h.ip.daddr, &pseudo.daddr, 16);
	h.na.type = ICMP6_NA;
	/* Router, solicited, override. */
	h.na.flags = bpf_htonl(solicited ? 0xe0000000 : 0xa0000000);
	gateway_ipv6(&pseudo.saddr);
	__builtin_memcpy(&h.na.target, &pseudo.saddr, 16);
	h.na.option = 2;
	h.na.option_len = 1;
	__builtin_memcpy(h.na.mac, pod->host_mac, 6);

	if (bpf_skb_change_tail(skb, sizeof(h), 0))
		return DROP_WRITE;
	if (bpf_skb_store_bytes(skb, 0, &h, sizeof(h), 0))
		return DROP_WRITE;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
	{
		__be32 body[8];

		__builtin_memcpy(body, &h.na, sizeof(body));
		sum = bpf_csum_diff(NULL, 0, body, sizeof(body), sum);
	}
	h.na.check = fold(sum);
	if (bpf_skb_store_bytes(skb, ETH_HLEN + sizeof(h.ip) + 2, &h.na.check, 2, 0))
		return DROP_WRITE;
	return send_back(skb, p);
}

/*
 * Neighbour, router and listener discovery from a pod. It ends here or in this
 * host's stack and is never routed. Returns a reason.
 */
static __always_inline int from_pod_discovery(struct __sk_buff *skb,
					      struct pkt *p,
					      const struct pod_interface *pod,
					      bool link_local)
{
	union addr target, gateway;

	switch (p->icmp_type) {
	case ICMP6_RA:
	case ICMP6_REDIRECT:
	case ICMP6_MLD_QUERY:
		return DROP_FORBIDDEN_ICMP6;
	case ICMP6_NS:
	case ICMP6_NA:
		/* RFC 4861, 7.1: what was routed is not believed, nor sent by us. */
		if (p->ttl != 255 ||
		    bpf_skb_load_bytes(skb, p->l4 + 8, &target, 16))
			return DROP_FORBIDDEN_ICMP6;
		if (p->icmp_type == ICMP6_NA) {
			union addr own;

			link_local_of(&own, pod->mac);
			if (!addr_equal(&target, &pod->ipv6) &&
			    !addr_equal(&target, &own))
				return DROP_FORBIDDEN_ICMP6;
			break;
		}
		gateway_ipv6(&gateway);
		if (addr_equal(&target, &gateway))
			return answer_solicitation(skb, p, pod);
		break;
	}
	if (!addr_multicast6(&p->t.daddr) && !addr_link_local(&p->t.daddr))
		return DROP_FORBIDDEN_ICMP6;
	p->action = TC_NEXT;
	return FORWARD_TO_STACK;
}

/* Addresses that no packet may be routed to or come from. */
static __always_inline bool martian4(__be32 addr)
{
	__u32 a = bpf_ntohl(addr);

	return a >> 24 == 0 || a >> 24 == 127 || a >> 28 >= 14;
}

static __always_inline bool martian6(const union addr *a)
{
	if (addr_multicast6(a) || addr_link_local(a))
		return true;
	/* :: and ::1 */
	return !a->d[0] && !a->w[2] && !(a->w[3] & ~bpf_htonl(1));
}

static __always_inline bool martian(const struct pkt *p, const union addr *a)
{
	return p->ipv6 ? martian6(a) : martian4(a->w[3]);
}

/*
 * The source is the pod's. Returns 0, or a reason that ends the packet: a
 * drop, or discovery that was dealt with.
 */
static __always_inline int from_pod_source(struct __sk_buff *skb, struct pkt *p,
					   const struct pod_interface *pod)
{
	union addr own;

	if (!p->ipv6) {
		if (!addr_equal(&p->t.saddr, &pod->ipv4))
			return martian4(p->t.saddr.w[3]) ? DROP_MARTIAN :
							   DROP_INVALID_SOURCE;
		/* Group membership: the host's affair, and at most it ignores it. */
		if (p->t.proto == IPPROTO_IGMP) {
			p->action = TC_NEXT;
			return FORWARD_TO_STACK;
		}
		if (p->t.proto == IPPROTO_ICMP &&
		    p->fragment != FRAGMENT_LATER &&
		    (p->icmp_type == ICMP_REDIRECT || p->icmp_type == ICMP_ROUTER))
			return DROP_FORBIDDEN_ICMP6;
	} else if (addr_zero(&pod->ipv6) || !addr_equal(&p->t.saddr, &pod->ipv6)) {
		bool probe = addr_zero(&p->t.saddr);

		link_local_of(&own, pod->mac);
		if (!p->nd || (!probe && !addr_equal(&p->t.saddr, &own)))
			return probe || martian6(&p->t.saddr) ?
				DROP_MARTIAN : DROP_INVALID_SOURCE;
		return from_pod_discovery(skb, p, pod, true);
	} else if (p->nd) {
		return from_pod_discovery(skb, p, pod, false);
	}
	if (martian(p, &p->t.daddr) || addr_equal(&p->t.saddr, &p->t.daddr))
		return DROP_MARTIAN;
	/* The gateway is only a name for our MAC. */
	if (!p->ipv6 && p->t.daddr.w[3] == bpf_htonl(GATEWAY_IPV4))
		return DROP_MARTIAN;
	return 0;
}

/* What a pod may not send whatever policy says; ports are known. Returns 0 or a drop. */
static __always_inline int from_pod_forbidden(const struct pkt *p,
					      const struct endpoint *local)
{
	__u16 sport = bpf_ntohs(p->t.sport), dport = bpf_ntohs(p->t.dport);
	struct peer *peer;

	if (p->t.proto != IPPROTO_UDP)
		return 0;
	if (p->ipv6 ? sport == 547 && dport == 546 : sport == 67 && dport == 68)
		return DROP_DHCP_SERVER;
	/* A forged tunnel packet would arrive with this node's address. */
	if (!to_tunnel_port(&p->t))
		return 0;
	if (local)
		return local->flags & ENDPOINT_HOST ? DROP_ENCAP_PROHIBITED : 0;
	peer = peer_of(&p->t.daddr);
	return peer && peer->flags & PEER_NODE ? DROP_ENCAP_PROHIBITED : 0;
}

#endif
