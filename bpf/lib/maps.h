/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file declares every map. All are pinned by the agent under
 * /sys/fs/bpf/kube-cilium as NAME_vLAYOUT and shared by all programs. Sizes
 * marked * are set by the agent before it makes the map.
 */
#ifndef KUBE_CILIUM_MAPS_H
#define KUBE_CILIUM_MAPS_H

/*
 * Program of each hook; the attached stubs call into it. In SLOT_BEFORE, while
 * the agent changes over to another conntrack, the from_netdev of before.
 * Written by the agent, read by stubs and from_netdev.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, SLOT_BEFORE + 1);
	__type(key, __u32);
	__type(value, __u32);
} hooks SEC(".maps");

/* Local address -> endpoint. Written by the agent; bounded by MAX_ENDPOINTS pods of two addresses, and the host's own. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 3 * MAX_ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, union addr);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* ifindex of the host's end -> the pod behind it. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct pod_interface);
} pod_interfaces SEC(".maps");

/* Exact address elsewhere -> who and where. Written by the agent; *max_entries. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, union addr);
	__type(value, struct peer);
} peers SEC(".maps");

/* Prefix -> who and where, when no exact address is known: nodes' prefixes, pools, ranges. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, struct peer);
} prefixes SEC(".maps");

/* Underlay address of a node -> what is known of the path. Written by the agent and, for the MTU, by from_netdev. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, union addr);
	__type(value, struct node);
} nodes SEC(".maps");

/* ifindex of an uplink -> what leaves by it. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

/*
 * Connections of both families: the settled ones, and as many others as
 * `advances` grants. Written by programs; aged by the agent; *max_entries.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct flow_key);
	__type(value, struct conn);
} conntrack SEC(".maps");

/* TCP connections of pods that just began, each in the place that its name gives it. Written by programs; the agent empties places of pods that are gone. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, YOUNG_SLOTS);
	__type(key, __u32);
	__type(value, struct young_conn);
} young SEC(".maps");

/* One table of an endpoint's unanswered flows beyond its advance: a flood evicts its own. *max_entries. */
struct unanswered_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct flow_key);
	__type(value, struct conn);
};

/*
 * Endpoint id -> its unanswered flows, out and in. 0 holds the host's own and
 * every pointer of a masqueraded flow: the agent makes it 16 times larger.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_ENDPOINTS);
	__type(key, __u32);
	__array(values, struct unanswered_table);
} unanswered SEC(".maps");

/*
 * Endpoint id -> what it may still begin in `conntrack`. Written by programs;
 * set by the agent before it loads others.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct advance);
} advances SEC(".maps");

/* Fragmented packet -> ports, from its first fragment. Written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

/* Service address and port -> service. Written by the agent after the backends, removed before them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

/* Service and slot -> backend. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct backend_key);
	__type(value, struct backend);
} backends SEC(".maps");

/*
 * Endpoint id -> what is to be asked for the pod. The agent writes it through a
 * mapping, a word at a time, after what it refers to.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ENDPOINTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct policy);
} policies SEC(".maps");

/* Table, peer, protocol and port -> verdict. Written by the agent; tables are shared by pods of equal policy. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct verdict_key);
	__type(value, struct verdict_entry);
} verdicts SEC(".maps");

/* The same for ranges of ports, cut into prefixes, and for whole protocols. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct verdict_range_key);
	__type(value, struct verdict_entry);
} verdict_ranges SEC(".maps");

/* Prefix that a policy names -> its class, with PEER_CLASS_BIT. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, __u32);
} classes SEC(".maps");

/* Socket and backend -> the name that the socket used. Written by connect and sendmsg, read by recvmsg and getpeername. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct service_name_key);
	__type(value, struct service_name);
} service_names SEC(".maps");

/* hook * REASONS + reason -> packets and bytes. Written by programs, read by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOK_MAX * REASONS);
	__type(key, __u32);
	__type(value, struct counter);
} metrics SEC(".maps");

/* Reason -> drop events left on this CPU. Written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, struct drop_budget);
} drop_budgets SEC(".maps");

/* The one record of what changes while programs run. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} live_settings SEC(".maps");

/* Drops and traces. Written by programs, read by the agent; what does not fit is counted in metrics. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_BYTES);
} events SEC(".maps");

#endif
