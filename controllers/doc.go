// SPDX-License-Identifier: Apache-2.0

// Package controllers holds the operator's reconcilers, one kind a file: what is decided once for the cluster. Node
// gives each node its CiliumNode with prefixes, its taint and its condition; Config tells how the settings fare;
// Identities, Endpoints and Slices delete what nobody needs any more. None of it is in a packet's path.
//
// A reconciler reads everything it needs, calls a pure function, and writes the difference.
package controllers

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups="",resources=nodes/status,verbs=patch
// +kubebuilder:rbac:groups="",namespace=kube-cilium-system,resources=configmaps,verbs=create
// +kubebuilder:rbac:groups="",namespace=kube-cilium-system,resources=configmaps,resourceNames=cilium-prefixes,verbs=get;list;update;watch
// +kubebuilder:rbac:groups="",namespace=kube-cilium-system,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=networking.k8s.io,resources=servicecidrs,verbs=get;list;watch
// +kubebuilder:rbac:groups=kube-cilium.io,resources=ciliumconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=kube-cilium.io,resources=ciliumconfigs/status,verbs=patch
// +kubebuilder:rbac:groups=kube-cilium.io,resources=ciliumnodes,verbs=create;delete;get;list;patch;update;watch
// +kubebuilder:rbac:groups=kube-cilium.io,resources=ciliumnodes/status,verbs=patch
// +kubebuilder:rbac:groups=kube-cilium.io,resources=ciliumnodes/finalizers,verbs=update
// +kubebuilder:rbac:groups=kube-cilium.io,resources=ciliumnodereports;ciliumendpoints;ciliumendpointslices,verbs=delete;get;list;watch
// +kubebuilder:rbac:groups=kube-cilium.io,resources=ciliumidentities,verbs=delete;get;list;patch;update;watch
// +kubebuilder:rbac:groups=discovery.k8s.io,namespace=default,resources=endpointslices,verbs=get;list;watch
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=kube-cilium-system,resources=leases,verbs=create;delete;get;list;patch;update;watch
