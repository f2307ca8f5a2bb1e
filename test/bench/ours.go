// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kube-cilium/kube-cilium/test/testcluster"
)

const benchNamespace = "bench"

// ours is a cluster on our network with the pods that the shapes use.
type ours struct {
	*testcluster.Cluster
	pods map[string]place // client, same, other
	vip  string
}

// podYAML runs the bench binary itself, which lies on this machine and so on every node, at the same path.
func podYAML(name, node, dir string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: %s, labels: {pod: %s}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
  - name: pause
    image: registry.k8s.io/pause:3.10.2
    imagePullPolicy: IfNotPresent
---
`, benchNamespace, name, name, node)
}

func bringUp(ctx context.Context, tool, name string, flags ...string) (*ours, error) {
	c, err := testcluster.Up(ctx, tool, name, append([]string{"--workers", "2", "--ip-family", "dual", "--cni", "ours"}, flags...)...)
	if err != nil {
		return nil, err
	}
	o := &ours{Cluster: c, pods: map[string]place{}}
	yaml := "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + benchNamespace + "}\n---"
	on := map[string]string{"client": c.Nodes[0].Name, "same": c.Nodes[0].Name, "other": c.Nodes[1].Name}
	for name, node := range on {
		yaml += podYAML(name, node, "")
	}
	var ports strings.Builder
	for _, p := range []int{portRR, portCRR, portSink} {
		fmt.Fprintf(&ports, "  - {name: p%d, port: %d, protocol: TCP}\n", p, p)
	}
	yaml += fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {namespace: %s, name: same}\nspec:\n  selector: {pod: same}\n  ports:\n%s", benchNamespace, ports.String())
	if _, err := c.Kubectl(ctx, []byte(yaml), "apply", "-f", "-"); err != nil {
		return nil, err
	}
	if _, err := c.Kubectl(ctx, nil, "-n", benchNamespace, "wait", "--for=condition=Ready", "--timeout=90s", "pod", "--all"); err != nil {
		return nil, err
	}
	for name, node := range on {
		ip, err := c.Kubectl(ctx, nil, "-n", benchNamespace, "get", "pod", name, "-o", "jsonpath={.status.podIPs[*].ip}")
		if err != nil {
			return nil, err
		}
		p := place{ips: map[string]string{}}
		for _, a := range strings.Fields(ip) {
			if strings.Contains(a, ":") {
				p.ips["6"] = a
			} else {
				p.ips["4"] = a
			}
		}
		pid, err := o.pausePID(ctx, name, node)
		if err != nil {
			return nil, err
		}
		// Only the pod's network: the worker's binary and its pinning are this machine's.
		p.enter = c.NodeCommand(node, "nsenter", "-t", pid, "-n")
		o.pods[name] = p
	}
	vip, err := c.Kubectl(ctx, nil, "-n", benchNamespace, "get", "service", "same", "-o", "jsonpath={.spec.clusterIP}")
	o.vip = strings.TrimSpace(vip)
	return o, err
}

// pausePID finds a pod's process as its node numbers it.
func (o *ours) pausePID(ctx context.Context, pod, node string) (string, error) {
	id, err := o.Kubectl(ctx, nil, "-n", benchNamespace, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	if err != nil {
		return "", err
	}
	out, err := o.OnNode(ctx, node, "ctr", "-n", "k8s.io", "tasks", "ls")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == strings.TrimPrefix(id, "containerd://") {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("no task of pod %s on %s", pod, node)
}

// setRouting changes the CiliumConfig and waits until both nodes carry it out.
func (o *ours) setRouting(ctx context.Context, patch string) error {
	if _, err := o.Kubectl(ctx, nil, "patch", "ciliumconfig", "default", "--type=merge", "-p", patch); err != nil {
		return err
	}
	generation, err := o.Kubectl(ctx, nil, "get", "ciliumconfig", "default", "-o", "jsonpath={.metadata.generation}")
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		out, err := o.Kubectl(ctx, nil, "get", "ciliumnodereports", "-o", "jsonpath={.items[*].status.observedConfigGeneration}")
		if err == nil && strings.Join(strings.Fields(out), " ") == strings.TrimSpace(generation)+" "+strings.TrimSpace(generation) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("generation %s is not in force after a minute: %s %v", generation, out, err)
		}
	}
}

// cutSegments has the underlay carry segments, as a wire does, or whole GSO frames again.
func (o *ours) cutSegments(ctx context.Context, cut bool) error {
	state := map[bool]string{true: "off", false: "on"}[cut]
	for _, n := range o.Nodes {
		if _, err := o.OnNode(ctx, n.Name, "ethtool", "-K", "eth0", "tso", state, "gso", state, "gro", "on"); err != nil {
			return err
		}
	}
	return nil
}

func (o *ours) close() {
	if err := testcluster.Down(o.tool(), o.Name); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (o *ours) tool() string { return o.NodeCommand("")[0] }
