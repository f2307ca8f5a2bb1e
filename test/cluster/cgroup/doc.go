// SPDX-License-Identifier: Apache-2.0

// Package cgroup gives each part of a cluster a cgroup of its own in every
// hierarchy of the machine: the v1 controllers, cgroup2 beside them, or
// cgroup2 alone. What runs in a cluster can then be found, and ended, without
// any record of it.
package cgroup
