/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file is the one place where a verdict is asked and kept. A connection
 * holds a judgement for each side that this node judges: the egress policy of
 * its source and the ingress policy of its destination. An established flow
 * costs a comparison; when the tables' generation has moved on, or the source
 * turned out to be somebody else, its next packet is judged again, on the
 * original direction.
 */
#ifndef KUBE_CILIUM_POLICY_H
#define KUBE_CILIUM_POLICY_H

#include "conntrack.h"

/* What is asked of policy, always in the connection's original direction. */
struct question {
	__u32 from;		/* identity */
	__u32 to;		/* identity */
	__be16 dport;
	__u16 endpoint;		/* whose policy: the local pod of that side; 0: the host */
	__u8 proto;
	__u8 side;
};

/*
 * Asks the verdict tables. There are none yet: everything is allowed and the
 * rule is 0, the default.
 */
static __always_inline void judge(const struct question *q, __u32 generation,
				  struct judgement *j)
{
	j->generation = generation;
	j->rule = 0;
	j->table = 0;
	j->verdict = VERDICT_ALLOWED;
}

static __always_inline int refused_as(__u8 verdict)
{
	switch (verdict) {
	case VERDICT_DENIED:
		return DROP_POLICY_DENY;
	case VERDICT_PENDING_DENIED:
		return DROP_PENDING_DENY;
	case VERDICT_CLOSED:
		return DROP_NO_POLICY_YET;
	}
	return DROP_POLICY;
}

/*
 * The verdict of one side, from the entry while it is current. endpoint is the
 * pod on that side. Returns 0 or a drop.
 */
static __always_inline int judged(struct pkt *p, struct conn *c, __u8 side,
				  __u16 endpoint)
{
	struct judgement *j = side == SIDE_EGRESS ? &c->side[0] : &c->side[1];

	if (unlikely(!j->verdict || j->generation != p->generation)) {
		struct question q = {
			.from = c->identity,
			.to = p->reply ? p->src_identity : p->dst_identity,
			.dport = p->reply ? p->t.sport : p->t.dport,
			.proto = p->t.proto,
			.endpoint = endpoint,
			.side = side,
		};

		judge(&q, p->generation, j);
	}
	if (side == SIDE_EGRESS)
		p->rules[0] = j->rule;
	else
		p->rules[1] = j->rule;
	return likely(j->verdict == VERDICT_ALLOWED) ? 0 : refused_as(j->verdict);
}

/* The source is somebody else than when the connection was judged. */
static __always_inline void judge_again_if_other(const struct pkt *p,
						 struct conn *c)
{
	if (p->reply || likely(c->identity == p->src_identity))
		return;
	c->identity = p->src_identity;
	c->side[0].verdict = VERDICT_NONE;
	c->side[1].verdict = VERDICT_NONE;
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

#endif
