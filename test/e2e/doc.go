// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the product on a real cluster: real API server, kubelets,
// containerd and kernel, brought up by test/cluster. Every test needs root and
// fails without it under `make test`.
package e2e
