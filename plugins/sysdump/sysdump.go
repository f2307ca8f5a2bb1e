// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/version"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// Options of an archive.
type Options struct {
	// File to write: .tar.gz, .tgz or .zip.
	File string
	// Nodes to look into; none is all.
	Nodes []string
	// LogsSince is how far back logs go; 0 is all that there is.
	LogsSince time.Duration
	// Flows of each node, at most.
	Flows int
	// MaxLog bounds each log, MaxSize all files together before compression; bytes.
	MaxLog, MaxSize int64
	// NodeTimeout bounds what one node may take.
	NodeTimeout time.Duration
	// Progress is told what goes on.
	Progress func(format string, args ...any)
}

// Result says what is in the archive.
type Result struct {
	File    string   `json:"file"`
	Files   int      `json:"files"`
	Bytes   int64    `json:"bytes"`
	Missing []string `json:"missing"`
}

// parallel is how many things are asked at once.
const parallel = 4

// collector is one run.
type collector struct {
	Options
	c       *cluster.Cluster
	hubble  *cluster.Hubble
	archive *archive
	mu      sync.Mutex
	// missing is what could not be had, each with why.
	missing []string
}

// Collect writes the archive. What could not be had is in its summary and in the result; an error means that there is no
// archive.
func Collect(ctx context.Context, c *cluster.Cluster, o Options) (*Result, error) {
	if err := known(ctx, c, o.Nodes); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	a, err := newArchive(o.File, "cilium-sysdump-"+now.Format("20060102-150405"), o.MaxSize, now)
	if err != nil {
		return nil, err
	}
	r := &collector{Options: o, c: c, hubble: c.Hubble(), archive: a}
	var gate sync.WaitGroup
	slots := make(chan struct{}, parallel)
	run := func(what string, do func(context.Context) error) {
		gate.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			if err := do(ctx); err != nil {
				r.miss(what, err)
			}
		})
	}
	run("versions", r.versions)
	for _, k := range kinds() {
		run(k.file, func(ctx context.Context) error { return r.objects(ctx, k) })
	}
	r.pods(ctx, run)
	gate.Wait()
	if ctx.Err() != nil {
		return nil, errors.Join(errors.New("interrupted: no archive was written"), a.drop())
	}
	o.Progress("writing %s", o.File)
	slices.Sort(r.missing)
	result := &Result{File: o.File, Files: len(a.files), Missing: append([]string{}, r.missing...)}
	for _, f := range a.files {
		result.Bytes += int64(f.size)
	}
	if err := a.putLast("summary.txt", r.summary(now)); err != nil {
		return nil, errors.Join(err, a.drop())
	}
	return result, a.finish()
}

// known returns an error where the cluster does not have a node that is asked for. Whoever may not read nodes is trusted.
func known(ctx context.Context, c *cluster.Cluster, nodes []string) error {
	for _, name := range nodes {
		if err := c.Get(ctx, client.ObjectKey{Name: name}, &corev1.Node{}); err != nil && !apierrors.IsForbidden(err) {
			return err
		}
	}
	return nil
}

// miss notes what could not be had.
func (r *collector) miss(what string, err error) {
	line := flow.Safe(Scrub(what + ": " + err.Error()))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.missing = append(r.missing, line)
	r.Progress("left out: %s", line)
}

func (r *collector) putJSON(name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return r.archive.put(name, append(text, '\n'))
}

func (r *collector) versions(ctx context.Context) error {
	server, err := r.c.ServerVersion(ctx)
	return errors.Join(err, r.putJSON("versions.json", map[string]string{"kubernetes": server, "kubectl-cilium": version.Version}))
}

// page is how many objects are asked for at once.
const page = 500

// objects writes one kind.
func (r *collector) objects(ctx context.Context, k kind) error {
	r.Progress("objects: %s", k.file)
	var out bytes.Buffer
	next := ""
	for {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(k.GroupVersion().WithKind(k.Kind + "List"))
		opts := []client.ListOption{client.Limit(page), client.Continue(next)}
		if k.namespace != "" {
			opts = append(opts, client.InNamespace(k.namespace))
		}
		if err := r.c.List(ctx, list, opts...); meta.IsNoMatchError(err) && k.optional {
			return errors.New("the cluster does not know this kind")
		} else if err != nil {
			return err
		}
		for i := range list.Items {
			text, err := yaml.Marshal(k.tell(list.Items[i].Object))
			if err != nil {
				return err
			}
			out.WriteString("---\n")
			out.Write(text)
		}
		if next = list.GetContinue(); next == "" {
			break
		}
	}
	return r.archive.put("objects/"+k.file+".yaml", out.Bytes())
}

// tell is what of one object goes into the archive.
func (k *kind) tell(o map[string]any) map[string]any {
	allowed := k.allowed
	meta, _ := o["metadata"].(map[string]any)
	if name, _ := meta["name"].(string); k.names != nil && !slices.Contains(k.names, name) {
		allowed = nil
	}
	kept := object(o, allowed)
	if k.adjust != nil {
		k.adjust(o, kept)
	}
	return kept
}

// pods asks agents and operators.
func (r *collector) pods(ctx context.Context, run func(string, func(context.Context) error)) {
	var pods corev1.PodList
	if err := r.c.List(ctx, &pods, client.InNamespace(cluster.Namespace)); err != nil {
		r.miss("logs and nodes", err)
		return
	}
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	seen, logs := map[string]bool{}, 0
	for i := range pods.Items {
		p := &pods.Items[i]
		app, node := p.Labels[cluster.LabelName], p.Spec.NodeName
		if app != cluster.AgentName && app != cluster.OperatorName {
			continue
		}
		if len(r.Nodes) > 0 && !slices.Contains(r.Nodes, node) {
			continue
		}
		for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			logs++
			run("log of "+p.Name+"/"+s.Name, func(ctx context.Context) error { return r.log(ctx, p.Name, s.Name, false) })
			if s.RestartCount > 0 {
				logs++
				run("previous log of "+p.Name+"/"+s.Name, func(ctx context.Context) error { return r.log(ctx, p.Name, s.Name, true) })
			}
		}
		if app == cluster.AgentName && node != "" && !seen[node] {
			seen[node] = true
			run("node/"+node, func(ctx context.Context) error { return r.node(ctx, node) })
		}
	}
	r.Progress("logs and nodes: %d logs, %d nodes", logs, len(seen))
	for _, node := range r.Nodes {
		if !seen[node] {
			r.miss("node/"+node, cluster.ErrNoAgent)
		}
	}
}

func (r *collector) log(ctx context.Context, pod, container string, previous bool) error {
	name := "logs/" + pod + "-" + container
	o := &corev1.PodLogOptions{Container: container, Previous: previous, Timestamps: false}
	if previous {
		name += "-previous"
	}
	if r.LogsSince > 0 {
		seconds := int64(max(r.LogsSince/time.Second, 1))
		o.SinceTime = &metav1.Time{Time: time.Now().Add(-time.Duration(seconds) * time.Second)}
	}
	ctx, cancel := context.WithTimeout(ctx, r.NodeTimeout)
	defer cancel()
	r.Progress("log: %s", strings.TrimPrefix(name, "logs/"))
	// The API server cuts the end off where it is told a limit, and the end is what matters: so the last lines are asked
	// for, and of them no more than fit.
	lines := r.MaxLog / averageLine
	o.TailLines = &lines
	stream, err := r.c.Logs(ctx, cluster.Namespace, pod, o)
	if err != nil {
		return err
	}
	defer stream.Close()
	data, cut, err := limited(stream, r.MaxLog)
	text := ScrubLog(data)
	if cut {
		text = append(text, "<the rest is left out: --max-log>\n"...)
	}
	return errors.Join(err, r.archive.put(name+".log", text))
}

// averageLine of a log, in bytes.
const averageLine = 160

// node looks into one node. What one part says does not keep the others.
func (r *collector) node(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, r.NodeTimeout)
	defer cancel()
	folder := "nodes/" + node + "/"
	var failed []error
	for _, what := range []string{"status", "cni"} {
		r.Progress("node/%s: %s", node, map[string]string{"status": "state", "cni": "CNI configuration"}[what])
		var answer any
		err := r.c.Inspect(ctx, node, &answer, what)
		if errors.Is(err, cluster.ErrNoAgent) {
			return err
		}
		if err == nil {
			kept, _ := everything.keep(answer) // the node lists the fields itself; what is text is looked through
			err = r.putJSON(folder+what+".json", kept)
		}
		failed = append(failed, err)
	}
	infos, err := r.c.Maps(ctx, node)
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	failed = append(failed, r.putJSON(folder+"maps.json", infos))
	r.Progress("node/%s: %d maps", node, len(infos))
	for i, m := range infos {
		if m.Type == "RingBuf" || i > 0 && infos[i-1].Name == m.Name {
			continue
		}
		t, err := r.c.Map(ctx, node, m.Name)
		if err == nil {
			err = r.putJSON(folder+"map-"+m.Name+".json", t)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("map %s: %w", m.Name, err))
		}
	}
	return errors.Join(append(failed, r.flows(ctx, node, folder))...)
}

// flows are the last ones of a node, with names and policies, as `kubectl hubble flows --input-file` reads them. Where they
// cannot be had, what the monitor remembers stands in: the same packets in numbers and addresses.
func (r *collector) flows(ctx context.Context, node, folder string) error {
	if r.Flows == 0 {
		return nil
	}
	r.Progress("node/%s: flows", node)
	text, err := r.hubbleFlows(ctx, node)
	if err == nil {
		return r.archive.put(folder+"flows.jsonl", text)
	}
	var out bytes.Buffer
	lines := json.NewEncoder(&out)
	events := r.c.Events(ctx, node, cluster.EventRequest{Last: r.Flows}, func(m flow.Message) error {
		if m.Event != nil {
			m.Event.Decided = nil // words that nobody has looked through
		}
		return lines.Encode(m)
	})
	return errors.Join(fmt.Errorf("flows (monitor.jsonl has their packets, without names and policies): %w", err),
		events, r.archive.put(folder+"monitor.jsonl", out.Bytes()))
}

// hubbleFlows asks the node's Hubble server.
func (r *collector) hubbleFlows(ctx context.Context, node string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.NodeTimeout/2) // something must be left for the monitor
	defer cancel()
	pod, err := r.c.AgentPod(ctx, node)
	if err != nil {
		return nil, err
	}
	if _, err := r.hubble.Token(ctx); err != nil {
		return nil, err
	}
	n, err := r.hubble.Node(pod)
	if err != nil {
		return nil, err
	}
	defer n.Close() //nolint:errcheck // all was read, or that failed already
	answer, err := n.GetFlows(ctx, &observerpb.GetFlowsRequest{Number: uint64(r.Flows)})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for {
		m, err := answer.Recv()
		if errors.Is(err, io.EOF) {
			return out.Bytes(), nil
		}
		if err != nil {
			return nil, err
		}
		line, err := flowLine(m)
		if err != nil {
			return nil, err
		}
		out.Write(line)
	}
}

// flowLine is a message as `kubectl hubble flows -o json` writes it, its texts looked through.
func flowLine(m *observerpb.GetFlowsResponse) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var whole any
	if err := json.Unmarshal(text, &whole); err != nil {
		return nil, err
	}
	kept, _ := everything.keep(whole)
	text, err = json.Marshal(kept)
	return append(text, '\n'), err
}

// summary says what is in the archive, what is not, and why.
func (r *collector) summary(now time.Time) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "kube-cilium sysdump of %s, by kubectl cilium %s\n", now.Format(time.RFC3339), version.Version)
	fmt.Fprint(&b, "\nLeft out on purpose: Secrets (never read), data of ConfigMaps but cilium-prefixes and cilium-api-servers, commands,\n"+
		"arguments and environment values of containers, annotations but a few, what applications said, log lines of a shape or\n"+
		"with keys that are not known, and words that look like keys or tokens (\""+leftOut+"\" stands in their place).\n")
	if len(r.missing) == 0 {
		fmt.Fprint(&b, "\nEverything asked for could be had.\n")
	} else {
		fmt.Fprintf(&b, "\nCould not be had (%d):\n", len(r.missing))
		for _, m := range r.missing {
			fmt.Fprintf(&b, "  %s\n", m)
		}
	}
	fmt.Fprintf(&b, "\nFiles (%d):\n", len(r.archive.files))
	slices.SortFunc(r.archive.files, func(x, y entry) int { return cmp.Compare(x.name, y.name) })
	for _, f := range r.archive.files {
		fmt.Fprintf(&b, "  %9d  %s\n", f.size, f.name)
	}
	return b.Bytes()
}
