/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file holds what a program knows about the packet in its hands, and the
 * few things that are done to addresses.
 */
#ifndef KUBE_CILIUM_PACKET_H
#define KUBE_CILIUM_PACKET_H

#include "common.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define VXLAN_LEN 8
/* Everything that VXLAN over IPv4 puts before the inner packet: IPv4, UDP, VXLAN, Ethernet. */
#define ENCAP_LEN (sizeof(struct iphdr) + sizeof(struct udphdr) + VXLAN_LEN + ETH_HLEN)

struct vxlanhdr {
	__be32 flags;		/* 0x08000000: the VNI is valid */
	__be32 vni;		/* upper 24 bits */
};

#define VXLAN_VNI_VALID 0x08000000

struct encap {
	struct iphdr ip;
	struct udphdr udp;
	struct vxlanhdr vxlan;
	struct ethhdr eth;
} __attribute__((packed));

_Static_assert(sizeof(struct encap) == ENCAP_LEN, "encap");

#define IP_MF 0x2000
#define IP_DF 0x4000
#define IP_OFFSET 0x1fff

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10

/* Who asked, where the two directions of a protocol look alike but for a type. */
enum asker {
	ASKER_NONE = 0,
	ASKER_SOURCE = 1,
	ASKER_DESTINATION = 2,
};

/* A packet's name. For an echo both ports are its identifier. */
struct tuple {
	union addr saddr;
	union addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 asker;
	__u16 zone;	/* enum flow_zone */
};

enum fragment_kind {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST = 1,	/* has the ports */
	FRAGMENT_LATER = 2,
};

/* The packet that an ICMP error quotes. */
struct quoted {
	struct tuple t;		/* as it was sent, before the error */
	__u32 l3;
	__u32 l4;
};

/* What policy is asked about one side of a connection, in the original direction, and what it says. */
struct question {
	union addr addr;	/* of the other end */
	__u32 identity;		/* of the other end */
	__u32 default_rule;
	__u32 rule;
	__u32 precedence;	/* of rule */
	__u16 table;
	__u16 flags;		/* enum policy_flags */
	__be16 port;
	__u8 proto;
	__u8 verdict;		/* enum verdict */
};

/*
 * All that a program knows about its packet: the sheet on its desk (desk.h), not on the
 * stack: it would not fit, and the verifier, who follows what is on the stack
 * byte by byte, would see a new state in each combination of fields.
 */
struct pkt {
	/* What begin() fills in. */
	__u32 target;		/* ifindex that it was redirected to; first, for the packet tests */
	int action;		/* what the program returns when the packet is not dropped */
	__u32 len;		/* bytes of the frame as the hook saw it */
	__u32 now;		/* tick */
	__u32 generation;	/* of the verdict tables, read before any lookup */
	__u32 addresses;	/* of settings, read before any lookup */
	__u32 interval;		/* ticks between reports, or enum report_interval */
	__u8 hook;
	bool report;
	bool ipv6;
	__u8 pad0;
	/* What unknown() makes zero. */
	struct tuple t;		/* as the packet came */
	struct flow_key key;	/* the connection's name */
	struct quoted q;	/* with error */
	struct question question;
	union addr node;	/* the other end of the tunnel, or the next hop; zero: the routes know */
	union addr xlate_addr;	/* its source (or destination) after translation, for the report */
	__be16 xlate_port;
	__u16 l4;		/* offset of the transport header in the frame */
	__u16 payload;		/* offset of what TCP or UDP carries */
	__u16 pad;
	__be32 fragment_id;
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rules[2];		/* by enum side, that decided */
	__u32 mtu;		/* of its way, as far as it was looked for */
	__u16 endpoint;		/* the pod of this node that the report is about */
	__u8 fragment;		/* enum fragment_kind */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 tos;
	__u8 ttl;
	__u8 event_flags;
	__u8 refused;		/* the drop that policy wants, or 0 */
	bool error;		/* an ICMP error: carries the head of another packet */
	bool nd;		/* neighbour discovery or multicast listener discovery */
	bool hi;		/* the source is `hi` in key */
	bool reply;		/* goes against the connection's original direction */
	bool related;		/* an error about a connection that we know */
	bool refresh;		/* the connection's other entries are due to be touched */
	bool masquerade;
	bool by_connection;	/* its way depends on who began the connection, not on its addresses alone */
	bool tunnel;		/* goes to, or came from, node */
	bool judged;		/* policy was asked, not only remembered */
	bool ended;		/* an entry of key is in the table of all, and its connection is over */
	bool ended_young;	/* the same in the table of the young */
	bool stack;		/* the connection crosses the host's stack */
	bool allowed;		/* by what the connection remembers, and nobody was asked */
	bool lasting;		/* nothing of the connection changes with packets like this one: see again.h */
	__u8 tcp_seen;		/* with lasting: all flags seen in its direction */
	/*
	 * Nothing, but it makes the type whole in BTF. Of types that are only
	 * pointed to, LLVM writes two in the order of addresses in its own memory,
	 * and where a tree lies would tell in its objects.
	 */
	struct bpf_sock whole[0];
};

static __always_inline bool addr_equal(const union addr *a, const union addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

static __always_inline bool addr_zero(const union addr *a)
{
	return !(a->d[0] | a->d[1]);
}

static __always_inline bool addr_is_ipv4(const union addr *a)
{
	return !a->d[0] && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline void addr_set_ipv4(union addr *a, __be32 ip)
{
	/* In one store: who reads eight bytes that were written in two halves waits for both. */
	a->d[0] = 0;
	a->d[1] = (__u64)ip << 32 | bpf_htonl(0xffff);
}

/* fe80::/10 */
static __always_inline bool addr_link_local(const union addr *a)
{
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline bool addr_multicast6(const union addr *a)
{
	return a->b[0] == 0xff;
}

/* ::1, on either side */
static __always_inline bool addr_loopback6(const union addr *a, const union addr *b)
{
	__u64 one = bpf_cpu_to_be64(1);

	return (!a->d[0] && a->d[1] == one) || (!b->d[0] && b->d[1] == one);
}

/* The mark that carries an identity through the host's stack. */
static __always_inline __u32 mark_of(__u32 magic, __u32 identity)
{
	return magic | (identity & 0xffff) << 16 | (identity >> 16 & 0xff);
}

static __always_inline __u32 mark_magic(__u32 mark)
{
	return mark & MARK_MAGIC_MASK;
}

static __always_inline __u32 mark_identity(__u32 mark)
{
	return mark >> 16 | (mark & 0xff) << 16;
}

#endif
