/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file gives later fragments the ports of their first. What came before
 * its first fragment is dropped: it cannot be judged, and the sender repeats
 * the whole packet.
 */
#ifndef KUBE_CILIUM_FRAGMENTS_H
#define KUBE_CILIUM_FRAGMENTS_H

#include "packet.h"

/* Returns 0 or a drop. */
static __always_inline int fragment_ports(struct pkt *p)
{
	struct fragment_key key = {
		.saddr = p->t.saddr,
		.daddr = p->t.daddr,
		.id = p->fragment_id,
		.proto = p->t.proto,
	};

	if (p->fragment == FRAGMENT_FIRST) {
		struct fragment ports = {
			.sport = p->t.sport,
			.dport = p->t.dport,
			.seen = p->now,
			.asker = p->t.asker,
		};

		if (bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY))
			return DROP_CONNTRACK_FULL;
		return 0;
	}
	if (p->fragment == FRAGMENT_LATER) {
		struct fragment *ports = bpf_map_lookup_elem(&fragments, &key);

		if (!ports)
			return DROP_FRAGMENT_NOT_FOUND;
		p->t.sport = ports->sport;
		p->t.dport = ports->dport;
		p->t.asker = ports->asker;
	}
	return 0;
}

#endif
