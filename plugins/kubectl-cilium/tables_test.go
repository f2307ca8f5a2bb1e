// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/maptable"
	"github.com/kube-cilium/kube-cilium/plugins/cluster"
)

func someNames() *cluster.Names {
	return cluster.NewNames(cluster.Objects{
		Nodes: []v1alpha1.CiliumNode{{
			ObjectMeta: metav1.ObjectMeta{Name: "worker-2"},
			Spec:       v1alpha1.CiliumNodeSpec{PodCIDRs: []string{"10.244.1.0/24"}},
			Status:     v1alpha1.CiliumNodeStatus{Addresses: []v1alpha1.NodeAddress{{Type: v1alpha1.NodeInternalIP, Address: "172.30.0.12"}}},
		}},
		Slices: []v1alpha1.CiliumEndpointSlice{{Spec: v1alpha1.CiliumEndpointSliceSpec{Node: "worker-2", Endpoints: []v1alpha1.SliceEndpoint{
			{Namespace: "shop", Name: "web-0", Addresses: []string{"10.244.1.4"}, Identity: 16385},
			// Not in a prefix of its node: nobody believes it, so it has no name here either.
			{Namespace: "evil", Name: "liar", Addresses: []string{"10.96.0.10", "172.30.0.12"}, Identity: 666},
		}}}},
		Identities: []v1alpha1.CiliumIdentity{{
			ObjectMeta: metav1.ObjectMeta{Name: "16385"},
			Spec:       v1alpha1.CiliumIdentitySpec{Labels: map[string]string{"k8s:app": "web", "k8s:io.kubernetes.pod.namespace": "shop-with-a-long-name"}},
		}},
		Services: []corev1.Service{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns"},
			Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"}},
		}, {
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "headless"},
			Spec:       corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}},
		}},
	})
}

func tableOf(t *testing.T, text string) *maptable.Table {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	table := &maptable.Table{}
	if err := dec.Decode(table); err != nil {
		t.Fatal(err)
	}
	return table
}

const peers = `{"map":"peers","layout":1,"columns":[{"name":"address","kind":"address"},{"name":"identity","kind":"identity"},
{"name":"node","kind":"address"},{"name":"expiresIn","kind":"text"},{"name":"of","kind":"endpoint"},{"name":"as","kind":"addrport"},{"name":"new","kind":"unheard-of"}],
"rows":[["10.244.1.4",16385,"172.30.0.12","",7,"10.244.1.4:80",true],["10.244.9.9",127,"","\u001b[31m",0,"",1],["junk","junk","junk","x","8","junk",null]]}`

func TestMapTableHasNames(t *testing.T) {
	endpoints := map[string]string{"7": "shop/web-0"}
	for wide, want := range map[bool]string{
		false: `ADDRESS                   IDENTITY                                           NODE                     EXPIRES-IN   OF               AS                           NEW
10.244.1.4 (shop/web-0)   16385 (k8s:app=web,k8s:io.kubernetes.pod.names…)   172.30.0.12 (worker-2)   -            7 (shop/web-0)   10.244.1.4:80 (shop/web-0)   true
10.244.9.9                127 (pending)                                      -                        \x1b[31m     0                -                            1
junk                      junk                                               junk                     x            8                junk                         -
`,
		true: `ADDRESS                   IDENTITY                                                                    NODE                     EXPIRES-IN   OF               AS                           NEW
10.244.1.4 (shop/web-0)   16385 (k8s:app=web,k8s:io.kubernetes.pod.namespace=shop-with-a-long-name)   172.30.0.12 (worker-2)   -            7 (shop/web-0)   10.244.1.4:80 (shop/web-0)   true
10.244.9.9                127 (pending)                                                               -                        \x1b[31m     0                -                            1
junk                      junk                                                                        junk                     x            8                junk                         -
`,
	} {
		var out bytes.Buffer
		if err := printTable(&out, tableOf(t, peers), someNames(), endpoints, wide); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("wide %t: got\n%swant\n%s", wide, out.String(), want)
		}
	}
	table := tableOf(t, peers)
	addNames(table, someNames(), endpoints)
	first := table.Objects()[0]
	for column, want := range map[string]string{
		"addressName": "shop/web-0", "nodeName": "worker-2", "ofName": "shop/web-0", "asName": "shop/web-0",
		"identityName": "k8s:app=web,k8s:io.kubernetes.pod.namespace=shop-with-a-long-name",
	} {
		if first[column] != want {
			t.Errorf("%s is %v, want %s", column, first[column], want)
		}
	}
}

const servicesTable = `{"map":"services","layout":1,"columns":[{"name":"address","kind":"address"},{"name":"port","kind":"number"},{"name":"protocol","kind":"text"},{"name":"service","kind":"number"},{"name":"backends","kind":"number"}],
"rows":[["10.96.0.10",0,"-",0,0],["10.96.0.10",53,"UDP",3,5],["10.96.7.7",80,"TCP",4,0]]}`
const backendsTable = `{"map":"backends","layout":1,"columns":[{"name":"service","kind":"number"},{"name":"slot","kind":"number"},{"name":"address","kind":"address"},{"name":"port","kind":"number"}],
"rows":[[3,0,"10.244.1.4",53],[3,1,"10.244.1.5",53],[3,2,"10.244.1.6",53],[3,3,"10.244.1.7",53],[3,4,"fd00::1",53]]}`

func TestServicesJoinTheirBackends(t *testing.T) {
	all, err := joinServices(tableOf(t, servicesTable), tableOf(t, backendsTable), someNames())
	if err != nil {
		t.Fatal(err)
	}
	var narrow, wide bytes.Buffer
	if err := errors.Join(printServices(&narrow, all, false), printServices(&wide, all, true)); err != nil {
		t.Fatal(err)
	}
	if want := `NAMESPACE     SERVICE    FRONTEND        PROTOCOL   BACKENDS
-             -          10.96.7.7:80    TCP        -
kube-system   kube-dns   10.96.0.10:53   UDP        10.244.1.4:53 (shop/web-0), 10.244.1.5:53, 10.244.1.6:53, and 2 more
`; narrow.String() != want {
		t.Errorf("got\n%swant\n%s", narrow.String(), want)
	}
	if !strings.Contains(wide.String(), "[fd00::1]:53") {
		t.Errorf("wide leaves backends out:\n%s", wide.String())
	}
	if _, err := joinServices(tableOf(t, peers), tableOf(t, backendsTable), someNames()); err == nil || !strings.Contains(err.Error(), "newer than this plugin") {
		t.Errorf("a table without our columns: %v", err)
	}
}

func TestMapsTable(t *testing.T) {
	var out bytes.Buffer
	err := printMaps(&out, []maptable.Info{
		{Name: "conntrack", Layout: 2, Type: "LRUHash", KeySize: 40, ValueSize: 72, Entries: 100, MaxEntries: 1000, Bytes: 5 << 20},
		{Name: "metrics", Layout: 1, Type: "PerCPUArray", KeySize: 4, ValueSize: 16, Entries: -1, MaxEntries: 2560, Bytes: 4096},
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	if want := `MAP         LAYOUT   TYPE          ENTRIES   MAX    FILL   MEMORY
conntrack   2        LRUHash       100       1000   10%    5.0 MiB
metrics     1        PerCPUArray   -         2560   -      4.0 KiB
total                                                      5.0 MiB
`; out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

// A map of maps showed the few bytes of its own numbers, and the total was less than a tenth of what status said.
func TestMapsOfMapsCountWhatIsInThem(t *testing.T) {
	list := func(reported ...v1alpha1.MapReport) (string, []string) {
		all := []maptable.Info{
			{Name: "metrics", Layout: 1, Type: "PerCPUArray", Entries: -1, MaxEntries: 2560, Bytes: 1 << 20},
			{Name: "unanswered", Layout: 2, Type: "ArrayOfMaps", Entries: 3, MaxEntries: 4096, Bytes: 32 << 10},
			{Name: "unanswered", Layout: 1, Type: "ArrayOfMaps", Entries: 3, MaxEntries: 4096, Bytes: 32 << 10},
		}
		unknown := withInner(all, reported)
		var out bytes.Buffer
		if err := printMaps(&out, all, false); err != nil {
			t.Fatal(err)
		}
		return out.String(), unknown
	}
	got, unknown := list(v1alpha1.MapReport{Name: "unanswered", Bytes: 7 << 20})
	if want := `MAP          LAYOUT   TYPE          ENTRIES   MAX    FILL   MEMORY
metrics      1        PerCPUArray   -         2560   -      1.0 MiB
unanswered   2        ArrayOfMaps   3         4096   0%     7.0 MiB
unanswered   1        ArrayOfMaps   3         4096   0%     -
total                                                       8.0 MiB
`; got != want || len(unknown) != 1 {
		t.Errorf("%q, got\n%swant\n%s", unknown, got, want)
	}
	if got, unknown := list(); len(unknown) != 2 || !strings.Contains(got, "1.0 MiB\n") || strings.Contains(got, "32.0 KiB") {
		t.Errorf("%q without a report:\n%s", unknown, got)
	}
}
