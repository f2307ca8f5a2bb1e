// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	tool string
}

// podYAML is a pod that only holds its network; the workers enter it from outside.
func podYAML(name, node string) string {
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

// bringUp makes the cluster and its pods; when that fails nothing of it stays. What is ours is built from the checkout
// source; empty: from this one. A cluster of the name that is there already is somebody's and stays.
func bringUp(ctx context.Context, tool, name, source string) (o *ours, err error) {
	if _, err := testcluster.Find(ctx, tool, name); err == nil {
		return nil, fmt.Errorf("a cluster %s is there already: take another --name, or remove it by %s down --name %s", name, tool, name)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, testcluster.Down(tool, name))
		}
	}()
	c, err := testcluster.Up(ctx, tool, name, "--workers", "2", "--ip-family", "dual", "--cni", "ours", "--source", source)
	if err != nil {
		return nil, err
	}
	o = &ours{Cluster: c, tool: tool, pods: map[string]place{}}
	yaml := "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + benchNamespace + "}\n---"
	on := map[string]string{"client": c.Nodes[0].Name, "same": c.Nodes[0].Name, "other": c.Nodes[1].Name}
	for name, node := range on {
		yaml += podYAML(name, node)
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
	for name := range on {
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
		if p.enter, p.procs, err = o.insidePod(ctx, name); err != nil {
			return nil, err
		}
		o.pods[name] = p
	}
	if err := o.moved(ctx, slices.Collect(maps.Keys(on))...); err != nil {
		return nil, err
	}
	vip, err := c.Kubectl(ctx, nil, "-n", benchNamespace, "get", "service", "same", "-o", "jsonpath={.spec.clusterIP}")
	o.vip = strings.TrimSpace(vip)
	return o, err
}

// insidePod gives the command that enters a pod's network from this machine, and the file that enters its cgroup2.
func (o *ours) insidePod(ctx context.Context, pod string) (enter []string, procs string, err error) {
	id, err := o.Kubectl(ctx, nil, "-n", benchNamespace, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	if err != nil {
		return nil, "", err
	}
	pids, err := processesOf(id)
	if err != nil {
		return nil, "", fmt.Errorf("pod %s: %w", pod, err)
	}
	procs, err = cgroup2Procs(pids[0])
	return []string{"nsenter", "--net=/proc/" + pids[0] + "/ns/net"}, procs, err
}

// processesOf finds a container's processes, as this machine numbers them: its id is in the names of their cgroups.
func processesOf(container string) ([]string, error) {
	_, id, _ := strings.Cut(container, "://")
	if id == "" {
		return nil, fmt.Errorf("%q is no container id", container)
	}
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	var pids []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(id)) {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("no process of container %s", id)
	}
	return pids, nil
}

// cgroup2Procs is the cgroup.procs file of a process's cgroup2.
func cgroup2Procs(pid string) (string, error) {
	mount, err := cgroup2Mount()
	if err != nil {
		return "", err
	}
	groups, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		return "", err
	}
	for group := range strings.Lines(string(groups)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(group), "0::"); ok {
			return filepath.Join(mount, path, "cgroup.procs"), nil
		}
	}
	return "", fmt.Errorf("process %s has no cgroup2", pid)
}

// cgroup2Of takes a cgroup.procs file apart: where cgroup2 is mounted, and the cgroup in it.
func cgroup2Of(procs string) (mount, path string, err error) {
	if mount, err = cgroup2Mount(); err != nil {
		return "", "", err
	}
	path, err = filepath.Rel(mount, filepath.Dir(procs))
	return mount, path, err
}

func cgroup2Mount() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for mount := range strings.Lines(string(mounts)) {
		if f := strings.Fields(mount); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("no cgroup2 is mounted")
}

// configure changes the CiliumConfig and waits until both nodes carry it out.
func (o *ours) configure(ctx context.Context, patch string) error {
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
			return fmt.Errorf("generation %s is not in force after a minute: %s: %w", generation, out, err)
		}
	}
}

// wire joins the two nodes by a veth pair of their own and makes it their uplink: the switch between a test cluster's
// nodes is not what is measured, and the shapes beside ours have a wire too.
func (o *ours) wire(ctx context.Context) error {
	var pids, ips []string
	for _, n := range o.Nodes {
		pid, err := o.agentPID(ctx, n.Name)
		if err != nil {
			return err
		}
		for _, a := range n.Addresses {
			if !strings.Contains(a, ":") {
				ips = append(ips, a)
			}
		}
		pids = append(pids, pid)
	}
	if len(ips) != 2 {
		return fmt.Errorf("two nodes with an IPv4 address are needed, not %v", ips)
	}
	if _, err := sh(fmt.Sprintf("ip link add %s netns %s type veth peer name %s netns %s", wireDevice, pids[0], wireDevice, pids[1])); err != nil {
		return err
	}
	for i := range 2 {
		in := "nsenter --net=/proc/" + pids[i] + "/ns/net "
		if err := all(in+"ip addr add "+ips[i]+"/32 dev "+wireDevice, in+"ip link set "+wireDevice+" up",
			in+"ip route add "+ips[1-i]+"/32 dev "+wireDevice+" src "+ips[i]); err != nil {
			return err
		}
	}
	return o.configure(ctx, `{"spec":{"devices":["`+wireDevice+`"]}}`)
}

const wireDevice = "wire0"

// cutSegments has the wire carry segments, as one between machines does, or whole GSO frames again.
func (o *ours) cutSegments(ctx context.Context, cut bool) error {
	state := map[bool]string{true: "off", false: "on"}[cut]
	for _, n := range o.Nodes {
		if _, err := o.OnNode(ctx, n.Name, "ethtool", "-K", wireDevice, "tso", state, "gso", state, "gro", "on"); err != nil {
			return err
		}
	}
	return nil
}

func (o *ours) close() {
	if err := testcluster.Down(o.tool, o.Name); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}
