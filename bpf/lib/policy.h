/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file is the one place where a verdict is asked and kept. A connection
 * holds a judgement for each side that this node judges: the egress policy of
 * its source and the ingress policy of its destination. An established flow
 * costs a comparison; when the tables' generation has moved on, or the source
 * turned out to be somebody else, its next packet is judged again, on the
 * original direction. A deny marks the connection and removes nothing.
 *
 * Who writes tables keeps two promises: a slot of `policies` refers only to a
 * table that is whole, and the generation moves on after the last change. A
 * program reads the generation before anything else (begin()), so what it keeps
 * is never newer than it says.
 */
#ifndef KUBE_CILIUM_POLICY_H
#define KUBE_CILIUM_POLICY_H

#include "conntrack.h"
#include "peers.h"

/* Policy knows ports of these; of others and in errors only the protocol. */
static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP ||
	       proto == IPPROTO_SCTP;
}

/*
 * Asks the table for one peer: its most specific entry for protocol and port
 * decides, unless one of better precedence was found before. Question and
 * answer lie in p: on the stack and in registers the verifier would follow each
 * way through here to the end of the program.
 */
static __subprogram int ask_peer(struct pkt *p, __u32 peer)
{
	struct question *q = &p->question;
	struct verdict_range_key k = {
		.prefixlen = VERDICT_RANGE_BITS + 16,
		.key.table = q->table,
		.key.proto = q->proto,
		.key.peer = peer,
		.key.port = q->port,
	};
	struct verdict_entry *e = NULL;

	if (q->flags & POLICY_PORTS)
		e = bpf_map_lookup_elem(&verdicts, &k.key);
	if (!e && q->flags & POLICY_PROTOCOLS) {
		struct verdict_entry *range = NULL;

		if (q->flags & POLICY_RANGES)
			range = bpf_map_lookup_elem(&verdict_ranges, &k);
		if (range) {
			e = range;
		} else {
			k.key.proto = 0;
			k.key.port = 0;
			e = bpf_map_lookup_elem(&verdicts, &k.key);
		}
	} else if (!e && q->flags & POLICY_RANGES) {
		e = bpf_map_lookup_elem(&verdict_ranges, &k);
	}
	if (!e || (q->verdict && e->precedence >= q->precedence))
		return 0;
	q->verdict = e->verdict;
	q->rule = e->rule;
	q->precedence = e->precedence;
	return 0;
}

/*
 * Asks for all that the other end is: its identity, the class of its address,
 * everyone. Who is pending is nobody in particular.
 */
static __always_inline void ask_table(struct pkt *p)
{
	struct question *q = &p->question;

	if (q->flags & POLICY_IDENTITIES && q->identity != IDENTITY_PENDING) {
		ask_peer(p, q->identity);
		if (q->verdict && q->flags & POLICY_ONE_PRECEDENCE)
			return;
	}
	if (q->flags & POLICY_CLASSES) {
		struct prefix_key prefix = { .prefixlen = 128 };
		__u32 *class;

		__builtin_memcpy(&prefix.addr, &q->addr, sizeof(prefix.addr));
		class = bpf_map_lookup_elem(&classes, &prefix);
		if (class) {
			ask_peer(p, *class);
			if (q->verdict && q->flags & POLICY_ONE_PRECEDENCE)
				return;
		}
	}
	if (q->flags & POLICY_ANYONE)
		ask_peer(p, PEER_ANYONE);
}

/* Who has the address, on this node or elsewhere. */
static __always_inline __u32 identity_at(const union addr *addr)
{
	struct endpoint *local = bpf_map_lookup_elem(&endpoints, addr);

	if (local)
		return local->flags & ENDPOINT_HOST ? IDENTITY_HOST :
						      local->identity;
	return peer_identity(peer_of(addr));
}

/*
 * The other end as the policy of a side sees it. The destination's identity is
 * known of a packet that goes there, but not when a short cut was taken, nor
 * from an answer, which masquerade gives us from anybody, nor from an error.
 */
static __always_inline __u32 other_end(const struct pkt *p,
				       const struct conn *c, __u32 side)
{
	if (side == SIDE_INGRESS)
		return c->identity;
	if (!p->reply && !p->related && !(c->flags & CONN_MASQUERADED))
		return p->dst_identity;
	return identity_at(&p->question.addr);
}

/* What is known of the side before any table is asked. */
static __always_inline void put_question(struct pkt *p, const struct conn *c,
					 __u32 side)
{
	struct question *q = &p->question;
	/* Does the tuple go against the original direction? An error goes against what it quotes. */
	bool against = p->reply != p->related;
	const struct tuple *t = p->related ? &p->q.t : &p->t;

	q->addr = (side == SIDE_EGRESS) == against ? t->saddr : t->daddr;
	q->proto = t->proto;
	q->port = !has_ports(t->proto) ? 0 : against ? t->sport : t->dport;
	q->rule = 0;
	q->verdict = VERDICT_NONE;
	q->table = 0;
	q->flags = 0;
	q->default_rule = 0;
	q->identity = other_end(p, c, side);
}

/* Asks the policy of the pod `endpoint` about one side: p->question has the answer. */
static __always_inline void answer_question(struct pkt *p, __u32 side,
					    __u32 endpoint)
{
	struct question *q = &p->question;
	struct policy *policy;

	/* What a socket of this node sends to a pod of this node: the kubelet has to reach it. */
	if (side == SIDE_INGRESS && q->identity == IDENTITY_HOST) {
		q->verdict = VERDICT_ALLOWED;
		return;
	}
	policy = bpf_map_lookup_elem(&policies, &endpoint);
	if (policy) {
		union {
			__u64 word;
			struct policy_side side;
		} slot;

		slot.word = *(volatile __u64 *)(side == SIDE_EGRESS ?
			&policy->side[0] : &policy->side[1]);
		q->table = slot.side.table;
		q->flags = slot.side.flags;
		q->default_rule = slot.side.default_rule;
	}
	if (q->flags & POLICY_NONE) {
		q->verdict = VERDICT_ALLOWED;
		return;
	}
	if (q->flags & POLICY_ENFORCED)
		ask_table(p);
	else
		q->verdict = VERDICT_CLOSED;
	if (!q->verdict)
		q->verdict = VERDICT_DEFAULT_DENIED;
	else if (q->verdict == VERDICT_ALLOWED && q->flags & POLICY_DENIES &&
		 q->identity == IDENTITY_PENDING)
		q->verdict = VERDICT_PENDING_DENIED;
	else
		return;
	q->rule = q->default_rule;
}

/* Judges one side of the connection again and keeps what policy says. p->question.verdict is the verdict. */
static __subprogram int judge(struct pkt *p, struct conn *c, __u32 side,
			      __u32 endpoint)
{
	struct judgement *j = side == SIDE_EGRESS ? &c->side[0] : &c->side[1];
	struct question *q = &p->question;

	p->judged = true;
	put_question(p, c, side);
	answer_question(p, side, endpoint);
	j->generation = p->generation;
	j->rule = q->rule;
	j->table = q->table;
	/*
	 * Not to be kept: a pod's first policy comes without a new generation,
	 * and so does an address that becomes known. (That the other side of a
	 * connection becomes known is seen by judge_again_if_other().)
	 */
	if (q->verdict == VERDICT_CLOSED ||
	    (side == SIDE_EGRESS && q->identity == IDENTITY_PENDING))
		j->verdict = VERDICT_NONE;
	else
		j->verdict = q->verdict;
	return 0;
}

/* The source is somebody else than when the connection was judged. */
static __always_inline void judge_again_if_other(const struct pkt *p,
						 struct conn *c)
{
	if (p->reply || likely(c->identity == p->src_identity))
		return;
	conn_unjudge(c);
	c->identity = p->src_identity;
}

/* The side that the packet's sender, or its receiver, has in the connection. */
static __always_inline __u8 side_of_sender(const struct pkt *p)
{
	return p->reply ? SIDE_INGRESS : SIDE_EGRESS;
}

static __always_inline __u8 side_of_receiver(const struct pkt *p)
{
	return p->reply ? SIDE_EGRESS : SIDE_INGRESS;
}

/* The drop of a verdict. Left in memory: the verifier would follow each to the end. */
static __always_inline void refuse(struct pkt *p)
{
	switch (p->question.verdict) {
	case VERDICT_DENIED:
		p->refused = DROP_POLICY_DENY;
		break;
	case VERDICT_PENDING_DENIED:
		p->refused = DROP_PENDING_DENY;
		break;
	case VERDICT_CLOSED:
		p->refused = DROP_NO_POLICY_YET;
		break;
	default:
		p->refused = DROP_POLICY;
	}
}

/* Sets p->refused where the side refuses, by the entry while it is current. */
static __subprogram int judged_side(struct pkt *p, struct conn *c, __u32 side,
				    __u32 endpoint)
{
	struct judgement *j = side == SIDE_EGRESS ? &c->side[0] : &c->side[1];

	if (j->verdict && j->generation == p->generation) {
		p->question.verdict = j->verdict;
		p->question.rule = j->rule;
	} else {
		judge(p, c, side, endpoint);
	}
	if (side == SIDE_EGRESS)
		p->rules[0] = p->question.rule;
	else
		p->rules[1] = p->question.rule;
	if (p->question.verdict == VERDICT_ALLOWED)
		return 0;
	refuse(p);
	/* The report is about the pod whose policy refused. */
	p->endpoint = endpoint;
	if (side == SIDE_INGRESS)
		p->event_flags |= EVENT_INGRESS;
	else
		p->event_flags &= ~EVENT_INGRESS;
	return 0;
}

/* Leaves 0 or a drop in p->refused. */
static __always_inline void judged_sides(struct pkt *p, struct conn *c,
					 __u32 sender, __u32 receiver)
{
	p->refused = 0;
	if (sender)
		judged_side(p, c, side_of_sender(p), sender);
	if (!p->refused && receiver)
		judged_side(p, c, side_of_receiver(p), receiver);
}

/* The other end began it. */
static __always_inline void turn(struct pkt *p, struct conn *c)
{
	conn_unjudge(c);
	c->flags ^= CONN_FROM_HI;
	p->reply = !p->reply;
	c->identity = p->reply ? p->dst_identity : p->src_identity;
}

/*
 * Not both sides are remembered as allowed. A TCP connection whose beginning
 * nobody remembers (its entry was lost) goes on in either direction that is
 * allowed, and is taken for begun in that one; where neither is, the refusal is
 * that of the packet's own direction.
 */
static __subprogram int judged_anew(struct pkt *p, struct conn *c,
				    __u32 sender, __u32 receiver)
{
	struct judgement egress, ingress;
	__u32 identity, rules[2];
	__u8 event_flags, refused;
	__u16 endpoint;

	judged_sides(p, c, sender, receiver);
	if (!p->refused || !p->judged || p->related ||
	    p->t.proto != IPPROTO_TCP || p->fragment == FRAGMENT_LATER ||
	    p->tcp_flags & TCP_SYN || c->tcp_flags[0] | c->tcp_flags[1])
		return p->refused;
	egress = c->side[0];
	ingress = c->side[1];
	identity = c->identity;
	rules[0] = p->rules[0];
	rules[1] = p->rules[1];
	event_flags = p->event_flags;
	endpoint = p->endpoint;
	refused = p->refused;
	turn(p, c);
	p->rules[0] = 0;
	p->rules[1] = 0;
	judged_sides(p, c, sender, receiver);
	if (!p->refused) {
		/* Whoever began it elsewhere knows the pod by its own name. */
		p->masquerade = false;
		return 0;
	}
	turn(p, c);
	c->side[0] = egress;
	c->side[1] = ingress;
	c->identity = identity;
	p->rules[0] = rules[0];
	p->rules[1] = rules[1];
	p->event_flags = event_flags;
	p->endpoint = endpoint;
	return refused;
}

static __always_inline bool still_allowed(const struct pkt *p,
					  const struct judgement *j)
{
	return j->verdict == VERDICT_ALLOWED && j->generation == p->generation;
}

/*
 * Asks the policies of the pods of this node at the packet's ends, sender and
 * receiver; 0 is none. Returns 0 or a drop.
 */
static __always_inline int judged_here(struct pkt *p, struct conn *c,
				       __u32 sender, __u32 receiver)
{
	const struct judgement *of_sender = &c->side[0];
	const struct judgement *of_receiver = &c->side[1];

	if (p->reply) {
		of_sender = &c->side[1];
		of_receiver = &c->side[0];
	}
	if (unlikely((sender && !still_allowed(p, of_sender)) ||
		     (receiver && !still_allowed(p, of_receiver))))
		return judged_anew(p, c, sender, receiver);
	p->rules[0] = c->side[0].rule;
	p->rules[1] = c->side[1].rule;
	p->allowed = true;
	return 0;
}

#endif
