// SPDX-License-Identifier: Apache-2.0

package flow

import "testing"

func TestFilter(t *testing.T) {
	e := Event{Type: Drop, Source: Party{Name: "default/client-1"}, Destination: Party{Name: "kube-system/dns-2"}}
	node := Event{Type: Trace, Source: Party{Name: "worker-1"}, Destination: Party{}}
	for _, tt := range []struct {
		name   string
		filter Filter
		event  Event
		want   bool
	}{
		{"nothing asked", Filter{}, node, true},
		{"type", Filter{Types: []Type{Trace, Drop}}, e, true},
		{"other type", Filter{Types: []Type{Verdict}}, e, false},
		{"source's namespace", Filter{Namespace: "default"}, e, true},
		{"destination's namespace", Filter{Namespace: "kube-system"}, e, true},
		{"a namespace is no prefix", Filter{Namespace: "def"}, e, false},
		{"a node has no namespace", Filter{Namespace: "worker-1"}, node, false},
		{"pod by the beginning of its name", Filter{Pod: "dns"}, e, true},
		{"pod with namespace", Filter{Pod: "default/client"}, e, true},
		{"pod of another namespace", Filter{Pod: "default/dns"}, e, false},
		{"a node is no pod", Filter{Pod: "worker"}, node, false},
		{"both must hold", Filter{Namespace: "default", Pod: "web"}, e, false},
	} {
		if got := tt.filter.Match(&tt.event); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}
