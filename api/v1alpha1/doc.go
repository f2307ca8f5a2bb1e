// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the kinds of the group kube-cilium.io: what people set
// (CiliumConfig), what the operator decides once for the cluster (CiliumNode),
// what agents publish to one another (CiliumEndpointSlice, CiliumIdentity) and
// what they publish to people (CiliumEndpoint, CiliumNodeReport).
//
// Every field has one writer, named in the comment of its kind. The kinds that
// every agent watches change only with addresses, identities and keys; what is
// hot lives in CiliumNodeReport, which only the operator and people read.
//
// +kubebuilder:object:generate=true
// +kubebuilder:ac:generate=true
// +groupName=kube-cilium.io
package v1alpha1
