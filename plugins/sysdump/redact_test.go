// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"
)

// canary is a secret as people make them up: no pattern knows it, only the lists do.
const canary = "correct-horse"

func told(t *testing.T, kindName, text string) string {
	t.Helper()
	o := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds() {
		if k.Kind == kindName {
			out, err := json.Marshal(k.tell(o))
			if err != nil {
				t.Fatal(err)
			}
			return string(out)
		}
	}
	t.Fatalf("no kind %s", kindName)
	return ""
}

func TestSecretsInObjectsAreLeftOut(t *testing.T) {
	for _, c := range []struct {
		kind, object string
		kept         []string
	}{
		{"Pod", `
metadata:
  name: web
  namespace: shop
  labels: {app: web}
  annotations: {kubectl.kubernetes.io/last-applied-configuration: '{"password":"correct-horse"}', kube-cilium.io/unknown: correct-horse}
  managedFields: [{manager: correct-horse}]
spec:
  nodeName: worker-1
  hostAliases: [{hostnames: [correct-horse]}]
  containers:
  - name: app
    image: registry/app:1
    command: [run, --password=correct-horse]
    args: [correct-horse]
    env: [{name: DB_PASSWORD, value: correct-horse}, {name: FROM, valueFrom: {secretKeyRef: {name: db, key: correct-horse}}}]
    envFrom: [{secretRef: {name: correct-horse}}]
    lifecycle: {preStop: {exec: {command: [correct-horse]}}}
    readinessProbe: {httpGet: {port: 8080, path: /correct-horse, httpHeaders: [{name: Authorization, value: correct-horse}]}}
    ports: [{name: http, containerPort: 8080}]
  volumes: [{name: v, secret: {secretName: db}}, {name: csi, csi: {volumeAttributes: {password: correct-horse}}}]
status:
  phase: Running
  podIPs: [{ip: 10.0.0.1}]
  message: correct-horse
  containerStatuses: [{name: app, restartCount: 3, state: {waiting: {reason: CrashLoopBackOff, message: correct-horse}},
    lastState: {terminated: {exitCode: 1, message: correct-horse}}}]
`, []string{"web", "shop", "worker-1", "registry/app:1", "DB_PASSWORD", "8080", `"secretName":"db"`, "10.0.0.1", "CrashLoopBackOff"}},
		{"ConfigMap", `{metadata: {name: theirs, namespace: kube-cilium-system}, data: {key: correct-horse}, binaryData: {key: correct-horse}}`, []string{"theirs"}},
		{"ConfigMap", `{metadata: {name: cilium-api-servers}, data: {KUBERNETES_API_SERVERS: "https://10.0.0.1:6443,https://admin:correct-horse@10.0.0.2"}}`,
			[]string{"https://10.0.0.1:6443", "@10.0.0.2"}},
		{"DaemonSet", `{metadata: {name: cilium-agent, annotations: {deployment.kubernetes.io/revision: "7", x: correct-horse}}, spec: {template: {metadata: {annotations: {x: correct-horse}},
			spec: {containers: [{name: agent, image: a:1, args: [correct-horse], env: [{name: NODE_NAME, value: correct-horse}]}]}}}, status: {numberReady: 2}}`,
			[]string{"NODE_NAME", "a:1", `"numberReady":2`, `"7"`}},
		{"Event", `{metadata: {name: e}, reason: Unhealthy, note: "Liveness probe failed: correct-horse", regarding: {kind: Pod, name: web}}`, []string{"Unhealthy", "web"}},
		{"Event", `{metadata: {name: e}, reason: FailedCreatePodSandBox, note: "plugin type cilium-cni failed: no address", regarding: {kind: Pod, name: web}}`,
			[]string{"no address"}},
		{"Service", `{metadata: {name: s, annotations: {cloud/password: correct-horse}}, spec: {clusterIPs: [10.1.0.1]}}`, []string{"10.1.0.1"}},
		{"NetworkPolicy", `{metadata: {name: p, annotations: {note: correct-horse}}, spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}], policyTypes: [Ingress]}}`,
			[]string{`"podSelector":{}`, `"from":[{"podSelector":{}}]`}},
		{"CiliumNodeReport", `{metadata: {name: worker-1}, status: {conditions: [{type: Ready, message: "dial https://x: token=correct-horse refused"}]}}`, []string{"Ready", "refused"}},
		{"Node", `{metadata: {name: worker-1, annotations: {csi: correct-horse}}, spec: {providerID: correct-horse, podCIDRs: [10.0.0.0/24]}, status: {images: [{names: [correct-horse]}]}}`,
			[]string{"10.0.0.0/24"}},
		{"CustomResourceDefinition", `{metadata: {name: x.example.com}, spec: {group: example.com, conversion: {webhook: {clientConfig: {caBundle: correct-horse}}}}}`, []string{"example.com"}},
	} {
		got := told(t, c.kind, c.object)
		if strings.Contains(got, canary) {
			t.Errorf("%s tells the secret: %s", c.kind, got)
		}
		for _, want := range c.kept {
			if !strings.Contains(got, want) {
				t.Errorf("%s does not tell %s: %s", c.kind, want, got)
			}
		}
	}
}

// Nobody lists Secrets: what is not read cannot leak.
func TestSecretsAreNotAmongTheKinds(t *testing.T) {
	for _, k := range kinds() {
		if k.Kind == "Secret" || k.Kind == "ServiceAccount" {
			t.Errorf("%s is read", k.Kind)
		}
	}
}

// secrets in the shapes that machines make them, as in CVE-2023-29002, CVE-2024-37307 and CVE-2026-41520.
var secrets = []string{
	"eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQifQ.c2lnbmF0dXJlLXdpdGgtNjQtY2hhcnM",
	"q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=",
	"0123456789abcdef0123456789abcdef0123456789abcdef",
	"AKIAIOSFODNN7EXAMPLE",
	"ghp_R4nd0mT0k3nTh4tN0b0dySh0uldS33",
	"abcdef.0123456789abcdef",
	"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG\n-----END PRIVATE KEY-----",
}

func TestSecretsInTextAreLeftOut(t *testing.T) {
	for _, s := range secrets {
		for _, text := range []string{s, "the key is " + s + ", use it", "Authorization: Bearer " + s, `{"key":"` + s + `"}`} {
			if got := Scrub(text); strings.Contains(got, s) {
				t.Errorf("%q is told: %q", s, got)
			}
		}
	}
	for _, text := range []string{
		"password=correct-horse", `"password": "correct-horse"`, "etcd-password: correct-horse", "https://root:correct-horse@10.0.0.1:2379",
		"API_KEY='correct-horse'", `{\"token\":\"correct-horse\"}`, "Authorization: Basic Y29ycmVjdC1ob3JzZQ",
	} {
		if got := Scrub(text); strings.Contains(got, canary) || strings.Contains(got, "Y29ycmVjdC1ob3JzZQ") {
			t.Errorf("%q is told as %q", text, got)
		}
	}
}

// What helps must stay: names, addresses, paths, digests of images and programs.
func TestOrdinaryTextStays(t *testing.T) {
	for _, text := range []string{
		"cilium-operator-78d64bb49-9shc5", "1b2c3d4e-0000-4000-8000-123456789abc", "docker.io/kube-cilium/cilium-agent@sha256:" + strings.Repeat("ab12", 16),
		"/var/lib/kubelet/pods/1b2c3d4e-0000-4000-8000-123456789abc/volumes", "fd6b:6375:2:100::3", "2026-11-22T20:50:23.072Z",
		"load from_pod: operation not permitted (needs CAP_BPF and CAP_NET_ADMIN)", "the operator has not given this node its prefixes: there is no CiliumNode worker-2",
		"/host/etc/cni/net.d/05-kube-cilium.conflist", "ciliumnodereports.kube-cilium.io", "CiliumNodeReport/worker-1", "k8s:io.kubernetes.pod.namespace=kube-cilium-system",
		"failed to list *v1alpha1.CiliumEndpointSlice: connection refused", "node.kubernetes.io/not-ready", "observedConfigGeneration=12",
		"KubeletHasSufficientMemory", "PodReadyToStartContainers", "NodeHasNoDiskPressure",
	} {
		if got := Scrub(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestLogsKeepWhatIsKnown(t *testing.T) {
	for _, line := range []string{
		`I1122 20:50:22.333511       1 main.go:93] "starting" version="dev" node="worker-2" apiServers=["172.30.2.1:6443","[fd6b:6375:2::1]:6443"]`,
		`E1122 20:50:22.333511       1 reflector.go:569] "Failed to watch" err="failed to list *v1.Pod: dial tcp 10.152.0.1:443: connect: connection refused" type="*v1.Pod"`,
		`time=2026-11-22T20:50:26.423Z level=INFO msg="Attempting to acquire leader lease..." logger=leaderelection lock=kube-cilium-system/cilium-operator`,
		"panic: runtime error: index out of range [3] with length 3",
		"goroutine 17 [running]:",
		"github.com/kube-cilium/kube-cilium/nodeagent.(*Agent).Run(0xc0001234, {0x1f2e3d, 0xc000})",
		"\t/src/nodeagent/agent.go:304 +0x1a5",
		"cilium-agent: find the API server: no address",
	} {
		if got := string(ScrubLog([]byte(line + "\n"))); got != line+"\n" {
			t.Errorf("%q\nbecame %q", line, got)
		}
	}
}

func TestSecretsInLogsAreLeftOut(t *testing.T) {
	var log strings.Builder
	for _, s := range append(secrets, canary) {
		for _, format := range []string{
			"%s\n", "plain words %s\n", "{\"level\":\"info\",\"msg\":\"%s\"}\n",
			`I1122 20:50:22.333511       1 main.go:93] "signing in" password="%s"` + "\n",
			`I1122 20:50:22.333511       1 main.go:93] "signing in" newKey="%s" node="worker-1"` + "\n",
			`I1122 20:50:22.333511       1 main.go:93] "signing in" newKey={"a":"%s","b":["x"]} node="worker-1"` + "\n",
			`time=2026-11-22T20:50:26.423Z level=INFO msg="signing in" credential=%s node=worker-1` + "\n",
			"Authorization(%s)\n",
		} {
			fmt.Fprintf(&log, format, s)
		}
	}
	for _, s := range secrets { // a safe key with a secret in it
		fmt.Fprintf(&log, `E1122 20:50:22.333511       1 main.go:93] "cannot" err="401 for token %s" node="worker-1"`+"\n", strings.ReplaceAll(s, "\n", `\n`))
	}
	got := string(ScrubLog([]byte(log.String())))
	for _, s := range append(secrets, canary, "MIIEvQIBADANBgkqhkiG") {
		if strings.Contains(got, s) {
			t.Errorf("%q is told:\n%s", s, got)
		}
	}
	if !strings.Contains(got, `"signing in" newKey=`+leftOut+` node="worker-1"`) || !strings.Contains(got, "lines left out") {
		t.Errorf("%s", got)
	}
}

func FuzzScrubLog(f *testing.F) {
	f.Add([]byte(`I1122 20:50:22.333511       1 main.go:93] "a" b={"c":["d"]} e="f\"g`))
	f.Add([]byte("time=2026-11-22T20:50:26.423Z level=INFO msg=x y=[[{ z"))
	f.Fuzz(func(t *testing.T, text []byte) { ScrubLog(text) })
}
