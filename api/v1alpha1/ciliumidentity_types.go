// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CiliumIdentitySpec is the label set behind a number.
type CiliumIdentitySpec struct {
	// labels as source:key to value; they never change. A source is a short lower-case word; the sources of labels
	// that only a node gives (reserved, cidr, cidrgroup, fqdn, node) never come from an object.
	// +kubebuilder:validation:XValidation:rule="self.all(k, k.matches('^[a-z][a-z0-9-]{0,15}:.+$'))",message="labels are written source:key"
	// +kubebuilder:validation:XValidation:rule="!self.exists(k, k.matches('^(reserved|cidr|cidrgroup|fqdn|node):'))",message="the label sources reserved, cidr, cidrgroup, fqdn and node cannot be used in an identity"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the labels of an identity never change"
	// +kubebuilder:validation:MaxProperties=256
	Labels map[string]string `json:"labels"`
}

// CiliumIdentity gives a label set its number, which is the object's name: 256 to 16777215. An agent creates it and
// nobody changes its labels; the operator deletes it when no endpoint has used it for a grace period. Adoption by an
// agent writes the annotation AnnotationAdopted and takes away AnnotationTombstone, so that a concurrent deletion,
// which is bound to the resourceVersion that the operator saw, fails.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=cilium,shortName=ciliumid
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[1-9][0-9]{2,7}$') && int(self.metadata.name) >= 256 && int(self.metadata.name) <= 16777215",message="an identity is named by its number, 256 to 16777215"
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.labels['k8s:io\.kubernetes\.pod\.namespace']`
// +kubebuilder:printcolumn:name="Labels",type=string,JSONPath=`.spec.labels`,priority=1
// +kubebuilder:printcolumn:name="Tombstone",type=date,JSONPath=`.metadata.annotations['kube-cilium\.io/tombstone']`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CiliumIdentity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CiliumIdentitySpec `json:"spec"`
}

// AnnotationAdopted holds the time (RFC 3339) at which an agent last took up an existing CiliumIdentity.
const AnnotationAdopted = "kube-cilium.io/adopted"

// AnnotationTombstone holds the time (RFC 3339) at which the operator declared a CiliumIdentity dead: nobody used it
// for the grace period. Agents treat the object as if it were deleted; it is kept for an hour so that nobody gives its
// number to other labels. An agent that wants these very labels may adopt it back by removing the annotation.
const AnnotationTombstone = "kube-cilium.io/tombstone"

// CiliumIdentityList is a list of CiliumIdentity.
// +kubebuilder:object:root=true
type CiliumIdentityList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CiliumIdentity `json:"items"`
}
