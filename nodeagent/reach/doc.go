// SPDX-License-Identifier: Apache-2.0

// Package reach asks every other node, now and then, whether it can be reached:
// by an ICMP echo and by a TCP connection to the agent there, at each of its
// addresses. It answers the others on the same port. What it asks is the path
// between hosts, on which everything else travels, not that between pods.
package reach
