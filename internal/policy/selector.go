// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// keptLabels says which pod labels identities hold; it never changes.
var keptLabels = identity.DefaultFilter()

const (
	podLabel       = identity.SourceK8s + ":"
	namespaceLabel = identity.SourceK8s + ":" + identity.KeyNamespaceLabels
	namespaceName  = identity.SourceK8s + ":" + identity.KeyNamespace
)

// answer of a selector. What asks for a label that is not known here is perhaps: an allow takes that for no, a deny and
// an isolation for yes, so that nothing is ever wider than what was written.
type answer uint8

const (
	no answer = iota
	perhaps
	yes
)

func (r Requirement) String() string {
	switch r.Operator {
	case In:
		if len(r.Values) == 1 {
			return r.Key + "=" + r.Values[0]
		}
		return fmt.Sprintf("%s in (%s)", r.Key, strings.Join(r.Values, ", "))
	case NotIn:
		return fmt.Sprintf("%s not in (%s)", r.Key, strings.Join(r.Values, ", "))
	case Exists:
		return r.Key
	}
	return "no label " + r.Key
}

func (r Requirement) holds(value string, has bool) bool {
	switch r.Operator {
	case In:
		return has && slices.Contains(r.Values, value)
	case NotIn:
		return !has || !slices.Contains(r.Values, value)
	case Exists:
		return has
	}
	return !has
}

// ask compares a requirement with a label set; source begins the key there. An unknown operator never holds.
func (r Requirement) ask(l identity.Labels, source string, whole bool) answer {
	if source == podLabel && (ownKey(r.Key) || !whole && hidden(r.Key)) {
		return perhaps
	}
	if value, has := l[source+r.Key]; r.holds(value, has) {
		return yes
	}
	return no
}

// ask tells whether a label set is that of a pod that is selected.
func (s *PodSelector) ask(l identity.Labels, whole bool) answer {
	namespace, isPod := l[namespaceName]
	if !isPod || s.Namespace != "" && s.Namespace != namespace {
		return no
	}
	out := yes
	for _, r := range s.NamespaceLabels {
		out = min(out, r.ask(l, namespaceLabel, true))
	}
	for _, r := range s.Labels {
		out = min(out, r.ask(l, podLabel, whole))
		if out == no {
			return no
		}
	}
	return out
}

// key is the same text for the same selector only.
func (s *PodSelector) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q", s.Namespace)
	for _, rs := range [][]Requirement{s.NamespaceLabels, s.Labels} {
		b.WriteString(" |")
		for _, r := range rs {
			fmt.Fprintf(&b, " %q %s %q", r.Key, r.Operator, r.Values)
		}
	}
	return b.String()
}

// anchor is a label, as key=value, that every pod has which the selector selects; empty where there is none.
func (s *PodSelector) anchor() string {
	for _, r := range s.Labels {
		if r.Operator == In && len(r.Values) == 1 && !hidden(r.Key) {
			return podLabel + r.Key + "=" + r.Values[0]
		}
	}
	if s.Namespace != "" {
		return namespaceName + "=" + s.Namespace
	}
	for _, r := range s.NamespaceLabels {
		if r.Operator == In && len(r.Values) == 1 {
			return namespaceLabel + r.Key + "=" + r.Values[0]
		}
	}
	return ""
}

// ident is one identity as it was last set.
type ident struct {
	labels identity.Labels
	ports  []NamedPort
}

// selector is a PodSelector that rules have as a peer, and the identities that it matches at present.
type selector struct {
	spec *PodSelector
	// wide takes perhaps for yes.
	wide    bool
	matches map[identity.Number]struct{}
	users   map[*rule]struct{}
}

func (s *selector) asks(i *ident) bool {
	a := s.spec.ask(i.labels, false)
	return a == yes || s.wide && a == perhaps
}

// selectors is every selector in use, once, found by a label of what it may match.
type selectors struct {
	all map[string]*selector
	// anchored: anchor -> selectors; those without one are under "".
	anchored map[string]map[*selector]struct{}
}

func newSelectors() selectors {
	return selectors{all: map[string]*selector{}, anchored: map[string]map[*selector]struct{}{}}
}

// use returns the selector for a rule; a new one asks the identities given by candidates.
func (x *selectors) use(r *rule, spec *PodSelector, wide bool, candidates map[identity.Number]*ident) *selector {
	key := fmt.Sprint(wide, spec.key())
	s, ok := x.all[key]
	if !ok {
		s = &selector{spec: spec, wide: wide, matches: map[identity.Number]struct{}{}, users: map[*rule]struct{}{}}
		for n, i := range candidates {
			if s.asks(i) {
				s.matches[n] = struct{}{}
			}
		}
		x.all[key] = s
		at := spec.anchor()
		if x.anchored[at] == nil {
			x.anchored[at] = map[*selector]struct{}{}
		}
		x.anchored[at][s] = struct{}{}
	}
	s.users[r] = struct{}{}
	return s
}

func (x *selectors) release(r *rule, s *selector) {
	delete(s.users, r)
	if len(s.users) > 0 {
		return
	}
	delete(x.all, fmt.Sprint(s.wide, s.spec.key()))
	at := s.spec.anchor()
	delete(x.anchored[at], s)
	if len(x.anchored[at]) == 0 {
		delete(x.anchored, at)
	}
}

// matching calls f for each selector that matches an identity.
func (x *selectors) matching(i *ident, f func(*selector)) {
	for s := range x.anchored[""] {
		if s.asks(i) {
			f(s)
		}
	}
	for k, v := range i.labels {
		for s := range x.anchored[k+"="+v] {
			if s.asks(i) {
				f(s)
			}
		}
	}
}
