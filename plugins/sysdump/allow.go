// SPDX-License-Identifier: Apache-2.0

package sysdump

import "strings"

// fields are the fields of an object that may be told, as a tree. A nil subtree is a leaf that is told whole only when it
// is a single value; everything holds all that is below.
type fields map[string]fields

// everything marks a subtree that is told whole.
var everything = fields{"**": nil}

func (f fields) whole() bool { _, has := f["**"]; return has }

// allow reads paths such as spec.containers.name. Lists are walked through without a word; path.** is the whole subtree.
func allow(paths ...string) fields {
	root := fields{}
	for _, list := range paths {
		for path := range strings.FieldsSeq(list) {
			at := root
			for name := range strings.SplitSeq(path, ".") {
				if at[name] == nil {
					at[name] = fields{}
				}
				at = at[name]
			}
		}
	}
	return root
}

// keep is what of a value may be told; ok is false where nothing may.
func (f fields) keep(value any) (kept any, ok bool) {
	switch v := value.(type) {
	case map[string]any:
		out := map[string]any{}
		for name, below := range v {
			sub, has := f[name]
			if f.whole() {
				sub, has = everything, true
			}
			if !has {
				continue
			}
			if k, ok := sub.keep(below); ok {
				out[name] = k
			}
		}
		// An empty object says something too, such as a selector of everything.
		return out, len(out) > 0 || len(v) == 0
	case []any:
		out := []any{}
		for _, item := range v {
			if k, ok := f.keep(item); ok {
				out = append(out, k)
			}
		}
		return out, len(out) > 0 || len(v) == 0
	case string:
		return Scrub(v), len(f) == 0 || f.whole()
	default:
		return v, len(f) == 0 || f.whole()
	}
}

// metadata that may be told of every object. Of annotations only those whose names stand in safeAnnotations.
var metadata = allow(`metadata.name metadata.namespace metadata.uid metadata.resourceVersion metadata.generation
	metadata.creationTimestamp metadata.deletionTimestamp metadata.finalizers metadata.labels.** metadata.ownerReferences.**
	apiVersion kind`)

// safeAnnotations are values of ours and of Kubernetes' own that nobody types.
var safeAnnotations = map[string]bool{
	"kube-cilium.io/adopted": true, "kube-cilium.io/tombstone": true,
	"deployment.kubernetes.io/revision": true, "kubectl.kubernetes.io/restartedAt": true, "kubectl.kubernetes.io/default-container": true,
}

// object is what of an object may be told.
func object(o map[string]any, allowed fields) map[string]any {
	out := map[string]any{}
	for _, tree := range []fields{metadata, allowed} {
		kept, ok := tree.keep(o)
		if !ok {
			continue
		}
		for name, value := range kept.(map[string]any) {
			out[name] = value
		}
	}
	meta, _ := o["metadata"].(map[string]any)
	notes, _ := meta["annotations"].(map[string]any)
	kept := map[string]any{}
	for name, value := range notes {
		if text, ok := value.(string); ok && safeAnnotations[name] {
			kept[name] = Scrub(text)
		}
	}
	if into, ok := out["metadata"].(map[string]any); ok && len(kept) > 0 {
		into["annotations"] = kept
	}
	return out
}
