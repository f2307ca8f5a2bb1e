// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CiliumIdentitySpec is the label set behind a number.
type CiliumIdentitySpec struct {
	// labels as source:key to value; they never change.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the labels of an identity never change"
	// +kubebuilder:validation:MaxProperties=256
	Labels map[string]string `json:"labels"`
}

// CiliumIdentity gives a label set its number, which is the object's name: 256 to 16777215. An agent creates it and
// nobody changes its labels; the operator deletes it when no endpoint has used it for a grace period. Adoption by an
// agent writes the annotation AnnotationAdopted, so that a concurrent deletion, which is bound to the resourceVersion
// that the operator saw, fails.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=cilium,shortName=ciliumid
type CiliumIdentity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CiliumIdentitySpec `json:"spec"`
}

// AnnotationAdopted holds the time (RFC 3339) at which an agent last took up an existing CiliumIdentity.
const AnnotationAdopted = "kube-cilium.io/adopted"

// CiliumIdentityList is a list of CiliumIdentity.
// +kubebuilder:object:root=true
type CiliumIdentityList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CiliumIdentity `json:"items"`
}
