//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * This file turns services into backends where sockets name their peers, so
 * that no packet is ever translated, and gives the names back. It is attached
 * to the node's root cgroup: pods and host alike.
 *
 * An IPv6 socket that speaks to IPv4 does so by mapped addresses, which is the
 * form that all our tables have: one body serves both families.
 */
#include "lib/common.h"

#include "lib/count.h"
#include "lib/services.h"

#include <linux/in.h>

#define SOCK_STREAM 1
#define SOCK_DGRAM 2

#define ECONNREFUSED 111

/* bpf_set_retval exists for these hooks (Linux 5.18); else a refusal is EPERM. */
const volatile bool have_set_retval = false;

/* What a program returns. */
enum {
	REFUSE = 0,
	PROCEED = 1,
};

/* The protocol by which services are known; 0: none of ours. MPTCP is TCP to everybody else. */
static __always_inline __u8 service_proto(const struct bpf_sock_addr *ctx)
{
	if (ctx->type == SOCK_STREAM)
		return IPPROTO_TCP;
	if (ctx->type == SOCK_DGRAM && ctx->protocol == IPPROTO_UDP)
		return IPPROTO_UDP;
	return 0;
}

static __always_inline void get_peer(const struct bpf_sock_addr *ctx, bool ipv6,
				     union addr *a)
{
	if (ipv6) {
		a->w[0] = ctx->user_ip6[0];
		a->w[1] = ctx->user_ip6[1];
		a->w[2] = ctx->user_ip6[2];
		a->w[3] = ctx->user_ip6[3];
	} else {
		a->d[0] = 0;
		a->w[2] = bpf_htonl(0xffff);
		a->w[3] = ctx->user_ip4;
	}
}

static __always_inline void set_peer(struct bpf_sock_addr *ctx, bool ipv6,
				     const union addr *a, __be16 port)
{
	if (ipv6) {
		ctx->user_ip6[0] = a->w[0];
		ctx->user_ip6[1] = a->w[1];
		ctx->user_ip6[2] = a->w[2];
		ctx->user_ip6[3] = a->w[3];
	} else {
		ctx->user_ip4 = a->w[3];
	}
	ctx->user_port = port;
}

static __always_inline bool same_family(const union addr *a, const union addr *b)
{
	bool a4 = !a->d[0] && a->w[2] == bpf_htonl(0xffff);
	bool b4 = !b->d[0] && b->w[2] == bpf_htonl(0xffff);

	return a4 == b4;
}

static __always_inline int refuse(__u32 hook)
{
	count(hook, DROP_NO_SERVICE_BACKEND, 0);
	if (have_set_retval)
		bpf_set_retval(-ECONNREFUSED);
	return REFUSE;
}

/*
 * A datagram socket without a connection stays with its backend: several
 * datagrams may be one conversation (QUIC). NULL: it has none that still is
 * one.
 */
static __always_inline struct backend *
chosen_before(const struct service_name_key *key, const struct service *s)
{
	struct service_name *choice = bpf_map_lookup_elem(&service_names, key);
	struct backend *b;

	if (!choice || choice->slot >= s->backends)
		return NULL;
	b = backend_at(s, choice->slot);
	if (!b || b->port != choice->port ||
	    b->addr.d[0] != choice->addr.d[0] ||
	    b->addr.d[1] != choice->addr.d[1])
		return NULL;
	return b;
}

/* Puts a backend in the place of a service. unconnected: sendmsg. */
static __always_inline int to_backend(struct bpf_sock_addr *ctx, bool ipv6,
				      __u32 hook, bool unconnected)
{
	struct service_name name = {}, choice = {};
	struct service_name_key key = {};
	struct backend *b = NULL;
	struct service *s;
	__u16 slot = 0;

	key.proto = service_proto(ctx);
	if (!key.proto)
		return PROCEED;
	get_peer(ctx, ipv6, &name.addr);
	name.port = ctx->user_port;
	s = service_of(&name.addr, name.port, key.proto);
	if (!s) {
		/*
		 * A service, but not on this port. A datagram socket that only
		 * connects asks for its source address and means no harm.
		 */
		if ((key.proto == IPPROTO_TCP || unconnected) &&
		    is_service_address(&name.addr))
			return refuse(hook);
		return PROCEED;
	}
	if (!s->backends)
		return refuse(hook);

	key.cookie = bpf_get_socket_cookie(ctx);
	if (unconnected) {
		key.addr = name.addr;
		key.port = name.port;
		key.chosen = 1;
		b = chosen_before(&key, s);
	}
	if (!b) {
		slot = bpf_get_prandom_u32() % s->backends;
		b = backend_at(s, slot);
		if (!b || !same_family(&b->addr, &name.addr))
			return refuse(hook);
		if (unconnected) {
			choice.addr = b->addr;
			choice.port = b->port;
			choice.slot = slot;
			bpf_map_update_elem(&service_names, &key, &choice, BPF_ANY);
		}
		key.addr = b->addr;
		key.port = b->port;
		key.chosen = 0;
		bpf_map_update_elem(&service_names, &key, &name, BPF_ANY);
	}
	set_peer(ctx, ipv6, &b->addr, b->port);
	count(hook, FORWARD_TRANSLATED, 0);
	return PROCEED;
}

/* Puts the service's name back where the backend's stands. */
static __always_inline int to_service(struct bpf_sock_addr *ctx, bool ipv6,
				      __u32 hook)
{
	struct service_name_key key = {};
	struct service_name *name;

	key.proto = service_proto(ctx);
	if (!key.proto)
		return PROCEED;
	key.cookie = bpf_get_socket_cookie(ctx);
	get_peer(ctx, ipv6, &key.addr);
	key.port = ctx->user_port;
	name = bpf_map_lookup_elem(&service_names, &key);
	if (!name)
		return PROCEED;
	set_peer(ctx, ipv6, &name->addr, name->port);
	count(hook, FORWARD_TRANSLATED, 0);
	return PROCEED;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, false, HOOK_CONNECT, false);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, true, HOOK_CONNECT, false);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, false, HOOK_SENDMSG, true);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, true, HOOK_SENDMSG, true);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return to_service(ctx, false, HOOK_RECVMSG);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return to_service(ctx, true, HOOK_RECVMSG);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return to_service(ctx, false, HOOK_GETPEERNAME);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return to_service(ctx, true, HOOK_GETPEERNAME);
}

char _license[] SEC("license") = "Dual BSD/GPL";
