/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file reads headers. parse() fills struct pkt from the frame at a fixed
 * offset, or says why not; it writes nothing. Both families end in the same
 * form. What it does not know (GRE, ESP, SCTP, ...) has ports 0 and is tracked
 * by its addresses and protocol.
 */
#ifndef KUBE_CILIUM_PARSE_H
#define KUBE_CILIUM_PARSE_H

#include "packet.h"

/* Extension headers that are walked before a packet is called nonsense. */
#define MAX_EXTENSIONS 6

#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_AUTH 51
#define NEXTHDR_DEST 60
#define NEXTHDR_ICMP6 58

/* The header that holds a jumbo option and nothing else. */
#define JUMBO_LEN 8
#define OPTION_JUMBO 0xc2

/* linux/icmp.h wants a C library: the few numbers of it. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_FRAG_NEEDED 4
#define ICMP_SOURCE_QUENCH 4
#define ICMP_REDIRECT 5
#define ICMP_ECHO 8
#define ICMP_ROUTER 9
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_CHECK_OFFSET 2

#define ICMP6_DST_UNREACH 1
#define ICMP6_TOO_BIG 2
#define ICMP6_TIME_EXCEEDED 3
#define ICMP6_PARAM_PROBLEM 4
#define ICMP6_ECHO_REQUEST 128
#define ICMP6_ECHO_REPLY 129
#define ICMP6_MLD_QUERY 130
#define ICMP6_MLD_REPORT 131
#define ICMP6_MLD_DONE 132
#define ICMP6_RS 133
#define ICMP6_RA 134
#define ICMP6_NS 135
#define ICMP6_NA 136
#define ICMP6_REDIRECT 137
#define ICMP6_MLD2_REPORT 143

/* Looks like a packet in the tunnel: UDP to its port. */
static __always_inline bool to_tunnel_port(const struct tuple *t)
{
	return tunnel_port && t->proto == IPPROTO_UDP &&
	       t->dport == bpf_htons(tunnel_port);
}

static __always_inline bool icmp4_is_error(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB || type == ICMP_SOURCE_QUENCH;
}

/*
 * len bytes of IP, header included, may be a segment whose length no header
 * can hold: TCP beyond 64 KiB, which the kernel cuts on its way to the wire,
 * or a pod takes whole (BIG TCP). Nothing else may leave its length out.
 */
static __always_inline bool beyond_64k(const struct __sk_buff *skb, __u32 len)
{
	return skb->gso_size && len > 0xffff;
}

/*
 * The same of IPv6, whose header says 0: before TCP the kernel puts an option
 * with the length (RFC 2675) and takes it away when it cuts; newer kernels put
 * none. proto and l4 are in and out. Returns the length of what follows the
 * IPv6 header, or 0: it is as empty as it says.
 */
static __always_inline __u32 jumbo6(struct __sk_buff *skb, __u8 *proto,
				    __u32 *l4)
{
	struct {
		__u8 next, len, type, size;
		__be32 payload;
	} h;
	__u32 len = skb->len - *l4;

	if (!beyond_64k(skb, len))
		return 0;
	if (*proto == IPPROTO_TCP)
		return len;
	if (*proto != NEXTHDR_HOP || bpf_skb_load_bytes(skb, *l4, &h, sizeof(h)))
		return 0;
	if (h.next != IPPROTO_TCP || h.len || h.type != OPTION_JUMBO ||
	    h.size != sizeof(h.payload) || h.payload != bpf_htonl(len))
		return 0;
	*proto = h.next;
	*l4 += sizeof(h);
	return len;
}

/* The name of an ICMP message: echo by identifier, others by type and code. */
static __always_inline void icmp_name(struct tuple *t, bool ipv6, __u8 type,
				      __u8 code, __be16 id)
{
	bool request = ipv6 ? type == ICMP6_ECHO_REQUEST : type == ICMP_ECHO;
	bool reply = ipv6 ? type == ICMP6_ECHO_REPLY : type == ICMP_ECHOREPLY;

	t->asker = reply ? ASKER_DESTINATION : ASKER_SOURCE;
	t->sport = request || reply ? id : bpf_htons(type << 8 | code);
	t->dport = t->sport;
}

/* Bytes that must be there for the transport header to be judged. */
static __always_inline __u32 l4_needs(__u8 proto)
{
	if (proto == IPPROTO_TCP)
		return sizeof(struct tcphdr);
	if (proto == IPPROTO_UDP)
		return sizeof(struct udphdr);
	if (proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6 ||
	    proto == IPPROTO_SCTP)
		return 8;
	return 0;
}

/*
 * Walks extension headers. proto and l4 are in and out. Returns 0 or a drop.
 * Routing headers of type 0 are refused (RFC 5095).
 */
static __always_inline int skip_extensions(struct __sk_buff *skb,
					   struct pkt *p, __u8 *proto,
					   __u32 *l4)
{
	struct {
		__u8 next, len, kind, segments;
		__be32 id;
	} h;
	__u32 off = *l4;
	__u8 next = *proto;
	int i;

#pragma unroll
	for (i = 0; i < MAX_EXTENSIONS; i++) {
		if (next != NEXTHDR_HOP && next != NEXTHDR_ROUTING &&
		    next != NEXTHDR_DEST && next != NEXTHDR_FRAGMENT &&
		    next != NEXTHDR_AUTH)
			goto out;
		if (bpf_skb_load_bytes(skb, off, &h, sizeof(h)))
			return DROP_INVALID_PACKET;
		if (next == NEXTHDR_FRAGMENT) {
			__u16 frag = (__u16)h.kind << 8 | h.segments;

			p->fragment_id = h.id;
			if (frag & 0xfff8)
				p->fragment = FRAGMENT_LATER;
			else if (frag & 1)
				p->fragment = FRAGMENT_FIRST;
			off += 8;
			next = h.next;
			/* What follows belongs to the first fragment's headers. */
			if (p->fragment == FRAGMENT_LATER)
				goto out;
			continue;
		}
		if (next == NEXTHDR_ROUTING && h.kind == 0)
			return DROP_INVALID_PACKET;
		off += next == NEXTHDR_AUTH ? (h.len + 2) * 4 : (h.len + 1) * 8;
		next = h.next;
	}
	return DROP_INVALID_PACKET;
out:
	*l4 = off;
	*proto = next;
	return 0;
}

/* Makes the first bytes of the frame linear, as many as there are. */
static __always_inline void pull(struct __sk_buff *skb, __u32 want)
{
	bpf_skb_pull_data(skb, skb->len < want ? skb->len : want);
}

static __always_inline int parse_l4(struct __sk_buff *skb, struct pkt *p,
				    __u32 l4, __u32 l3_end)
{
	union {
		struct tcphdr tcp;
		struct udphdr udp;
		struct {
			__u8 type, code;
			__be16 check, id, sequence;
		} icmp;
		__u8 b[20];
	} *h, copy;
	__u32 need = l4_needs(p->t.proto);
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	p->l4 = l4;
	if (p->fragment == FRAGMENT_LATER || !need)
		return 0;
	if (l4 + need > l3_end)
		return DROP_INVALID_PACKET;
	h = data + (l4 & 0x3ff);
	if ((void *)(h + 1) > end || l4 > 0x3ff) {
		if (bpf_skb_load_bytes(skb, l4, &copy, 8))
			return DROP_INVALID_PACKET;
		if (need > 8 && bpf_skb_load_bytes(skb, l4, &copy, 20))
			return DROP_INVALID_PACKET;
		h = &copy;
	}
	switch (p->t.proto) {
	case IPPROTO_TCP:
		if ((h->b[12] >> 4) < 5)
			return DROP_INVALID_PACKET;
		p->payload = l4 + (h->b[12] >> 4) * 4;
		p->tcp_flags = h->b[13];
		p->t.sport = h->tcp.source;
		p->t.dport = h->tcp.dest;
		return 0;
	case IPPROTO_UDP:
		p->payload = l4 + sizeof(struct udphdr);
		p->t.sport = h->udp.source;
		p->t.dport = h->udp.dest;
		return 0;
	case IPPROTO_SCTP:
		/* Its ports are where UDP has them. */
		p->t.sport = h->udp.source;
		p->t.dport = h->udp.dest;
		return 0;
	case IPPROTO_ICMP:
		if (p->ipv6)
			return DROP_INVALID_PACKET;
		p->icmp_type = h->icmp.type;
		p->icmp_code = h->icmp.code;
		p->error = icmp4_is_error(h->icmp.type);
		icmp_name(&p->t, false, h->icmp.type, h->icmp.code, h->icmp.id);
		return 0;
	case IPPROTO_ICMPV6:
		if (!p->ipv6)
			return DROP_INVALID_PACKET;
		p->icmp_type = h->icmp.type;
		p->icmp_code = h->icmp.code;
		p->error = h->icmp.type < 128;
		p->nd = (h->icmp.type >= ICMP6_MLD_QUERY &&
			 h->icmp.type <= ICMP6_REDIRECT) ||
			h->icmp.type == ICMP6_MLD2_REPORT;
		icmp_name(&p->t, true, h->icmp.type, h->icmp.code, h->icmp.id);
		return 0;
	}
	return 0;
}

/*
 * Reads the packet whose IP header is at l3 (a constant), by the Ethernet type
 * before it. Returns 0, DROP_NOT_SUPPORTED_L3 for what is not IP, or a drop.
 */
static __always_inline int parse(struct __sk_buff *skb, struct pkt *p, __u32 l3)
{
	void *data, *end;
	__be16 type;
	__u32 l4, l3_end;
	__u8 proto;
	int r;

	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	/*
	 * Headers may lie in fragments of the buffer; a failure shows below.
	 * Never more than them: pulling even a byte of what a local socket
	 * sends copies the whole head.
	 */
	if (unlikely(data + l3 + sizeof(struct iphdr) > end)) {
		pull(skb, l3 + sizeof(struct ipv6hdr));
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	if (data + l3 + sizeof(struct iphdr) > end) {
		if (data + l3 <= end) {
			type = *(__be16 *)(data + l3 - 2);
			if (type != bpf_htons(ETH_P_IP) &&
			    type != bpf_htons(ETH_P_IPV6))
				return DROP_NOT_SUPPORTED_L3;
		}
		return DROP_INVALID_PACKET;
	}
	type = *(__be16 *)(data + l3 - 2);

	if (type == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + l3;
		__u16 frag = bpf_ntohs(ip->frag_off);
		__u32 len = bpf_ntohs(ip->tot_len);

		if (ip->version != 4 || ip->ihl < 5)
			return DROP_INVALID_PACKET;
		if (unlikely(!len) && ip->protocol == IPPROTO_TCP &&
		    !(frag & (IP_MF | IP_OFFSET)) &&
		    beyond_64k(skb, skb->len - l3))
			len = skb->len - l3;
		if (len < ip->ihl * 4 || l3 + len > skb->len)
			return DROP_INVALID_PACKET;
		addr_set_ipv4(&p->t.saddr, ip->saddr);
		addr_set_ipv4(&p->t.daddr, ip->daddr);
		p->t.proto = ip->protocol;
		p->tos = ip->tos;
		p->ttl = ip->ttl;
		if (frag & (IP_MF | IP_OFFSET)) {
			p->fragment = frag & IP_OFFSET ? FRAGMENT_LATER :
							 FRAGMENT_FIRST;
			p->fragment_id = (__be32)ip->id;
		}
		return parse_l4(skb, p, l3 + ip->ihl * 4, l3 + len);
	}
	if (type == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + l3;
		__u32 len;

		if (unlikely((void *)(ip + 1) > end)) {
			pull(skb, l3 + sizeof(*ip));
			data = (void *)(long)skb->data;
			end = (void *)(long)skb->data_end;
			ip = data + l3;
			if ((void *)(ip + 1) > end)
				return DROP_INVALID_PACKET;
		}
		if (ip->version != 6)
			return DROP_INVALID_PACKET;
		len = bpf_ntohs(ip->payload_len);
		__builtin_memcpy(&p->t.saddr, &ip->saddr, 16);
		__builtin_memcpy(&p->t.daddr, &ip->daddr, 16);
		p->ipv6 = true;
		p->tos = (*(__u8 *)ip & 0xf) << 4 | ip->flow_lbl[0] >> 4;
		p->ttl = ip->hop_limit;
		proto = ip->nexthdr;
		l4 = l3 + sizeof(*ip);
		/* An IPv4 address in IPv6 clothes would be taken for the IPv4 one. */
		if (addr_is_ipv4(&p->t.saddr) || addr_is_ipv4(&p->t.daddr))
			return DROP_MARTIAN;
		if (unlikely(!len))
			len = jumbo6(skb, &proto, &l4);
		l3_end = l3 + sizeof(*ip) + len;
		if (l3_end > skb->len)
			return DROP_INVALID_PACKET;
		r = skip_extensions(skb, p, &proto, &l4);
		if (r)
			return r;
		p->t.proto = proto;
		return parse_l4(skb, p, l4, l3_end);
	}
	return DROP_NOT_SUPPORTED_L3;
}

/*
 * Reads the head of the packet that an ICMP error quotes. Returns false when
 * it is too short or has no ports: then no connection can be found for it.
 */
static __subprogram bool parse_quoted(struct __sk_buff *skb, struct pkt *p)
{
	struct quoted *q = &p->q;
	__be16 ports[4];

	q->l3 = p->l4 + 8;
	if (!p->ipv6) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)))
			return false;
		if (ip.version != 4 || ip.ihl < 5 ||
		    ip.frag_off & bpf_htons(IP_OFFSET))
			return false;
		addr_set_ipv4(&q->t.saddr, ip.saddr);
		addr_set_ipv4(&q->t.daddr, ip.daddr);
		q->t.proto = ip.protocol;
		q->l4 = q->l3 + ip.ihl * 4;
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)))
			return false;
		if (ip.version != 6)
			return false;
		__builtin_memcpy(&q->t.saddr, &ip.saddr, 16);
		__builtin_memcpy(&q->t.daddr, &ip.daddr, 16);
		q->t.proto = ip.nexthdr;
		q->l4 = q->l3 + sizeof(ip);
		if (q->t.proto == NEXTHDR_FRAGMENT) {
			struct {
				__u8 next, reserved;
				__be16 frag;
				__be32 id;
			} h;

			if (bpf_skb_load_bytes(skb, q->l4, &h, sizeof(h)) ||
			    h.frag & bpf_htons(0xfff8))
				return false;
			q->t.proto = h.next;
			q->l4 += sizeof(h);
		}
	}
	if (bpf_skb_load_bytes(skb, q->l4, ports, sizeof(ports)))
		return false;
	switch (q->t.proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		q->t.sport = ports[0];
		q->t.dport = ports[1];
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		icmp_name(&q->t, p->ipv6, bpf_ntohs(ports[0]) >> 8,
			  bpf_ntohs(ports[0]) & 0xff, ports[2]);
		return true;
	}
	return false;
}

#endif
