/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file finds services and their backends.
 */
#ifndef KUBE_CILIUM_SERVICES_H
#define KUBE_CILIUM_SERVICES_H

#include "common.h"

static __always_inline struct service *service_of(const union addr *addr,
						  __be16 port, __u8 proto)
{
	struct service_key key = {
		.addr = *addr,
		.port = port,
		.proto = proto,
	};

	return bpf_map_lookup_elem(&services, &key);
}

/* The address is a service's, whatever the port. */
static __always_inline bool is_service_address(const union addr *addr)
{
	return service_of(addr, 0, 0) != NULL;
}

static __always_inline struct backend *backend_at(const struct service *s,
						  __u16 slot)
{
	struct backend_key key = { .service = s->id, .slot = slot };

	return bpf_map_lookup_elem(&backends, &key);
}

#endif
