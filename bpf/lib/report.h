/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file is the one end of every packet: finish() counts it, reports it and
 * gives the program's return code. Drops are always reported, but for a limit
 * per reason and CPU, so that a flood cannot fill the ring; they are counted
 * exactly. Traces are sent when conntrack asked for one and people want any.
 */
#ifndef KUBE_CILIUM_REPORT_H
#define KUBE_CILIUM_REPORT_H

#include "count.h"
#include "desk.h"
#include "peers.h"

/* Drop events that one CPU may send for one reason in one tick. */
#define DROP_EVENTS_PER_TICK 64

static __always_inline __u64 now_ns(void)
{
	return have_coarse_clock ? bpf_ktime_get_coarse_ns() :
				   bpf_ktime_get_ns();
}

/*
 * The first thing that a program does: a sheet with the head of struct pkt
 * filled in. NULL cannot happen.
 */
static __always_inline struct pkt *head(struct __sk_buff *skb, __u8 hook)
{
	__u32 zero = 0;
	struct settings *s = bpf_map_lookup_elem(&live_settings, &zero);
	struct pkt *p = desk_sheet();

	if (!p || !s)
		return NULL;
	p->target = 0;
	p->action = TC_NEXT;
	p->len = skb->len;
	p->now = now_ns() >> 30;
	/* In this order: the agent moves addresses on before the generation. */
	p->generation = *(volatile __u32 *)&s->generation;
	p->addresses = *(volatile __u32 *)&s->addresses;
	p->interval = s->report_interval;
	p->hook = hook;
	p->report = false;
	return p;
}

/* The rest of the sheet is clean: the packet goes the whole way. */
static __always_inline void unknown(struct pkt *p)
{
	p->ipv6 = false;
	__builtin_memset(&p->t, 0, sizeof(*p) - offsetof(struct pkt, t));
}

/* A clean sheet. */
static __always_inline struct pkt *begin(struct __sk_buff *skb, __u8 hook)
{
	struct pkt *p = head(skb, hook);

	if (p)
		unknown(p);
	return p;
}

static __always_inline bool may_report_drop(__u32 reason, __u32 now)
{
	__u32 slot = reason & (REASONS - 1);
	struct drop_budget *b = bpf_map_lookup_elem(&drop_budgets, &slot);

	if (!b)
		return false;
	if (b->tick != now) {
		b->tick = now;
		b->left = DROP_EVENTS_PER_TICK;
	}
	if (!b->left)
		return false;
	b->left--;
	return true;
}

/*
 * The reader looks by itself some twenty times a second. To wake it costs more
 * than the packet: an interrupt to ourselves, an exit of a virtual machine and a
 * process switched to. Only when a quarter of the ring is full it must come now,
 * and is told so once, and again with each 16th that it leaves unread. The step
 * may be missed where CPUs write at once; the next is not far.
 */
static __always_inline __u64 wakeup(void)
{
	__u64 unread = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);

	return unread >= EVENTS_BYTES / 4 &&
			       unread % (EVENTS_BYTES / 16) < 2 * sizeof(struct event) ?
		       BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}

/*
 * Masquerade takes everybody for the world, for its packets are not to be asked
 * for their peer each. It may be a node.
 */
static __always_inline __u32 told_identity(__u32 identity,
					   const union addr *addr)
{
	return identity == IDENTITY_WORLD ? peer_identity(peer_of(addr)) :
					    identity;
}

static __subprogram int report(struct __sk_buff *skb, const struct pkt *p,
			     __u32 reason, __u32 type)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count(p->hook, METRIC_EVENTS_LOST, 0);
		return 0;
	}
	e->time = now_ns();
	e->type = type;
	e->reason = reason;
	e->hook = p->hook;
	e->flags = p->event_flags | (p->fragment ? EVENT_FRAGMENT : 0);
	e->proto = p->t.proto;
	e->tcp_flags = p->tcp_flags;
	e->icmp_type = p->icmp_type;
	e->icmp_code = p->icmp_code;
	e->saddr = p->t.saddr;
	e->daddr = p->t.daddr;
	e->xlate_addr = p->xlate_addr;
	e->sport = p->t.sport;
	e->dport = p->t.dport;
	e->xlate_port = p->xlate_port;
	e->endpoint = p->endpoint;
	e->src_identity = told_identity(p->src_identity, &p->t.saddr);
	e->dst_identity = told_identity(p->dst_identity, &p->t.daddr);
	e->ifindex = skb->ifindex;
	e->length = p->len;
	e->rules[0] = p->rules[0];
	e->rules[1] = p->rules[1];
	bpf_ringbuf_submit(e, wakeup());
	return 0;
}

/*
 * One of our programs has decided already: the packet is counted and that is
 * all, without a clean sheet. The caller knows whether the mark stays.
 */
static __always_inline bool decided(struct __sk_buff *skb, __u32 hook,
				    __u32 reason)
{
	if (mark_magic(skb->mark) != MARK_DELIVERED)
		return false;
	count(hook, reason, skb->len);
	return true;
}

static __always_inline bool is_drop(int reason)
{
	return reason >= DROP_INVALID_SOURCE;
}

static __always_inline int finish(struct __sk_buff *skb, struct pkt *p,
				  int reason)
{
	count(p->hook, reason, p->len);
	if (unlikely(is_drop(reason))) {
		if (may_report_drop(reason, p->now))
			report(skb, p, reason, EVENT_DROP);
		else
			count(p->hook, METRIC_EVENTS_LIMITED, 0);
		return TC_DROP;
	}
	/* Nobody pays for the test of the switch but who is about to report. */
	if (unlikely(p->report) && p->interval != REPORT_NOTHING)
		report(skb, p, reason, EVENT_TRACE);
	return p->action;
}

/* What a program does with its packet. Returns a reason. */
typedef int (*step)(struct __sk_buff *skb, struct pkt *p);

/*
 * A program that tries a short way before the whole one: the sheet is clean when
 * the whole way begins, and also when the short one ends in a drop, whose report
 * would else have the names of the packet before.
 */
static __always_inline int shortest(struct __sk_buff *skb, __u8 hook,
				    step short_way, step whole_way)
{
	struct pkt *p = head(skb, hook);
	int reason;

	if (!p)
		return TC_DROP;
	reason = short_way(skb, p);
	if (reason == FORWARD_UNKNOWN) {
		unknown(p);
		reason = whole_way(skb, p);
	} else if (unlikely(is_drop(reason))) {
		unknown(p);
	}
	return finish(skb, p, reason);
}

#endif
