//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * This file judges what comes in by an uplink: packets in the tunnel, native
 * ones for pods of this node, and replies to masqueraded connections. All else
 * is the host's and passes.
 */
#define DESK_AGAIN 1
#define DESK_ENDPOINTS 1
#define DESK_PEERS 1
#include "lib/common.h"
#include "lib/config.h"

#include "lib/again.h"
#include "lib/arrive.h"
#include "lib/deliver.h"
#include "lib/known.h"
#include "lib/nat.h"
#include "lib/parse.h"
#include "lib/peers.h"
#include "lib/report.h"
#include "lib/tunnel.h"

/* Ticks for which a node's lowered MTU holds (RFC 1191: ten minutes). */
#define MTU_LIFETIME 560
/*
 * Lower than this nobody is believed: anybody may have sent the error, and
 * an underlay carries what IPv6 asks of every link (RFC 8200).
 */
#define MTU_MIN 1280

/* To the VXLAN device, which takes what we do not unpack. */
static __always_inline int leave_to_device(struct pkt *p)
{
	p->action = TC_NEXT;
	return FORWARD_TO_STACK;
}

/*
 * A packet in the tunnel, for a pod of this node: checked and judged while it
 * is packed, so that whatever we cannot do the device still can.
 */
static __always_inline int from_tunnel(struct __sk_buff *skb, struct pkt *p)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	__u8 outer_tos = p->tos;
	const struct endpoint *local;
	struct vxlanhdr vxlan;
	int r, ecn;

	if (!encap_in_bpf || p->l4 != ETH_HLEN + sizeof(struct iphdr))
		return leave_to_device(p);
	if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr),
			       &vxlan, sizeof(vxlan)))
		return DROP_INVALID_PACKET;
	/* The other bits are to be ignored (RFC 7348). */
	if (!(vxlan.flags & bpf_htonl(VXLAN_VNI_VALID)))
		return DROP_INVALID_PACKET;
	p->event_flags = EVENT_TUNNEL;
	p->tunnel = true;
	p->node = p->t.saddr;
	p->src_identity = bpf_ntohl(vxlan.vni) >> 8;
	p->t.sport = 0;
	p->t.dport = 0;
	r = parse(skb, p, ETH_HLEN + ENCAP_LEN);
	if (r)
		return r;
	r = accept_tunnel(p, &p->node, &p->t.saddr, p->src_identity);
	if (r)
		return r;
	local = known_endpoint(p, &p->t.daddr);
	if (!local)
		return DROP_UNKNOWN_TARGET;
	/* The stack wants to see it come by the device to which its route leads. */
	if (local->flags & ENDPOINT_HOST)
		return leave_to_device(p);
	ecn = ecn_decap(outer_tos, p->tos);
	if (ecn < 0)
		return DROP_INVALID_PACKET;
	if (unlikely(p->fragment)) {
		r = fragment_ports(p);
		if (r)
			return r;
	}
	r = arrive(skb, p, local, CONN_TUNNEL);
	if (r)
		return r;
	if (p->stack)
		return leave_to_device(p);

	/* Told so, the kernel changes skb->protocol too (Linux 6.3). */
	if (p->ipv6)
		flags |= ADJ_ROOM_DECAP_L3_IPV6;
	if (bpf_skb_adjust_room(skb, -(__s32)ENCAP_LEN, BPF_ADJ_ROOM_MAC, flags))
		return leave_to_device(p);
	if (p->ipv6) {
		__be16 proto = bpf_htons(ETH_P_IPV6);

		if (bpf_skb_store_bytes(skb, 12, &proto, 2, 0))
			return DROP_WRITE;
	}
	r = set_ecn(skb, p, ecn);
	if (r)
		return r;
	again_to_pod(p, p->src_identity, local->ifindex, local->mac, local->host_mac);
	return to_local(skb, p, local->ifindex, local->mac, local->host_mac);
}

/* For a pod, not in the tunnel. */
static __always_inline int from_network(struct __sk_buff *skb, struct pkt *p,
					const struct endpoint *local,
					const struct peer *peer)
{
	int r;

	/* Pods speak through the tunnel, or natively: never otherwise than we would answer. */
	if (peer && peer->flags & PEER_CLUSTER && !(peer->flags & PEER_NATIVE))
		return DROP_UNKNOWN_SENDER;
	p->src_identity = peer_identity(peer);
	r = arrive(skb, p, local, 0);
	if (r)
		return r;
	if (p->stack || needs_cutting(skb, p))
		return to_stack(skb, p, MARK_ACCEPTED);
	if (p->ttl <= 1)
		return DROP_TTL_EXCEEDED;
	r = hop(skb, p);
	if (r)
		return r;
	again_to_pod(p, 0, local->ifindex, local->mac, local->host_mac);
	return to_local(skb, p, local->ifindex, local->mac, local->host_mac);
}

/*
 * "Too big" about one of our tunnel packets: the node's path is narrower. Only
 * nodes that the agent knows have an entry.
 */
static __always_inline void lower_mtu(struct __sk_buff *skb, struct pkt *p)
{
	__be16 mtu4;
	__be32 mtu6;
	__u32 mtu;
	struct node *n;

	if (p->ipv6) {
		if (p->icmp_type != ICMP6_TOO_BIG ||
		    bpf_skb_load_bytes(skb, p->l4 + 4, &mtu6, 4))
			return;
		mtu = bpf_ntohl(mtu6);
	} else {
		if (p->icmp_type != ICMP_DEST_UNREACH ||
		    p->icmp_code != ICMP_FRAG_NEEDED ||
		    bpf_skb_load_bytes(skb, p->l4 + 6, &mtu4, 2))
			return;
		mtu = bpf_ntohs(mtu4);
	}
	n = bpf_map_lookup_elem(&nodes, &p->q.t.daddr);
	if (!n || mtu < MTU_MIN)
		return;
	if (n->mtu && (__s32)(n->mtu_expires - p->now) > 0 && n->mtu <= mtu)
		return;
	n->mtu = mtu;
	n->mtu_expires = p->now + MTU_LIFETIME;
}

/* The world's answer to a masqueraded connection: to the one that `pointer` names. */
static __always_inline int unmasquerade(struct __sk_buff *skb, struct pkt *p,
					struct conn *pointer)
{
	struct endpoint *local;
	struct tuple t;
	struct conn *c;
	int r;

	p->xlate_addr = pointer->addr;
	p->xlate_port = pointer->port;
	p->event_flags |= EVENT_TRANSLATED;

	if (p->error) {
		t = p->q.t;
		t.saddr = p->xlate_addr;
		t.sport = p->xlate_port;
		if (is_echo(t.proto))
			t.dport = p->xlate_port;
	} else {
		t = p->t;
		t.daddr = p->xlate_addr;
		t.dport = p->xlate_port;
		if (is_echo(t.proto))
			t.sport = p->xlate_port;
	}
	local = bpf_map_lookup_elem(&endpoints, &p->xlate_addr);
	if (!local)
		return DROP_STALE;
	t.zone = local->flags & ENDPOINT_HOST ? ZONE_HOST : ZONE_DEFAULT;
	c = flow_find(p, &t, local->id, local->id);
	if (!c) {
		/* The pointer is in a table for both, and the connection in the one of before: see to_host. */
		bpf_tail_call(skb, &hooks, SLOT_BEFORE);
		return DROP_STALE;
	}
	/* A pointer settles with its connection: for TCP when the pod speaks again (nat_refresh). */
	if (p->error) {
		relate(p);
	} else if (p->t.proto == IPPROTO_TCP) {
		pointer->flags |= CONN_ANSWERED;
		pointer->seen = p->now;
	} else {
		if (!(pointer->flags & CONN_SETTLED)) {
			flow_name(&p->key, &p->t);
			pointer = conn_settle(&p->key, pointer, 0);
			if (!pointer)
				return DROP_CONNTRACK_FULL;
			flow_name(&p->key, &t);
		}
		pointer->seen = p->now;
	}
	p->src_identity = IDENTITY_WORLD;
	p->dst_identity = local->identity;
	p->endpoint = local->id;
	p->event_flags |= EVENT_INGRESS;
	if (!(local->flags & ENDPOINT_HOST)) {
		r = judged_here(p, c, 0, local->id);
		if (r)
			return r;
	}
	p->stack = c->flags & CONN_STACK;
	if (!p->related) {
		c = flow_seen(p, c);
		if (!c)
			return DROP_CONNTRACK_FULL;
		if (c->flags & CONN_CLOSING)
			pointer->flags |= CONN_CLOSING;
		r = nat_rewrite(skb, p, &p->xlate_addr, p->xlate_port, false);
	} else {
		r = nat_rewrite_error(skb, p, &p->xlate_addr, p->xlate_port, false);
	}
	if (r)
		return r;
	if (local->flags & ENDPOINT_HOST) {
		p->report = false;
		return to_stack(skb, p, MARK_ACCEPTED);
	}
	if (p->stack || needs_cutting(skb, p))
		return to_stack(skb, p, MARK_ACCEPTED);
	if (p->ttl <= 1)
		return DROP_TTL_EXCEEDED;
	r = hop(skb, p);
	if (r)
		return r;
	return to_local(skb, p, local->ifindex, local->mac, local->host_mac);
}

/* For this host: perhaps for a pod behind it. */
static __always_inline int to_host(struct __sk_buff *skb, struct pkt *p)
{
	const struct tuple *t = &p->t;
	struct conn *c;

	if (p->error) {
		if (!parse_quoted(skb, p) ||
		    !addr_equal(&p->q.t.saddr, &p->t.daddr))
			return FORWARD_NOT_OURS;
		if (to_tunnel_port(&p->q.t)) {
			lower_mtu(skb, p);
			return FORWARD_NOT_OURS;
		}
		t = &p->q.t;
	}
	flow_name(&p->key, t);
	c = conn_find(&p->key, 0, 0, p->now);
	if (!c) {
		/*
		 * A connection that was masqueraded a moment before this program
		 * came is in another table, which its predecessor knows. Left to
		 * the stack, its answer would be reset.
		 */
		bpf_tail_call(skb, &hooks, SLOT_BEFORE);
		return FORWARD_NOT_OURS;
	}
	if (conn_over(c, t->proto, p->now))
		return FORWARD_NOT_OURS;
	if (c->flags & CONN_POINTER)
		return unmasquerade(skb, p, c);
	/* The host's own connection. */
	if (!p->error) {
		c = flow_find(p, t, 0, 0);
		if (c)
			flow_seen(p, c);
		p->report = false;
	}
	return FORWARD_NOT_OURS;
}

static __always_inline int enter(struct __sk_buff *skb, struct pkt *p)
{
	const struct known_peer *from;
	const struct endpoint *local;
	bool to_pod;
	int r;

	r = parse(skb, p, ETH_HLEN);
	if (r == DROP_NOT_SUPPORTED_L3 || p->nd)
		return FORWARD_NOT_OURS;
	if (r)
		return r;
	if (to_tunnel_port(&p->t) && !p->fragment && !p->ipv6 &&
	    p->t.daddr.w[3] == node_ipv4.w[3])
		return from_tunnel(skb, p);

	/* Nothing outside has this node's or its pods' addresses, or speaks to our loopback. */
	if (!p->ipv6 && (p->t.saddr.b[12] == 127 || p->t.daddr.b[12] == 127))
		return DROP_MARTIAN;
	if (p->ipv6 && addr_loopback6(&p->t.saddr, &p->t.daddr))
		return DROP_MARTIAN;
	local = known_endpoint(p, &p->t.daddr);
	to_pod = local && !(local->flags & ENDPOINT_HOST);
	/* An address of which the agent says that it is elsewhere is none of ours; that saves a pod's packets a question. */
	from = to_pod ? known_peer(p, &p->t.saddr) : NULL;
	if (!(from && from->from == KNOWN_EXACT) &&
	    bpf_map_lookup_elem(&endpoints, &p->t.saddr))
		return DROP_OWN_SOURCE;

	if (unlikely(p->fragment)) {
		r = fragment_ports(p);
		/* Without ports nothing is ours; but the host may still put it together. */
		if (r)
			return to_pod ? r : FORWARD_NOT_OURS;
	}
	if (!local) {
		struct peer *peer = peer_of(&p->t.daddr);

		return peer && peer->flags & PEER_LOCAL ? DROP_UNKNOWN_TARGET :
							  FORWARD_NOT_OURS;
	}
	if (!to_pod) {
		/* Our tunnel device hears on every address of the host, and would believe a frame that came by this one. */
		if (to_tunnel_port(&p->t) &&
		    !(p->ipv6 ? same_addr(&p->t.daddr, &node_ipv6) :
				same_addr(&p->t.daddr, &node_ipv4)))
			return DROP_ENCAP_PROHIBITED;
		return to_host(skb, p);
	}
	return from_network(skb, p, local, peer_known(from));
}

/* What is around a packet that came in the tunnel. false: not one that we unpack. */
static __always_inline bool glance_around(struct __sk_buff *skb,
					  struct sight *s, __u8 *tos)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct encap *h = (void *)(eth + 1);
	__u32 len;

	if ((void *)(h + 1) > (void *)(long)skb->data_end)
		return false;
	len = bpf_ntohs(h->ip.tot_len);
	if (eth->h_proto != bpf_htons(ETH_P_IP) || *(__u8 *)h != 0x45 ||
	    h->ip.protocol != IPPROTO_UDP ||
	    h->ip.frag_off & bpf_htons(IP_MF | IP_OFFSET) ||
	    h->ip.daddr != node_ipv4.w[3] ||
	    h->udp.dest != bpf_htons(tunnel_port) ||
	    !(h->vxlan.flags & bpf_htonl(VXLAN_VNI_VALID)) ||
	    len < ENCAP_LEN || len + ETH_HLEN > skb->len)
		return false;
	s->from = bpf_ntohl(h->vxlan.vni) >> 8;
	s->outer = h->ip.saddr;
	*tos = h->ip.tos;
	return true;
}

/* The way that the connection's packets took a moment ago. Returns a reason, or FORWARD_UNKNOWN: the whole way. */
static __subprogram int go_on(struct __sk_buff *skb, struct pkt *p)
{
	bool tunnel = tunnel_port && encap_in_bpf;
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	const struct again *a;
	struct sight s = {};
	struct glimpse g;
	struct ethhdr *eth;
	__u8 tos = 0;
	int r;

	if (!have_redirect_peer)
		return FORWARD_UNKNOWN;
	if (tunnel) {
		if (!glance_around(skb, &s, &tos) ||
		    !glance(skb, ETH_HLEN + ENCAP_LEN, &s, &g))
			return FORWARD_UNKNOWN;
		s.kind |= AGAIN_TUNNEL;
	} else if (!glance(skb, ETH_HLEN, &s, &g)) {
		return FORWARD_UNKNOWN;
	}
	a = again_find(p, &s, &g);
	if (!a)
		return FORWARD_UNKNOWN;
	p->ipv6 = s.kind & AGAIN_IPV6;
	if (tunnel) {
		if (ecn_decap(tos, g.tos) != (g.tos & ECN_MASK))
			return FORWARD_UNKNOWN;
		if (p->ipv6)
			flags |= ADJ_ROOM_DECAP_L3_IPV6;
		if (bpf_skb_adjust_room(skb, -(__s32)ENCAP_LEN, BPF_ADJ_ROOM_MAC, flags))
			return FORWARD_UNKNOWN;
		eth = (void *)(long)skb->data;
		if ((void *)(eth + 1) > (void *)(long)skb->data_end)
			return DROP_WRITE;
		eth->h_proto = p->ipv6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	} else {
		r = hop(skb, p);
		if (r)
			return r;
	}
	return to_local(skb, p, a->target, a->pod.mac, a->pod.host_mac);
}

SEC("tc")
int from_netdev(struct __sk_buff *skb)
{
	return shortest(skb, HOOK_FROM_NETDEV, go_on, enter);
}

char _license[] SEC("license") = "Dual BSD/GPL";
