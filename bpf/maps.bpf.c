//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * This file has no program: it makes every map and every shared type known to
 * Go in one place. The programs' objects name the same maps.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>

#include "lib/types.h"
#include "lib/reasons.h"
#include "lib/maps.h"

/* Types that no map holds stay in the object's BTF through a pointer. */
const enum side *unused_side __attribute__((unused));
const enum verdict *unused_verdict __attribute__((unused));
const enum policy_flags *unused_policy_flags __attribute__((unused));
const struct event *unused_event __attribute__((unused));
const enum identity *unused_identity __attribute__((unused));
const enum hook *unused_hook __attribute__((unused));
const enum mark *unused_mark __attribute__((unused));
const enum reason *unused_reason __attribute__((unused));
const enum endpoint_flags *unused_endpoint_flags __attribute__((unused));
const enum device_flags *unused_device_flags __attribute__((unused));
const enum peer_flags *unused_peer_flags __attribute__((unused));
const enum flow_class *unused_flow_class __attribute__((unused));
const enum flow_zone *unused_flow_zone __attribute__((unused));
const enum conn_lifetime *unused_conn_lifetime __attribute__((unused));
const enum metric_slot *unused_metric_slot __attribute__((unused));
const enum conn_flags *unused_conn_flags __attribute__((unused));
const enum report_interval *unused_report_interval __attribute__((unused));
const enum advance_size *unused_advance_size __attribute__((unused));
const enum young_size *unused_young_size __attribute__((unused));
const enum event_type *unused_event_type __attribute__((unused));
const enum event_flags *unused_event_flags __attribute__((unused));

char _license[] SEC("license") = "Dual BSD/GPL";
