/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file counts. One call for each packet and program: the sum over reasons
 * of a hook is the number of packets that the hook saw.
 */
#ifndef KUBE_CILIUM_COUNT_H
#define KUBE_CILIUM_COUNT_H

#include "common.h"

static __always_inline void count(__u32 hook, __u32 reason, __u32 bytes)
{
	__u32 slot = hook * REASONS + (reason & (REASONS - 1));
	struct counter *c = bpf_map_lookup_elem(&metrics, &slot);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
}

#endif
