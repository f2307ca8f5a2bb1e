// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// parseSelector reads -l.
func parseSelector(text string) (client.ListOption, error) {
	s, err := labels.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("-l %q: %w", text, err)
	}
	return client.MatchingLabelsSelector{Selector: s}, nil
}

// within says in which namespace an object was looked for that is not there.
func within(namespace string, err error) error {
	if apierrors.IsNotFound(err) && !meta.IsNoMatchError(err) { // else the kind is not there either
		return fmt.Errorf("%w in namespace %s", err, namespace)
	}
	return err
}

// objectNames are the names in a list, sorted.
func objectNames(list client.ObjectList) []string {
	var names []string
	_ = meta.EachListItem(list, func(o runtime.Object) error {
		if a, err := meta.Accessor(o); err == nil {
			names = append(names, a.GetName())
		}
		return nil
	})
	slices.Sort(names)
	return names
}
