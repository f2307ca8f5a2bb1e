// SPDX-License-Identifier: Apache-2.0

// Package cluster brings a test cluster up, says what it is, and takes it down
// whole. What belongs to a cluster is recognisable by its name alone: its
// network namespaces and cgroups are called kc-NAME and kc-NAME-..., its state
// lies in one folder, and its ranges follow from the index in that folder.
package cluster
