/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file holds the constants that the agent sets before it loads a program,
 * so that the verifier prunes what is off. A change means: load again and flip
 * the slot. Program files define them by including this file once.
 */
#ifndef KUBE_CILIUM_CONFIG_H
#define KUBE_CILIUM_CONFIG_H

/* Address of this node on the underlay, the source of the tunnel; zero: no such family. */
const volatile union addr node_ipv4 = {};
const volatile union addr node_ipv6 = {};

/*
 * The addresses are read word by word as volatile: through a plain pointer the
 * compiler would take them for the zeroes that stand above.
 */
static __always_inline void own_addr(union addr *a, bool ipv6)
{
	a->w[0] = ipv6 ? node_ipv6.w[0] : node_ipv4.w[0];
	a->w[1] = ipv6 ? node_ipv6.w[1] : node_ipv4.w[1];
	a->w[2] = ipv6 ? node_ipv6.w[2] : node_ipv4.w[2];
	a->w[3] = ipv6 ? node_ipv6.w[3] : node_ipv4.w[3];
}

/* ifindex of the only uplink; 0: several, ask the routes. */
const volatile __u32 uplink_ifindex = 0;
/*
 * A prefix of each family whose addresses the routes reach on the only
 * uplink's own link, as address and mask; zero: none that is certain.
 */
const volatile union addr on_link_ipv4 = {};
const volatile union addr on_link_ipv4_mask = {};
const volatile union addr on_link_ipv6 = {};
const volatile union addr on_link_ipv6_mask = {};
/* ifindex of the VXLAN device; 0: none (native routing). */
const volatile __u32 overlay_ifindex = 0;
/* UDP port of the tunnel, host order; 0: no tunnel. */
const volatile __u16 tunnel_port = 0;
/* Build the VXLAN header here (needs bpf_skb_adjust_room with ENCAP_L2_ETH, Linux 5.13 for the flag); else the device does. */
const volatile bool encap_in_bpf = false;
/* bpf_redirect_peer exists (Linux 5.10); else bpf_redirect to the host's end. */
const volatile bool have_redirect_peer = false;
/* bpf_redirect_neigh exists (Linux 5.10); else the stack forwards. */
const volatile bool have_redirect_neigh = false;
const volatile bool masquerade_ipv4 = false;
const volatile bool masquerade_ipv6 = false;
/* Largest inner packet that a pod may send off the node, bytes, without its Ethernet header. */
const volatile __u32 pod_mtu = 1450;
/* Largest packet that a pod's interface takes, bytes, without its Ethernet header. */
const volatile __u32 device_mtu = 1500;
/* Lowest and highest port that masquerade gives out, host order. */
const volatile __u16 nat_port_min = 32768;
const volatile __u16 nat_port_max = 65535;
/* Connections that a pod may begin in the table of all within LIFETIME_UNANSWERED; the host 16 times as many. */
const volatile __u32 advance_size = 0;
/* Places in the table of the young, a power of two; 0: it is not in use. */
const volatile __u32 young_slots = 0;
/* bpf_ktime_get_coarse_ns exists (Linux 5.11), a third of the cost of bpf_ktime_get_ns. */
const volatile bool have_coarse_clock = false;

#endif
