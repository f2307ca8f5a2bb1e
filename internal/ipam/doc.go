// SPDX-License-Identifier: Apache-2.0

// Package ipam hands out address space on two levels. Pools cuts prefixes for nodes out of the cluster's ranges: a
// pure function that the operator calls. Allocator hands single addresses out of one node's prefixes: memory of one
// agent, restored from its endpoint records after a restart.
//
// Both let what was freed rest before it is given away again, because others may still know it by its last owner.
package ipam
