// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// cniJob is what a cni worker is to do: add and remove pods with a plugin, some at a time.
type cniJob struct {
	Plugin string `json:"plugin"` // path of the binary
	Conf   string `json:"conf"`   // its network configuration
	AtOnce int    `json:"atOnce"`
	// Status has STATUS timed too, which only CNI 1.1 knows.
	Status bool     `json:"status"`
	Pods   []cniPod `json:"pods"`
}

// cniPod is one pod to add; its name is also its container's and its network namespace's.
type cniPod struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// cniTimes are milliseconds: of each ADD, of the plugin's own processor time in it, and of calls that ask nothing of
// a pod.
type cniTimes struct {
	Add     []float64 `json:"add"`
	AddCPU  []float64 `json:"addCPU"`
	Version []float64 `json:"version"`
	Status  []float64 `json:"status"`
}

func (t *cniTimes) append(o cniTimes) {
	t.Add, t.AddCPU = append(t.Add, o.Add...), append(t.AddCPU, o.AddCPU...)
	t.Version, t.Status = append(t.Version, o.Version...), append(t.Status, o.Status...)
}

// cniRest is before the plugins' turns.
const cniRest = time.Second

// cniWorker runs where the plugin runs.
func cniWorker(in io.Reader, out io.Writer) error {
	var j cniJob
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return err
	}
	times := cniTimes{Add: make([]float64, len(j.Pods)), AddCPU: make([]float64, len(j.Pods))}
	errs := make([]error, len(j.Pods))
	defer func() {
		for _, p := range j.Pods {
			_, _, _ = j.call("DEL", p)
			_, _ = sh("ip netns del " + p.Name)
		}
	}()
	for _, p := range j.Pods {
		if _, err := sh("ip netns add " + p.Name); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	gate := make(chan struct{}, j.AtOnce)
	for i, p := range j.Pods {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			times.Add[i], times.AddCPU[i], errs[i] = j.call("ADD", p)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for range 10 {
		wall, _, err := j.call("VERSION", cniPod{})
		if err != nil {
			return err
		}
		times.Version = append(times.Version, wall)
		if !j.Status {
			continue
		}
		if wall, _, err = j.call("STATUS", cniPod{}); err != nil {
			return err
		}
		times.Status = append(times.Status, wall)
	}
	return json.NewEncoder(out).Encode(times)
}

// call runs the plugin and gives how long it took and the processor time of its process, in milliseconds.
func (j cniJob) call(verb string, p cniPod) (wall, cpu float64, err error) {
	cmd := exec.Command(j.Plugin)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+p.Name, "CNI_NETNS=/run/netns/"+p.Name, "CNI_IFNAME=eth0", "CNI_PATH="+filepath.Dir(j.Plugin),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE="+benchNamespace+";K8S_POD_NAME="+p.Name+";K8S_POD_INFRA_CONTAINER_ID="+p.Name+";K8S_POD_UID="+p.UID)
	cmd.Stdin = strings.NewReader(j.Conf)
	start := time.Now()
	_, err = output(cmd)
	wall = float64(time.Since(start).Microseconds()) / 1000
	if cmd.ProcessState != nil {
		cpu = float64((cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Microseconds()) / 1000
	}
	return wall, cpu, err
}

func runCNI(p place, j cniJob) (times cniTimes, err error) {
	self, err := os.Executable()
	if err != nil {
		return times, err
	}
	in, err := json.Marshal(j)
	if err != nil {
		return times, err
	}
	cmd := p.command(self, "cni")
	cmd.Stdin = bytes.NewReader(in)
	out, err := output(cmd)
	if err != nil {
		return times, err
	}
	return times, json.Unmarshal([]byte(out), &times)
}

// boundPods makes pods of a node that its kubelet does not start, for want of a Secret that they mount: the agent knows
// them as it knows any, and nobody but this program calls a plugin for them. They are replicas of one workload: their
// labels are the same, and have a number.
func (o *ours) boundPods(ctx context.Context, node, prefix string, n int) ([]cniPod, error) {
	var yaml strings.Builder
	for i := range n {
		name := fmt.Sprintf("%s%d", prefix, i)
		pod := strings.Replace(podYAML(name, node), "labels: {pod: "+name+"}", "labels: {pod: "+boundLabel+"}", 1)
		pod = strings.Replace(pod, "spec:\n", "spec:\n  volumes: [{name: never, secret: {secretName: nowhere}}]\n", 1)
		yaml.WriteString(strings.Replace(pod, "  - name: pause\n", "  - name: pause\n    volumeMounts: [{name: never, mountPath: /never}]\n", 1))
	}
	if _, err := o.Kubectl(ctx, []byte(yaml.String()), "apply", "-f", "-"); err != nil {
		return nil, err
	}
	out, err := o.Kubectl(ctx, nil, "-n", benchNamespace, "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	var pods []cniPod
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 && strings.HasPrefix(f[0], prefix) {
			pods = append(pods, cniPod{Name: f[0], UID: f[1]})
		}
	}
	return pods, nil
}

const boundLabel = "bound"

// unbind takes the pods of boundPods away.
func (o *ours) unbind(ctx context.Context) error {
	_, err := o.Kubectl(ctx, nil, "-n", benchNamespace, "delete", "pods", "-l", "pod="+boundLabel, "--wait=true")
	return err
}

// onNode is a network namespace of its own whose processes are otherwise those of a node: in its cgroups, with its files.
func (o *ours) onNode(ctx context.Context, node, name string) (place, func(), error) {
	if _, err := o.OnNode(ctx, node, "ip", "netns", "add", name); err != nil {
		return place{}, nil, err
	}
	away := func() { _, _ = o.OnNode(context.WithoutCancel(ctx), node, "ip", "netns", "del", name) }
	if _, err := o.OnNode(ctx, node, "ip", "-n", name, "link", "set", "lo", "up"); err != nil {
		away()
		return place{}, nil, err
	}
	return place{enter: o.NodeCommand(node, "nsenter", "--net=/run/netns/"+name)}, away, nil
}

// cniFigures times three hundred ADDs, 8 at a time, of ours and of bridge with host-local, in batches that take turns:
// of one hundred, p99 would be the worst but one.
func cniFigures(ctx context.Context, log io.Writer, c *ours, g *ground) (figures []Figure, err error) {
	node := c.Nodes[0].Name
	conf, err := c.OnNode(ctx, node, "sh", "-c", "cat /etc/cni/net.d/05-kube-cilium.conflist")
	if err != nil {
		return nil, err
	}
	single, err := firstPlugin(conf)
	if err != nil {
		return nil, err
	}
	host, away, err := c.onNode(ctx, node, g.run+"cni")
	if err != nil {
		return nil, err
	}
	defer away()
	const batches, pods, atOnce = 15, 20, 8
	mine := cniJob{Plugin: "/opt/cni/bin/cilium-cni", Conf: single, AtOnce: atOnce, Status: true}
	theirs := cniJob{Plugin: filepath.Join(g.cni, "bridge"), Conf: g.conf("bridge", "10.75.0.0/16"), AtOnce: atOnce}
	for i := range pods {
		theirs.Pods = append(theirs.Pods, cniPod{Name: fmt.Sprintf("%st%d", g.run, i)})
	}
	defer func() { err = errors.Join(err, c.unbind(context.WithoutCancel(ctx))) }()
	var a, b cniTimes
	for batch := range batches {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		fmt.Fprintf(log, "CNI ADD: batch %d/%d\n", batch+1, batches)
		// Pods that have just come, as those are for which a runtime calls.
		if mine.Pods, err = c.boundPods(ctx, node, fmt.Sprintf("%sm%d-", g.run, batch), pods); err != nil {
			return nil, err
		}
		turns := []func() error{func() error {
			m, err := runCNI(place{enter: c.NodeCommand(node)}, mine)
			if err != nil {
				return fmt.Errorf("our plugin: %w", err)
			}
			a.append(m)
			return nil
		}, func() error {
			t, err := runCNI(host, theirs)
			if err != nil {
				return fmt.Errorf("bridge plugin: %w", err)
			}
			b.append(t)
			return nil
		}}
		if batch%2 == 1 {
			slices.Reverse(turns)
		}
		for _, turn := range turns {
			// What the cluster does about the pods, and the kernel about namespaces that went, is no part of what is timed.
			time.Sleep(cniRest)
			if err := turn(); err != nil {
				return nil, err
			}
		}
		if err := c.unbind(ctx); err != nil {
			return nil, err
		}
	}
	const ours, reference = "cilium-cni", "bridge + host-local"
	for _, q := range []struct {
		name string
		p    float64
		bar  float64
		of   func(cniTimes) []float64
	}{
		{"CNI ADD, p50", 0.5, 0, func(t cniTimes) []float64 { return t.Add }},
		{"CNI ADD, p99", 0.99, 100, func(t cniTimes) []float64 { return t.Add }},
		{"CNI ADD, processor time of the binary, p50", 0.5, 10, func(t cniTimes) []float64 { return t.AddCPU }},
		{"CNI VERSION, p50", 0.5, 10, func(t cniTimes) []float64 { return t.Version }},
	} {
		figures = append(figures,
			Figure{Figure: q.name, Shape: ours, Ratio: percentile(q.of(a), q.p), Unit: "ms", Bar: q.bar, AtMost: true}.judged(),
			Figure{Figure: q.name, Shape: reference, Ratio: percentile(q.of(b), q.p), Unit: "ms"}.judged())
	}
	figures = append(figures,
		Figure{Figure: "CNI STATUS, p50", Shape: ours, Ratio: percentile(a.Status, 0.5), Unit: "ms"}.judged(),
		Figure{Figure: "CNI STATUS, p99", Shape: ours, Ratio: percentile(a.Status, 0.99), Unit: "ms"}.judged())
	// Ahead of the reference: its figure is our bar.
	figures = append(figures, Figure{Figure: "CNI ADD, p50 beside the reference", Shape: ours, Peer: reference, Ratio: percentile(a.Add, 0.5) / percentile(b.Add, 0.5), Bar: 1, AtMost: true}.judged())
	size, err := c.OnNode(ctx, node, "stat", "-c", "%s", "/opt/cni/bin/cilium-cni")
	if err != nil {
		return nil, err
	}
	var length float64
	if _, err := fmt.Sscan(size, &length); err != nil {
		return nil, err
	}
	return append(figures, Figure{Figure: "CNI binary", Shape: "cilium-cni", Ratio: length / (1 << 20), Unit: "MiB", Bar: 8, AtMost: true}.judged()), nil
}

// firstPlugin makes a single plugin's configuration out of a list, as a runtime does.
func firstPlugin(conflist string) (string, error) {
	var l struct {
		CNIVersion  string           `json:"cniVersion"`
		CNIVersions []string         `json:"cniVersions"`
		Name        string           `json:"name"`
		Plugins     []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal([]byte(conflist), &l); err != nil {
		return "", fmt.Errorf("read the CNI configuration: %w", err)
	}
	if len(l.Plugins) == 0 {
		return "", errors.New("the CNI configuration lists no plugin")
	}
	p := l.Plugins[0]
	p["cniVersion"], p["name"] = slices.Max(append(l.CNIVersions, l.CNIVersion)), l.Name
	b, err := json.Marshal(p)
	return string(b), err
}
