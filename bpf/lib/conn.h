/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file says what an entry of a connection is, in whichever table: its name,
 * and for how long it holds.
 */
#ifndef KUBE_CILIUM_CONN_H
#define KUBE_CILIUM_CONN_H

#include "packet.h"

static __always_inline bool addr_after(const union addr *a, const union addr *b)
{
	__u64 x = bpf_be64_to_cpu(a->d[0]), y = bpf_be64_to_cpu(b->d[0]);

	if (x != y)
		return x > y;
	return bpf_be64_to_cpu(a->d[1]) > bpf_be64_to_cpu(b->d[1]);
}

/*
 * Fills the name of a tuple; returns true when its source is `hi`. The small
 * fields are written four bytes at a time, as the hash reads them: a load that
 * spans several stores waits for all of them.
 */
static __always_inline bool flow_name(struct flow_key *k, const struct tuple *t)
{
	__u32 sport = t->sport, dport = t->dport, class = FLOW_ORDINARY;
	bool hi;

	if (addr_equal(&t->saddr, &t->daddr))
		hi = bpf_ntohs(t->sport) > bpf_ntohs(t->dport);
	else
		hi = addr_after(&t->saddr, &t->daddr);
	if (hi) {
		k->lo = t->daddr;
		k->hi = t->saddr;
		*(__u32 *)&k->lo_port = dport | sport << 16;
	} else {
		k->lo = t->saddr;
		k->hi = t->daddr;
		*(__u32 *)&k->lo_port = sport | dport << 16;
	}
	if (t->asker)
		class = (t->asker == ASKER_SOURCE) == hi ?
				FLOW_ECHO_FROM_HI : FLOW_ECHO_FROM_LO;
	*(__u32 *)&k->proto = t->proto | class << 8 | (__u32)t->zone << 16;
	return hi;
}

static __always_inline bool name_equal(const struct flow_key *a,
				       const struct flow_key *b)
{
	return *(__u64 *)&a->lo_port == *(__u64 *)&b->lo_port &&
	       addr_equal(&a->lo, &b->lo) && addr_equal(&a->hi, &b->hi);
}

/* Ticks of silence that the connection lives through. */
static __always_inline __s32 conn_lifetime(const struct conn *c, __u8 proto)
{
	if (c->flags & CONN_CLOSING)
		return LIFETIME_CLOSING;
	if (!(c->flags & CONN_SETTLED))
		return LIFETIME_UNANSWERED;
	return proto == IPPROTO_TCP ? LIFETIME_TCP : LIFETIME_OTHER;
}

/* Nothing was heard for so long that it is another connection now. */
static __always_inline bool conn_over(const struct conn *c, __u8 proto,
				      __u32 now)
{
	__s32 age = now - c->seen;

	return age > conn_lifetime(c, proto);
}

/* What was judged is void, before anything else of the entry changes. */
static __always_inline void conn_unjudge(struct conn *c)
{
	c->side[0].verdict = VERDICT_NONE;
	c->side[1].verdict = VERDICT_NONE;
	/* For the compiler. A CPU may still change the order: no atomic of Linux before 5.12 is a barrier. */
	asm volatile("" ::: "memory");
}

#endif
