// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// agents are the Hubble servers of all nodes, reached through the API server.
type agents struct {
	cluster *cluster.Cluster
	hubble  *cluster.Hubble
	targets []target
	// away are nodes whose agent does not run.
	away []string

	mu    sync.Mutex
	nodes map[string]*cluster.Node // by pod
}

// agents finds the agent of every node, and gets the token for them.
func (p *plugin) agents(ctx context.Context) (*agents, error) {
	c, err := cluster.Connect(p.flags)
	if err != nil {
		return nil, err
	}
	pods, err := c.AgentPods(ctx, "")
	if err != nil {
		return nil, err
	}
	a := &agents{cluster: c, hubble: c.Hubble(), nodes: map[string]*cluster.Node{}}
	byNode := map[string]string{} // node -> pod that runs, or ""
	for i := range pods {
		if node := pods[i].Spec.NodeName; node != "" {
			byNode[node] = cmp.Or(byNode[node], runningName(&pods[i]))
		}
	}
	for node, pod := range byNode {
		if pod == "" {
			a.away = append(a.away, node)
			continue
		}
		a.targets = append(a.targets, target{node: node, connect: func(ctx context.Context) (observer, func(), error) { return a.connect(ctx, node) }})
	}
	slices.Sort(a.away)
	slices.SortFunc(a.targets, func(x, y target) int { return cmp.Compare(x.node, y.node) })
	if len(a.targets) == 0 {
		return nil, fmt.Errorf("%w in namespace %s (kubectl cilium status)", cluster.ErrNoAgent, cluster.Namespace)
	}
	if _, err := a.hubble.Token(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

func runningName(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning {
		return ""
	}
	return pod.Name
}

// connect gives the connection to a node's agent of now; it is kept for the next time.
func (a *agents) connect(ctx context.Context, node string) (observer, func(), error) {
	n, err := a.node(ctx, node)
	return n, func() {}, err
}

func (a *agents) node(ctx context.Context, node string) (*cluster.Node, error) {
	pods, err := a.cluster.AgentPods(ctx, node)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		name := runningName(&pods[i])
		if name == "" {
			continue
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		n := a.nodes[name]
		if n == nil {
			if n, err = a.hubble.Node(&pods[i]); err != nil {
				return nil, err
			}
			a.nodes[name] = n
		}
		return n, nil
	}
	return nil, cluster.ErrNoAgent
}

func (a *agents) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, n := range a.nodes {
		errs = append(errs, n.Close())
	}
	_ = errors.Join(errs...)
}

// remark tells something beside the output.
func (p *plugin) remark(text string) { _, _ = fmt.Fprintln(p.ErrOut, flow.Safe(text)) }
