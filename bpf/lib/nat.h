/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file hides pods behind a node's address. A masqueraded connection keeps
 * its entry under the pod's name, with the address and port that the world
 * sees; a second entry under the world's name (CONN_POINTER) leads back to it.
 *
 * A port is taken only when no connection of ours has the name, and no socket
 * of the host could: host and pods share the ports of the node's address.
 */
#ifndef KUBE_CILIUM_NAT_H
#define KUBE_CILIUM_NAT_H

#include "conntrack.h"
#include "parse.h"

#define NAT_TRIES 32

/* Protocols whose ports (or identifier) can be given another value. */
static __always_inline bool nat_can(const struct pkt *p)
{
	if (p->t.proto == IPPROTO_TCP || p->t.proto == IPPROTO_UDP)
		return true;
	if (p->t.proto == IPPROTO_ICMP)
		return p->fragment == FRAGMENT_LATER || p->icmp_type == ICMP_ECHO ||
		       p->icmp_type == ICMP_ECHOREPLY;
	if (p->t.proto == IPPROTO_ICMPV6)
		return p->fragment == FRAGMENT_LATER ||
		       p->icmp_type == ICMP6_ECHO_REQUEST ||
		       p->icmp_type == ICMP6_ECHO_REPLY;
	return false;
}

static __always_inline bool is_echo(__u8 proto)
{
	return proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6;
}

/* The name under which the other side sees the tuple. */
static __always_inline void nat_name(struct flow_key *k, const struct tuple *t,
				     const union addr *addr, __be16 port)
{
	struct tuple seen = *t;

	seen.saddr = *addr;
	seen.sport = port;
	if (is_echo(t->proto))
		seen.dport = port;
	flow_name(k, &seen);
}

/* A socket of the host listens on the port or speaks with that other side. */
static __always_inline bool host_uses_port(struct __sk_buff *skb,
					   const struct tuple *t,
					   const union addr *addr, __be16 port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 size;

	if (t->proto != IPPROTO_TCP && t->proto != IPPROTO_UDP)
		return false;
	if (addr_is_ipv4(addr)) {
		tuple.ipv4.saddr = t->daddr.w[3];
		tuple.ipv4.daddr = addr->w[3];
		tuple.ipv4.sport = t->dport;
		tuple.ipv4.dport = port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &t->daddr, 16);
		__builtin_memcpy(tuple.ipv6.daddr, addr, 16);
		tuple.ipv6.sport = t->dport;
		tuple.ipv6.dport = port;
		size = sizeof(tuple.ipv6);
	}
	if (t->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* Records a pointer, unless the name is taken. Returns 0 or an error. */
static __always_inline long pointer_put(const struct flow_key *k,
					const struct conn *pointer, __u32 now)
{
	struct advance *a;

	if (in_table_of_all(pointer))
		return bpf_map_update_elem(&conntrack, k, pointer, BPF_NOEXIST);
	a = advance_of(0, now);
	if (a)
		a->apart = now;
	return unanswered_put(0, k, pointer, BPF_NOEXIST);
}

/*
 * Finds a port on addr for the connection c named t and records both. Keeps
 * the source port where it is free and in the range; else probes from a random
 * place. home is the pod's table. Returns 0 or a drop.
 */
static __subprogram int nat_take(struct __sk_buff *skb, const struct tuple *t,
			       struct conn *c, const union addr *addr,
			       __u32 now)
{
	__u32 range = (__u32)nat_port_max - nat_port_min + 1, zero = 0, port, i;
	struct flow_key key = {};
	struct conn pointer = {};

	pointer.seen = now;
	/* It lives where its connection lives. */
	if (in_table_of_all(c))
		pointer.flags = CONN_POINTER | CONN_ADVANCED;
	else
		pointer.flags = CONN_POINTER;
	pointer.endpoint = c->endpoint;
	pointer.addr = t->saddr;
	pointer.port = t->sport;
	port = bpf_ntohs(t->sport);
	if (port < nat_port_min || port > nat_port_max)
		port = nat_port_min + bpf_get_prandom_u32() % range;

	for (i = 0; i < NAT_TRIES; i++) {
		struct conn *taken;

		nat_name(&key, t, addr, bpf_htons(port));
		taken = bpf_map_lookup_elem(&conntrack, &key);
		if (taken && conn_over(taken, t->proto, now)) {
			bpf_map_delete_elem(&conntrack, &key);
			taken = NULL;
		}
		if (!taken) {
			taken = unanswered_find(zero, &key, now);
			if (taken && conn_over(taken, t->proto, now)) {
				unanswered_drop(zero, &key);
				taken = NULL;
			}
		}
		/* Left over from this very connection, whose entry was evicted. */
		if (taken && taken->flags & CONN_POINTER &&
		    taken->port == t->sport &&
		    addr_equal(&taken->addr, &t->saddr)) {
			taken->seen = now;
			taken->flags &= ~CONN_CLOSING;
			goto found;
		}
		if (!taken && !host_uses_port(skb, t, addr, bpf_htons(port)) &&
		    !pointer_put(&key, &pointer, now))
			goto found;
		port = nat_port_min + (port - nat_port_min + 1 +
				       bpf_get_prandom_u32() % 61) % range;
	}
	return DROP_NO_MAPPING;
found:
	c->addr = *addr;
	c->port = bpf_htons(port);
	c->flags |= CONN_MASQUERADED;
	return 0;
}

/*
 * Keeps the pointer of a masqueraded connection alive as long as the
 * connection, or puts it back when it was evicted. Returns 0 or a drop.
 */
static __subprogram int nat_refresh(const struct tuple *t, const struct conn *c,
				  __u32 now)
{
	struct flow_key key = {};
	struct conn pointer = {}, *known;

	nat_name(&key, t, &c->addr, c->port);
	known = conn_find(&key, 0, 0, now);
	if (known) {
		if (!(known->flags & CONN_POINTER) ||
		    !addr_equal(&known->addr, &t->saddr) ||
		    known->port != t->sport)
			return DROP_NO_MAPPING;
		known->seen = now;
		known->flags |= c->flags & CONN_CLOSING;
		if (c->flags & CONN_SETTLED && !(known->flags & CONN_SETTLED))
			conn_settle(&key, known, 0);
		return 0;
	}
	pointer.seen = now;
	pointer.flags = CONN_POINTER |
			(c->flags & (CONN_CLOSING | CONN_ANSWERED |
				     CONN_SETTLED | CONN_ADVANCED));
	pointer.endpoint = c->endpoint;
	pointer.addr = t->saddr;
	pointer.port = t->sport;
	pointer_put(&key, &pointer, now);
	return 0;
}

/*
 * l4_csum_replace for a pseudo header. The helper takes the change off what a
 * network card summed up too (CHECKSUM_COMPLETE), for it expects a header
 * checksum that outweighs the address, as IPv4 has. IPv6 has none, and there it
 * is put back: BPF_F_IPV6 does the same in one, and is refused before Linux 6.16.
 * Returns 0 or an error.
 */
static __always_inline long l4_diff(struct __sk_buff *skb, __u32 off,
				    __s64 diff, __u64 flags, bool ipv6)
{
	long err = bpf_l4_csum_replace(skb, off, 0, diff, flags | BPF_F_PSEUDO_HDR);

	if (!err && ipv6)
		bpf_csum_update(skb, diff); /* refused where nothing was summed up */
	return err;
}

static __always_inline __u32 l4_check_offset(__u8 proto)
{
	if (proto == IPPROTO_TCP)
		return offsetof(struct tcphdr, check);
	if (proto == IPPROTO_UDP)
		return offsetof(struct udphdr, check);
	return ICMP_CHECK_OFFSET;
}

/* The bytes of an address that are in a header. */
static __always_inline __s64 addr_diff(const union addr *old,
				       const union addr *new, bool ipv6)
{
	union addr from = *old, to = *new;

	if (ipv6)
		return bpf_csum_diff(from.w, 16, to.w, 16, 0);
	return bpf_csum_diff(&from.w[3], 4, &to.w[3], 4, 0);
}

static __always_inline long addr_store(struct __sk_buff *skb, __u32 l3,
				       const union addr *addr, bool ipv6,
				       bool source)
{
	union addr copy = *addr;

	if (ipv6)
		return bpf_skb_store_bytes(skb, l3 + (source ? 8 : 24), copy.b, 16, 0);
	return bpf_skb_store_bytes(skb, l3 + (source ? 12 : 16), &copy.w[3], 4, 0);
}

/*
 * Writes another source (or destination) into the packet and mends the
 * checksums by the difference. A later fragment has no transport header.
 * Returns 0 or DROP_WRITE.
 */
static __subprogram int nat_rewrite(struct __sk_buff *skb, const struct pkt *p,
				  const union addr *addr, __be16 port,
				  bool source)
{
	const union addr *old = source ? &p->t.saddr : &p->t.daddr;
	__be16 old_port = source ? p->t.sport : p->t.dport;
	__u32 check = p->l4 + l4_check_offset(p->t.proto);
	/* UDP: a checksum of 0 is none, and stays so. */
	__u64 flags = p->t.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	bool ipv6 = p->ipv6;
	__s64 diff = addr_diff(old, addr, ipv6);
	__u32 port_at;

	if (addr_store(skb, ETH_HLEN, addr, ipv6, source))
		return DROP_WRITE;
	if (!ipv6 && bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check),
					 0, diff, 0))
		return DROP_WRITE;
	if (p->fragment == FRAGMENT_LATER) {
		/* No checksum in it makes up for the address, where IPv4's header does: see hop_at(). */
		if (ipv6)
			bpf_csum_update(skb, diff);
		return 0;
	}
	if (p->t.proto != IPPROTO_ICMP &&
	    l4_diff(skb, check, diff, flags, ipv6))
		return DROP_WRITE;
	if (is_echo(p->t.proto))
		port_at = p->l4 + 4;
	else
		port_at = p->l4 + (source ? 0 : 2);
	if (port == old_port)
		return 0;
	if (bpf_l4_csum_replace(skb, check, old_port, port, flags | 2) ||
	    bpf_skb_store_bytes(skb, port_at, &port, 2, 0))
		return DROP_WRITE;
	if (p->t.proto == IPPROTO_UDP) {
		__sum16 sum = 0;

		if (bpf_skb_load_bytes(skb, check, &sum, 2))
			return DROP_WRITE;
		if (!sum) { /* nothing in the packet makes up for the port */
			bpf_csum_update(skb, port);
			bpf_csum_update(skb, ~(__u32)old_port);
		}
	}
	return 0;
}

/*
 * The same for an ICMP error about a masqueraded connection: the outer address
 * and, on the other side of the quoted packet, address and port. The quoted
 * packet's own transport checksum is left: nobody can check it, it is cut.
 */
static __subprogram int nat_rewrite_error(struct __sk_buff *skb,
					const struct pkt *p,
					const union addr *addr, __be16 port,
					bool source)
{
	const struct quoted *q = &p->q;
	const union addr *old = source ? &p->t.saddr : &p->t.daddr;
	const union addr *old_quoted = source ? &q->t.daddr : &q->t.saddr;
	__be16 old_port = source ? q->t.dport : q->t.sport;
	__u32 check = p->l4 + ICMP_CHECK_OFFSET;
	__u32 port_at = is_echo(q->t.proto) ? q->l4 + 4 :
					      q->l4 + (source ? 2 : 0);
	bool ipv6 = p->ipv6;
	__s64 diff = addr_diff(old, addr, ipv6);
	__s64 quoted_diff = addr_diff(old_quoted, addr, ipv6);

	if (addr_store(skb, ETH_HLEN, addr, ipv6, source) ||
	    addr_store(skb, q->l3, addr, ipv6, !source))
		return DROP_WRITE;
	if (ipv6) {
		if (l4_diff(skb, check, diff, 0, true) ||
		    bpf_l4_csum_replace(skb, check, 0, quoted_diff, 0))
			return DROP_WRITE;
	} else {
		/* The quoted header mends its own checksum: the sum over both stays. */
		if (bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check),
					0, diff, 0) ||
		    bpf_l3_csum_replace(skb, q->l3 + offsetof(struct iphdr, check),
					0, quoted_diff, 0))
			return DROP_WRITE;
	}
	if (port == old_port)
		return 0;
	if (bpf_l4_csum_replace(skb, check, old_port, port, 2) ||
	    bpf_skb_store_bytes(skb, port_at, &port, 2, 0))
		return DROP_WRITE;
	return 0;
}

#endif
