/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file is the desk that a program has on each CPU: the sheet of the packet in
 * hand, and what was remembered of packets before. It is one piece of memory, not
 * per-CPU maps: of these each slot is found by a pointer that lies elsewhere, and
 * a packet that goes the whole way would touch a line more for each of five.
 *
 * A slot is the answer until the next question of its kind: each of these is
 * asked in one place of a program.
 */
#ifndef KUBE_CILIUM_DESK_H
#define KUBE_CILIUM_DESK_H

#include "packet.h"

#define AGAIN_SLOTS 1024
#define KNOWN_SLOTS 1024

/* The parts. A program that wants one says so before it includes any file. */
#ifndef DESK_AGAIN
#define DESK_AGAIN 0
#endif
#ifndef DESK_INTERFACES
#define DESK_INTERFACES 0
#endif
#ifndef DESK_ENDPOINTS
#define DESK_ENDPOINTS 0
#endif
#ifndef DESK_PEERS
#define DESK_PEERS 0
#endif

enum again_kind {
	AGAIN_IPV6 = 1 << 8,	/* above the protocol */
	AGAIN_TUNNEL = 1 << 9,	/* it came in the tunnel */
};

/* Where the packets of a direction go. */
enum again_way {
	AGAIN_POD = 0,
	AGAIN_NETWORK,
	AGAIN_NODE,
};

/* What tells a connection and direction, and where its packets come from. */
struct sight {
	union addr saddr;
	union addr daddr;
	__u32 ports;		/* both, as they are in the frame */
	__u32 kind;		/* protocol, enum again_kind */
	__u32 from;		/* the pod's ifindex, or the VNI; else 0 */
	__be32 outer;		/* IPv4 address of the tunnel's other end, where it came in the tunnel; else 0 */
};

/* How packets go on (again.h). Two cache lines: what it must agree in, and what is done. */
struct again {
	struct sight sight;
	__u32 now;
	__u32 generation;
	__u32 addresses;
	__u32 interval;

	__u32 target;		/* ifindex */
	__u16 mtu;		/* of the way, off this node */
	__u8 way;		/* enum again_way */
	__u8 tcp_flags;		/* seen before in this direction; and PSH, which tells nothing of a connection */
	union {
		struct {
			__u8 mac[6];
			__u8 host_mac[6];
		} pod;
		union addr next;
		struct {
			struct encap encap;	/* with lengths 0 */
			__u16 pad;
			__u32 hash;		/* of the frame: it chose the source port */
		} node;
	};
};

_Static_assert(sizeof(struct again) == 128, "again");
_Static_assert(offsetof(struct again, target) == 64, "again");
_Static_assert(offsetof(struct again, node.encap) % 8 == 0, "again");

/* Where what is known of an address comes from (known.h). */
enum known_from {
	KNOWN_NOBODY = 0,
	KNOWN_EXACT = 1,	/* an entry of the address */
	KNOWN_PREFIX = 2,	/* of a prefix */
};

struct known_interface {
	__u32 ifindex;
	__u32 addresses;	/* settings.addresses when the table was asked */
	struct pod_interface pod;
};

struct known_endpoint {
	union addr addr;
	__u32 addresses;
	__u32 from;		/* enum known_from */
	struct endpoint endpoint;
};

struct known_peer {
	union addr addr;
	__u32 addresses;
	__u32 from;		/* enum known_from */
	struct peer peer;
};

#define DESK_PART __attribute__((aligned(64)))

struct desk {
	struct pkt pkt;		/* first: who has the sheet has the desk */
	struct again again[DESK_AGAIN * AGAIN_SLOTS] DESK_PART;
	struct known_interface interfaces[DESK_INTERFACES * KNOWN_SLOTS] DESK_PART;
	struct known_endpoint endpoints[DESK_ENDPOINTS * KNOWN_SLOTS] DESK_PART;
	struct known_peer peers[DESK_PEERS * KNOWN_SLOTS] DESK_PART;
	__u8 end[0] __attribute__((aligned(4096)));	/* no page is of two CPUs */
};

/*
 * By CPU, on each of which one packet is in hand at a time in each hook. Who loads
 * a program says how many there may be (bpf.Program.Load). Private to each
 * program; never pinned. What may be mapped begins on a page (Linux 5.5).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct desk);
} desks SEC(".maps");

/* The sheet of this CPU. NULL cannot happen. */
static __always_inline struct pkt *desk_sheet(void)
{
	__u32 cpu = bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&desks, &cpu);
}

void desk_lacks_part(void) __attribute__((error("this program did not ask for that part of a desk")));

/* A slot of a part of the desk that the sheet p lies on. */
#define DESK_SLOT(p, part, slot) ({					\
	struct desk *desk_ = (struct desk *)(p);			\
	if (!sizeof(desk_->part))					\
		desk_lacks_part();					\
	&desk_->part[slot];						\
})

#endif
