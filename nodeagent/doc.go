// SPDX-License-Identifier: Apache-2.0

// Package nodeagent is the agent of one node: reconcilers that read the cluster's objects, compute this node's
// desired tables, and hand them to the datapath.
//
// Agent wires them in the order of a start: probe the kernel, open the maps, restore the endpoints from disk, sync the
// caches, write the whole desired state, flip the programs, serve CNI, write the CNI configuration, and say Ready.
// Without an API server the last objects of this boot, kept on disk, stand in for the caches after ten seconds; then
// nothing is added and nothing is swept.
//
// Every write to the API server goes through Writer, which keeps the node's budget.
package nodeagent
