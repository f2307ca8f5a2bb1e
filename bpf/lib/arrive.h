/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file takes what came for a pod of this node from elsewhere: it finds or
 * begins the connection and asks the pod's policy. The caller knows who sent
 * it (p->src_identity) and delivers it.
 */
#ifndef KUBE_CILIUM_ARRIVE_H
#define KUBE_CILIUM_ARRIVE_H

#include "conntrack.h"
#include "fragments.h"
#include "parse.h"
#include "policy.h"

/*
 * An error about a packet that the pod sent, from anybody on the way: the
 * connection of that packet.
 */
static __always_inline struct conn *arrive_related(struct __sk_buff *skb,
						   struct pkt *p, __u32 home)
{
	struct conn *c;

	if (!parse_quoted(skb, p) || !addr_equal(&p->q.t.saddr, &p->t.daddr))
		return NULL;
	c = flow_find(p, &p->q.t, home, home);
	if (c)
		relate(p);
	return c;
}

/*
 * Judges the packet for the pod. flags are what a new connection has from the
 * way that it came. Returns 0 or a drop.
 */
static __subprogram int arrive(struct __sk_buff *skb, struct pkt *p,
			     const struct endpoint *pod, __u16 flags)
{
	__u32 home = pod->id;
	struct conn *c = NULL;
	int r;

	p->endpoint = home;
	p->dst_identity = pod->identity;
	p->event_flags |= EVENT_INGRESS;
	if (unlikely(p->error))
		c = arrive_related(skb, p, home);
	if (likely(!c))
		c = flow_find(p, &p->t, home, home);
	if (!c) {
		c = flow_begin(p, home, flags);
		if (!c)
			return DROP_CONNTRACK_FULL;
	}
	if (!p->related)
		judge_again_if_other(p, c);
	r = judged_here(p, c, 0, home);
	if (r)
		return r;
	p->stack = c->flags & CONN_STACK;
	if (!p->related && !flow_seen(p, c))
		return DROP_CONNTRACK_FULL;
	return 0;
}

#endif
