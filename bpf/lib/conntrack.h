/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file remembers connections: one entry each, found from both directions.
 * TCP of pods begins among the young (young.h) where it can; all else here.
 * A pod has an advance: so many of its connections begin in `conntrack`, the
 * table of all, and stay there when they are settled. What a pod begins beyond
 * that lives in its own small table until it is settled, where a flood evicts
 * only its own. An answer settles a connection, but for TCP: whoever floods
 * gets answers too, SYN ACK or RST, and only a connection in earnest is
 * acknowledged by the side that began it: not by the same SYN once more.
 *
 * The order in a program: flow_open() finds or makes the entry, policy judges
 * it, flow_seen() writes what the packet changed. So a refused packet neither
 * answers nor refreshes anything.
 */
#ifndef KUBE_CILIUM_CONNTRACK_H
#define KUBE_CILIUM_CONNTRACK_H

#include "conn.h"
#include "young.h"

/* TCP flags whose first sight in a direction is reported: what begins and ends a connection. */
#define TCP_REPORTED (TCP_SYN | TCP_FIN | TCP_RST)

static __always_inline bool in_table_of_all(const struct conn *c)
{
	return c->flags & (CONN_SETTLED | CONN_ADVANCED);
}

/* How many connections a window gives. */
static __always_inline __u32 advance_whole(__u32 endpoint)
{
	return endpoint ? advance_size : ADVANCE_OF_HOST * advance_size;
}

static __always_inline void advance_begin_window(struct advance *a,
						 __u32 endpoint, __u32 now)
{
	a->left = advance_whole(endpoint);
	a->window = now ?: 1;
}

/*
 * The pod's advance. A new map knows nothing of the small tables, which another
 * program may have filled a moment ago.
 */
static __always_inline struct advance *advance_of(__u32 endpoint, __u32 now)
{
	struct advance *a = bpf_map_lookup_elem(&advances, &endpoint);

	if (a && unlikely(!a->window)) {
		a->apart = now;
		advance_begin_window(a, endpoint, now);
	}
	return a;
}

/* Takes one of the pod's advance; false: it has none left, and the small table is in use from now on. */
static __always_inline bool advance_take(__u32 endpoint, __u32 now)
{
	struct advance *a = advance_of(endpoint, now);
	__u32 left;

	if (!advance_size || !a)
		return false;
	if ((__s32)(now - a->window) >= LIFETIME_UNANSWERED)
		advance_begin_window(a, endpoint, now);
	/* Read once: two CPUs may give one place twice, but never go below none. */
	left = *(volatile __u32 *)&a->left;
	if (!left || left == ADVANCE_HELD) {
		a->apart = now;
		return false;
	}
	a->left = left - 1;
	return true;
}

static __always_inline void advance_return(__u32 endpoint)
{
	struct advance *a = bpf_map_lookup_elem(&advances, &endpoint);
	__u32 left;

	if (!a)
		return;
	left = *(volatile __u32 *)&a->left;
	if (left < advance_whole(endpoint))
		a->left = left + 1;
}

/* The connection is settled or gone: its place is free. A pointer never had one. */
static __always_inline void advance_end(const struct conn *c)
{
	if ((c->flags & (CONN_ADVANCED | CONN_POINTER)) == CONN_ADVANCED)
		advance_return(c->endpoint);
}

/* Looks in a small table, unless nothing can be there. */
static __always_inline struct conn *unanswered_find(__u32 table,
						    const struct flow_key *k,
						    __u32 now)
{
	struct advance *a = advance_of(table, now);
	struct conn *c;
	void *inner;

	/* Signed: another CPU's tick may be a step ahead. */
	if (advance_size && a &&
	    (__s32)(now - a->apart) > LIFETIME_UNANSWERED)
		return NULL;
	inner = bpf_map_lookup_elem(&unanswered, &table);
	c = inner ? bpf_map_lookup_elem(inner, k) : NULL;
	if (c && a)
		a->apart = now;
	return c;
}

static __always_inline long unanswered_put(__u32 table, const struct flow_key *k,
					   const struct conn *c, __u64 flags)
{
	void *inner = bpf_map_lookup_elem(&unanswered, &table);

	return inner ? bpf_map_update_elem(inner, k, c, flags) : -1;
}

static __always_inline void unanswered_drop(__u32 table,
					    const struct flow_key *k)
{
	void *inner = bpf_map_lookup_elem(&unanswered, &table);

	if (inner)
		bpf_map_delete_elem(inner, k);
}

/*
 * Looks where a connection with this name may be: in the table of all, then in
 * those of the two sides.
 */
static __always_inline struct conn *conn_find(const struct flow_key *k,
					      __u32 a, __u32 b, __u32 now)
{
	struct conn *c = bpf_map_lookup_elem(&conntrack, k);

	if (c)
		return c;
	c = unanswered_find(a, k, now);
	if (!c && b != a)
		c = unanswered_find(b, k, now);
	return c;
}

/*
 * The name is free again: after silence, and for a SYN on a connection that was
 * closed. Nor does an answer answer what nobody said: a packet that was refused
 * owns no name, and a SYN against a connection whose own SYN was never seen
 * begins one. Else a stray ACK, taken for the middle of a connection of the
 * other side (judged_anew()), would let in the SYN that follows it. p->hi is set.
 */
static __always_inline bool conn_ended(const struct conn *c,
				       const struct pkt *p)
{
	bool syn = (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;

	if (conn_over(c, p->t.proto, p->now))
		return true;
	if (p->hi != !!(c->flags & CONN_FROM_HI) &&
	    (!c->reported || (syn && !(c->tcp_flags[0] & TCP_SYN))))
		return true;
	return c->flags & CONN_CLOSING && syn;
}

/*
 * Finds the connection of the tuple, NULL when there is none that lives. mine
 * is the table of the pod at hand, other that of the pod on the other side or
 * the same again.
 */
static __always_inline struct conn *flow_find(struct pkt *p,
					      const struct tuple *t,
					      __u32 mine, __u32 other)
{
	bool answer = (p->tcp_flags & (TCP_SYN | TCP_ACK)) ==
		      (TCP_SYN | TCP_ACK);
	struct conn *c;

	p->ended = false;
	p->ended_young = false;
	p->hi = flow_name(&p->key, t);
	/* Connections of no pod are never there. */
	c = young_slots && t->proto == IPPROTO_TCP && mine | other ?
		    young_find(&p->key) : NULL;
	/* Who accepts is told of in the other's table. */
	if (!c)
		c = conn_find(&p->key, answer ? other : mine,
			      answer ? mine : other, p->now);
	if (!c)
		return NULL;
	if (unlikely(conn_ended(c, p))) {
		if (c->flags & CONN_YOUNG) {
			p->ended_young = true;
		} else if (in_table_of_all(c)) {
			/* Its entry may serve the next: see flow_begin(). */
			p->ended = true;
		} else {
			unanswered_drop(mine, &p->key);
			unanswered_drop(other, &p->key);
		}
		return NULL;
	}
	if (unlikely(young_lasts(c, p->now)))
		c = young_leave(&p->key, c, p->now);
	p->reply = p->hi != !!(c->flags & CONN_FROM_HI);
	return c;
}

/* The packet is an error about one of the connection just found, and goes the other way than what it quotes. */
static __always_inline void relate(struct pkt *p)
{
	p->reply = !p->reply;
	p->related = true;
	p->report = p->interval == REPORT_EVERY_PACKET;
}

/*
 * Begins a connection in the direction of the packet, for a pod. NULL: it could
 * not be recorded.
 */
static __subprogram struct conn *flow_begin(struct pkt *p, __u32 home, __u16 flags)
{
	struct conn c = {
		.seen = p->now,
		.endpoint = home,
		.identity = p->src_identity,
		.flags = flags | (p->hi ? CONN_FROM_HI : 0),
	};
	struct conn *of_all = NULL;
	void *table;

	/* Where the table of all has an entry for the name, that one serves. */
	if (young_slots && !p->ended && home && !p->masquerade &&
	    !(flags & CONN_STACK) && p->t.proto == IPPROTO_TCP &&
	    (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		struct conn *y;

		c.flags |= CONN_YOUNG;
		c.began = p->now;
		y = young_take(&p->key, &c);
		if (y)
			return y;
		c.flags &= ~CONN_YOUNG;
		c.began = 0;
	} else if (young_slots && p->ended_young) {
		young_free(&p->key, p->now);
	}
	/* Where a connection that was never settled is over, its entry goes, and its place is free. */
	if (p->ended) {
		of_all = bpf_map_lookup_elem(&conntrack, &p->key);
		if (of_all)
			advance_end(of_all);
	}
	if (advance_take(home, p->now)) {
		c.flags |= CONN_ADVANCED;
		/*
		 * To write over what is there costs a third of taking it out and
		 * putting another in. But not the other way round: a packet on
		 * another CPU must not keep a verdict of one direction in the
		 * place of the other's.
		 */
		if (of_all && !((of_all->flags ^ c.flags) & CONN_FROM_HI)) {
			conn_unjudge(of_all);
			*of_all = c;
			return of_all;
		}
		if (of_all)
			bpf_map_delete_elem(&conntrack, &p->key);
		if (bpf_map_update_elem(&conntrack, &p->key, &c, BPF_ANY))
			return NULL;
		return bpf_map_lookup_elem(&conntrack, &p->key);
	}
	if (p->ended)
		bpf_map_delete_elem(&conntrack, &p->key);
	table = bpf_map_lookup_elem(&unanswered, &home);
	if (!table || bpf_map_update_elem(table, &p->key, &c, BPF_ANY))
		return NULL;
	return bpf_map_lookup_elem(table, &p->key);
}

/* In earnest now: young still, or in the table of all and no longer of anybody's advance. home is the small table where it may be. */
static __subprogram struct conn *conn_settle(const struct flow_key *k,
					     struct conn *c, __u32 home)
{
	struct conn copy;

	if (c->flags & (CONN_ADVANCED | CONN_YOUNG)) {
		advance_end(c);
		c->flags = (c->flags | CONN_ANSWERED | CONN_SETTLED) &
			   ~CONN_ADVANCED;
		return c;
	}
	copy = *c;
	copy.flags |= CONN_ANSWERED | CONN_SETTLED;
	if (bpf_map_update_elem(&conntrack, k, &copy, BPF_ANY))
		return NULL;
	unanswered_drop(home, k);
	return bpf_map_lookup_elem(&conntrack, k);
}

/*
 * Writes what an accepted packet changed, and decides whether it is reported:
 * the first one, SYN, FIN and RST not seen before in its direction, and one an
 * interval; with REPORT_EVERY_PACKET each. finish() knows REPORT_NOTHING: what
 * is remembered here must not depend on who looks. Sets p->refresh when the
 * tick changed or the connection closed: whoever holds more entries for it
 * touches them now. Returns the entry, which may have moved, or NULL when it
 * could not.
 */
static __always_inline struct conn *flow_seen(struct pkt *p, struct conn *c)
{
	__u8 flags = p->tcp_flags;

	p->event_flags |= EVENT_DIRECTION_KNOWN | (p->reply ? EVENT_REPLY : 0);
	/* The first answer of UDP may be the last: a name that was asked for. */
	p->lasting = p->t.proto != IPPROTO_TCP && c->flags & CONN_SETTLED;
	if (unlikely(!(c->flags & CONN_SETTLED))) {
		bool answered = c->flags & CONN_ANSWERED;

		if (p->reply && !answered) {
			c->flags |= CONN_ANSWERED;
			p->report = true;
		}
		if (p->t.proto == IPPROTO_TCP ?
		    answered && !p->reply && !(flags & TCP_RST) &&
			    (flags & (TCP_SYN | TCP_ACK)) != TCP_SYN :
		    p->reply) {
			c = conn_settle(&p->key, c, c->endpoint);
			if (!c)
				return NULL;
			p->refresh = true;
		}
	}
	if (c->seen != p->now) {
		c->seen = p->now;
		p->refresh = true;
	}
	/* The first that is accepted is always told of: until then `reported` is 0 and the connection owns no name. */
	if (!c->reported) {
		p->event_flags |= EVENT_FIRST;
		p->report = true;
	} else if (p->now - c->reported >= p->interval) {
		p->report = true;
	}
	if (p->t.proto == IPPROTO_TCP && p->fragment != FRAGMENT_LATER) {
		__u8 *seen = p->reply ? &c->tcp_flags[1] : &c->tcp_flags[0];

		if (unlikely(flags & ~*seen)) {
			p->report |= flags & ~*seen & TCP_REPORTED;
			*seen |= flags;
			if (flags & TCP_RST ||
			    c->tcp_flags[0] & c->tcp_flags[1] & TCP_FIN) {
				c->flags |= CONN_CLOSING;
				p->refresh = true;
			}
		}
		p->tcp_seen = *seen;
		p->lasting = (c->flags & (CONN_ANSWERED | CONN_CLOSING)) == CONN_ANSWERED;
	}
	p->lasting &= p->allowed && p->interval != REPORT_EVERY_PACKET;
	if (p->report)
		c->reported = p->now;
	return c;
}

#endif
