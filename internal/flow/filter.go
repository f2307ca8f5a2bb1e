// SPDX-License-Identifier: Apache-2.0

package flow

import "strings"

// Filter says which events are wanted. The zero Filter wants all. What it looks at must have been filled in: a filter
// by namespace finds nothing in events without names.
type Filter struct {
	// Types wanted; none means all.
	Types []Type
	// Namespace of either side; "" means any.
	Namespace string
	// Pod is the beginning of a name of either side, with or without a namespace before it.
	Pod string
}

// Match says whether the event is wanted.
func (f *Filter) Match(e *Event) bool {
	if len(f.Types) > 0 {
		wanted := false
		for _, t := range f.Types {
			wanted = wanted || t == e.Type
		}
		if !wanted {
			return false
		}
	}
	if f.Namespace != "" && !inNamespace(e.Source.Name, f.Namespace) && !inNamespace(e.Destination.Name, f.Namespace) {
		return false
	}
	return f.Pod == "" || hasPod(e.Source.Name, f.Pod) || hasPod(e.Destination.Name, f.Pod)
}

func inNamespace(name, namespace string) bool {
	ns, _, found := strings.Cut(name, "/")
	return found && ns == namespace
}

func hasPod(name, prefix string) bool {
	if strings.Contains(prefix, "/") {
		return strings.HasPrefix(name, prefix)
	}
	_, pod, found := strings.Cut(name, "/")
	return found && strings.HasPrefix(pod, prefix)
}
