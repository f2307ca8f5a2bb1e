// SPDX-License-Identifier: Apache-2.0

// Package ranges says which addresses a test cluster uses. Everything follows
// from one small number, the cluster's index, so that two clusters with
// different indexes share no address.
package ranges
