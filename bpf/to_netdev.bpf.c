//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
#include "lib/common.h"
#include "lib/config.h"
#include "lib/count.h"

SEC("tc")
int to_netdev(struct __sk_buff *skb)
{
	count(HOOK_TO_NETDEV, FORWARD_NOT_OURS, skb->len);
	return TC_NEXT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
