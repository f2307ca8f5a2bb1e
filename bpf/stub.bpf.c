//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * This file is the only program that is attached to devices. It never changes:
 * it calls the program in its slot of `hooks`, so an upgrade writes six slots
 * and touches no link. Where no program is in force, a pod is shut off and
 * everything else goes on as if we were not there.
 */
#include "lib/common.h"
#include "lib/count.h"

/* enum hook: which slot. */
const volatile __u32 hook = HOOK_FROM_POD;

SEC("tc")
int stub(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &hooks, hook);

	if (hook == HOOK_FROM_POD || hook == HOOK_TO_POD) {
		count(hook, DROP_NO_PROGRAM, skb->len);
		return TC_DROP;
	}
	count(hook, FORWARD_NOT_OURS, skb->len);
	return TC_NEXT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
