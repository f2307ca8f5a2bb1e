// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/testenv"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

// kubelets plays the part of kubelets for the pods that clean nodes: it lets them end well, but those of bad nodes.
func kubelets(ctx context.Context, t *testing.T, c client.Client, bad func(node string) bool, seen func(*corev1.Pod)) {
	for ctx.Err() == nil {
		var pods corev1.PodList
		if err := c.List(ctx, &pods, client.InNamespace(cluster.Namespace)); err == nil {
			for i := range pods.Items {
				p := &pods.Items[i]
				if p.Status.Phase != corev1.PodPending || !strings.HasPrefix(p.Name, uninstallPrefix) {
					continue
				}
				seen(p)
				p.Status.Phase = corev1.PodSucceeded
				if bad(p.Spec.NodeName) {
					p.Status.Phase = corev1.PodFailed
					p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "agent", Image: "i", ImageID: "i", State: corev1.ContainerState{
						Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Message: "remove pins:\x1b[31m busy\n"},
					}}}
				}
				if err := c.Status().Update(ctx, p); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
					t.Error(err)
				}
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// The whole installation as it is shipped is removed from a real API server: refused first, then with one node that
// cannot be cleaned, then again.
func TestUninstall(t *testing.T) {
	env := testenv.Start(t)
	c, err := client.New(env.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := env.Kubectl("apply", "--server-side", "-k", filepath.Join(testenv.Root(), "config", "default")); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	people := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "people-who-read"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cilium-reader"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "people"}},
	}
	if err := c.Create(t.Context(), people); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"worker-1", "worker-2"} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
			{Key: v1alpha1.TaintAgentNotReady, Effect: corev1.TaintEffectNoSchedule}, {Key: "other", Effect: corev1.TaintEffectNoSchedule},
		}}}
		if err := c.Create(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	for _, node := range []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "windows", Labels: map[string]string{corev1.LabelOSStable: "windows"}}}} {
		if err := c.Create(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	remains := make(chan struct{})
	plugin := func(stdin string, args ...string) (code int, stdout, stderr string) {
		var out bytes.Buffer
		errOut := listening{text: contentRemains, heard: remains}
		streams := genericiooptions.IOStreams{In: strings.NewReader(stdin), Out: &out, ErrOut: &errOut}
		code = run(t.Context(), streams, append([]string{"--kubeconfig", env.Kubeconfig}, args...))
		return code, out.String(), errOut.String()
	}

	code, out, errOut := plugin("no\n", "uninstall")
	if code != 1 || out != "" || !strings.Contains(errOut, "the network of 2 nodes") || !strings.Contains(errOut, "nothing was changed") {
		t.Fatalf("not confirmed: exit %d, %q, %q", code, out, errOut)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	broken := true
	var cleaners []*corev1.Pod
	done := make(chan struct{})
	go func() {
		defer close(done)
		kubelets(ctx, t, c, func(node string) bool { return broken && node == "worker-2" }, func(p *corev1.Pod) { cleaners = append(cleaners, p) })
	}()
	code, out, errOut = plugin("yes\n", "uninstall", "--node-timeout", "90s")
	if code != 1 || out != "" {
		t.Fatalf("with a broken node: exit %d, %q, %q", code, out, errOut)
	}
	for _, want := range []string{"node/worker-1: clean (1/2)", `node/worker-2: pod/cilium-uninstall-worker-2 failed: exit code 1: remove pins:\x1b[31m busy (2/2)`, "1 of 2 nodes were not cleaned: worker-2"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("stderr lacks %q:\n%s", want, errOut)
		}
	}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: cluster.Namespace, Name: cluster.AgentName}, &appsv1.DaemonSet{}); err != nil {
		t.Errorf("the template is gone: %v", err)
	}
	cancel()
	<-done
	if len(cleaners) != 2 {
		t.Fatalf("%d pods cleaned", len(cleaners))
	}
	spec := cleaners[0].Spec
	if len(spec.Containers) != 1 || !spec.HostNetwork || spec.RestartPolicy != corev1.RestartPolicyNever || spec.Containers[0].LivenessProbe != nil ||
		!slices.Equal(spec.Containers[0].Args, []string{"inspect", "uninstall", "--yes"}) || len(spec.NodeSelector) != 0 {
		t.Errorf("the pod that cleans: %+v", spec)
	}

	// The second time the node can be cleaned.
	ctx, cancel = context.WithCancel(t.Context())
	broken = false
	done = make(chan struct{})
	go func() {
		defer close(done)
		kubelets(ctx, t, c, func(string) bool { return false }, func(*corev1.Pod) {})
	}()
	recalled := make(chan struct{})
	kind := forget(t, c, "ciliumnodes.kube-cilium.io")
	go func() {
		defer close(recalled)
		untilReminded(ctx, t, c, kind)
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		endNamespace(ctx, t, c, remains)
	}()
	code, out, errOut = plugin("", "uninstall", "--yes", "--node-timeout", "90s")
	cancel()
	<-done
	<-recalled
	<-ended
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	for _, want := range []string{"waiting until namespace/kube-cilium-system is gone", "namespace/kube-cilium-system: " + contentRemains} {
		if !strings.Contains(errOut, want) {
			t.Errorf("stderr lacks %q:\n%s", want, errOut)
		}
	}
	if err := c.Get(t.Context(), client.ObjectKey{Name: cluster.Namespace}, &corev1.Namespace{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace when the uninstall has ended: %v", err)
	}
	for _, want := range []string{"namespace/kube-cilium-system deleted", "clusterrole.rbac.authorization.k8s.io/cilium-agent deleted",
		"customresourcedefinition.apiextensions.k8s.io/ciliumconfigs.kube-cilium.io deleted", "validatingadmissionpolicy.admissionregistration.k8s.io/"} {
		if !strings.Contains(out, want) {
			t.Errorf("stdout lacks %q:\n%s", want, out)
		}
	}
	var node corev1.Node
	if err := c.Get(t.Context(), client.ObjectKey{Name: "worker-1"}, &node); err != nil || findTaint(&node, v1alpha1.TaintAgentNotReady) || !findTaint(&node, "other") {
		t.Errorf("taints %+v, %v", node.Spec.Taints, err)
	}
	nothingLeft(t, env)
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(people), people); !apierrors.IsNotFound(err) {
		t.Errorf("a group is still bound to a role that is gone: %v", err)
	}
	if code, out, errOut := plugin("", "status"); code != 1 || !strings.Contains(out, "the kinds of kube-cilium.io are not installed") {
		t.Errorf("status afterwards: exit %d, %s%s", code, out, errOut)
	}

	code, out, errOut = plugin("", "uninstall", "--yes")
	if code != 0 || out != "" {
		t.Errorf("with nothing to do: exit %d: %s%s", code, out, errOut)
	}
}

const contentRemains = "Some content remains: pods. has 1 resource instances"

// listening closes heard when the text is written.
type listening struct {
	bytes.Buffer
	text  string
	heard chan struct{}
}

func (l *listening) Write(p []byte) (int, error) {
	n, err := l.Buffer.Write(p)
	if l.text != "" && strings.Contains(l.String(), l.text) {
		l.text = ""
		close(l.heard)
	}
	return n, err
}

// endNamespace plays the part of the controller manager: it says what is left in our namespace, and ends it once that was
// passed on.
func endNamespace(ctx context.Context, t *testing.T, c client.Client, heard <-chan struct{}) {
	var ns corev1.Namespace
	for {
		if err := c.Get(ctx, client.ObjectKey{Name: cluster.Namespace}, &ns); err != nil {
			t.Error(err)
			return
		}
		if ns.DeletionTimestamp != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	ns.Status.Conditions = []corev1.NamespaceCondition{
		{Type: corev1.NamespaceDeletionDiscoveryFailure, Status: corev1.ConditionFalse, Message: "All resources successfully discovered"},
		{Type: corev1.NamespaceContentRemaining, Status: corev1.ConditionTrue, Message: contentRemains},
	}
	if err := c.Status().Update(ctx, &ns); err != nil {
		t.Error(err)
		return
	}
	select {
	case <-heard:
	case <-ctx.Done():
		return
	}
	ns.Spec.Finalizers = nil
	if err := c.SubResource("finalize").Update(ctx, &ns); err != nil {
		t.Error(err)
	}
}

// neverending is an API server whose namespace never ends, or has become another one.
type neverending struct {
	client.Client
	now, then types.UID
	deleted   bool
}

func (e *neverending) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	ns := o.(*corev1.Namespace)
	ns.UID = e.now
	if e.deleted {
		ns.UID = e.then
	}
	ns.Status.Conditions = []corev1.NamespaceCondition{{Type: corev1.NamespaceContentRemaining, Status: corev1.ConditionTrue, Message: "pods. has 1 resource instances"}}
	return nil
}

func (e *neverending) Delete(context.Context, client.Object, ...client.DeleteOption) error {
	e.deleted = true
	return nil
}

// What was applied right after the uninstall went into a namespace that ended, and half of it was refused.
func TestUninstallLeftANamespaceThatWasStillEnding(t *testing.T) {
	for _, test := range []struct {
		name      string
		then      types.UID
		out, fail string
	}{
		{"it never ends", "one", "", "namespace/kube-cilium-system is still being deleted after 5m0s: pods. has 1 resource instances " +
			"(install again only when it is gone: kubectl wait --for=delete namespace/kube-cilium-system)"},
		{"another one is there", "two", "namespace/kube-cilium-system deleted\n", ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			streams, _, out, _ := genericiooptions.NewTestIOStreams()
			o := &uninstallOptions{plugin: &plugin{IOStreams: streams}, timeout: 5 * time.Minute}
			said := ""
			if err := o.removeNamespace(t.Context(), &cluster.Cluster{Client: &neverending{now: "one", then: test.then}}); err != nil {
				said = err.Error()
			}
			if said != test.fail || out.String() != test.out {
				t.Errorf("%s: %q, %q", test.name, said, out)
			}
		})
	}
}

// stubborn is an API server with one kind whose deletion takes long, and that others write all the while.
type stubborn struct {
	client.Client
	asked int
}

func (s *stubborn) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	all := list.(*metav1.PartialObjectMetadataList)
	all.Items = nil
	if s.asked < 2 {
		all.Items = []metav1.PartialObjectMetadata{{ObjectMeta: metav1.ObjectMeta{Name: "ours", DeletionTimestamp: new(metav1.Now())}}}
	}
	return nil
}

func (s *stubborn) Patch(_ context.Context, o client.Object, _ client.Patch, _ ...client.PatchOption) error {
	s.asked++
	return apierrors.NewConflict(schema.GroupResource{Resource: "customresourcedefinitions"}, o.GetName(), errors.New("the object has been modified"))
}

// The reminder met a conflict with whoever was at work on the deletion, and that ended the uninstall.
func TestUninstallEndedWhenAReminderMetAConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stubborn{}
		o := &uninstallOptions{timeout: 2 * time.Minute}
		gvk := schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}
		if err := o.waitGone(t.Context(), &cluster.Cluster{Client: s}, gvk, func(name string) bool { return name == "ours" }); err != nil || s.asked != 2 {
			t.Errorf("%v; reminded %d times", err, s.asked)
		}
	})
}

const forgotten = "test.kube-cilium.io/forgotten"

// forget keeps a kind from going, as an API server does that has lost sight of its deletion.
func forget(t *testing.T, c client.Client, name string) *metav1.PartialObjectMetadata {
	t.Helper()
	kind := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name}}
	kind.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(kind), kind); err != nil {
		t.Fatal(err)
	}
	before := kind.DeepCopy()
	controllerutil.AddFinalizer(kind, forgotten)
	if err := c.Patch(t.Context(), kind, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	return kind
}

// untilReminded ends the forgetting when the kind's deletion is asked for again.
func untilReminded(ctx context.Context, t *testing.T, c client.Client, kind *metav1.PartialObjectMetadata) {
	for ctx.Err() == nil {
		if err := c.Get(ctx, client.ObjectKeyFromObject(kind), kind); err == nil && kind.Annotations[reminded] != "" {
			before := kind.DeepCopy()
			controllerutil.RemoveFinalizer(kind, forgotten)
			if err := c.Patch(ctx, kind, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err == nil {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("nobody asked for the deletion again")
}

// nothingLeft looks for what the installation made: all of it but the namespace, which needs a controller manager.
func nothingLeft(t *testing.T, env *testenv.Env) {
	t.Helper()
	shipped, err := env.Kubectl("kustomize", filepath.Join(testenv.Root(), "config", "default"))
	if err != nil {
		t.Fatalf("%v: %s", err, shipped)
	}
	file := filepath.Join(t.TempDir(), "shipped.yaml")
	if err := os.WriteFile(file, []byte(shipped), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := env.Kubectl("get", "--ignore-not-found", "-o", "name", "-f", file) // objects of kinds that are gone: no matter
	for line := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		kind, name, _ := strings.Cut(line, "/")
		if strings.HasPrefix(kind, "cluster") || strings.HasPrefix(kind, "custom") || strings.HasPrefix(kind, "validating") {
			t.Errorf("left behind: %s/%s", kind, name)
		}
	}
}
