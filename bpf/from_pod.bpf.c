//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * This file judges what a pod sends, at ingress of the host's end of its veth
 * pair, and sends it the shortest way: into the other pod, through the tunnel,
 * out of an uplink, or to the host's stack.
 */
#define DESK_AGAIN 1
#define DESK_INTERFACES 1
#define DESK_ENDPOINTS 1
#define DESK_PEERS 1
#include "lib/common.h"
#include "lib/config.h"

#include "lib/again.h"
#include "lib/antispoof.h"
#include "lib/conntrack.h"
#include "lib/deliver.h"
#include "lib/fragments.h"
#include "lib/icmp.h"
#include "lib/known.h"
#include "lib/nat.h"
#include "lib/parse.h"
#include "lib/peers.h"
#include "lib/policy.h"
#include "lib/report.h"
#include "lib/route.h"
#include "lib/tunnel.h"

/* Below this no path is so narrow that a node's lowered MTU matters. */
#define ALWAYS_FITS (1280 - 70)

/* The pod's ICMP error quotes a packet that it got: the connection of that one. */
static __always_inline struct conn *find_related(struct __sk_buff *skb,
						 struct pkt *p, __u32 mine,
						 __u32 other)
{
	struct conn *c;

	if (!parse_quoted(skb, p) ||
	    !addr_equal(&p->q.t.daddr, &p->t.saddr) ||
	    !addr_equal(&p->q.t.saddr, &p->t.daddr))
		return NULL;
	c = flow_find(p, &p->q.t, mine, other);
	if (c)
		relate(p);
	return c;
}

/* Length of the packet, or of each piece that it is to be cut into. payload is an offset in the frame. */
static __always_inline __u32 piece(struct __sk_buff *skb, const struct pkt *p,
				   __u32 payload)
{
	return (skb->gso_size ? payload + skb->gso_size : p->len) - ETH_HLEN;
}

/* Larger than the way allows: the MTU to tell, else 0. */
static __always_inline __u32 too_big(struct __sk_buff *skb, struct pkt *p)
{
	__u32 payload = p->payload, mtu = pod_mtu, len;
	struct node *n;

	/* The option of one beyond 64 KiB is in none of its pieces. */
	if (unlikely(p->len > 0xffff) && p->ipv6 &&
	    p->l4 == ETH_HLEN + sizeof(struct ipv6hdr) + JUMBO_LEN)
		payload -= JUMBO_LEN;
	len = piece(skb, p, payload);

	if (p->tunnel && len <= ALWAYS_FITS) {
		mtu = ALWAYS_FITS;
	} else if (p->tunnel) {
		n = bpf_map_lookup_elem(&nodes, &p->node);
		if (n && n->mtu && (__s32)(n->mtu_expires - p->now) > 0) {
			__u32 inner = n->mtu - ENCAP_LEN;

			if (!addr_is_ipv4(&p->node))
				inner -= sizeof(struct ipv6hdr) - sizeof(struct iphdr);
			/* IPv6 knows no narrower link (RFC 8200). */
			if (p->ipv6 && inner < 1280)
				inner = 1280;
			if (inner < mtu)
				mtu = inner;
		}
	}
	p->mtu = mtu;
	return len > mtu ? mtu : 0;
}

/* Through the tunnel. Returns a reason. */
static __subprogram int to_node(struct __sk_buff *skb, struct pkt *p)
{
	struct encap h __attribute__((aligned(8)));	/* encap_send() reads so */
	__u32 out;
	int r;

	p->event_flags |= EVENT_TUNNEL;
	out = encap_header(skb, p, &h);
	if (out) {
		r = encap_send(skb, p, &h, out);
		if (r) {
			if (r == FORWARD_TO_TUNNEL)
				again_to_node(p, skb->ifindex, &h, skb->hash);
			return r;
		}
	}
	return send_by_device(skb, p);
}

/* The way that the connection's packets took a moment ago. Returns a reason, or FORWARD_UNKNOWN: the whole way. */
static __subprogram int go_on(struct __sk_buff *skb, struct pkt *p)
{
	struct sight s = { .from = skb->ifindex };
	const struct again *a;
	struct glimpse g;
	int r;

	if (skb->vlan_present || !glance(skb, ETH_HLEN, &s, &g))
		return FORWARD_UNKNOWN;
	a = again_find(p, &s, &g);
	if (!a)
		return FORWARD_UNKNOWN;
	p->ipv6 = s.kind & AGAIN_IPV6;
	if (a->way != AGAIN_POD && piece(skb, p, g.payload) > a->mtu)
		return FORWARD_UNKNOWN;
	if (a->way == AGAIN_NODE) {
		/* Who sends has another way in mind when the hash is another. */
		if (g.tos != a->node.encap.ip.tos ||
		    (skb->hash && skb->hash != a->node.hash))
			return FORWARD_UNKNOWN;
		return encap_send(skb, p, &a->node.encap, a->target);
	}
	r = hop(skb, p);
	if (r)
		return r;
	if (a->way == AGAIN_NETWORK)
		return to_wire(skb, p, a->target, &a->next, p->ipv6,
			       FORWARD_TO_NETWORK);
	return to_local(skb, p, a->target, a->pod.mac, a->pod.host_mac);
}

static __always_inline int speak(struct __sk_buff *skb, struct pkt *p)
{
	__u32 ifindex = skb->ifindex, other, home, out, mtu;
	const struct endpoint *local, *there;	/* this node's; and a pod's */
	const struct pod_interface *pod;
	const union addr *next;
	struct conn *c = NULL;
	int r;

	pod = known_pod(p, ifindex);
	if (!pod)
		return DROP_ENDPOINT_NOT_READY;
	home = pod->id;
	p->endpoint = pod->id;
	p->src_identity = pod->identity;

	if (skb->vlan_present)
		return DROP_NOT_SUPPORTED_L3;
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return from_pod_arp(skb, p, pod);
	r = parse(skb, p, ETH_HLEN);
	if (r)
		return r;
	r = from_pod_source(skb, p, pod);
	if (r)
		return r;
	if (unlikely(p->fragment)) {
		r = fragment_ports(p);
		if (r)
			return r;
	}
	local = known_endpoint(p, &p->t.daddr);
	r = from_pod_forbidden(p, local);
	if (r)
		return r;

	there = local && !(local->flags & ENDPOINT_HOST) ? local : NULL;
	other = there ? there->id : home;
	if (unlikely(p->error))
		c = find_related(skb, p, home, other);
	if (likely(!c))
		c = flow_find(p, &p->t, home, other);

	if (local) {
		p->dst_identity = there ? there->identity : IDENTITY_HOST;
	} else if (c && c->flags & CONN_MASQUERADED && !p->reply) {
		p->dst_identity = IDENTITY_WORLD;
		p->masquerade = true;
	} else {
		r = find_route(p, c);
		if (r)
			return r;
	}

	if (!c) {
		c = flow_begin(p, home, 0);
		if (!c)
			return DROP_CONNTRACK_FULL;
	}
	judge_again_if_other(p, c);
	r = judged_here(p, c, home, there ? there->id : 0);
	if (r)
		return r;
	if (likely(!p->related)) {
		c = flow_seen(p, c);
		if (!c)
			return DROP_CONNTRACK_FULL;
	}

	if ((local && !there) || c->flags & CONN_STACK)
		return to_stack(skb, p, MARK_IDENTITY);
	if (p->ttl <= 1)
		return answer_ttl_exceeded(skb, p);
	if (there) {
		r = hop(skb, p);
		if (r)
			return r;
		again_to_pod(p, ifindex, there->ifindex, there->mac, there->host_mac);
		return to_local(skb, p, there->ifindex, there->mac, there->host_mac);
	}

	mtu = too_big(skb, p);
	if (mtu)
		return answer_too_big(skb, p, mtu);
	if (p->tunnel)
		return to_node(skb, p);

	out = uplink_towards(skb, p->ipv6, &p->t.saddr, &p->t.daddr, c->ifindex);
	/* Several uplinks, and the route leads to a device that is none of them: the host's own affair. */
	if (!uplink_ifindex && out && p->masquerade &&
	    !(c->flags & CONN_MASQUERADED) &&
	    !bpf_map_lookup_elem(&devices, &out))
		out = 0;
	if (!have_redirect_neigh || !out) {
		/* The stack forwards, to_netdev gives it the node's name. */
		c->flags |= CONN_STACK;
		return to_stack(skb, p, MARK_IDENTITY);
	}
	r = hop(skb, p);
	if (r)
		return r;
	if (p->masquerade) {
		r = masquerade(skb, p, c, out);
		if (r)
			return r;
	}
	next = addr_zero(&p->node) ? &p->t.daddr : &p->node;
	again_to_network(p, ifindex, next);
	return to_wire(skb, p, out, next, p->ipv6, FORWARD_TO_NETWORK);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	return shortest(skb, HOOK_FROM_POD, go_on, speak);
}

char _license[] SEC("license") = "Dual BSD/GPL";
