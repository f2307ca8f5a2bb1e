// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/probe"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
	"github.com/kube-cilium/kube-cilium/plugins/progress"
)

// Options of a run.
type Options struct {
	// Namespace of the pods; Namespace-other is made too.
	Namespace string
	// Image with cilium-agent in it; "" is that of the agents.
	Image string
	// Nodes are one or two; none chooses.
	Nodes []string
	// SingleNode leaves out what takes two nodes.
	SingleNode bool
	// HostPort is where the two pods that speak for their hosts listen.
	HostPort uint16
	External []probe.Target
	// Only tests with one of these names; none is all.
	Only []string
	// Timeout of one answer, Settle for what a change may take to act, Ready for pods.
	Timeout, Settle, Ready time.Duration
	Keep                   bool
	// Progress is told what goes on.
	Progress func(format string, args ...any)
}

// OtherNamespace is the second namespace of a run.
func OtherNamespace(namespace string) string { return namespace + "-other" }

// cleanupTime bounds taking everything away, also after an interrupt.
const cleanupTime = 2 * time.Minute

// runner is one run.
type runner struct {
	Options
	c   *cluster.Cluster
	lab *lab
	// made are the namespaces that this run has created.
	made []string
}

// Run makes the lab, tests and takes everything away again, also when ctx ends. It returns an error where the test could
// not be made; what failed in it is in the report.
func Run(ctx context.Context, c *cluster.Cluster, o Options) (report *Report, err error) {
	r := &runner{Options: o, c: c}
	started := time.Now()
	defer func() {
		if cleanErr := r.cleanup(ctx); cleanErr != nil {
			err = errors.Join(err, cleanErr)
		}
	}()
	if err := r.deploy(ctx); err != nil {
		return nil, r.interrupted(ctx, err)
	}
	report = &Report{Nodes: r.lab.nodes, Families: r.lab.families, Image: r.lab.image, Started: started.UTC()}
	tests := r.lab.tests(o.External)
	if len(o.Only) > 0 {
		tests = slices.DeleteFunc(tests, func(t test) bool { return !slices.Contains(o.Only, t.name) })
	}
	for i, t := range tests {
		result, err := r.runTest(ctx, t)
		if err := r.interrupted(ctx, err); err != nil {
			return nil, err
		}
		word := "ok"
		if !result.OK() {
			word = "FAILED"
		}
		o.Progress("[%d/%d] %s: %s (%d checks, %.1fs)", i+1, len(tests), t.name, word, len(result.Checks), result.Seconds)
		for _, f := range result.Failed() {
			o.Progress("        %s: %s", f.Name(), f.Reason)
		}
		report.add(result)
	}
	report.OK = report.Failed == 0
	report.Seconds = time.Since(started).Seconds()
	return report, nil
}

// WorldTest is the test that asks Options.External, and is there only with it.
const WorldTest = "world"

// TestNames are all that --test takes.
func TestNames() []string {
	l := &lab{nodes: []string{"a", "b"}, pods: map[string]podAddresses{}}
	var names []string
	for _, t := range l.tests([]probe.Target{{}}) {
		names = append(names, t.name)
	}
	return names
}

func (r *runner) interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

func (r *runner) deploy(ctx context.Context) error {
	l, err := r.plan(ctx)
	if err != nil {
		return err
	}
	r.lab = l
	r.Progress("deploying to namespaces %s and %s on %s, image %s", l.namespace, l.other, strings.Join(l.nodes, " and "), l.image)
	for _, ns := range l.namespaces() {
		err := r.c.Create(ctx, ns)
		if apierrors.IsAlreadyExists(err) {
			return existsError(ns.Name)
		}
		if err != nil {
			return fmt.Errorf("create namespace/%s: %w", ns.Name, err)
		}
		r.made = append(r.made, ns.Name)
	}
	pods, svc := l.objects()
	if err := r.c.Create(ctx, svc); err != nil {
		return fmt.Errorf("create service/%s: %w", svc.Name, err)
	}
	l.service = addressesOf(svc.Spec.ClusterIPs)
	for _, p := range pods {
		if err := r.c.Create(ctx, p); err != nil {
			return fmt.Errorf("create pod/%s: %w", p.Name, err)
		}
	}
	return r.waitReady(ctx, len(pods))
}

func existsError(name string) error {
	return fmt.Errorf("namespace/%s exists already: a run goes on, one was kept, or it is somebody else's (delete it, or say another with --test-namespace)", name)
}

// plan decides without changing anything.
func (r *runner) plan(ctx context.Context) (*lab, error) {
	l := &lab{
		namespace: r.Namespace, other: OtherNamespace(r.Namespace), image: r.Image, nodes: r.Nodes, hostPort: r.HostPort,
		pods: map[string]podAddresses{},
	}
	for _, name := range []string{l.namespace, l.other} {
		err := r.c.Get(ctx, client.ObjectKey{Name: name}, &corev1.Namespace{})
		if err == nil {
			return nil, existsError(name)
		}
		if !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	var nodes corev1.NodeList
	if err := r.c.List(ctx, &nodes); err != nil {
		return nil, err
	}
	if len(l.nodes) == 0 {
		l.nodes = chooseNodes(nodes.Items)
	}
	for _, name := range l.nodes {
		i := slices.IndexFunc(nodes.Items, func(n corev1.Node) bool { return n.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("nodes %q not found", name)
		}
		if !takesPods(&nodes.Items[i]) {
			return nil, fmt.Errorf("node/%s takes no pods: it is not ready, cordoned or tainted", name)
		}
	}
	if r.SingleNode {
		l.nodes = l.nodes[:min(len(l.nodes), 1)]
	}
	switch {
	case len(l.nodes) == 0:
		return nil, fmt.Errorf("none of %d nodes takes pods: a node must be ready, and neither cordoned nor tainted", len(nodes.Items))
	case len(l.nodes) == 1 && !r.SingleNode:
		return nil, fmt.Errorf("two nodes that take pods are needed and there is one, %s (--single-node tests what one can show)", l.nodes[0])
	}
	if l.image == "" {
		var agents appsv1.DaemonSet
		if err := r.c.Get(ctx, client.ObjectKey{Namespace: cluster.Namespace, Name: cluster.AgentName}, &agents); err != nil {
			return nil, fmt.Errorf("find the agents' image: %w (or say --image)", err)
		}
		for _, c := range agents.Spec.Template.Spec.Containers {
			if c.Name == cluster.AgentContainer {
				l.image = c.Image
			}
		}
	}
	if l.image == "" {
		return nil, fmt.Errorf("daemonset.apps/%s has no container %s (say --image)", cluster.AgentName, cluster.AgentContainer)
	}
	return l, nil
}

const podPoll = 500 * time.Millisecond

// waitReady waits for all pods and takes their addresses.
func (r *runner) waitReady(ctx context.Context, want int) error {
	deadline := time.Now().Add(r.Ready)
	for {
		ready, waiting := 0, ""
		for _, ns := range r.made {
			var pods corev1.PodList
			if err := r.c.List(ctx, &pods, client.InNamespace(ns)); err != nil {
				return err
			}
			for i := range pods.Items {
				p := &pods.Items[i]
				if why := notReady(p); why != "" {
					waiting = fmt.Sprintf("pod/%s in namespace %s is not ready: %s", p.Name, ns, why)
					continue
				}
				ready++
				var texts []string
				for _, ip := range p.Status.PodIPs {
					texts = append(texts, ip.IP)
				}
				r.lab.pods[p.Name] = addressesOf(texts)
			}
		}
		if ready == want {
			r.lab.settleFamilies()
			if len(r.lab.families) == 0 {
				return errors.New("the pods have no address family in common")
			}
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s after %s", waiting, r.Ready)
		}
		if err := sleep(ctx, podPoll); err != nil {
			return err
		}
	}
}

// notReady says in words what keeps a pod, "" for one that is ready.
func notReady(p *corev1.Pod) string {
	if cluster.PodReady(p) && len(p.Status.PodIPs) > 0 {
		return ""
	}
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != "ContainerCreating" {
			why := strings.TrimSuffix(w.Reason+": "+w.Message, ": ")
			if t := c.LastTerminationState.Terminated; t != nil && t.Message != "" {
				why += "; it said: " + strings.TrimSpace(t.Message)
			}
			return why
		}
	}
	if p.Status.Reason != "" || p.Status.Message != "" {
		return strings.TrimSpace(p.Status.Reason + " " + p.Status.Message)
	}
	return "phase " + string(p.Status.Phase)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (r *runner) runTest(ctx context.Context, t test) (out Test, err error) {
	out = Test{Name: t.name, About: t.about, Checks: []Check{}}
	started := time.Now()
	defer func() { out.Seconds = time.Since(started).Seconds() }()
	told := false
	for _, p := range t.policies {
		if err := r.c.Create(ctx, p); err != nil {
			out.Error = fmt.Sprintf("create networkpolicy/%s: %s", p.Name, err)
			return out, nil
		}
	}
	if len(t.policies) > 0 {
		if told, err = r.waitInForce(ctx, t.policies); err != nil {
			return out, err
		}
	}
	deadline := time.Now().Add(r.Settle)
	for {
		asked := time.Now()
		checks, err := r.ask(ctx, t)
		if err != nil {
			return out, err
		}
		out.Checks = checks
		// Where every node has said that the policies are in force, the first answer counts.
		if len(out.Failed()) == 0 || told || time.Now().After(deadline) {
			if len(out.Failed()) > 0 {
				r.explain(ctx, &out, asked)
			}
			break
		}
		if err := sleep(ctx, podPoll); err != nil {
			return out, err
		}
	}
	return out, r.remove(ctx, t.policies)
}

// remove deletes policies and waits until they are no longer in force, as far as that can be seen: the next test's
// policies come later, so what they wait for has this behind it.
func (r *runner) remove(ctx context.Context, policies []*networkingv1.NetworkPolicy) error {
	for _, p := range policies {
		if err := r.c.Delete(ctx, p); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete networkpolicy/%s: %w", p.Name, err)
		}
	}
	return nil
}

// waitInForce waits until all nodes of the lab say that they enforce the policies. It returns false where nobody says
// so within the time: then it is found by asking again.
func (r *runner) waitInForce(ctx context.Context, policies []*networkingv1.NetworkPolicy) (bool, error) {
	deadline := time.Now().Add(r.Settle)
	for {
		view := progress.View{Now: time.Now()}
		var reports v1alpha1.CiliumNodeReportList
		var leases coordinationv1.LeaseList
		if err := errors.Join(r.c.List(ctx, &reports), r.c.List(ctx, &leases, client.InNamespace(cluster.Namespace))); err != nil {
			return false, client.IgnoreNotFound(err)
		}
		view.Leases = leases.Items
		silent := true
		for _, report := range reports.Items {
			silent = silent && len(report.Status.Policies) == 0
			if slices.Contains(r.lab.nodes, report.Name) {
				view.Reports = append(view.Reports, report)
			}
		}
		done := len(view.Reports) == len(r.lab.nodes)
		for _, p := range policies {
			state := view.Of("NetworkPolicy", p.Namespace, p.Name, p.ResourceVersion)
			done = done && state.InForce == len(r.lab.nodes)
		}
		if done || silent || time.Now().After(deadline) {
			return done, nil
		}
		if err := sleep(ctx, podPoll/5); err != nil {
			return false, err
		}
	}
}

// refusedTimeout is how long nobody must answer to count as refused.
const refusedTimeout = time.Second

// attempts of what should be reached: a lost packet is not what this test is about.
const attempts = 3

// ask asks every question of a test at once, each pod its own.
func (r *runner) ask(ctx context.Context, t test) ([]Check, error) {
	type batch struct {
		from    string
		refused bool
	}
	batches := map[batch][]int{}
	for i, c := range t.checks {
		b := batch{c.from, c.refused}
		batches[b] = append(batches[b], i)
	}
	out := make([]Check, len(t.checks))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for b, indexes := range batches {
		wg.Go(func() {
			targets := make([]string, len(indexes))
			for i, index := range indexes {
				targets[i] = t.checks[index].target.String()
			}
			results, err := r.probe(ctx, b.from, b.refused, targets)
			if err != nil {
				mu.Lock()
				failed = errors.Join(failed, err)
				mu.Unlock()
				return
			}
			for i, index := range indexes {
				out[index] = judge(t.checks[index], results[i])
			}
		})
	}
	wg.Wait()
	return out, failed
}

func (r *runner) probe(ctx context.Context, from string, refused bool, targets []string) ([]probe.Result, error) {
	timeout, tries := r.Timeout, attempts
	if refused {
		timeout, tries = min(refusedTimeout, r.Timeout), 1
	}
	command := append([]string{"cilium-agent", "probe", "check", "--timeout=" + timeout.String(), fmt.Sprintf("--attempts=%d", tries)}, targets...)
	var stdout, stderr bytes.Buffer
	if err := r.c.ExecIn(ctx, r.lab.namespaceOf(from), from, container, command, &stdout, &stderr); err != nil {
		return nil, fmt.Errorf("ask from pod/%s: %w: %s", from, err, strings.TrimSpace(stderr.String()))
	}
	var results []probe.Result
	if err := json.Unmarshal(stdout.Bytes(), &results); err != nil || len(results) != len(targets) {
		return nil, fmt.Errorf("ask from pod/%s: %d answers to %d questions: %w", from, len(results), len(targets), err)
	}
	return results, nil
}

func judge(c check, r probe.Result) Check {
	out := Check{
		Row: c.row, From: c.from, To: c.to, How: c.how, Target: c.target.String(), Refused: c.refused,
		OK: r.OK != c.refused, Micros: r.Micros,
	}
	switch {
	case c.refused && r.OK:
		out.Reason = "it answered, and nothing should come through"
	case !r.OK && !c.refused:
		out.Reason = flow.Safe(r.Error)
	case c.addresses != nil && !slices.Equal(c.addresses, r.Addresses):
		out.OK, out.Reason = false, fmt.Sprintf("the name stands for %s, not for %s", flow.Safe(strings.Join(r.Addresses, " ")), strings.Join(c.addresses, " "))
	}
	return out
}

// pastEvents of each node are looked through for drops.
const pastEvents = 4096

// maxDrops are told of one failure.
const maxDrops = 4

// explain adds to each failure the drops that nodes told of between the two since it was asked. Whoever may not look
// into nodes gets the failures without.
func (r *runner) explain(ctx context.Context, t *Test, since time.Time) {
	var drops []flow.Event
	for _, node := range r.lab.nodes {
		err := r.c.Events(ctx, node, cluster.EventRequest{Last: pastEvents, Types: []string{flow.Drop.String()}}, func(m flow.Message) error {
			if m.Event != nil && m.Event.Time.After(since.Add(-clockSkew)) {
				drops = append(drops, *m.Event)
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			r.Progress("drops of node/%s are left out: %s", node, err)
		}
	}
	for i := range t.Checks {
		if !t.Checks[i].OK && !t.Checks[i].Refused {
			t.Checks[i].Drops = r.dropsOf(&t.Checks[i], drops)
			if len(t.Checks[i].Drops) > 0 {
				t.Checks[i].Reason += "; " + t.Checks[i].Drops[0]
			}
		}
	}
}

// clockSkew is how far a node's clock may be from ours.
const clockSkew = 2 * time.Second

// dropsOf are the drops between the two ends of a check, once each.
func (r *runner) dropsOf(c *Check, drops []flow.Event) []string {
	target, err := probe.ParseTarget(c.Target)
	if err != nil {
		return nil
	}
	own := slices.Collect(maps.Values(r.lab.pods[c.From]))
	to, _ := netip.ParseAddr(target.Host)
	others := []netip.Addr{to}
	if strings.HasPrefix(c.To, "service/") {
		for _, s := range r.lab.servers() {
			others = append(others, r.lab.pods[s][family(to)])
		}
	}
	var out []string
	for _, e := range drops {
		source, destination := e.Source.Address.Unmap(), e.Destination.Address.Unmap()
		forward := slices.Contains(own, source) && slices.Contains(others, destination) && (target.Port == 0 || e.Destination.Port == target.Port)
		backward := slices.Contains(own, destination) && slices.Contains(others, source) && (target.Port == 0 || e.Source.Port == target.Port)
		if !forward && !backward {
			continue
		}
		line := fmt.Sprintf("dropped on node/%s at %s: %s (%s)", e.Node, e.Hook, e.Reason.Text(), e.Reason)
		if !slices.Contains(out, line) && len(out) < maxDrops {
			out = append(out, line)
		}
	}
	return out
}

// cleanup takes away what this run made, also after an interrupt.
func (r *runner) cleanup(ctx context.Context) error {
	if len(r.made) == 0 {
		return nil
	}
	if r.Keep {
		r.Progress("kept: namespaces %s (kubectl delete namespace %s)", strings.Join(r.made, ", "), strings.Join(r.made, " "))
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	r.Progress("removing namespaces %s", strings.Join(r.made, " and "))
	var failed error
	for _, name := range r.made {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if err := r.c.Delete(ctx, ns); client.IgnoreNotFound(err) != nil {
			failed = errors.Join(failed, fmt.Errorf("delete namespace/%s: %w", name, err))
		}
	}
	for _, name := range r.made {
		for failed == nil {
			err := r.c.Get(ctx, client.ObjectKey{Name: name}, &corev1.Namespace{})
			if apierrors.IsNotFound(err) {
				break
			}
			if err := sleep(ctx, podPoll); err != nil {
				return fmt.Errorf("namespace/%s is still there after %s (kubectl get namespace %s)", name, cleanupTime, name)
			}
		}
	}
	return failed
}
