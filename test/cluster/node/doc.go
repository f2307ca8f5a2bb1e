// SPDX-License-Identifier: Apache-2.0

// Package node turns a process into a Kubernetes node: namespaces and cgroups
// of its own, a root file system of its own (an overlay over the machine's),
// and in it containerd, a kubelet and perhaps a kube-proxy under the standard
// paths. Killing the node's first process ends all of it.
package node
