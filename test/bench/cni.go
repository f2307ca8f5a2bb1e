// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// cniJob is what a node's cni worker is to do: add and remove pods with a plugin, some at a time.
type cniJob struct {
	Plugin string `json:"plugin"` // path of the binary
	Conf   string `json:"conf"`   // its network configuration
	Pods   int    `json:"pods"`
	AtOnce int    `json:"atOnce"`
	Prefix string `json:"prefix"` // of the namespaces' names
}

// cniWorker runs where the plugin runs; it prints the milliseconds of each ADD.
func cniWorker(in io.Reader, out io.Writer) error {
	var j cniJob
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return err
	}
	millis := make([]float64, j.Pods)
	errs := make([]error, j.Pods)
	defer func() {
		for i := range j.Pods {
			_, _ = j.call("DEL", i)
			_, _ = sh(fmt.Sprintf("ip netns del %s%d", j.Prefix, i))
		}
	}()
	for i := range j.Pods {
		if _, err := sh(fmt.Sprintf("ip netns add %s%d", j.Prefix, i)); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	gate := make(chan struct{}, j.AtOnce)
	for i := range j.Pods {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			start := time.Now()
			_, errs[i] = j.call("ADD", i)
			millis[i] = float64(time.Since(start).Microseconds()) / 1000
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(millis)
}

func (j cniJob) call(verb string, i int) (string, error) {
	id := fmt.Sprintf("%s%d", j.Prefix, i)
	cmd := exec.Command(j.Plugin)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_NETNS=/run/netns/"+id, "CNI_IFNAME=eth0", "CNI_PATH="+filepath.Dir(j.Plugin),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE="+benchNamespace+";K8S_POD_NAME="+id+";K8S_POD_INFRA_CONTAINER_ID="+id+";K8S_POD_UID="+id)
	cmd.Stdin = strings.NewReader(j.Conf)
	return output(cmd)
}

func runCNI(p place, j cniJob) ([]float64, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	in, _ := json.Marshal(j)
	cmd := p.command(self, "cni")
	cmd.Stdin = strings.NewReader(string(in))
	out, err := output(cmd)
	if err != nil {
		return nil, err
	}
	var millis []float64
	return millis, json.Unmarshal([]byte(out), &millis)
}

// cniFigures times 100 ADDs, 8 at a time, of ours and of bridge with host-local, in alternating batches.
func cniFigures(ctx context.Context, log io.Writer, c *ours, g *ground) ([]Figure, error) {
	node := c.Nodes[0].Name
	conf, err := c.OnNode(ctx, node, "sh", "-c", "cat /etc/cni/net.d/05-kube-cilium.conflist")
	if err != nil {
		return nil, err
	}
	single, err := firstPlugin(conf)
	if err != nil {
		return nil, err
	}
	host, err := g.space("cni")
	if err != nil {
		return nil, err
	}
	mine := cniJob{Plugin: "/opt/cni/bin/cilium-cni", Conf: single, Pods: 20, AtOnce: 8, Prefix: g.run + "m"}
	theirs := cniJob{Plugin: filepath.Join(g.cni, "bridge"), Conf: g.conf("bridge", "10.75.0.0/16"), Pods: 20, AtOnce: 8, Prefix: g.run + "t"}
	var a, b []float64
	for batch := range 5 {
		fmt.Fprintf(log, "\rCNI ADD: batch %d/5 ", batch+1)
		m, err := runCNI(place{enter: c.NodeCommand(node)}, mine)
		if err != nil {
			return nil, err
		}
		t, err := runCNI(host, theirs)
		if err != nil {
			return nil, err
		}
		a, b = append(a, m...), append(b, t...)
	}
	fmt.Fprintln(log)
	var figures []Figure
	for _, q := range []struct {
		name string
		p    float64
		bar  float64
	}{{"CNI ADD p50", 0.5, 20}, {"CNI ADD p99", 0.99, 100}} {
		figures = append(figures,
			Figure{Figure: q.name, Shape: "ours", Ratio: percentile(a, q.p), Unit: "ms", Bar: q.bar, AtMost: true}.judged(),
			Figure{Figure: q.name, Shape: "bridge + host-local", Ratio: percentile(b, q.p), Unit: "ms"}.judged())
	}
	size, err := c.OnNode(ctx, node, "stat", "-c", "%s", "/opt/cni/bin/cilium-cni")
	if err != nil {
		return nil, err
	}
	var bytes float64
	if _, err := fmt.Sscan(size, &bytes); err != nil {
		return nil, err
	}
	return append(figures, Figure{Figure: "CNI binary", Shape: "cilium-cni", Ratio: bytes / (1 << 20), Unit: "MiB", Bar: 8, AtMost: true}.judged()), nil
}

// firstPlugin makes a single plugin's configuration out of a list, as a runtime does.
func firstPlugin(conflist string) (string, error) {
	var l struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal([]byte(conflist), &l); err != nil {
		return "", fmt.Errorf("read the CNI configuration: %w", err)
	}
	if len(l.Plugins) == 0 {
		return "", errors.New("the CNI configuration lists no plugin")
	}
	p := l.Plugins[0]
	p["cniVersion"], p["name"] = l.CNIVersion, l.Name
	b, err := json.Marshal(p)
	return string(b), err
}
