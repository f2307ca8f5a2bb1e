// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/kube-cilium/kube-cilium/internal/testenv"
)

func TestDefaultApplies(t *testing.T) {
	for name, how := range map[string][]string{"client side": nil, "server side": {"--server-side"}} {
		t.Run(name, func(t *testing.T) {
			env := testenv.StartEmpty(t)
			for range 2 { // the second time changes nothing
				out, err := env.Kubectl(append([]string{"apply", "--validate=strict", "-k", "config/default"}, how...)...)
				if err != nil {
					t.Fatalf("kubectl apply: %v\n%s", err, out)
				}
			}
			out, err := env.Kubectl("get", "validatingadmissionpolicies", "-o", `jsonpath={range .items[*]}{.metadata.name}: {.status.typeChecking}{"\n"}{end}`)
			if err != nil || strings.Contains(out, "warning") {
				t.Errorf("the admission policy does not type-check: %v\n%s", err, out)
			}
		})
	}
}

// kubectl apply keeps a copy of the object in an annotation of at most 256 KiB.
func TestKindsAreSmall(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("crd", "bases", "*.yaml"))
	if err != nil || len(files) < 6 {
		t.Fatalf("found %d kinds: %v", len(files), err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() >= 200<<10 {
			t.Errorf("%s: %d bytes, want less than 200 KiB", f, info.Size())
		}
	}
}

// The component mount adds one privileged container that ends before the agent starts, and changes nothing else.
func TestMountComponent(t *testing.T) {
	env := testenv.Start(t)
	overlay := t.TempDir()
	relative, err := filepath.Rel(overlay, testenv.Root())
	if err != nil {
		t.Fatal(err)
	}
	plain := daemonSet(t, env, "config/default")
	kustomization := "resources: [" + relative + "/config/default]\ncomponents: [" + relative + "/config/components/mount]\nimages: [{name: kube-cilium/cilium-agent, newTag: v9}]\n"
	if err := os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(kustomization), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := env.Kubectl("apply", "--validate=strict", "-k", overlay); err != nil {
		t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
	pod := daemonSet(t, env, overlay).Spec.Template.Spec
	if len(plain.Spec.Template.Spec.InitContainers) != 0 || len(pod.InitContainers) != 1 || len(pod.Containers) != 2 {
		t.Fatalf("%+v", pod)
	}
	c := pod.InitContainers[0]
	if c.Image != pod.Containers[0].Image || !strings.HasSuffix(c.Image, ":v9") || !slices.Equal(c.Args, []string{"mount"}) || !*c.SecurityContext.Privileged {
		t.Errorf("%+v", c)
	}
	if len(c.VolumeMounts) != 1 || *c.VolumeMounts[0].MountPropagation != corev1.MountPropagationBidirectional || c.VolumeMounts[0].MountPath != "/sys/fs/bpf" {
		t.Errorf("%+v", c.VolumeMounts)
	}
	for _, c := range pod.Containers {
		if *c.SecurityContext.Privileged {
			t.Errorf("%s is privileged", c.Name)
		}
	}
}

func daemonSet(t *testing.T, env *testenv.Env, dir string) *appsv1.DaemonSet {
	t.Helper()
	out, err := env.Kubectl("kustomize", dir)
	if err != nil {
		t.Fatalf("kubectl kustomize: %v\n%s", err, out)
	}
	for _, doc := range strings.Split(out, "\n---\n") {
		var d appsv1.DaemonSet
		if err := yaml.Unmarshal([]byte(doc), &d); err == nil && d.Kind == "DaemonSet" {
			return &d
		}
	}
	t.Fatalf("no DaemonSet in %s", dir)
	return nil
}
