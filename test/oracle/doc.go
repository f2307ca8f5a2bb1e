// SPDX-License-Identifier: Apache-2.0

// Package oracle holds no code: its tests compare the policy engine with that of Cyclonus, the tool with which network
// plugins are tested for what NetworkPolicy means, on random policies, pods and connections.
package oracle
