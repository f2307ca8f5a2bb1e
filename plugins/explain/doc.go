// SPDX-License-Identifier: Apache-2.0

// Package explain answers questions about policies from the cluster's objects alone: may this one reach that one, what
// decides, and what does a policy wait for. The rules and the answers are internal/policy's; here pods, services and
// addresses become ends of a connection.
package explain
