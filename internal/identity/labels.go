// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

var (
	// ErrTooManyLabels means that a label set does not fit into a CiliumIdentity.
	ErrTooManyLabels = errors.New("too many labels for an identity")
	// ErrBadLabel means that a text is not of the form source:key[=value].
	ErrBadLabel = errors.New("not a label")
)

// MaxLabels bounds a set; it is the CRD's bound on spec.labels.
const MaxLabels = 256

// The sources of labels. What users set is always in SourceK8s.
const (
	SourceK8s      = "k8s"
	SourceReserved = "reserved"
)

// Keys that the agent itself fills in, in SourceK8s. Policies of cilium.io/v2 select by these names.
const (
	KeyNamespace       = "io.kubernetes.pod.namespace"
	KeyNamespaceLabels = "io.cilium.k8s.namespace.labels."
	KeyServiceAccount  = "io.cilium.k8s.policy.serviceaccount"
	KeyCluster         = "io.cilium.k8s.policy.cluster"
)

// systemPrefix begins every key that only the agent may fill in, besides KeyNamespace.
const systemPrefix = "io.cilium.k8s."

// Labels is a set: source:key -> value. It is not changed after it was made.
type Labels map[string]string

// Workload is what makes a pod's label set. Namespace holds the namespace object's name, not what a label claims.
type Workload struct {
	Namespace       string
	Labels          map[string]string
	NamespaceLabels map[string]string
	ServiceAccount  string
	Cluster         string
}

// ForPod makes the label set of a pod. Pod labels pass the filter; labels of the namespace all count. It returns
// ErrTooManyLabels.
func ForPod(w Workload, f Filter) (Labels, error) {
	out := make(Labels, len(w.Labels)+len(w.NamespaceLabels)+3)
	for k, v := range w.Labels {
		if k == KeyNamespace || strings.HasPrefix(k, systemPrefix) || !f.Keeps(k) {
			continue // only the agent fills these in: whatever a user writes there is not heard
		}
		out[SourceK8s+":"+k] = v
	}
	for k, v := range w.NamespaceLabels {
		out[SourceK8s+":"+KeyNamespaceLabels+k] = v
	}
	out[SourceK8s+":"+KeyNamespace] = w.Namespace
	out[SourceK8s+":"+KeyServiceAccount] = w.ServiceAccount
	out[SourceK8s+":"+KeyCluster] = w.Cluster
	if len(out) > MaxLabels {
		return nil, fmt.Errorf("%w: %d, at most %d", ErrTooManyLabels, len(out), MaxLabels)
	}
	return out, nil
}

// Canonical is the same text for the same set and different texts for different sets: the lengths are in it.
func (l Labels) Canonical() string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(l)) {
		v := l[k]
		b.WriteString(strconv.Itoa(len(k)))
		b.WriteByte(':')
		b.WriteString(k)
		b.WriteString(strconv.Itoa(len(v)))
		b.WriteByte('=')
		b.WriteString(v)
	}
	return b.String()
}

// Equal tells whether two sets are the same. Nil and empty are.
func (l Labels) Equal(o Labels) bool { return maps.Equal(l, o) }

// Strings returns source:key=value, sorted, for people.
func (l Labels) Strings() []string {
	out := make([]string, 0, len(l))
	for k, v := range l {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

// Parse is the inverse of Strings. It returns ErrBadLabel.
func Parse(texts []string) (Labels, error) {
	out := make(Labels, len(texts))
	for _, t := range texts {
		key, value, _ := strings.Cut(t, "=")
		source, name, ok := strings.Cut(key, ":")
		if !ok || source == "" || name == "" {
			return nil, fmt.Errorf("%w: %q (want source:key=value)", ErrBadLabel, t)
		}
		out[key] = value
	}
	return out, nil
}
