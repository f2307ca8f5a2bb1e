// SPDX-License-Identifier: Apache-2.0

// Package apiserver finds the Kubernetes API server without a Service: Services are what the node agent makes work,
// so neither it nor the operator may need one. Addresses come from the environment (KUBERNETES_API_SERVERS), then from
// a file of those last known, then from KUBERNETES_SERVICE_HOST, which serves where something else translates it.
// Connections fail over between them.
package apiserver
