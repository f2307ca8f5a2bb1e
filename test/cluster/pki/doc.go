// SPDX-License-Identifier: Apache-2.0

// Package pki makes the certificates, keys and kubeconfigs of a test cluster.
// Everything is made anew for each cluster and valid for a year.
package pki
