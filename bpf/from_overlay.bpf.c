//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * This file judges what the VXLAN device took out of the tunnel: everything
 * that from_netdev left to it, and all of it in device mode. The device has
 * dealt with ECN.
 */
#define DESK_ENDPOINTS 1
#define DESK_PEERS 1
#include "lib/common.h"
#include "lib/config.h"

#include "lib/arrive.h"
#include "lib/deliver.h"
#include "lib/parse.h"
#include "lib/report.h"
#include "lib/tunnel.h"

/* Who sent the frame, by the outer header; the VNI. Returns 0 or a drop. */
static __always_inline int outer_header(struct __sk_buff *skb, struct pkt *p)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		addr_set_ipv4(&p->node, bpf_htonl(key.remote_ipv4));
	} else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key),
					   BPF_F_TUNINFO_IPV6)) {
		p->node.w[0] = key.remote_ipv6[0];
		p->node.w[1] = key.remote_ipv6[1];
		p->node.w[2] = key.remote_ipv6[2];
		p->node.w[3] = key.remote_ipv6[3];
	} else {
		return DROP_INVALID_TC_BUFFER;
	}
	p->src_identity = key.tunnel_id;
	return 0;
}

static __always_inline int unpack(struct __sk_buff *skb, struct pkt *p)
{
	const struct endpoint *local;
	int r;

	p->event_flags = EVENT_TUNNEL;
	p->tunnel = true;
	r = outer_header(skb, p);
	if (r)
		return r;
	r = parse(skb, p, ETH_HLEN);
	if (r)
		return r;
	r = accept_tunnel(p, &p->node, &p->t.saddr, p->src_identity);
	if (r)
		return r;
	local = known_endpoint(p, &p->t.daddr);
	if (!local)
		return DROP_UNKNOWN_TARGET;
	/* The inner frame's address is nobody's: the kernel calls it another host's. */
	bpf_skb_change_type(skb, 0);
	if (local->flags & ENDPOINT_HOST) {
		p->dst_identity = IDENTITY_HOST;
		return to_stack(skb, p, MARK_ACCEPTED);
	}
	if (unlikely(p->fragment)) {
		r = fragment_ports(p);
		if (r)
			return r;
	}
	r = arrive(skb, p, local, CONN_TUNNEL);
	if (r)
		return r;
	if (p->stack)
		return to_stack(skb, p, MARK_ACCEPTED);
	return to_local(skb, p, local->ifindex, local->mac, local->host_mac);
}

SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	struct pkt *p = begin(skb, HOOK_FROM_OVERLAY);

	return p ? finish(skb, p, unpack(skb, p)) : TC_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
