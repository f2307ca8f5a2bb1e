/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file answers a pod in place of a router: too big, hop limit exceeded,
 * and who has the gateway's address. The packet in hand becomes the answer.
 */
#ifndef KUBE_CILIUM_ICMP_H
#define KUBE_CILIUM_ICMP_H

#include "deliver.h"
#include "parse.h"

/* Bytes of the offending packet that an error quotes: all headers, a multiple of 4. */
#define QUOTE_LEN 128

#define GATEWAY_IPV4 0xa9fe0101	/* 169.254.1.1, host order */

static __always_inline void gateway_ipv6(union addr *a)
{
	a->d[0] = bpf_cpu_to_be64(0xfe80000000000000ULL);
	a->d[1] = bpf_cpu_to_be64(1);
}

static __always_inline __u16 fold(__s64 sum)
{
	__u32 s = sum;

	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return ~s;
}

/* Swaps the Ethernet addresses and sets the type. */
static __always_inline int turn_ethernet(struct __sk_buff *skb, __be16 type)
{
	struct ethhdr eth, back;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return DROP_WRITE;
	__builtin_memcpy(back.h_dest, eth.h_source, 6);
	__builtin_memcpy(back.h_source, eth.h_dest, 6);
	back.h_proto = type;
	return bpf_skb_store_bytes(skb, 0, &back, sizeof(back), 0) ? DROP_WRITE : 0;
}

/*
 * Turns the packet into an ICMP error about itself and sends it back. kind is
 * the type and, in the lower byte, the code; info is
 * the last word of the ICMP header: the MTU, or 0. reason is what the packet
 * is dropped with when the error cannot be made.
 */
static __subprogram int icmp_error(struct __sk_buff *skb, struct pkt *p,
				 __u16 kind, __u32 info, int reason)
{
	__u32 head = p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	__u32 quote = skb->len - ETH_HLEN;
	__u8 quoted[QUOTE_LEN] = {};
	struct {
		__u8 type, code;
		__u16 check;
		__be32 info;
	} icmp = { .type = kind >> 8, .code = kind & 0xff, .info = bpf_htonl(info) };
	__s64 sum;

	/* Never an error about an error, a fragment or to many (RFC 1122, RFC 4443). */
	if (p->error || p->fragment == FRAGMENT_LATER)
		return reason;
	if (quote > QUOTE_LEN)
		quote = QUOTE_LEN;
	quote &= ~3;
	/* Let the verifier see the bounds that it needs, after the last change. */
	asm volatile("" : "+r"(quote));
	if (quote < 28 || quote > QUOTE_LEN)
		return reason;
	if (bpf_skb_change_tail(skb, ETH_HLEN + quote, 0))
		return reason;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, quoted, quote))
		return reason;
	if (bpf_skb_adjust_room(skb, head + sizeof(icmp), BPF_ADJ_ROOM_MAC, 0))
		return reason;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)quoted, sizeof(quoted), 0);

	if (p->ipv6) {
		struct {
			union addr saddr, daddr;
			__be32 len, next;
		} pseudo = {};
		struct ipv6hdr ip = {
			.version = 6,
			.payload_len = bpf_htons(sizeof(icmp) + quote),
			.nexthdr = NEXTHDR_ICMP6,
			.hop_limit = 64,
		};

		own_addr(&pseudo.saddr, true);
		if (addr_zero(&pseudo.saddr))
			gateway_ipv6(&pseudo.saddr);
		pseudo.daddr = p->t.saddr;
		pseudo.len = bpf_htonl(sizeof(icmp) + quote);
		pseudo.next = bpf_htonl(NEXTHDR_ICMP6);
		__builtin_memcpy(&ip.saddr, &pseudo.saddr, 16);
		__builtin_memcpy(&ip.daddr, &pseudo.daddr, 16);
		sum = bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), sum);
		sum = bpf_csum_diff(NULL, 0, (__be32 *)&icmp, sizeof(icmp), sum);
		icmp.check = fold(sum);
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0) ||
		    bpf_skb_store_bytes(skb, ETH_HLEN + sizeof(ip), &icmp, sizeof(icmp), 0))
			return DROP_WRITE;
	} else {
		struct iphdr ip = {
			.version = 4,
			.ihl = 5,
			.tot_len = bpf_htons(sizeof(ip) + sizeof(icmp) + quote),
			.ttl = 64,
			.protocol = IPPROTO_ICMP,
			.saddr = node_ipv4.w[3] ?: bpf_htonl(GATEWAY_IPV4),
			.daddr = p->t.saddr.w[3],
		};

		sum = bpf_csum_diff(NULL, 0, (__be32 *)&icmp, sizeof(icmp), sum);
		icmp.check = fold(sum);
		ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0) ||
		    bpf_skb_store_bytes(skb, ETH_HLEN + sizeof(ip), &icmp, sizeof(icmp), 0))
			return DROP_WRITE;
	}
	if (turn_ethernet(skb, p->ipv6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP)))
		return DROP_WRITE;
	return send_back(skb, p);
}

static __always_inline int answer_too_big(struct __sk_buff *skb, struct pkt *p,
					  __u32 mtu)
{
	if (p->ipv6)
		return icmp_error(skb, p, ICMP6_TOO_BIG << 8, mtu, DROP_TOO_BIG);
	return icmp_error(skb, p, ICMP_DEST_UNREACH << 8 | ICMP_FRAG_NEEDED, mtu, DROP_TOO_BIG);
}

static __always_inline int answer_ttl_exceeded(struct __sk_buff *skb,
					       struct pkt *p)
{
	if (p->ipv6)
		return icmp_error(skb, p, ICMP6_TIME_EXCEEDED << 8, 0, DROP_TTL_EXCEEDED);
	return icmp_error(skb, p, ICMP_TIME_EXCEEDED << 8, 0, DROP_TTL_EXCEEDED);
}

#endif
