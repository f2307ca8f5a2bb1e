// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/testenv"
)

const system = "kube-cilium-system"

// agents are the clients of one administrator and of two agents that hold real tokens of pods on their nodes.
type agents struct {
	env                  *testenv.Env
	admin, a, b, unbound client.Client
	aConfig              *rest.Config
}

func startAgents(t *testing.T) *agents {
	t.Helper()
	env := testenv.Start(t)
	if out, err := env.Kubectl("apply", "-k", "config/default"); err != nil {
		t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	of := func(cfg *rest.Config) client.Client {
		c, err := client.New(cfg, client.Options{Scheme: scheme})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	set := kubernetes.NewForConfigOrDie(env.Config)
	token := func(node string) *rest.Config {
		ctx := t.Context()
		request := &authenticationv1.TokenRequest{}
		if node != "" {
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: "cilium-agent-" + node, Namespace: system},
				Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "cilium-agent", HostNetwork: true,
					Containers: []corev1.Container{{Name: "agent", Image: "agent"}, {Name: "inspect", Image: "agent"}}},
			}
			if _, err := set.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			pod, err := set.CoreV1().Pods(system).Create(ctx, pod, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
		}
		request, err := set.CoreV1().ServiceAccounts(system).CreateToken(ctx, "cilium-agent", request, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		cfg := rest.AnonymousClientConfig(env.Config)
		cfg.BearerToken = request.Status.Token
		return cfg
	}
	aConfig := token("node-a")
	out := &agents{env: env, admin: of(env.Config), a: of(aConfig), b: of(token("node-b")), unbound: of(token("")), aConfig: aConfig}
	out.awaitPolicy(t)
	return out
}

// awaitPolicy waits until the API server has taken up the policy.
func (s *agents) awaitPolicy(t *testing.T) {
	t.Helper()
	probe := &v1alpha1.CiliumNodeReport{ObjectMeta: metav1.ObjectMeta{Name: "probe"}}
	for range 150 {
		err := s.a.Create(t.Context(), probe.DeepCopy(), client.DryRunAll)
		if err != nil && strings.Contains(err.Error(), "its own node") {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatal("the admission policy does not come into force")
}

func meta(name string, labels map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: labels}
}

func endpoint(name, node string) *v1alpha1.CiliumEndpoint {
	e := &v1alpha1.CiliumEndpoint{ObjectMeta: meta(name, map[string]string{v1alpha1.LabelNode: node})}
	e.Namespace = "default"
	return e
}

func slice(name, node string) *v1alpha1.CiliumEndpointSlice {
	return &v1alpha1.CiliumEndpointSlice{ObjectMeta: meta(name, nil), Spec: v1alpha1.CiliumEndpointSliceSpec{Node: node}}
}

func identity(name string) *v1alpha1.CiliumIdentity {
	return &v1alpha1.CiliumIdentity{ObjectMeta: meta(name, nil), Spec: v1alpha1.CiliumIdentitySpec{Labels: map[string]string{"k8s:app": "web"}}}
}

func lease(namespace, name string) *coordinationv1.Lease {
	l := &coordinationv1.Lease{ObjectMeta: meta(name, nil)}
	l.Namespace = namespace
	return l
}

// TestAgentWritesOnlyItsOwnNode tries each write that an agent has to be able to do, then each that must be refused.
func TestAgentWritesOnlyItsOwnNode(t *testing.T) {
	s := startAgents(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	for _, node := range []string{"node-a", "node-b"} {
		must(s.admin.Create(ctx, &v1alpha1.CiliumNode{ObjectMeta: meta(node, nil)}))
	}
	must(s.admin.Create(ctx, identity("3000")))
	dead := identity("3001")
	dead.Annotations = map[string]string{v1alpha1.AnnotationTombstone: "2026-01-01T00:00:00Z", "note": "x"}
	must(s.admin.Create(ctx, dead))

	// The agent of node-b has its objects, so that node-a can try to change them.
	must(s.b.Create(ctx, &v1alpha1.CiliumNodeReport{ObjectMeta: meta("node-b", nil)}))
	must(s.b.Create(ctx, endpoint("pod-b", "node-b")))
	must(s.b.Create(ctx, slice("node-b-0", "node-b")))
	must(s.b.Create(ctx, lease(system, "cilium-agent-node-b")))

	annotate := func(o client.Object, key, value string) {
		notes := o.GetAnnotations()
		if notes == nil {
			notes = map[string]string{}
		}
		notes[key] = value
		o.SetAnnotations(notes)
	}
	get := func(c client.Client, o client.Object) client.Object {
		t.Helper()
		must(c.Get(ctx, client.ObjectKeyFromObject(o), o))
		return o
	}
	// A lease of another node is not readable by a list, but by name: what matters is that it cannot be written.
	type step struct {
		name string
		do   func(ctx context.Context) error
	}
	allowed := []step{
		{"report", func(ctx context.Context) error {
			return s.a.Create(ctx, &v1alpha1.CiliumNodeReport{ObjectMeta: meta("node-a", nil)})
		}},
		{"report status", func(ctx context.Context) error {
			r := get(s.a, &v1alpha1.CiliumNodeReport{ObjectMeta: meta("node-a", nil)}).(*v1alpha1.CiliumNodeReport)
			r.Status.Endpoints = 3
			return s.a.Status().Update(ctx, r)
		}},
		{"node status", func(ctx context.Context) error {
			n := get(s.a, &v1alpha1.CiliumNode{ObjectMeta: meta("node-a", nil)}).(*v1alpha1.CiliumNode)
			n.Status.BootID = "b"
			return s.a.Status().Update(ctx, n)
		}},
		{"endpoint", func(ctx context.Context) error { return s.a.Create(ctx, endpoint("pod-a", "node-a")) }},
		{"endpoint status", func(ctx context.Context) error {
			e := get(s.a, endpoint("pod-a", "node-a")).(*v1alpha1.CiliumEndpoint)
			e.Status.Node = "node-a"
			return s.a.Status().Update(ctx, e)
		}},
		{"endpoint delete", func(ctx context.Context) error { return s.a.Delete(ctx, endpoint("pod-a", "node-a")) }},
		{"slice", func(ctx context.Context) error { return s.a.Create(ctx, slice("node-a-0", "node-a")) }},
		{"slice update", func(ctx context.Context) error {
			o := get(s.a, slice("node-a-0", "")).(*v1alpha1.CiliumEndpointSlice)
			o.Spec.Endpoints = []v1alpha1.SliceEndpoint{{Namespace: "default", Name: "pod-a", Addresses: []string{"10.0.0.7"}, Identity: 3000}}
			return s.a.Update(ctx, o)
		}},
		{"slice delete", func(ctx context.Context) error { return s.a.Delete(ctx, slice("node-a-0", "")) }},
		{"identity", func(ctx context.Context) error { return s.a.Create(ctx, identity("4000")) }},
		{"identity born adopted", func(ctx context.Context) error {
			o := identity("4001")
			annotate(o, v1alpha1.AnnotationAdopted, "2026-01-01T00:00:00Z")
			return s.a.Create(ctx, o)
		}},
		{"identity adopted", func(ctx context.Context) error {
			o := get(s.a, identity("3000"))
			annotate(o, v1alpha1.AnnotationAdopted, "2026-01-01T00:00:00Z")
			return s.a.Update(ctx, o)
		}},
		{"identity adopted back from its tombstone", func(ctx context.Context) error {
			o := get(s.a, identity("3001"))
			annotate(o, v1alpha1.AnnotationAdopted, "2026-01-01T00:00:00Z")
			delete(o.GetAnnotations(), v1alpha1.AnnotationTombstone)
			return s.a.Update(ctx, o)
		}},
		{"lease", func(ctx context.Context) error { return s.a.Create(ctx, lease(system, "cilium-agent-node-a")) }},
		{"lease renewed", func(ctx context.Context) error {
			o := get(s.a, lease(system, "cilium-agent-node-a")).(*coordinationv1.Lease)
			now := metav1.NowMicro()
			o.Spec.RenewTime = &now
			return s.a.Update(ctx, o)
		}},
	}
	for _, st := range allowed {
		if err := st.do(ctx); err != nil {
			t.Errorf("own node: %s: %v", st.name, err)
		}
	}

	update := func(o client.Object, change func(client.Object)) func(context.Context) error {
		return func(ctx context.Context) error {
			get(s.admin, o)
			change(o)
			return s.a.Update(ctx, o)
		}
	}
	status := func(o client.Object, change func(client.Object)) func(context.Context) error {
		return func(ctx context.Context) error {
			get(s.admin, o)
			change(o)
			return s.a.Status().Update(ctx, o)
		}
	}
	note := func(key string) func(client.Object) { return func(o client.Object) { annotate(o, key, "x") } }
	b := meta("node-b", nil)
	forbidden := []step{
		{"node created", func(ctx context.Context) error {
			return s.a.Create(ctx, &v1alpha1.CiliumNode{ObjectMeta: meta("node-c", nil)})
		}},
		{"own node's prefixes", update(&v1alpha1.CiliumNode{ObjectMeta: meta("node-a", nil)}, func(o client.Object) {
			o.(*v1alpha1.CiliumNode).Spec.PodCIDRs = []string{"0.0.0.0/0"}
		})},
		{"own node deleted", func(ctx context.Context) error {
			return s.a.Delete(ctx, &v1alpha1.CiliumNode{ObjectMeta: meta("node-a", nil)})
		}},
		{"other node's status", status(&v1alpha1.CiliumNode{ObjectMeta: b}, func(o client.Object) {
			o.(*v1alpha1.CiliumNode).Status.BootID = "x"
		})},
		{"other node's report created", func(ctx context.Context) error {
			return s.a.Create(ctx, &v1alpha1.CiliumNodeReport{ObjectMeta: meta("node-c", nil)})
		}},
		{"other node's report", update(&v1alpha1.CiliumNodeReport{ObjectMeta: b}, note("n"))},
		{"other node's report status", status(&v1alpha1.CiliumNodeReport{ObjectMeta: b}, func(o client.Object) {
			o.(*v1alpha1.CiliumNodeReport).Status.Endpoints = 9
		})},
		{"other node's report deleted", func(ctx context.Context) error {
			return s.a.Delete(ctx, &v1alpha1.CiliumNodeReport{ObjectMeta: b})
		}},
		{"endpoint of another node created", func(ctx context.Context) error { return s.a.Create(ctx, endpoint("x", "node-b")) }},
		{"endpoint of no node created", func(ctx context.Context) error {
			e := endpoint("x", "")
			e.Labels = nil
			return s.a.Create(ctx, e)
		}},
		{"other node's endpoint", update(endpoint("pod-b", ""), note("n"))},
		{"other node's endpoint taken over", update(endpoint("pod-b", ""), func(o client.Object) {
			o.SetLabels(map[string]string{v1alpha1.LabelNode: "node-a"})
		})},
		{"other node's endpoint status", status(endpoint("pod-b", ""), func(o client.Object) {
			o.(*v1alpha1.CiliumEndpoint).Status.ID = 9
		})},
		{"other node's endpoint deleted", func(ctx context.Context) error { return s.a.Delete(ctx, endpoint("pod-b", "")) }},
		{"other node's slice created", func(ctx context.Context) error { return s.a.Create(ctx, slice("x", "node-b")) }},
		{"other node's slice", update(slice("node-b-0", ""), func(o client.Object) {
			o.(*v1alpha1.CiliumEndpointSlice).Spec.Endpoints = []v1alpha1.SliceEndpoint{{Namespace: "a", Name: "b", Addresses: []string{"10.0.0.1"}, Identity: 3000}}
		})},
		{"other node's slice deleted", func(ctx context.Context) error { return s.a.Delete(ctx, slice("node-b-0", "")) }},
		{"identity deleted", func(ctx context.Context) error { return s.a.Delete(ctx, identity("3000")) }},
		{"identity relabelled", update(identity("3000"), func(o client.Object) {
			o.(*v1alpha1.CiliumIdentity).Spec.Labels["k8s:app"] = "db"
		})},
		{"identity annotated", update(identity("3000"), note("n"))},
		{"identity's foreign annotation taken away", update(identity("3001"), func(o client.Object) { delete(o.GetAnnotations(), "note") })},
		{"identity's object labels", update(identity("3000"), func(o client.Object) { o.SetLabels(map[string]string{"a": "b"}) })},
		{"identity held by a finalizer", update(identity("3000"), func(o client.Object) { o.SetFinalizers([]string{"a.b/c"}) })},
		{"identity owned", update(identity("3000"), func(o client.Object) {
			o.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "x", UID: "y"}})
		})},
		{"identity declared dead", update(identity("3000"), note(v1alpha1.AnnotationTombstone))},
		{"identity born dead", func(ctx context.Context) error {
			o := identity("4002")
			annotate(o, v1alpha1.AnnotationTombstone, "x")
			return s.a.Create(ctx, o)
		}},
		{"identity with reserved labels", func(ctx context.Context) error {
			o := identity("4003")
			o.Spec.Labels = map[string]string{"reserved:host": ""}
			return s.a.Create(ctx, o)
		}},
		{"other node's lease created", func(ctx context.Context) error { return s.a.Create(ctx, lease(system, "cilium-agent-node-c")) }},
		{"operator's lease created", func(ctx context.Context) error { return s.a.Create(ctx, lease(system, "cilium-operator")) }},
		{"lease in another namespace", func(ctx context.Context) error { return s.a.Create(ctx, lease("default", "cilium-agent-node-a")) }},
		{"other node's lease", update(lease(system, "cilium-agent-node-b"), note("n"))},
		{"lease deleted", func(ctx context.Context) error { return s.a.Delete(ctx, lease(system, "cilium-agent-node-a")) }},
		{"configuration created", func(ctx context.Context) error {
			return s.a.Create(ctx, &v1alpha1.CiliumConfig{ObjectMeta: meta("default", nil)})
		}},
		{"token without a node: report", func(ctx context.Context) error {
			return s.unbound.Create(ctx, &v1alpha1.CiliumNodeReport{ObjectMeta: meta("node-c", nil)})
		}},
		{"token without a node: identity", func(ctx context.Context) error { return s.unbound.Create(ctx, identity("4004")) }},
		{"core node", func(ctx context.Context) error {
			n := get(s.a, &corev1.Node{ObjectMeta: meta("node-a", nil)})
			annotate(n, "n", "x")
			return s.a.Update(ctx, n)
		}},
		{"core node status", func(ctx context.Context) error {
			n := get(s.a, &corev1.Node{ObjectMeta: meta("node-a", nil)})
			return s.a.Status().Update(ctx, n)
		}},
		{"pod", func(ctx context.Context) error {
			return s.a.Delete(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "cilium-agent-node-b", Namespace: system}})
		}},
		{"secret", func(ctx context.Context) error {
			return s.a.List(ctx, &corev1.SecretList{})
		}},
	}
	for _, st := range forbidden {
		err := st.do(ctx)
		switch {
		case err == nil:
			t.Errorf("an agent could do what it must not: %s", st.name)
		case !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err):
			t.Errorf("%s: refused, but not as forbidden: %v", st.name, err)
		}
	}
}

// TestInspectorsReadOnly: the group gets into the container inspect, and nowhere else. No kubelet answers here, so what
// is let through fails later, and otherwise than by Forbidden.
func TestInspectorsReadOnly(t *testing.T) {
	s := startAgents(t)
	overlay := t.TempDir()
	relative, err := filepath.Rel(overlay, testenv.Root())
	if err != nil {
		t.Fatal(err)
	}
	kustomization := "resources: [" + relative + "/config/default]\ncomponents: [" + relative + "/config/components/inspectors, " + relative + "/config/components/api-servers]\n"
	if err := os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(kustomization), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := s.env.Kubectl("apply", "-k", overlay); err != nil {
		t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
	pluginsHaveTheirRights(t, s)
	asInspector := func(args ...string) string {
		out, _ := s.env.Kubectl(append([]string{"--as=someone", "--as-group=kube-cilium:inspectors", "-n", system}, args...)...)
		return out
	}
	const pod = "cilium-agent-node-a"
	refused := "may only run"
	for range 100 {
		if strings.Contains(asInspector("exec", pod, "-c", "agent", "--", "sh"), refused) {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	for _, args := range [][]string{
		{"exec", pod, "-c", "agent", "--", "cilium-agent", "inspect", "maps"},
		{"exec", pod, "-c", "inspect", "--", "sh"},
		{"exec", pod, "-c", "inspect", "--", "cilium-agent", "run"},
		{"exec", pod, "-c", "inspect", "--", "cilium-agent", "inspect", "uninstall", "--yes"},
	} {
		if out := asInspector(args...); !strings.Contains(out, refused) {
			t.Errorf("%v: %s", args, out)
		}
	}
	if out := asInspector("exec", pod, "-c", "inspect", "--", "cilium-agent", "inspect", "maps"); strings.Contains(out, refused) || strings.Contains(out, "orbidden") {
		t.Errorf("an inspector cannot inspect: %s", out)
	}
	if out := asInspector("get", "secrets"); !strings.Contains(out, "orbidden") {
		t.Errorf("an inspector reads secrets: %s", out)
	}
	if out := asInspector("get", "ciliumnodes"); strings.Contains(out, "orbidden") {
		t.Errorf("an inspector cannot list nodes: %s", out)
	}
}

// pluginsHaveTheirRights runs the plugins as people whose rights are those of the manifests alone: status was refused
// the agents' pods and leases, and names of services were left out.
func pluginsHaveTheirRights(t *testing.T, s *agents) {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, "./plugins/kubectl-cilium", "./plugins/kubectl-hubble")
	build.Dir, build.Env = testenv.Root(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugins: %v\n%s", err, out)
	}
	for _, args := range [][]string{
		{"create", "clusterrolebinding", "readers", "--clusterrole=cilium-reader", "--group=readers"},
		{"-n", system, "create", "rolebinding", "readers", "--role=cilium-reader", "--group=readers"},
		{"-n", system, "create", "rolebinding", "flow-readers", "--role=hubble-reader", "--group=flow-readers"},
	} {
		if out, err := s.env.Kubectl(args...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	run := func(group, plugin string, args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(dir, plugin), append(args, "--as=someone", "--as-group="+group)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+s.env.Kubeconfig, "NO_COLOR=1")
		out, _ := cmd.CombinedOutput() // nothing is well here: no node has an agent that answers
		return string(out)
	}
	for _, group := range []string{"readers", "kube-cilium:inspectors"} {
		for _, verb := range []string{"status", "version"} {
			if out := run(group, "kubectl-cilium", verb); strings.Contains(out, "orbidden") || !strings.Contains(out, "gent") {
				t.Errorf("%s: kubectl cilium %s: %s", group, verb, out)
			}
		}
		for _, verb := range []string{"endpoint", "identity", "node"} {
			if out := run(group, "kubectl-cilium", verb, "list"); strings.Contains(out, "orbidden") {
				t.Errorf("%s: kubectl cilium %s: %s", group, verb, out)
			}
		}
		for _, kind := range []string{"services", "networkpolicies.networking.k8s.io", "ciliumidentities.kube-cilium.io", "ciliumendpointslices.kube-cilium.io"} {
			if out, _ := s.env.Kubectl("auth", "can-i", "list", kind, "-A", "--as=someone", "--as-group="+group); !strings.HasPrefix(out, "yes") {
				t.Errorf("%s may not list %s: %s", group, kind, out)
			}
		}
	}
	// The pod has to seem to run before it is asked; then no kubelet answers.
	set := kubernetes.NewForConfigOrDie(s.env.Config)
	pod, err := set.CoreV1().Pods(system).Get(t.Context(), "cilium-agent-node-a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Labels = map[string]string{"app.kubernetes.io/name": "cilium-agent"}
	if pod, err = set.CoreV1().Pods(system).Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "inspect", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	if _, err := set.CoreV1().Pods(system).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		group string
		may   bool
	}{{"readers", false}, {"kube-cilium:inspectors", true}} {
		for _, args := range [][]string{
			{"kubectl-cilium", "map", "list", "node-a"}, {"kubectl-cilium", "monitor", "node-a"},
		} {
			if out := run(row.group, args[0], args[1:]...); strings.Contains(out, "orbidden") == row.may || out == "" {
				t.Errorf("%s: %v: %s", row.group, args, out)
			}
		}
	}
	// Flows are their readers' alone; none come, since no agent answers.
	for group, may := range map[string]bool{"readers": false, "flow-readers": true} {
		if out := run(group, "kubectl-hubble", "flows", "-A"); strings.Contains(out, "orbidden") == may || out == "" {
			t.Errorf("%s: kubectl hubble flows: %s", group, out)
		}
	}
}
