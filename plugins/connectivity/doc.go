// SPDX-License-Identifier: Apache-2.0

// Package connectivity tests the network of a cluster that is in use: it makes namespaces of its own with a few pods,
// asks from each what it should and should not reach, without and with policies, says what failed and why, and takes
// everything away again.
package connectivity
