// SPDX-License-Identifier: Apache-2.0

// Package cni is the CNI plugin cilium-cni and its wire to the node agent.
//
// The plugin is thin: it checks what the runtime gave it, opens the network namespace, and hands both to the agent
// over a unix socket that only root may use. The namespace travels as a file descriptor (SCM_RIGHTS), so the agent
// needs neither the host's process table nor a path. The agent does all the work and answers when the pod's datapath
// is complete.
//
// While the agent is away, ADD answers 11 (try again later), DEL is queued in the state folder and succeeds, and
// STATUS succeeds once the datapath was ready in this boot. The agent works through the queue before it serves.
//
// One frame is a length of four bytes in network order and that many bytes of JSON, at most MaxFrame. One connection
// carries one request and one response.
package cni
