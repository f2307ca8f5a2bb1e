// SPDX-License-Identifier: Apache-2.0

// Command bench measures what the network costs, beside the limit (a veth pair
// straight between two namespaces) and beside other ways of building it: the
// reference bridge and ptp plugins and the kernel's own VXLAN. `make bench`
// runs it; it writes docs/benchmarks.md and docs/benchmarks.json.
//
// Method: the clients of all shapes are alive at once and work in short slices
// in random order; a ratio is paired within a round, and its median and
// quartiles over all rounds are what is reported. Absolute rates of a shared
// machine say little; ratios within one run carry over.
//
// Two kinds of shape are limits: the bare ones have our devices and programs that
// know one way by heart, without connection tracking and with the least of it.
// --beside CHECKOUT measures another build of ours instead, in clusters that are
// brought up --times times: two of one build differ, too.
//
// Our shapes run on a real cluster; the others in namespaces made for them, so
// that our programs are on nobody else's path. All workers run at the highest
// priority, in cgroups of one depth; nodes are joined by a wire, not by the
// test cluster's switch. So a ratio tells of the network and nothing else.
package main
