//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
#include "lib/common.h"

#define HOOKFN(sec) SEC("cgroup/" #sec) int sec(struct bpf_sock_addr *ctx) { return 1; }
HOOKFN(connect4) HOOKFN(connect6) HOOKFN(sendmsg4) HOOKFN(sendmsg6)
HOOKFN(recvmsg4) HOOKFN(recvmsg6) HOOKFN(getpeername4) HOOKFN(getpeername6)

char _license[] SEC("license") = "Dual BSD/GPL";
