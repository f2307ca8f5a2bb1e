// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

const (
	// nowhere is a node label that no node has: with it the DaemonSet takes its pods away and keeps its template, from
	// which the nodes are cleaned, so that an interrupted uninstall can be run again.
	nowhere = "kube-cilium.io/uninstalling"
	// uninstallPrefix begins the name of the pod that cleans a node.
	uninstallPrefix = "cilium-uninstall-"
	podPoll         = 500 * time.Millisecond
	// reminded is the annotation by which a deletion that takes long is asked for again, and patience how long the first
	// time takes.
	reminded = "kube-cilium.io/uninstall-reminded"
	patience = 5 * time.Second
)

// uninstallOptions are the flags of `kubectl cilium uninstall`.
type uninstallOptions struct {
	*plugin
	yes         bool
	nodeTimeout time.Duration
	timeout     time.Duration
	nodesOnly   bool
	skip        []string
}

func (p *plugin) uninstall() *cobra.Command {
	o := &uninstallOptions{plugin: p}
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the network away: every kernel object on every node, then the objects of the cluster",
		Long: "Take the network away. The operator and the agents are stopped; then, node by node, a pod removes every kernel\n" +
			"object, the CNI configuration and the agent's files; then the objects of the cluster go, the CiliumConfig too.\n" +
			"Pods that run lose their network until another CNI takes them over and they are made again.\n\n" +
			"Where a node cannot be cleaned the cluster's objects stay, so that it can be run again when the node is back; or\n" +
			"with --skip-node the node is left as it is. It ends when the namespace is gone too, so that what is applied next is\n" +
			"applied whole.",
		Example: `  # Asks before it begins
  kubectl cilium uninstall

  # One machine is gone for good
  kubectl cilium uninstall --skip-node worker-7`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "Do not ask.")
	cmd.Flags().DurationVar(&o.nodeTimeout, "node-timeout", 2*time.Minute, "How long one node may take.")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "How long the kinds with their objects, and then the namespace, may take to go, each.")
	cmd.Flags().BoolVar(&o.nodesOnly, "nodes-only", false, "Clean the nodes and keep the objects of the cluster.")
	cmd.Flags().StringSliceVar(&o.skip, "skip-node", nil, "Leave these nodes as they are.")
	_ = cmd.RegisterFlagCompletionFunc("skip-node", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return p.completeNames(c.Context(), &v1alpha1.CiliumNodeList{})
	})
	return cmd
}

func (o *uninstallOptions) run(ctx context.Context) error {
	c, err := o.connect()
	if err != nil {
		return err
	}
	var ds appsv1.DaemonSet
	err = c.Get(ctx, client.ObjectKey{Namespace: cluster.Namespace, Name: cluster.AgentName}, &ds)
	found := err == nil
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		return err
	}
	nodes.Items = slices.DeleteFunc(nodes.Items, func(n corev1.Node) bool {
		os := n.Labels[corev1.LabelOSStable]
		return os != "" && os != "linux" // the agent was never there
	})
	if err := o.confirm(c, len(nodes.Items), found); err != nil {
		return err
	}
	if found {
		if err := o.stop(ctx, c, &ds); err != nil {
			return err
		}
		if err := o.cleanNodes(ctx, c, &ds, nodes.Items); err != nil {
			return err
		}
	} else {
		o.remark("daemonset.apps/%s is not there: nodes are taken for clean", cluster.AgentName)
	}
	if err := o.untaint(ctx, c, nodes.Items); err != nil {
		return err
	}
	if o.nodesOnly {
		return nil
	}
	return o.removeObjects(ctx, c)
}

// confirm asks on stderr and reads stdin.
func (o *uninstallOptions) confirm(c *cluster.Cluster, nodes int, found bool) error {
	if o.yes {
		return nil
	}
	what := "the network's objects"
	if found {
		what = fmt.Sprintf("the network of %d nodes; pods that run lose theirs", nodes)
	}
	if !o.nodesOnly {
		what += "; and the configuration"
	}
	o.remark("This removes from context %q: %s.", c.Context, what)
	fmt.Fprint(o.ErrOut, `Type "yes" to go on: `)
	line, _ := bufio.NewReader(o.In).ReadString('\n')
	if strings.TrimSpace(line) != "yes" {
		return errors.New("not confirmed: nothing was changed")
	}
	return nil
}

// stop ends the operator and the agents. The DaemonSet stays, without pods.
func (o *uninstallOptions) stop(ctx context.Context, c *cluster.Cluster, ds *appsv1.DaemonSet) error {
	operator := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.Namespace, Name: cluster.OperatorName}}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"replicas":0}}`))
	if err := c.Patch(ctx, operator, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("stop the operator: %w", err)
	}
	patch = client.RawPatch(types.MergePatchType,
		[]byte(`{"spec":{"template":{"spec":{"nodeSelector":{"`+nowhere+`":"true"}}}}}`))
	if err := c.Patch(ctx, ds, patch); err != nil {
		return fmt.Errorf("stop the agents: %w", err)
	}
	o.remark("stopping the operator and the agents")
	return poll(ctx, o.nodeTimeout, func() (bool, error) {
		var pods corev1.PodList
		if err := c.List(ctx, &pods, client.InNamespace(cluster.Namespace)); err != nil {
			return false, err
		}
		return !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool {
			app := p.Labels[cluster.LabelName]
			if app != cluster.AgentName && app != cluster.OperatorName {
				return false
			}
			return !slices.Contains(o.skip, p.Spec.NodeName)
		}), nil
	}, "agents and operator are still running (a node that is away keeps its pod: --skip-node, or delete it)")
}

// cleanNodes cleans one node after the other and goes on after a failure; it returns an error if any node failed.
func (o *uninstallOptions) cleanNodes(ctx context.Context, c *cluster.Cluster, ds *appsv1.DaemonSet, nodes []corev1.Node) error {
	var failed []string
	for i := range nodes {
		name := nodes[i].Name
		if slices.Contains(o.skip, name) {
			o.remark("node/%s: left as it is (%d/%d)", name, i+1, len(nodes))
			continue
		}
		if err := o.cleanNode(ctx, c, ds, name); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted: run it again to go on")
			}
			o.remark("node/%s: %s (%d/%d)", name, err.Error(), i+1, len(nodes))
			failed = append(failed, name)
			continue
		}
		o.remark("node/%s: clean (%d/%d)", name, i+1, len(nodes))
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d nodes were not cleaned: %s; the objects of the cluster stay (run it again, or leave them with --skip-node)",
			len(failed), len(nodes), strings.Join(failed, ", "))
	}
	return nil
}

func (o *uninstallOptions) cleanNode(ctx context.Context, c *cluster.Cluster, ds *appsv1.DaemonSet, node string) error {
	pod, err := cleaner(ds, node)
	if err != nil {
		return err
	}
	if err := o.removePod(ctx, c, pod); err != nil { // of an earlier try
		return err
	}
	if err := c.Create(ctx, pod); err != nil {
		return fmt.Errorf("create pod/%s: %w", pod.Name, err)
	}
	err = poll(ctx, o.nodeTimeout, func() (bool, error) {
		if err := c.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return false, err
		}
		if pod.Status.Phase == corev1.PodFailed {
			return false, fmt.Errorf("pod/%s failed: %s", pod.Name, cleanerSaid(pod))
		}
		return pod.Status.Phase == corev1.PodSucceeded, nil
	}, fmt.Sprintf("pod/%s is not done", pod.Name))
	if err != nil {
		return err
	}
	return o.removePod(ctx, c, pod)
}

func cleanerSaid(pod *corev1.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		if t := s.State.Terminated; t != nil {
			return strings.TrimSpace(fmt.Sprintf("exit code %d: %s", t.ExitCode, strings.ReplaceAll(strings.TrimSpace(t.Message), "\n", "; ")))
		}
	}
	return pod.Status.Reason + " " + pod.Status.Message
}

func (o *uninstallOptions) removePod(ctx context.Context, c *cluster.Cluster, pod *corev1.Pod) error {
	gone := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
	if err := c.Delete(ctx, gone, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
		return err
	}
	return poll(ctx, o.nodeTimeout, func() (bool, error) {
		err := c.Get(ctx, client.ObjectKeyFromObject(pod), gone)
		return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	}, fmt.Sprintf("pod/%s does not go away", pod.Name))
}

// cleaner is a pod like the agent's, on one node, that removes instead of making.
func cleaner(ds *appsv1.DaemonSet, node string) (*corev1.Pod, error) {
	spec := ds.Spec.Template.Spec.DeepCopy()
	i := slices.IndexFunc(spec.Containers, func(c corev1.Container) bool { return c.Name == cluster.AgentContainer })
	if i < 0 {
		return nil, fmt.Errorf("daemonset.apps/%s has no container %s", ds.Name, cluster.AgentContainer)
	}
	agent := spec.Containers[i]
	agent.Args = []string{"inspect", "uninstall", "--yes"}
	agent.StartupProbe, agent.LivenessProbe, agent.ReadinessProbe, agent.Lifecycle, agent.Ports = nil, nil, nil, nil, nil
	agent.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	spec.Containers, spec.InitContainers = []corev1.Container{agent}, nil
	spec.NodeName, spec.NodeSelector, spec.Affinity = node, nil, nil
	spec.RestartPolicy = corev1.RestartPolicyNever
	spec.AutomountServiceAccountToken = new(bool)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cluster.Namespace, Name: uninstallPrefix + node,
			Labels: map[string]string{cluster.LabelName: "cilium-uninstall", "app.kubernetes.io/part-of": "kube-cilium"},
		},
		Spec: *spec,
	}, nil
}

// untaint takes our taint from every node: the operator that would is gone.
func (o *uninstallOptions) untaint(ctx context.Context, c *cluster.Cluster, nodes []corev1.Node) error {
	for i := range nodes {
		n := &nodes[i]
		if !findTaint(n, v1alpha1.TaintAgentNotReady) {
			continue
		}
		before := n.DeepCopy()
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintAgentNotReady })
		if err := c.Patch(ctx, n, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
			return fmt.Errorf("node/%s: remove taint %s: %w", n.Name, v1alpha1.TaintAgentNotReady, err)
		}
	}
	return nil
}

// removeObjects removes what the installation made. It is found by what it belongs to, not by labels: the kinds of our
// group, the admission policies named in it, the bindings to our service accounts, the roles cilium-* that speak of
// our group, and the namespace with all that is in it.
func (o *uninstallOptions) removeObjects(ctx context.Context, c *cluster.Cluster) error {
	group := "." + v1alpha1.GroupVersion.Group
	ours := func(name string) bool { return strings.HasSuffix(name, group) }
	for _, gvk := range []schema.GroupVersionKind{
		{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicyBinding"},
		{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicy"},
		{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"},
	} {
		if err := o.removeNamed(ctx, c, gvk, ours); err != nil {
			return err
		}
	}
	if err := o.removeRoles(ctx, c); err != nil {
		return err
	}
	where := metav1.ObjectMeta{Namespace: cluster.Namespace, Name: cluster.OperatorName}
	if err := o.remove(ctx, c, "deployment.apps/"+where.Name, &appsv1.Deployment{ObjectMeta: where}); err != nil {
		return err
	}
	where.Name = cluster.AgentName
	if err := o.remove(ctx, c, "daemonset.apps/"+where.Name, &appsv1.DaemonSet{ObjectMeta: where}); err != nil {
		return err
	}
	return o.removeNamespace(ctx, c)
}

// removeNamespace waits until the namespace is gone: what is applied into one that ends is refused, and a half of an
// installation would be left of it.
func (o *uninstallOptions) removeNamespace(ctx context.Context, c *cluster.Cluster) error {
	key := client.ObjectKey{Name: cluster.Namespace}
	name := "namespace/" + key.Name
	var ns corev1.Namespace
	if err := c.Get(ctx, key, &ns); err != nil {
		return client.IgnoreNotFound(err)
	}
	uid := ns.UID
	if err := c.Delete(ctx, &ns, client.Preconditions{UID: &uid}); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	o.remark("waiting until %s is gone", name)
	left := ""
	err := poll(ctx, o.timeout, func() (bool, error) {
		err := c.Get(ctx, key, &ns)
		if apierrors.IsNotFound(err) || err == nil && ns.UID != uid { // the other one is somebody's new one
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if now := remaining(&ns); now != left {
			if left = now; left != "" {
				o.remark("%s: %s", name, left)
			}
		}
		return false, nil
	}, name+" is still being deleted")
	if err != nil && ctx.Err() == nil {
		if left == "" {
			left = "nobody has said what is left in it"
		}
		err = fmt.Errorf("%w: %s (install again only when it is gone: kubectl wait --for=delete %s)", err, left, name)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "%s deleted\n", name)
	return nil
}

// remaining is what a namespace that ends still waits for, in its controller's words; "" where it has said nothing.
func remaining(ns *corev1.Namespace) string {
	var all []string
	for _, c := range ns.Status.Conditions {
		if c.Status == corev1.ConditionTrue {
			all = append(all, c.Message)
		}
	}
	return strings.Join(all, "; ")
}

func (o *uninstallOptions) removeNamed(ctx context.Context, c *cluster.Cluster, gvk schema.GroupVersionKind, ours func(string) bool) error {
	all := &metav1.PartialObjectMetadataList{}
	all.SetGroupVersionKind(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
	if err := c.List(ctx, all); meta.IsNoMatchError(err) {
		return nil
	} else if err != nil {
		return err
	}
	for i := range all.Items {
		name := all.Items[i].Name
		if !ours(name) {
			continue
		}
		one := &unstructured.Unstructured{}
		one.SetGroupVersionKind(gvk)
		one.SetName(name)
		if err := o.remove(ctx, c, strings.ToLower(gvk.Kind)+"."+gvk.Group+"/"+name, one); err != nil {
			return err
		}
	}
	return o.waitGone(ctx, c, gvk, ours)
}

// waitGone waits as kubectl delete does: a kind is gone when its last object is. An API server forgets about one whose
// objects it could not list at once and whose status it then wrote faster than it heard of that: it takes the conflict
// for a change that it will be told of, and leaves its own changes out. It would come back to it with the next resync,
// within five minutes; any other change reminds it.
func (o *uninstallOptions) waitGone(ctx context.Context, c *cluster.Cluster, gvk schema.GroupVersionKind, ours func(string) bool) error {
	all := &metav1.PartialObjectMetadataList{}
	all.SetGroupVersionKind(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
	var left []string
	pause, last := patience, time.Now()
	err := poll(ctx, o.timeout, func() (bool, error) {
		if err := c.List(ctx, all); err != nil {
			return false, err
		}
		all.Items = slices.DeleteFunc(all.Items, func(m metav1.PartialObjectMetadata) bool { return !ours(m.Name) })
		remind := time.Since(last) > pause
		if remind {
			pause, last = 2*pause, time.Now() // a reminder is also a conflict for who is at work
		}
		left = nil
		for i := range all.Items {
			one := &all.Items[i]
			if left = append(left, one.Name); !remind || one.DeletionTimestamp == nil {
				continue
			}
			one.SetGroupVersionKind(gvk)
			patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, reminded, last.Format(time.RFC3339))
			err := c.Patch(ctx, one, client.RawPatch(types.MergePatchType, patch))
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // a conflict: who else writes it has reminded
				return false, fmt.Errorf("remind of the deletion of %s: %w", one.Name, err)
			}
		}
		return len(left) == 0, nil
	}, gvk.Kind+" objects are still there")
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %s (their conditions say why)", err, strings.Join(left, ", "))
	}
	return err
}

func (o *uninstallOptions) removeRoles(ctx context.Context, c *cluster.Cluster) error {
	accounts := func(subjects []rbacv1.Subject) bool {
		return len(subjects) > 0 && !slices.ContainsFunc(subjects, func(s rbacv1.Subject) bool {
			return s.Kind != rbacv1.ServiceAccountKind || s.Namespace != cluster.Namespace
		})
	}
	var roles rbacv1.ClusterRoleList
	if err := c.List(ctx, &roles); err != nil {
		return err
	}
	// Not somebody else's, such as view, into which ours are aggregated.
	roles.Items = slices.DeleteFunc(roles.Items, func(r rbacv1.ClusterRole) bool {
		speaks := slices.ContainsFunc(r.Rules, func(p rbacv1.PolicyRule) bool { return slices.Contains(p.APIGroups, v1alpha1.GroupVersion.Group) })
		return !speaks || !strings.HasPrefix(r.Name, "cilium-")
	})
	// Whoever is bound to a role of ours, such as a group of people, is bound to nothing afterwards.
	toOurs := func(ref rbacv1.RoleRef) bool {
		return ref.Kind == "ClusterRole" && slices.ContainsFunc(roles.Items, func(r rbacv1.ClusterRole) bool { return r.Name == ref.Name })
	}
	var bindings rbacv1.ClusterRoleBindingList
	if err := c.List(ctx, &bindings); err != nil {
		return err
	}
	for i := range bindings.Items {
		b := &bindings.Items[i]
		if !accounts(b.Subjects) && !toOurs(b.RoleRef) {
			continue
		}
		if err := o.remove(ctx, c, "clusterrolebinding.rbac.authorization.k8s.io/"+b.Name, b); err != nil {
			return err
		}
	}
	for i := range roles.Items {
		r := &roles.Items[i]
		if err := o.remove(ctx, c, "clusterrole.rbac.authorization.k8s.io/"+r.Name, r); err != nil {
			return err
		}
	}
	var local rbacv1.RoleBindingList
	if err := c.List(ctx, &local); err != nil {
		return err
	}
	for i := range local.Items {
		b := &local.Items[i]
		if b.Namespace == cluster.Namespace || !accounts(b.Subjects) && !toOurs(b.RoleRef) {
			continue // those of our namespace go with it
		}
		if err := o.remove(ctx, c, "rolebinding.rbac.authorization.k8s.io/"+b.Name, b); err != nil {
			return err
		}
	}
	return nil
}

func (o *uninstallOptions) remove(ctx context.Context, c *cluster.Cluster, name string, obj client.Object) error {
	err := c.Delete(ctx, obj, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	fmt.Fprintf(o.Out, "%s deleted\n", name)
	return nil
}

// poll asks until done, an error, the timeout (an error that says what is) or ctx.
func poll(ctx context.Context, timeout time.Duration, done func() (bool, error), what string) error {
	deadline := time.Now().Add(timeout)
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s after %s", what, timeout)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(podPoll):
		}
	}
}
