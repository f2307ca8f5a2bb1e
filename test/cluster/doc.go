// SPDX-License-Identifier: Apache-2.0

// Command cluster runs a real Kubernetes on one machine: a control plane and
// workers with real kubelets, containerd and runc, each worker in namespaces
// and cgroups of its own.
//
// A walk through the house:
//
//	build      Kubernetes, etcd, containerd, runc, CNI plugins, CoreDNS: built once, cached by what they are built from
//	image      images out of static binaries; no registry, no Docker engine
//	ranges     which addresses a cluster has; several clusters never share any
//	pki        the cluster's certificates and kubeconfigs
//	netspace   network namespaces: made, entered, dialled from
//	cgroup     the cgroups of a cluster, in every v1 hierarchy and in cgroup2
//	node       what becomes a node: launch, init, supervision
//	forward    the only way in from the machine itself: 127.0.0.1 to the API server
//	lag        a slow way to the API server, for tests of late watch events
//	cluster    up, down, status
//	demo       the demo application, and the counting client and server of the tests
//
// Addresses of a cluster never leave the machine: before anything starts, the
// machine's own namespace gets unreachable routes for every range.
package main
