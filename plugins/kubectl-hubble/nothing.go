// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// remembered is what nodes hold, for whoever found nothing in it.
type remembered struct {
	nodes int
	flows uint64
	// oldest is zero where it could not be had.
	oldest time.Time
}

// lookedAt asks every node how much it remembers and since when; how tells the state of one. A node that does not answer
// was told of before.
func lookedAt(ctx context.Context, targets []target, how func(context.Context, string) nodeState) remembered {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	out := remembered{nodes: len(targets)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, t := range targets {
		wg.Go(func() {
			state := how(ctx, t.node)
			mu.Lock()
			defer mu.Unlock()
			out.flows += state.Flows
		})
	}
	s := &source{targets: targets, remark: func(string) {}}
	seen := map[string]*last{}
	for _, t := range targets {
		seen[t.node] = &last{}
	}
	first, err := s.past(ctx, &observerpb.GetFlowsRequest{Number: 1, First: true}, seen)
	wg.Wait()
	if err == nil && len(first) > 0 {
		out.oldest = timeOf(first[0])
	}
	return out
}

// within is the one namespace that was looked at; "" where a filter names another, or all were.
func (o *flowsOptions) within() string {
	for _, g := range o.filters.given {
		if (strings.HasSuffix(g.flag.name, "pod") || strings.HasSuffix(g.flag.name, "service")) && strings.Contains(strings.Join(g.values, ","), "/") {
			return ""
		}
	}
	namespace, _, err := o.flags.ToRawKubeConfigLoader().Namespace()
	if err != nil || o.allNamespaces {
		return ""
	}
	return namespace
}

func noNamespace(name string) string { return "nothing was found: there is no namespace " + name }

// nothing is the sentence for a question without an answer: what was looked at, and how to look at more.
func (o *flowsOptions) nothing(r remembered) string {
	nodes, flows := "1 node", "1 flow"
	if r.nodes != 1 {
		nodes = fmt.Sprintf("%d nodes", r.nodes)
	}
	if r.flows != 1 {
		flows = fmt.Sprintf("%d flows", r.flows)
	}
	text := fmt.Sprintf("nothing was found: %s asked, %s remembered", nodes, flows)
	if !r.oldest.IsZero() {
		text += ", the oldest of " + r.oldest.In(o.now.Location()).Format("2006-01-02 15:04:05")
	}
	if g := o.filters.ofNobody(); g != nil {
		return text + fmt.Sprintf("; no node tells of --%s %s", g.flag.name, flow.Safe(strings.Join(g.values, ",")))
	}
	if namespace := o.within(); namespace != "" {
		text += fmt.Sprintf("; -A looks beyond namespace %s", namespace)
	}
	return text
}
