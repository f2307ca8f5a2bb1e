// SPDX-License-Identifier: Apache-2.0

// Package forward carries connections from 127.0.0.1 of the machine to one
// address inside a network namespace. It is the only way to a cluster's API
// server from outside the cluster.
package forward
