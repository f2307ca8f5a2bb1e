/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file decides how a pod's packet leaves the node: through the tunnel, as
 * it is, or under the node's name; and gives it that name.
 */
#ifndef KUBE_CILIUM_ROUTE_H
#define KUBE_CILIUM_ROUTE_H

#include "known.h"
#include "nat.h"
#include "peers.h"
#include "services.h"

/*
 * Where a packet to an address that is not this node's goes: through the
 * tunnel (p->tunnel, p->node) or to the network, as it is or masqueraded. Sets
 * the destination's identity. Returns 0 or a drop.
 */
static __subprogram int find_route(struct pkt *p, const struct conn *c)
{
	const struct peer *peer;

	if (!c && is_service_address(&p->t.daddr))
		return DROP_NO_SERVICE_BACKEND;
	peer = peer_known(known_peer(p, &p->t.daddr));
	p->dst_identity = peer_identity(peer);
	if (peer) {
		__u32 flags = peer->flags;

		p->by_connection = tunnel_port && flags & PEER_NODE;
		if (flags & PEER_TUNNEL ||
		    (flags & PEER_NODE && c && p->reply &&
		     c->flags & CONN_TUNNEL)) {
			p->tunnel = true;
			p->node = peer->node;
			return addr_zero(&p->node) ? DROP_NO_TUNNEL_ENDPOINT : 0;
		}
		if (flags & PEER_NATIVE) {
			if (flags & PEER_DIRECT)
				p->node = peer->node;
			return 0;
		}
		if (flags & PEER_LOCAL)
			return DROP_UNKNOWN_TARGET;
		if (flags & PEER_CLUSTER)
			return DROP_NO_TUNNEL_ENDPOINT;
		if (flags & PEER_NO_MASQUERADE)
			return 0;
	}
	/* Who came from outside sees the address that it spoke to. */
	if (p->ipv6 ? masquerade_ipv6 : masquerade_ipv4) {
		p->masquerade = !(c && (p->reply || c->flags & CONN_ANSWERED));
		p->by_connection = true;
	}
	return 0;
}

/* Gives the packet the node's name. Returns 0 or a drop. */
static __always_inline int masquerade(struct __sk_buff *skb, struct pkt *p,
				      struct conn *c, __u32 out)
{
	int r;

	if (!(c->flags & CONN_MASQUERADED)) {
		struct device *d = bpf_map_lookup_elem(&devices, &out);

		if (p->error || !nat_can(p))
			return DROP_UNKNOWN_L4;
		if (!d)
			return DROP_NO_MAPPING;
		p->xlate_addr = p->ipv6 ? d->ipv6 : d->ipv4;
		if (addr_zero(&p->xlate_addr))
			return DROP_NO_MAPPING;
		c->ifindex = out;
		r = nat_take(skb, &p->t, c, &p->xlate_addr, p->now);
		if (r)
			return r;
	} else if (!p->related && (p->refresh || !(c->flags & CONN_SETTLED))) {
		nat_refresh(&p->t, c, p->now);
	}
	p->xlate_addr = c->addr;
	p->xlate_port = c->port;
	p->event_flags |= EVENT_TRANSLATED;
	if (p->related)
		return nat_rewrite_error(skb, p, &p->xlate_addr, p->xlate_port, true);
	return nat_rewrite(skb, p, &p->xlate_addr, p->xlate_port, true);
}

#endif
