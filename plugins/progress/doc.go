// SPDX-License-Identifier: Apache-2.0

// Package progress says on how many nodes a policy is in force, from what the nodes' agents report. NetworkPolicy has no
// status of its own. It asks nobody: all of it is a function of objects.
package progress
