/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file keeps the connections that just began. Most are over after a few
 * packets, and for these the kernel's table of all is dear: a walk along a bucket
 * that nobody touched for long, an insert, and an entry that lies about until it
 * is evicted. Here a name has one place, and names that follow one another lie
 * side by side. The first packet YOUNG_TICKS after its beginning takes a settled
 * connection into the table of all.
 *
 * A place is never taken from a connection that is not over: who finds it taken
 * begins in the other tables, as if this one were not there. So a flood takes
 * nothing from anybody but the short cut.
 *
 * An entry is read and written by whoever found it, without a lock, like those
 * of other tables. So it goes to another name only when its connection was over
 * a tick ago: nobody has it in hand any longer.
 */
#ifndef KUBE_CILIUM_YOUNG_H
#define KUBE_CILIUM_YOUNG_H

#include "conn.h"

#define YOUNG_TICKS 2

/* Ports that follow one another, or do so with one left out, have places that do. */
static __always_inline struct young_conn *young_at(const struct flow_key *k)
{
	__u32 ports = (bpf_ntohs(k->lo_port) + bpf_ntohs(k->hi_port)) & 0xffff;
	__u32 place = (k->lo.w[3] ^ k->hi.w[3] * 0x9e3779b1) * 0x85ebca6b >> 16;

	place += ports >> 1 | (ports & 1) << 15;
	place &= young_slots - 1;
	return bpf_map_lookup_elem(&young, &place);
}

static __always_inline struct conn *young_find(const struct flow_key *k)
{
	struct young_conn *y = young_at(k);
	bool same;

	/* All but the addresses, without the lock: for most packets it ends here. */
	if (!y || *(volatile __u64 *)&y->key.lo_port != *(__u64 *)&k->lo_port)
		return NULL;
	bpf_spin_lock(&y->lock);
	same = name_equal(&y->key, k);
	bpf_spin_unlock(&y->lock);
	return same ? &y->conn : NULL;
}

/* With the lock held. */
static __always_inline void young_leave_place(struct young_conn *y, __u32 now)
{
	y->key.proto = 0;
	y->conn.seen = now;
}

/*
 * The place of a connection that begins as c, or NULL: another has it. So has
 * one of this name that was begun by the other side: a packet on another CPU must
 * not keep a verdict of one direction in the place of the other's.
 */
static __always_inline struct conn *young_take(const struct flow_key *k,
					       const struct conn *c)
{
	struct young_conn *y = young_at(k);
	bool mine;
	__s32 age;

	if (!y)
		return NULL;
	bpf_spin_lock(&y->lock);
	age = c->seen - y->conn.seen;
	if (name_equal(&y->key, k)) {
		mine = !((y->conn.flags ^ c->flags) & CONN_FROM_HI);
		if (!mine)
			young_leave_place(y, c->seen);
	} else if (y->key.proto) {
		mine = age > conn_lifetime(&y->conn, IPPROTO_TCP) + 1;
	} else {
		mine = age > 1;
	}
	if (mine) {
		conn_unjudge(&y->conn);
		y->key = *k;
		y->conn = *c;
	}
	bpf_spin_unlock(&y->lock);
	return mine ? &y->conn : NULL;
}

/* Nobody of the name is there any longer. */
static __always_inline void young_free(const struct flow_key *k, __u32 now)
{
	struct young_conn *y = young_at(k);

	if (!y)
		return;
	bpf_spin_lock(&y->lock);
	if (name_equal(&y->key, k))
		young_leave_place(y, now);
	bpf_spin_unlock(&y->lock);
}

/* What is closing stays: it is over soon. */
static __always_inline bool young_lasts(const struct conn *c, __u32 now)
{
	return (c->flags & (CONN_YOUNG | CONN_SETTLED | CONN_CLOSING)) ==
		       (CONN_YOUNG | CONN_SETTLED) &&
	       (__s32)(now - c->began) >= YOUNG_TICKS;
}

/*
 * Takes the connection into the table of all. Returns where it is then: where it
 * was, when there is no room. Another CPU may do the same, or write to c, just
 * now: the first to come makes the entry, and what only grows is taken from c
 * once more. A judgement may be copied in halves; it is made anew.
 */
static __subprogram struct conn *young_leave(const struct flow_key *k,
					     struct conn *c, __u32 now)
{
	struct conn copy = *c, *all;

	conn_unjudge(&copy);
	copy.flags &= ~CONN_YOUNG;
	copy.began = 0;
	bpf_map_update_elem(&conntrack, k, &copy, BPF_NOEXIST);
	all = bpf_map_lookup_elem(&conntrack, k);
	if (!all)
		return c;
	young_free(k, now);
	/* c rests: it is nobody else's yet. */
	all->flags |= c->flags & CONN_CLOSING;
	all->tcp_flags[0] |= c->tcp_flags[0];
	all->tcp_flags[1] |= c->tcp_flags[1];
	return all;
}

#endif
