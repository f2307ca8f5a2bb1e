// SPDX-License-Identifier: Apache-2.0

// Package conformance runs the NetworkPolicy specs of Kubernetes' own
// end-to-end tests against a cluster, several at a time, and says while they
// run how it goes.
package conformance
