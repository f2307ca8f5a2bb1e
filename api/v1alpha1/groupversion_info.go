// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of every kind in this package.
var GroupVersion = schema.GroupVersion{Group: "kube-cilium.io", Version: "v1alpha1"}

// SchemeGroupVersion is GroupVersion under the name that generated code uses.
var SchemeGroupVersion = GroupVersion

// SchemeBuilder collects the kinds of this package; AddToScheme registers them.
var (
	SchemeBuilder = runtime.NewSchemeBuilder(addKnownTypes)
	AddToScheme   = SchemeBuilder.AddToScheme
)

func addKnownTypes(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&CiliumConfig{}, &CiliumConfigList{},
		&CiliumNode{}, &CiliumNodeList{},
		&CiliumNodeReport{}, &CiliumNodeReportList{},
		&CiliumEndpoint{}, &CiliumEndpointList{},
		&CiliumEndpointSlice{}, &CiliumEndpointSliceList{},
		&CiliumIdentity{}, &CiliumIdentityList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
