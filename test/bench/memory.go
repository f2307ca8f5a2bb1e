// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// hundredPods fills the first node up to a hundred pods; those that are there already stay.
func hundredPods(ctx context.Context, log io.Writer, c *ours) error {
	const pods = 100
	node := c.Nodes[0].Name
	var yaml strings.Builder
	for i := range pods - 2 { // client and same are there already
		yaml.WriteString(podYAML(fmt.Sprintf("fill-%d", i), node))
	}
	fmt.Fprintf(log, "%d pods on %s\n", pods, node)
	if _, err := c.Kubectl(ctx, []byte(yaml.String()), "apply", "-f", "-"); err != nil {
		return err
	}
	_, err := c.Kubectl(ctx, nil, "-n", benchNamespace, "wait", "--for=condition=Ready", "--timeout=300s", "pod", "--all")
	return err
}

// memoryFigures reads what the agent and the operator hold with a hundred pods on the first node, and each map's bytes.
func memoryFigures(ctx context.Context, log io.Writer, c *ours) ([]Figure, error) {
	node := c.Nodes[0].Name
	if err := hundredPods(ctx, log, c); err != nil {
		return nil, err
	}
	var figures []Figure
	for _, w := range []struct {
		what, selector, node string
		bar                  float64
	}{
		{"agent with 100 pods", "app.kubernetes.io/name=cilium-agent", node, 64},
		{"operator", "app.kubernetes.io/name=cilium-operator", "", 48},
	} {
		kib, err := c.anonymousKiB(ctx, w.selector, w.node)
		if err != nil {
			return nil, err
		}
		figures = append(figures, Figure{Figure: "anonymous memory", Shape: w.what, Ratio: kib / 1024, Unit: "MiB", Bar: w.bar, AtMost: true}.judged())
	}
	var r struct {
		Status struct {
			Maps []struct {
				Name  string
				Bytes float64
			}
		}
	}
	// The report is written seconds after what it tells.
	for deadline := time.Now().Add(time.Minute); len(r.Status.Maps) == 0; time.Sleep(time.Second) {
		out, err := c.Kubectl(ctx, nil, "get", "ciliumnodereport", node, "-o", "json")
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the report of %s names no map", node)
		}
	}
	for _, m := range r.Status.Maps {
		figures = append(figures, Figure{Figure: "eBPF map", Shape: m.Name, Ratio: m.Bytes / 1024, Unit: "KiB"}.judged())
	}
	return figures, nil
}

// anonymousKiB is the largest RssAnon among the main containers' processes of the pods of a selector.
func (o *ours) anonymousKiB(ctx context.Context, selector, node string) (float64, error) {
	args := []string{"-n", "kube-cilium-system", "get", "pods", "-l", selector, "-o", "jsonpath={.items[*].status.containerStatuses[*].containerID}"}
	if node != "" {
		args = append(args, "--field-selector", "spec.nodeName="+node)
	}
	out, err := o.Kubectl(ctx, nil, args...)
	if err != nil {
		return 0, err
	}
	var most float64
	for _, id := range strings.Fields(out) {
		pids, err := processesOf(id)
		if err != nil {
			return 0, err
		}
		for _, pid := range pids {
			kib, err := rssAnon(pid)
			if err != nil {
				return 0, err
			}
			most = max(most, kib)
		}
	}
	if most == 0 {
		return 0, fmt.Errorf("no process of %s was found", selector)
	}
	return most, nil
}

// rssAnon reads a process's anonymous memory, KiB.
func rssAnon(pid string) (float64, error) {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "RssAnon: %f kB", &kib); n == 1 {
			return kib, nil
		}
	}
	return 0, fmt.Errorf("process %s has no RssAnon", pid)
}
