// SPDX-License-Identifier: Apache-2.0

// Package cluster is what both plugins know of a cluster: how to reach it the way
// kubectl does, how to ask a node through its inspect container, and the names of
// addresses and identities. It holds no credentials of its own: everything is done
// with the rights of the person who calls.
package cluster
