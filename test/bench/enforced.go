// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// enforcedRounds is how often a policy is applied and taken away.
	enforcedRounds = 100
	// enforcedWatch is how long datagrams are sent around a change.
	enforcedWatch = 600 * time.Millisecond
)

// enforcedFigures applies a policy to one of a node's hundred pods, again and again, while datagrams go there each
// millisecond: how long from asking the API server until the first that passes or the last that still did.
func enforcedFigures(ctx context.Context, log io.Writer, c *ours) (figures []Figure, err error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	policies := client.NetworkingV1().NetworkPolicies(benchNamespace)
	target, from := c.pods["same"], c.pods["client"]
	server, err := target.serve()
	if err != nil {
		return nil, err
	}
	defer server.stop()
	watcher, err := from.start("client")
	if err != nil {
		return nil, err
	}
	defer watcher.stop()
	policy := func(name string, rules ...networkingv1.NetworkPolicyIngressRule) *networkingv1.NetworkPolicy {
		return &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"pod": "same"}},
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
				Ingress:     rules,
			},
		}
	}
	admit := networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{
		{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"pod": "client"}}}}}
	// during sends datagrams while change is made in the middle, and gives what was answered and when it was asked for.
	during := func(change func() error) (tally, time.Time, error) {
		over := make(chan error, 1)
		var t tally
		go func() {
			var err error
			t, err = watcher.do(job{Kind: "watch", Dst: target.ips["4"], CPU: 1, Millis: int(enforcedWatch.Milliseconds())})
			over <- err
		}()
		time.Sleep(enforcedWatch / 6)
		asked := time.Now()
		err := change()
		return t, asked, errors.Join(err, <-over)
	}
	denied, allowed := make([]float64, 0, enforcedRounds), make([]float64, 0, enforcedRounds)
	defer func() {
		for _, name := range []string{"deny", "admit"} {
			_ = policies.Delete(context.WithoutCancel(ctx), name, metav1.DeleteOptions{})
		}
	}()
	for round := range enforcedRounds {
		if (round+1)%10 == 0 {
			fmt.Fprintf(log, "applied to enforced: round %d/%d\n", round+1, enforcedRounds)
		}
		t, asked, err := during(func() error {
			_, err := policies.Create(ctx, policy("deny"), metav1.CreateOptions{})
			return err
		})
		if err != nil {
			return nil, err
		}
		last := time.Unix(0, t.Last)
		if t.Units == 0 || asked.Add(enforcedWatch*4/6).Before(last) {
			return nil, fmt.Errorf("a policy that denies is not in force %s after it was applied", last.Sub(asked))
		}
		denied = append(denied, max(0, millis(last.Sub(asked))))
		if t, asked, err = during(func() error {
			_, err := policies.Create(ctx, policy("admit", admit), metav1.CreateOptions{})
			return err
		}); err != nil {
			return nil, err
		}
		if t.First == 0 {
			return nil, fmt.Errorf("a policy that allows is not in force %s after it was applied", enforcedWatch*5/6)
		}
		allowed = append(allowed, millis(time.Unix(0, t.First).Sub(asked)))
		for _, name := range []string{"deny", "admit"} {
			if err := policies.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				return nil, err
			}
		}
		if err := open(ctx, watcher, target.ips["4"]); err != nil {
			return nil, err
		}
	}
	for _, v := range []struct {
		what  string
		times []float64
	}{{"a policy that denies", denied}, {"a policy that allows", allowed}} {
		shape := v.what + ", 100 pods on the node"
		figures = append(figures,
			Figure{Figure: "applied to enforced, p50", Shape: shape, Ratio: percentile(v.times, 0.5), Unit: "ms"}.judged(),
			Figure{Figure: "applied to enforced, p99", Shape: shape, Ratio: percentile(v.times, 0.99), Unit: "ms", Bar: 250, AtMost: true}.judged())
	}
	return figures, nil
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// open waits until datagrams pass: no policy is left.
func open(ctx context.Context, watcher *process, dst string) error {
	for range 100 {
		t, err := watcher.do(job{Kind: "watch", Dst: dst, CPU: 1, Millis: 50})
		if err != nil {
			return err
		}
		if t.Units >= 25 && ctx.Err() == nil {
			return nil
		}
	}
	return errors.Join(errors.New("datagrams do not pass without a policy"), ctx.Err())
}
