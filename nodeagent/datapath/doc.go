// SPDX-License-Identifier: Apache-2.0

// Package datapath owns every kernel object of the agent on this node: maps,
// programs, links and filters, the VXLAN device, routes, neighbours and sysctls.
// It is given desired tables, compares them with what the kernel holds, and
// writes the difference.
//
// Open probes the kernel and opens or makes the pinned maps. Configure finds the
// uplinks, loads the programs and attaches the stubs. The Set functions take
// whole tables. Run keeps devices, routes and sysctls as they should be while the
// agent lives; RunConntrackGC ages connections. Nothing is taken away when the
// process ends: the next one adopts what is pinned. Uninstall takes it all away.
//
// docs/design/agent-datapath.md has the words, the invariants and the reasons.
package datapath
