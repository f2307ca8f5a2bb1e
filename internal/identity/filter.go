// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"slices"
	"strings"
)

// Filter chooses which labels of a pod make its identity. Labels that differ from pod to pod of one workload must not:
// they would give each pod a number of its own.
type Filter struct {
	prefixes []string // keys that begin so are left out
	suffixes []string // domains, before the slash, that end so are left out
}

// DefaultFilter leaves out what Kubernetes itself writes on pods: names, indexes and hashes of their controllers.
func DefaultFilter() Filter {
	return Filter{
		prefixes: []string{
			"io.kubernetes",
			"kubernetes.io",
			"k8s.io",
			"statefulset.kubernetes.io/pod-name",
			"apps.kubernetes.io/pod-index",
			"batch.kubernetes.io/job-completion-index",
			"batch.kubernetes.io/controller-uid",
			"topology.kubernetes.io",
			"pod-template-generation",
			"pod-template-hash",
			"controller-revision-hash",
			"controller-uid",
			"annotation.",
			"etcd_node",
		},
		suffixes: []string{"beta.kubernetes.io"},
	}
}

// Keeps tells whether a label of this key is a part of the identity.
func (f Filter) Keeps(key string) bool {
	if slices.ContainsFunc(f.prefixes, func(p string) bool { return strings.HasPrefix(key, p) }) {
		return false
	}
	domain, _, ok := strings.Cut(key, "/")
	return !ok || !slices.ContainsFunc(f.suffixes, func(s string) bool { return strings.HasSuffix(domain, s) })
}
