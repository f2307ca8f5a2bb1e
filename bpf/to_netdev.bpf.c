//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * This file watches what leaves by an uplink, so that pods and host can share
 * the ports of the node's address: it tracks the host's own connections whose
 * port could collide, gives those that do another port, and masquerades pods'
 * packets that took the host's stack.
 */
#define DESK_PEERS 1
#include "lib/common.h"
#include "lib/config.h"

#include "lib/conntrack.h"
#include "lib/fragments.h"
#include "lib/nat.h"
#include "lib/parse.h"
#include "lib/report.h"
#include "lib/route.h"

/*
 * An ICMP error of this host's stack about a packet whose address we had turned
 * back into a pod's: its sender knows the node's name only.
 */
static __always_inline int own_error(struct __sk_buff *skb, struct pkt *p)
{
	struct endpoint *pod;
	struct conn *c;
	int r;

	if (!parse_quoted(skb, p) || !addr_equal(&p->q.t.saddr, &p->t.daddr))
		return FORWARD_NOT_OURS;
	pod = bpf_map_lookup_elem(&endpoints, &p->q.t.daddr);
	if (!pod || pod->flags & ENDPOINT_HOST)
		return FORWARD_NOT_OURS;
	c = flow_find(p, &p->q.t, pod->id, pod->id);
	if (!c || !p->reply || !(c->flags & CONN_MASQUERADED))
		return FORWARD_NOT_OURS;
	p->xlate_addr = c->addr;
	p->xlate_port = c->port;
	r = nat_rewrite_error(skb, p, &p->xlate_addr, p->xlate_port, true);
	return r ?: FORWARD_TO_NETWORK;
}

/* A packet of the host itself. */
static __always_inline int own(struct __sk_buff *skb, struct pkt *p)
{
	__u16 port = bpf_ntohs(p->t.sport);
	__u32 ifindex = skb->ifindex;
	struct device *d;
	struct conn *c;
	int r;

	if (!(p->ipv6 ? masquerade_ipv6 : masquerade_ipv4))
		return FORWARD_NOT_OURS;
	if (p->error)
		return own_error(skb, p);
	if (!nat_can(p))
		return FORWARD_NOT_OURS;
	if (port < nat_port_min || port > nat_port_max ||
	    to_tunnel_port(&p->t))
		return FORWARD_NOT_OURS;
	d = bpf_map_lookup_elem(&devices, &ifindex);
	if (!d || !addr_equal(&p->t.saddr, p->ipv6 ? &d->ipv6 : &d->ipv4))
		return FORWARD_NOT_OURS;

	p->src_identity = IDENTITY_HOST;
	flow_name(&p->key, &p->t);
	c = conn_find(&p->key, 0, 0, p->now);
	if (c && c->flags & CONN_POINTER && !conn_over(c, p->t.proto, p->now)) {
		/* A pod has the name: another port for the host. */
		p->t.zone = ZONE_HOST;
		c = flow_find(p, &p->t, 0, 0);
		if (!c) {
			c = flow_begin(p, 0, 0);
			if (!c)
				return DROP_CONNTRACK_FULL;
		}
		c = flow_seen(p, c);
		if (!c)
			return DROP_CONNTRACK_FULL;
		p->t.zone = ZONE_DEFAULT;
		r = masquerade(skb, p, c, ifindex);
		return r ?: FORWARD_TO_NETWORK;
	}
	c = flow_find(p, &p->t, 0, 0);
	if (!c)
		c = flow_begin(p, 0, 0);
	if (c)
		flow_seen(p, c);
	return FORWARD_NOT_OURS;
}

/* A pod's packet that the stack forwarded. */
static __always_inline int forwarded(struct __sk_buff *skb, struct pkt *p,
				     const struct endpoint *pod)
{
	struct conn *c;
	int r;

	p->endpoint = pod->id;
	p->src_identity = pod->identity;
	c = flow_find(p, &p->t, pod->id, pod->id);
	if (!c || p->reply)
		return FORWARD_TO_NETWORK;
	if (c->flags & CONN_MASQUERADED) {
		p->refresh = true;
	} else {
		r = find_route(p, c);
		if (r)
			return r;
		if (!p->masquerade)
			return FORWARD_TO_NETWORK;
	}
	r = masquerade(skb, p, c, skb->ifindex);
	return r ?: FORWARD_TO_NETWORK;
}

static __always_inline int leave(struct __sk_buff *skb, struct pkt *p)
{
	struct endpoint *local;
	int r;

	if (mark_magic(skb->mark) == MARK_DELIVERED) {
		skb->mark = 0;
		return FORWARD_TO_NETWORK;
	}
	if (parse(skb, p, ETH_HLEN) || p->nd)
		return FORWARD_NOT_OURS;
	if (unlikely(p->fragment) && fragment_ports(p))
		return FORWARD_NOT_OURS;
	/* What goes to a tunnel is ours and marked; anybody else's would be believed to come from this node's pods. */
	if (unlikely(to_tunnel_port(&p->t))) {
		struct peer *peer = peer_of(&p->t.daddr);

		if (peer && peer->flags & PEER_NODE)
			return DROP_ENCAP_PROHIBITED;
	}
	local = bpf_map_lookup_elem(&endpoints, &p->t.saddr);
	if (!local)
		return FORWARD_NOT_OURS;
	if (!(local->flags & ENDPOINT_HOST))
		return forwarded(skb, p, local);
	r = own(skb, p);
	/* The host's flows are tracked for their ports, not for people. */
	p->report = false;
	return r;
}

SEC("tc")
int to_netdev(struct __sk_buff *skb)
{
	struct pkt *p;

	if (decided(skb, HOOK_TO_NETDEV, FORWARD_TO_NETWORK)) {
		skb->mark = 0;
		return TC_NEXT;
	}
	p = begin(skb, HOOK_TO_NETDEV);
	return p ? finish(skb, p, leave(skb, p)) : TC_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
