// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

// moved waits until what the pods send is judged by links: a pod begins with filters and moves over some seconds later,
// and figures are of what lasts. Where the kernel has no such links there is nothing to wait for.
func (o *ours) moved(ctx context.Context, pods ...string) error {
	const can = `{range .items[*]}{.status.kernel.features[?(@.name=="TCX")].outcome}{"\n"}{end}`
	outcomes, err := o.Kubectl(ctx, nil, "get", "ciliumnodereports", "-o", "jsonpath="+can)
	if err != nil {
		return err
	}
	if !strings.Contains(outcomes, "Supported\n") || strings.Contains(outcomes, "Unsupported") {
		return nil
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(500 * time.Millisecond) {
		waiting, err := o.unmoved(ctx, pods)
		if err == nil && len(waiting) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("pods %v have not moved to links after a minute", waiting), err)
		}
	}
}

// unmoved are those of the pods without a pinned link.
func (o *ours) unmoved(ctx context.Context, pods []string) ([]string, error) {
	links := map[string]string{} // node -> names of pins
	var waiting []string
	for _, pod := range pods {
		where, err := o.Kubectl(ctx, nil, "-n", benchNamespace, "get", "ciliumendpoint", pod, "-o", "jsonpath={.status.node} {.status.interface}")
		if err != nil {
			return pods, err
		}
		node, dev, ok := strings.Cut(strings.TrimSpace(where), " ")
		if !ok {
			waiting = append(waiting, pod)
			continue
		}
		if links[node] == "" {
			if links[node], err = o.OnNode(ctx, node, "ls", filepath.Join(datapath.Folder(""), "links")); err != nil {
				return pods, err
			}
		}
		if !strings.Contains(links[node], "from_pod_"+dev) {
			waiting = append(waiting, pod)
		}
	}
	return waiting, nil
}
