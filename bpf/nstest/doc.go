// SPDX-License-Identifier: Apache-2.0

// Package nstest runs the eBPF programs on real packets: two nodes with pods
// and a host outside, each a network namespace that the test makes and removes.
// It shows what BPF_PROG_TEST_RUN cannot: where redirects lead, tunnels,
// segmentation and the host's stack. Maps are filled by hand; the agent has no
// part in it.
package nstest
