/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * This file is what every program includes first: the kernel's numbers that
 * its headers do not give, and our shared structs and maps.
 */
#ifndef KUBE_CILIUM_COMMON_H
#define KUBE_CILIUM_COMMON_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>


#include "types.h"
#include "reasons.h"
#include "maps.h"

/* What a program returns: the same numbers mean the same under TCX and clsact. */
#define TC_NEXT (-1)
#define TC_DROP 2
#define TC_REDIRECT 7

/* A function of its own in the program: verified and held on the stack apart. */
#define __subprogram __attribute__((noinline, unused))

#define unlikely(x) __builtin_expect(!!(x), 0)
#define likely(x) __builtin_expect(!!(x), 1)

#endif
