/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file holds every struct and number that crosses the line between the
 * kernel and the agent. Go gets them from here through bpf2go; nothing is
 * written twice. docs/design/maps.md is the contract in prose: change both.
 *
 * Byte order: __be16 and __be32 are network order, __u16 and __u32 host order.
 * Padding is always spelled out and zero: keys are compared as bytes.
 */
#ifndef KUBE_CILIUM_TYPES_H
#define KUBE_CILIUM_TYPES_H

/*
 * One form for both families: IPv6 as it is, IPv4 as ::ffff:a.b.c.d.
 * Network order throughout.
 */
union addr {
	__u8 b[16];
	__be32 w[4];
	__u64 d[2];
};

/* Numbers below 256 are reserved; 1 to 11 mean what Hubble's API means by them. */
enum identity {
	IDENTITY_UNKNOWN = 0,
	IDENTITY_HOST = 1,		/* a socket of this node */
	IDENTITY_WORLD = 2,
	IDENTITY_UNMANAGED = 3,
	IDENTITY_HEALTH = 4,
	IDENTITY_INIT = 5,
	IDENTITY_REMOTE_NODE = 6,	/* a socket of another node */
	IDENTITY_KUBE_APISERVER = 7,
	IDENTITY_INGRESS = 8,
	IDENTITY_WORLD_IPV4 = 9,
	IDENTITY_WORLD_IPV6 = 10,
	IDENTITY_PENDING = 127,		/* inside the cluster, not known yet */
	IDENTITY_MIN_ALLOCATED = 256,
	IDENTITY_MAX = 0xffffff,	/* 24 bits: it travels as the VNI */
};

/* Where a packet was judged. The number is the slot in `hooks` and a part of the metrics index. */
enum hook {
	HOOK_FROM_POD = 0,
	HOOK_TO_POD,
	HOOK_FROM_NETDEV,
	HOOK_TO_NETDEV,
	HOOK_FROM_OVERLAY,
	HOOK_TO_OVERLAY,
	HOOK_CONNECT,
	HOOK_SENDMSG,
	HOOK_RECVMSG,
	HOOK_GETPEERNAME,
	HOOK_MAX,
	SLOT_BEFORE = HOOK_MAX,		/* no hook: a slot of `hooks` */
};

/* A socket's or packet's skb mark while it crosses the host's stack. Bits 12 to 15 are kube-proxy's. */
enum mark {
	MARK_MAGIC_MASK = 0x0f00,
	MARK_IDENTITY = 0x0d00,	/* bits 16-31: identity & 0xffff, bits 0-7: identity >> 16 */
	MARK_ACCEPTED = 0x0e00,	/* the same bits; and it came through the tunnel from the node that may send it */
	MARK_DELIVERED = 0x0c00,	/* one of our programs has decided: the next one lets it pass */
};

/* A local address: a pod's, or one of this host. */
enum endpoint_flags {
	ENDPOINT_HOST = 1 << 0,		/* an address of this host; only identity counts */
};

struct endpoint {
	__u32 ifindex;		/* the host's end of the veth pair */
	__u32 identity;
	__u16 id;		/* 1 to MAX_ENDPOINTS - 1; 0: the host */
	__u16 flags;
	__u8 mac[6];		/* the pod's end */
	__u8 host_mac[6];	/* the host's end */
};

/* The pod behind an interface: who may speak from there. An address of all zeroes: none of that family. */
struct pod_interface {
	union addr ipv4;
	union addr ipv6;
	__u32 identity;
	__u16 id;
	__u16 flags;
	__u8 mac[6];
	__u8 host_mac[6];
	__u32 pad;
};

enum peer_flags {
	PEER_TUNNEL = 1 << 0,		/* goes through the tunnel to `node` */
	PEER_NATIVE = 1 << 1,		/* goes as it is, without masquerade */
	PEER_NODE = 1 << 2,		/* an address of another node's host */
	PEER_CLUSTER = 1 << 3,		/* inside the cluster's pools: unknown means pending, not world */
	PEER_NO_MASQUERADE = 1 << 4,	/* outside, and to see the pod's own address */
	PEER_LOCAL = 1 << 5,		/* a prefix of this node's own pods: no endpoint, no such pod */
	PEER_DIRECT = 1 << 6,		/* native: `node` is the next hop where it is on our link */
};

/* Who an address is and where it lives. */
struct peer {
	union addr node;	/* underlay address of the node; zero: nobody's */
	__u32 identity;
	__u32 flags;
};

struct prefix_key {
	__u32 prefixlen;	/* of the 16-byte form: IPv4 /24 is 120 */
	union addr addr __attribute__((packed, aligned(4)));
};

/* What this node knows of another node's underlay address. */
struct node {
	__u32 mtu;		/* of the path, bytes, 0: the device's */
	__u32 mtu_expires;	/* tick */
};

enum device_flags {
	DEVICE_BIG_TCP = 1 << 0,	/* the agent raised its segment size; no program asks */
};

/* An uplink: what packets that leave by it look like. */
struct device {
	union addr ipv4;	/* source of masqueraded IPv4; zero: none */
	union addr ipv6;
	__u8 mac[6];
	__u16 flags;		/* enum device_flags */
	__u32 mtu;
};

/*
 * A connection's name, the same from both directions: lo is the smaller of the
 * two (address, port) pairs as bytes. For ICMP echo both ports are the echo's
 * identifier and class tells who asked, so that a request is never taken for
 * the reply to a request of the other side.
 */
enum flow_class {
	FLOW_ORDINARY = 0,
	FLOW_ECHO_FROM_LO = 1,
	FLOW_ECHO_FROM_HI = 2,
};

struct flow_key {
	union addr lo;
	union addr hi;
	__be16 lo_port;
	__be16 hi_port;
	__u8 proto;
	__u8 class;
	__u16 zone;		/* enum flow_zone */
};

/*
 * Zone 1 holds connections of the host itself whose own name is taken by the
 * pointer of a masqueraded one: they too got another port.
 */
enum flow_zone {
	ZONE_DEFAULT = 0,
	ZONE_HOST = 1,
};

enum conn_flags {
	CONN_FROM_HI = 1 << 0,		/* hi began it; otherwise lo */
	CONN_ANSWERED = 1 << 1,		/* both sides have spoken */
	CONN_POINTER = 1 << 2,		/* a translated name: addr and port are the original source's */
	CONN_MASQUERADED = 1 << 3,	/* addr and port are the source that the other side sees */
	CONN_STACK = 1 << 4,		/* crossed the host's stack: replies do too */
	CONN_TUNNEL = 1 << 5,		/* came through the tunnel: replies do too */
	CONN_SETTLED = 1 << 7,		/* in earnest: TCP whose beginner acknowledged the answer, others answered */
	CONN_ADVANCED = 1 << 8,		/* not settled, and in the table of all: one of its pod's advance */
	CONN_YOUNG = 1 << 9,		/* in the table of the young */
	CONN_CLOSING = 1 << 6,		/* FIN both ways, or RST */
};

/*
 * Ticks without a packet after which a connection is over. Programs take an
 * older entry for none; the agent's collector removes it.
 */
enum conn_lifetime {
	LIFETIME_UNANSWERED = 60,
	LIFETIME_TCP = 21600,
	LIFETIME_OTHER = 120,
	LIFETIME_CLOSING = 10,
};

enum side {
	SIDE_EGRESS = 0,	/* of the source, in the original direction */
	SIDE_INGRESS = 1,	/* of the destination */
};

/* Tables hold the first two only. */
enum verdict {
	VERDICT_NONE = 0,	/* not judged here, or to be judged again */
	VERDICT_ALLOWED = 1,
	VERDICT_DENIED = 2,		/* by a rule */
	VERDICT_DEFAULT_DENIED = 3,	/* no rule of the policies that select the pod matches */
	VERDICT_PENDING_DENIED = 4,	/* allowed to everybody, but a deny could mean a peer that is not known yet */
	VERDICT_CLOSED = 5,		/* the pod's policy was never written; never kept in a connection */
};

/* What one side's policy said, and of which state of the tables. */
struct judgement {
	__u32 generation;	/* read before the lookup */
	__u32 rule;		/* 0: no policy selects the pod */
	__u16 table;
	__u8 verdict;		/* enum verdict */
	__u8 pad;
};

/*
 * What is to be asked, in one direction of a pod. No flag at all: the pod's
 * policy was never written, it is closed.
 */
enum policy_flags {
	POLICY_NONE = 1 << 0,		/* no policy selects the pod: everything is allowed */
	POLICY_ENFORCED = 1 << 1,	/* the table decides, then the default deny */
	/* The table has entries for: */
	POLICY_PORTS = 1 << 2,		/* single ports */
	POLICY_RANGES = 1 << 3,		/* ranges of ports, and whole protocols */
	POLICY_PROTOCOLS = 1 << 4,	/* any protocol */
	POLICY_IDENTITIES = 1 << 5,	/* identities */
	POLICY_CLASSES = 1 << 6,	/* classes of addresses */
	POLICY_ANYONE = 1 << 7,		/* everyone */
	POLICY_DENIES = 1 << 8,		/* a deny of an identity */
	POLICY_ONE_PRECEDENCE = 1 << 9,	/* all entries are of one precedence: the first one found decides */
};

/* One direction. Programs read it and the agent writes it as one 64-bit word: its parts never disagree. */
struct policy_side {
	__u32 default_rule;	/* of the default deny */
	__u16 table;		/* 0: an empty one */
	__u16 flags;
};

struct policy {
	struct policy_side side[2];	/* enum side */
};

#define PEER_ANYONE 0
/* A peer with this bit is a class of addresses; without it an identity. */
#define PEER_CLASS_BIT 0x80000000

/* For one peer the most specific key counts: a port, then the longest range, then any protocol. */
struct verdict_key {
	__u16 table;
	__u8 proto;		/* 0: any, then port is 0 too */
	__u8 pad;
	__u32 peer;
	__be16 port;		/* of the peer that was spoken to; 0 where the protocol has none */
	__u16 pad2;
};

/* VERDICT_RANGE_BITS + the upper bits of port that count: 0 is the whole protocol. */
struct verdict_range_key {
	__u32 prefixlen;
	struct verdict_key key;
};

#define VERDICT_RANGE_BITS 64

struct verdict_entry {
	__u32 rule;
	__u32 precedence;	/* the smaller number wins */
	__u8 verdict;		/* enum verdict, the first two */
	__u8 flags;
	__u16 proxy_port;	/* host order, 0: none; not in use yet */
};

/* One tick is 2^30 ns of CLOCK_MONOTONIC, about 1.07 s. */
struct conn {
	__u32 seen;		/* tick of the last packet */
	__u32 reported;		/* tick of the last report */
	__u8 tcp_flags[2];	/* ever seen: [0] original direction, [1] reply */
	__u8 reported_flags[2];
	__u16 flags;
	__u16 endpoint;		/* in whose unanswered table it began */
	__u32 identity;		/* of the side that began it */
	struct judgement side[2];	/* [0] egress of the source, [1] ingress of the destination */
	__u32 began;		/* tick, of a young one; else 0 */
	union addr addr;
	__be16 port;
	__u16 pad2;
	__u32 ifindex;		/* uplink that carries it, 0: by route */
};

/* A power of two, for the agent and the map; programs read their constant young_slots. */
enum young_size {
	YOUNG_SLOTS = 65536,
};

/* A place in the table of the young. */
struct young_conn {
	struct bpf_spin_lock lock;	/* guards who has it: key, and conn.seen where nobody has */
	__u32 pad;
	struct flow_key key;	/* proto 0: nobody, since conn.seen */
	struct conn conn;
	__u64 whole_lines;
};

struct fragment_key {
	union addr saddr;
	union addr daddr;
	__be32 id;
	__u8 proto;
	__u8 pad[3];
};

struct fragment {
	__be16 sport;
	__be16 dport;
	__u32 seen;		/* tick */
	__u8 asker;		/* of an echo: 1 the source, 2 the destination, 0 no echo */
	__u8 pad[3];
};

struct service_key {
	union addr addr;
	__be16 port;		/* 0: the address is a service's, whatever the port */
	__u8 proto;		/* IPPROTO_*, 0 with port 0 */
	__u8 pad[5];
};

struct service {
	__u32 id;
	__u16 backends;		/* slots 0 to backends - 1 are filled */
	__u16 flags;
};

struct backend_key {
	__u32 service;
	__u16 slot;
	__u16 pad;
};

struct backend {
	union addr addr;
	__be16 port;
	__u16 flags;
	__u32 pad;
};

/*
 * What a socket called its peer before translation: backend -> service. And for
 * a datagram socket which backend it got, so that it stays with it:
 * service -> backend, with chosen 1.
 */
struct service_name_key {
	__u64 cookie;
	union addr addr;
	__be16 port;
	__u8 proto;
	__u8 chosen;
	__u32 pad;
};

struct service_name {
	union addr addr;
	__be16 port;
	__u16 slot;		/* of the chosen backend; else 0 */
	__u32 pad;
};

/*
 * How many connections of a pod may begin in the table of all: one that is
 * settled gives its place back, and a window of LIFETIME_UNANSWERED gives all.
 */
struct advance {
	__u32 window;		/* tick in which the window began, never 0 but in a new map */
	__u32 left;		/* or ADVANCE_HELD */
	__u32 apart;		/* tick in which one was last begun, or found, in the pod's own table */
	__u32 pad;
};

enum advance_size {
	ADVANCE_OF_HOST = 16,	/* times a pod's */
	ADVANCE_HELD = 0xffffffff,	/* left: none, and what settles gives nothing back */
};

/* Slots of `metrics` beside the reasons: events that were not sent. */
enum metric_slot {
	METRIC_EVENTS_LIMITED = 254,	/* over the reason's rate */
	METRIC_EVENTS_LOST = 255,	/* the ring was full */
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* Drop events that this CPU may still send for a reason. */
struct drop_budget {
	__u32 tick;		/* of the last refill */
	__u32 left;
};

/* What changes while programs run; written by the agent through the mapped array. */
struct settings {
	__u32 generation;	/* of the verdict tables */
	__u32 report_interval;	/* ticks between reports of a live flow, or enum report_interval */
	__u32 flags;
	__u32 addresses;	/* moves on after every change of endpoints, pod_interfaces, peers and prefixes */
};

/* Values of settings.report_interval that are no number of ticks. Drops are reported with each. */
enum report_interval {
	REPORT_EVERY_PACKET = 0,
	REPORT_NOTHING = 0xffffffff,
};

enum event_type {
	EVENT_DROP = 1,
	EVENT_TRACE = 2,
	EVENT_VERDICT = 3,
};

enum event_flags {
	EVENT_REPLY = 1 << 0,
	EVENT_DIRECTION_KNOWN = 1 << 1,	/* EVENT_REPLY means something */
	EVENT_INGRESS = 1 << 2,
	EVENT_TRANSLATED = 1 << 3,	/* xlate_* hold the source after masquerade; at from_netdev, the destination before it */
	EVENT_FRAGMENT = 1 << 4,
	EVENT_TUNNEL = 1 << 5,
	EVENT_FIRST = 1 << 6,	/* of its connection that was accepted here */
};

struct event {
	__u64 time;		/* ns, CLOCK_MONOTONIC */
	__u8 type;
	__u8 reason;		/* enum reason */
	__u8 hook;
	__u8 flags;
	__u8 proto;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	union addr saddr;
	union addr daddr;
	union addr xlate_addr;
	__be16 sport;
	__be16 dport;
	__be16 xlate_port;
	__u16 endpoint;		/* the pod of this node that the event is about; 0: none */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 ifindex;
	__u32 length;		/* bytes, of the packet as the hook saw it */
	__u32 rules[2];		/* that decided, by enum side; 0: not judged here, or no policy selects the pod */
};

#define MAX_ENDPOINTS 4096
#define REASONS 256
/* Of the ring buffer. */
#define EVENTS_BYTES (1 << 20)

_Static_assert(sizeof(union addr) == 16, "addr");
_Static_assert(sizeof(struct endpoint) == 24, "endpoint");
_Static_assert(sizeof(struct pod_interface) == 56, "pod_interface");
_Static_assert(sizeof(struct peer) == 24, "peer");
_Static_assert(sizeof(struct prefix_key) == 20, "prefix_key");
_Static_assert(sizeof(struct device) == 48, "device");
_Static_assert(sizeof(struct flow_key) == 40, "flow_key");
_Static_assert(sizeof(struct conn) == 72, "conn");
_Static_assert(sizeof(struct young_conn) == 128, "young_conn");
_Static_assert(sizeof(struct advance) == 16, "advance");
_Static_assert(sizeof(struct policy_side) == sizeof(__u64), "policy_side");
_Static_assert(sizeof(struct policy) == 16, "policy");
_Static_assert(sizeof(struct verdict_key) == 12, "verdict_key");
_Static_assert(offsetof(struct verdict_key, port) * 8 == VERDICT_RANGE_BITS, "verdict_key");
_Static_assert(sizeof(struct verdict_range_key) == 16, "verdict_range_key");
_Static_assert(sizeof(struct verdict_entry) == 12, "verdict_entry");
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");
_Static_assert(sizeof(struct service_key) == 24, "service_key");
_Static_assert(sizeof(struct backend) == 24, "backend");
_Static_assert(sizeof(struct service_name_key) == 32, "service_name_key");
_Static_assert(sizeof(struct service_name) == 24, "service_name");
_Static_assert(sizeof(struct event) == 96, "event");

#endif
