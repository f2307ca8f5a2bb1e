// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/kube-cilium/kube-cilium/internal/testenv"
)

func TestSamplesApply(t *testing.T) {
	env := testenv.Start(t)
	for _, how := range [][]string{{"--server-side"}, {}} {
		out, err := env.Kubectl(append([]string{"apply", "--validate=strict", "-k", "config/samples"}, how...)...)
		if err != nil {
			t.Fatalf("kubectl apply %v: %v\n%s", how, err, out)
		}
	}
}

// TestConfigSampleHasEverySetting: whoever looks for a setting finds it there.
func TestConfigSampleHasEverySetting(t *testing.T) {
	var crd apiextensionsv1.CustomResourceDefinition
	var sample map[string]any
	for file, into := range map[string]any{"crd/bases/kube-cilium.io_ciliumconfigs.yaml": &crd, "samples/ciliumconfig.yaml": &sample} {
		data, err := os.ReadFile(filepath.Join("../../config", file))
		if err == nil {
			err = yaml.Unmarshal(data, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var walk func(path string, schema apiextensionsv1.JSONSchemaProps, value any)
	walk = func(path string, schema apiextensionsv1.JSONSchemaProps, value any) {
		for name, of := range schema.Properties {
			fields, _ := value.(map[string]any)
			field, there := fields[name]
			if !there {
				t.Errorf("the sample has no %s.%s", path, name)
				continue
			}
			walk(path+"."+name, of, field)
		}
	}
	walk("spec", crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"], sample["spec"])
}

// kubectl runs a verb on one object.
func kubectl(t *testing.T, env *testenv.Env, object string, verb ...string) (string, error) {
	t.Helper()
	f := filepath.Join(t.TempDir(), "object.yaml")
	if err := os.WriteFile(f, []byte(object), 0o600); err != nil {
		t.Fatal(err)
	}
	return env.Kubectl(append(verb, "-f", f)...)
}

func object(kind, name, body string) string {
	namespace := ""
	if kind == "CiliumEndpoint" {
		namespace = "  namespace: default\n"
	}
	return fmt.Sprintf("apiVersion: kube-cilium.io/v1alpha1\nkind: %s\nmetadata:\n  name: %q\n%s%s\n", kind, name, namespace, body)
}

// TestBadObjectsAreRefused: each row says what of the answer has to tell a person where to look.
func TestBadObjectsAreRefused(t *testing.T) {
	env := testenv.Start(t)
	const config, node, slice, identity = "CiliumConfig", "CiliumNode", "CiliumEndpointSlice", "CiliumIdentity"
	v4 := func(pool string) string { return "spec: {ipam: {ipv4: {" + pool + "}}}" }
	v6 := func(pool string) string { return "spec: {ipam: {ipv6: {" + pool + "}}}" }
	endpoints := func(e string) string { return "spec: {node: a, endpoints: [{" + e + "}]}" }
	for _, row := range []struct {
		kind, name, body string
		// want is what the refusal says; "" where the object is good.
		want string
	}{
		{config, "default", "", ""},
		{config, "default", v4(`cidrs: ["10.0.0.0/16", "10.1.0.0/16"], maskSize: 26`), ""},
		{config, "default", "spec: {ipam: {ipv4: {cidrs: [10.0.0.0/16]}, ipv6: {cidrs: ['fd00::/104']}}}", ""},
		{config, "default", v6(`cidrs: ["fd00::/48"], maskSize: 64`), ""},
		{config, "mine", "", "the one CiliumConfig is named default"},
		{config, "default", "spec: {ipam: {}}", "spec.ipam: Invalid value: set ipv4, ipv6 or both"},
		{config, "default", v4(`cidrs: []`), "spec.ipam.ipv4.cidrs: Invalid value"},
		{config, "default", v4(`cidrs: [banana]`), "spec.ipam.ipv4.cidrs[0]: Invalid value: must be a CIDR without host bits"},
		{config, "default", v4(`cidrs: ["10.0.0.0/16", "10.1.0.1/16"]`), "spec.ipam.ipv4.cidrs[1]: Invalid value: must be a CIDR without host bits"},
		{config, "default", v4(`cidrs: ["10.0.0.0/8", "10.1.0.0/16"]`), "spec.ipam.ipv4.cidrs: Invalid value: ranges of a pool must not overlap"},
		{config, "default", v4(`cidrs: ["10.0.0.0/16", "10.0.0.0/16"]`), "must not overlap"},
		{config, "default", v4(`cidrs: ["fd00::/64"]`), "spec.ipam.ipv4.cidrs: Invalid value: must be IPv4 ranges"},
		{config, "default", v6(`cidrs: ["10.0.0.0/8"]`), "spec.ipam.ipv6.cidrs: Invalid value: must be IPv6 ranges"},
		{config, "default", v4(`cidrs: ["10.0.0.0/16"], maskSize: 31`), "spec.ipam.ipv4.maskSize: Invalid value: a node's IPv4 prefix is /30 at the smallest"},
		{config, "default", v4(`cidrs: ["10.0.0.0/16"], maskSize: 15`), "spec.ipam.ipv4.maskSize: Invalid value: a node's prefix (24 unless said) must fit"},
		{config, "default", v4(`cidrs: ["10.0.0.0/25"]`), "must fit into every range"},
		{config, "default", v6(`cidrs: ["fd00::/48"], maskSize: 127`), "spec.ipam.ipv6.maskSize: Invalid value"},
		{config, "default", "spec: {clusterName: UPPER}", "spec.clusterName: Invalid value"},
		{config, "default", "spec: {mtu: 500}", "spec.mtu: Invalid value: must be 0"},
		{config, "default", "spec: {devices: ['eth*']}", ""},
		{config, "default", "spec: {devices: ['a name']}", "spec.devices[0]: Invalid value"},
		{config, "default", "spec: {routing: {mode: Magic}}", "spec.routing.mode: Unsupported value"},
		{config, "default", "spec: {routing: {tunnelPort: 0}}", "spec.routing.tunnelPort: Invalid value"},
		{config, "default", "spec: {routing: {nativeCIDRs: [10.0.0.1/8]}}", "spec.routing.nativeCIDRs[0]: Invalid value"},
		{config, "default", "spec: {masquerade: {excludeCIDRs: [x]}}", "spec.masquerade.excludeCIDRs[0]: Invalid value"},
		{config, "default", "spec: {conntrack: {maxEntries: 7}}", "spec.conntrack.maxEntries: Invalid value"},
		{config, "default", "spec: {flows: {reporting: Sometimes}}", "spec.flows.reporting: Unsupported value"},
		{config, "default", "spec: {bigTCP: 'On'}", `spec.bigTCP: Unsupported value: "On"`},
		{config, "default", "spec: {forbiddenKernelFeatures: [Gravity]}", "spec.forbiddenKernelFeatures[0]: Unsupported value"},
		{config, "default", "spec: {forbiddenKernelFeatures: [TCX, TCX]}", "spec.forbiddenKernelFeatures[1]: Duplicate value"},
		{config, "default", "spec: {routing: {mod: VXLAN}}", `unknown field "spec.routing.mod"`},

		{node, "a", "spec: {podCIDRs: [10.0.0.0/24, 'fd00::/120']}", ""},
		{node, "a", "spec: {podCIDRs: [10.0.0.0/24, 10.0.0.128/25]}", "spec.podCIDRs: Invalid value: prefixes of a node must not overlap"},
		{node, "a", "spec: {podCIDRs: [10.0.0.9/24]}", "spec.podCIDRs[0]: Invalid value"},

		{slice, "a-0", endpoints("namespace: ns, name: p, addresses: [10.0.0.1, 'fd00::1'], identity: 256"), ""},
		{slice, "a-0", "spec: {}", "spec.node: Required value"},
		{slice, "a-0", "spec: {node: ''}", "spec.node: Invalid value"},
		{slice, "a-0", endpoints("namespace: ns, name: p, addresses: [10.0.0.0/8], identity: 256"), "spec.endpoints[0].addresses[0]: Invalid value: must be an IP address"},
		{slice, "a-0", endpoints("namespace: ns, name: p, addresses: [], identity: 256"), "spec.endpoints[0].addresses: Invalid value"},
		{slice, "a-0", endpoints("namespace: ns, name: p, addresses: [10.0.0.1], identity: 1"), "spec.endpoints[0].identity: Invalid value"},
		{slice, "a-0", endpoints("namespace: ns, name: p, addresses: [10.0.0.1], identity: 16777216"), "spec.endpoints[0].identity: Invalid value"},
		{slice, "a-0", endpoints("namespace: ns, name: p, addresses: [10.0.0.1], identity: 256, ports: [{name: web, protocol: TCP, port: 80}, {name: dns, protocol: UDP, port: 53}]"), ""},
		{slice, "a-0", endpoints("namespace: ns, name: p, addresses: [10.0.0.1], identity: 256, ports: [{name: web, protocol: ICMP, port: 80}]"), "spec.endpoints[0].ports[0].protocol: Unsupported value"},
		{slice, "a-0", endpoints("namespace: ns, name: p, addresses: [10.0.0.1], identity: 256, ports: [{name: web, protocol: TCP, port: 0}]"), "spec.endpoints[0].ports[0].port: Invalid value"},
		{slice, "a-0", endpoints("name: p, addresses: [10.0.0.1], identity: 256"), "spec.endpoints[0].namespace: Required value"},

		{identity, "256", "spec: {labels: {'k8s:app': web}}", ""},
		{identity, "16777215", "spec: {labels: {'k8s:io.kubernetes.pod.namespace': default}}", ""},
		{identity, "255", "spec: {labels: {'k8s:app': web}}", "an identity is named by its number, 256 to 16777215"},
		{identity, "16777216", "spec: {labels: {'k8s:app': web}}", "an identity is named by its number"},
		{identity, "0300", "spec: {labels: {'k8s:app': web}}", "an identity is named by its number"},
		{identity, "web", "spec: {labels: {'k8s:app': web}}", "an identity is named by its number"},
		{identity, "300", "spec: {}", "spec.labels: Required value"},
		{identity, "300", "spec: {labels: {app: web}}", "spec.labels: Invalid value: labels are written source:key"},
		{identity, "300", "spec: {labels: {'reserved:host': ''}}", "spec.labels: Invalid value: the label sources reserved"},
		{identity, "300", "spec: {labels: {'cidr:10.0.0.0/8': ''}}", "the label sources reserved"},
		{identity, "300", "spec: {labels: {'k8s:app': web, 'fqdn:a.example': ''}}", "the label sources reserved"},
	} {
		out, err := kubectl(t, env, object(row.kind, row.name, row.body), "create", "--dry-run=server", "--validate=strict")
		switch {
		case row.want == "" && err != nil:
			t.Errorf("%s %s %s: refused: %s", row.kind, row.name, row.body, out)
		case row.want != "" && err == nil:
			t.Errorf("%s %s %s: taken, want %q", row.kind, row.name, row.body, row.want)
		case row.want != "" && !flat(out, row.want):
			t.Errorf("%s %s %s:\n got %s\nwant %s", row.kind, row.name, row.body, out, row.want)
		}
	}
}

// flat looks for the words of want in the order given: the API server prints the value between path and sentence.
func flat(out, want string) bool {
	path, sentence, both := strings.Cut(want, ": Invalid value: ")
	if !both {
		return strings.Contains(out, want)
	}
	_, rest, ok := strings.Cut(out, path+": Invalid value")
	return ok && strings.Contains(rest, sentence)
}

func TestWhatNeverChanges(t *testing.T) {
	env := testenv.Start(t)
	v4 := func(pool string) string { return "spec: {ipam: {ipv4: {" + pool + "}}}" }
	for _, row := range []struct {
		kind, name, before, after string
		want                      string
	}{
		{"CiliumConfig", "default", "", v4("cidrs: [10.0.0.0/16]"), ""},
		{"CiliumConfig", "default", v4("cidrs: [10.0.0.0/16]"), v4("cidrs: [10.0.0.0/16, 10.1.0.0/16]"), ""},
		{"CiliumConfig", "default", v4("cidrs: [10.0.0.0/16]"), v4("cidrs: [10.0.0.0/16], maskSize: 24"), ""},
		{"CiliumConfig", "default", v4("cidrs: [10.0.0.0/16]"), "spec: {ipam: {ipv4: {cidrs: [10.0.0.0/16]}, ipv6: {cidrs: ['fd00::/104']}}}", ""},
		{"CiliumConfig", "default", v4("cidrs: [10.0.0.0/16, 10.1.0.0/16]"), v4("cidrs: [10.1.0.0/16]"), "spec.ipam.ipv4.cidrs: Invalid value: a range of a pool cannot be taken away"},
		{"CiliumConfig", "default", v4("cidrs: [10.0.0.0/16]"), v4("cidrs: [10.0.0.0/16], maskSize: 25"), "spec.ipam.ipv4.maskSize: Invalid value: the size of a node's prefix cannot change"},
		{"CiliumConfig", "default", "spec: {ipam: {ipv4: {cidrs: [10.0.0.0/16]}, ipv6: {cidrs: ['fd00::/104']}}}", v4("cidrs: [10.0.0.0/16]"), "spec.ipam: Invalid value: an address family cannot be taken away"},
		{"CiliumConfig", "default", v4("cidrs: [10.0.0.0/16]"), "spec: {mtu: 1400}", "spec.ipam: Invalid value: pools cannot be taken away"},
		{"CiliumEndpointSlice", "a-0", "spec: {node: a}", "spec: {node: b}", "spec.node: Invalid value: the node of a slice never changes"},
		{"CiliumIdentity", "300", "spec: {labels: {'k8s:app': web}}", "spec: {labels: {'k8s:app': db}}", "spec.labels: Invalid value: the labels of an identity never change"},
	} {
		if out, err := kubectl(t, env, object(row.kind, row.name, row.before), "create"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		out, err := kubectl(t, env, object(row.kind, row.name, row.after), "replace")
		switch {
		case row.want == "" && err != nil:
			t.Errorf("%s -> %s: refused: %s", row.before, row.after, out)
		case row.want != "" && (err == nil || !flat(out, row.want)):
			t.Errorf("%s -> %s:\n got %s\nwant %s", row.before, row.after, out, row.want)
		}
		if out, err := kubectl(t, env, object(row.kind, row.name, ""), "delete"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}
