// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

func pod(namespace, name, node, app string, ips ...string) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": app}}, Spec: corev1.PodSpec{NodeName: node}}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

// objects of a small shop: web lets front in by name of port, and nobody by IPv6 but 2001:db8::/64.
func objects() Objects {
	web := pod("shop", "web-0", "n1", "web", "10.0.0.1", "fd00::1")
	web.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}
	host := pod("kube-system", "on-host", "n2", "host", "172.16.0.2")
	host.Spec.HostNetwork = true
	http := intstr.FromString("http")
	return Objects{
		ClusterName: "default",
		Namespaces:  []corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "shop"}}}},
		Pods:        []corev1.Pod{web, host, pod("shop", "front", "n1", "front", "10.0.0.2", "fd00::2"), pod("shop", "other", "n2", "other", "10.0.1.1")},
		Members:     []v1alpha1.CiliumNode{{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: v1alpha1.CiliumNodeSpec{PodCIDRs: []string{"10.0.0.0/24"}}}},
		Policies: []networkingv1.NetworkPolicy{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
				Ingress: []networkingv1.NetworkPolicyIngressRule{
					{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "front"}}}},
						Ports: []networkingv1.NetworkPolicyPort{{Port: &http}}},
					{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "2001:db8::/64"}}}},
				},
			},
		}},
	}
}

func TestAsk(t *testing.T) {
	w, err := New(objects())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from, to, port string
		verdict, says  string
	}{
		{"front", "web-0", "8080", "allowed", "NetworkPolicy shop/web spec.ingress[0]"},
		{"front", "web-0", "http", "allowed", ""},
		{"fd00::2", "fd00::1", "8080", "allowed", ""},
		{"front", "web-0", "9090", "denied", "9090"},
		{"front", "web-0", "8080/UDP", "denied", ""},
		{"front", "web-0", "icmp", "denied", ""},
		{"other", "web-0", "8080", "denied", "app=front"},
		{"web-0", "front", "1", "allowed", "no policy selects"},
		{"2001:db8::7", "shop/web-0", "443", "allowed", "spec.ingress[1]"},
		{"2001:db8:1::7", "shop/web-0", "443", "denied", ""},
		{"kube-system/on-host", "pod/web-0", "8080", "denied", ""},
		{"10.0.0.99", "web-0", "8080", "denied", ""},
		{"web-0", "192.0.2.1", "443", "allowed", ""},
	} {
		port, err := ParsePort(c.port)
		if err != nil {
			t.Fatal(err)
		}
		got, err := w.Ask(Question{From: c.from, To: c.to, Port: port, Namespace: "shop"})
		if err != nil || len(got) == 0 || got[0].Verdict != c.verdict {
			t.Errorf("%s -> %s %s: %+v, %v", c.from, c.to, c.port, got, err)
			continue
		}
		if a := got[0]; !strings.Contains(a.Ingress.Why+a.Nearest, c.says) {
			t.Errorf("%s -> %s %s: %q is not said: %+v", c.from, c.to, c.port, c.says, a)
		}
		if (got[0].Verdict == "denied") != (got[0].Nearest != "") {
			t.Errorf("%s -> %s %s: nearest miss %q", c.from, c.to, c.port, got[0].Nearest)
		}
	}
	for _, q := range []Question{
		{From: "nobody", To: "web-0"}, {From: "front", To: "svc/none"}, {From: "front", To: "other", Port: Port{Name: "http", Protocol: 6}},
		{From: "10.0.0.1", To: "fd00::1"},
	} {
		q.Namespace = "shop"
		if got, err := w.Ask(q); !errors.Is(err, ErrQuestion) {
			t.Errorf("%+v: %+v, %v", q, got, err)
		}
	}
}

// `--from deploy/client` was read as a pod of a namespace named deploy.
func TestAskAboutAWorkload(t *testing.T) {
	o := objects()
	of := func(kind, owner, hash, name string, isReady corev1.ConditionStatus, ips ...string) {
		p := pod("shop", name, "n1", "front", ips...)
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: owner, Controller: new(true)}}
		if hash != "" {
			p.Labels["pod-template-hash"] = hash
		}
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: isReady}}
		o.Pods = append(o.Pods, p)
	}
	of("ReplicaSet", "client-77", "77", "client-77-a", corev1.ConditionFalse, "10.0.0.11")
	of("ReplicaSet", "client-77", "77", "client-77-c", corev1.ConditionTrue, "10.0.0.12")
	of("ReplicaSet", "client-77", "77", "client-77-b", corev1.ConditionTrue, "10.0.0.13")
	of("ReplicaSet", "client-77", "77", "client-77-0", corev1.ConditionTrue) // no address yet
	of("ReplicaSet", "client-blue-88", "88", "client-blue-88-a", corev1.ConditionTrue, "10.0.0.14")
	of("StatefulSet", "db", "", "db-0", corev1.ConditionTrue, "10.0.0.15")
	o.Pods = append(o.Pods, pod("deploy", "client", "n1", "other", "10.0.0.16"))
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	stands := []string{"pod shop/client-77-b stands for the 3 pods of Deployment client"}
	for from, want := range map[string]struct {
		pod    string
		stands []string
	}{
		"deployment/client": {"shop/client-77-b", stands}, "deployment.apps/client": {"shop/client-77-b", stands}, "deploy/shop/client": {"shop/client-77-b", stands},
		"rs/client-77":  {"shop/client-77-b", []string{"pod shop/client-77-b stands for the 3 pods of ReplicaSet client-77"}},
		"sts/db":        {"shop/db-0", nil},
		"deploy/client": {"deploy/client", nil}, // a pod of that name is meant first
	} {
		got, err := w.Ask(Question{From: from, To: "web-0", Port: Port{Number: 8080, Protocol: 6}, Namespace: "shop"})
		if err != nil || got[0].From != want.pod || !slices.Equal(got[0].Remarks, want.stands) {
			t.Errorf("%s: %+v, %v", from, got, err)
		}
	}
	_, err = w.Ask(Question{From: "ds/client", To: "web-0", Namespace: "shop"})
	if !errors.Is(err, ErrQuestion) || !strings.Contains(err.Error(), `--from "ds/client": there is no DaemonSet client in namespace shop, or it has no pod with an address (kubectl get pods -n shop)`) {
		t.Error(err)
	}
}

// A socket of the pod's own node reaches it, one of another node does not.
func TestOwnNode(t *testing.T) {
	o := objects()
	o.Nodes = []corev1.Node{
		{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "172.16.0.1"}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "n2"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "172.16.0.2"}}}},
	}
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{"172.16.0.1": "allowed", "172.16.0.2": "denied"} {
		got, err := w.Ask(Question{From: from, To: "web-0", Port: Port{Number: 8080, Protocol: 6}, Namespace: "shop"})
		if err != nil || got[0].Verdict != want {
			t.Errorf("%s: %+v, %v", from, got, err)
		}
	}
}

// A policy that names what does not exist is accepted and says what it waits for.
func TestNotesSayWhatAPolicyWaitsFor(t *testing.T) {
	o := objects()
	o.Pods = o.Pods[1:2]
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	got := w.Notes(&o.Policies[0])
	want := []string{
		"selects no pod yet: it waits for pods with app=web in namespace shop",
		"spec.ingress[0].from[0] waits for pods with app=front in namespace shop",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	o = objects()
	if w, err = New(o); err != nil {
		t.Fatal(err)
	}
	if got := w.Notes(&o.Policies[0]); len(got) > 0 || !slices.Equal(w.Selected(&o.Policies[0]), []string{"shop/web-0"}) {
		t.Errorf("%q", got)
	}
}

// The answer did not tell that a pod's node had left a policy out.
func TestPolicyThatANodeLeftOutIsNamed(t *testing.T) {
	o := objects()
	report := func(node string, names ...string) v1alpha1.CiliumNodeReport {
		p := v1alpha1.PolicyProgress{Kind: "NetworkPolicy"}
		for _, n := range names {
			p.Exceptions = append(p.Exceptions, v1alpha1.PolicyException{Namespace: "shop", Name: n, Reason: "TableFull", Message: "it does not fit"})
		}
		return v1alpha1.CiliumNodeReport{ObjectMeta: metav1.ObjectMeta{Name: node}, Status: v1alpha1.CiliumNodeReportStatus{Policies: []v1alpha1.PolicyProgress{p}}}
	}
	o.Reports = []v1alpha1.CiliumNodeReport{report("n1", "other", "web"), report("n2", "web")}
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	said := "node n1 may judge otherwise: there NetworkPolicy shop/web is not in force as it is written (TableFull: it does not fit)"
	for to, want := range map[string][]string{"web-0": {said}, "front": nil} { // another policy's, another node's: no matter
		got, err := w.Ask(Question{From: "other", To: to, Port: Port{Number: 8080, Protocol: 6}, Namespace: "shop"})
		if err != nil || !slices.Equal(got[0].Remarks, want) {
			t.Errorf("%s: %+v, %v", to, got, err)
		}
	}
}

// One policy of which no rules can be made kept every question from being answered.
func TestPolicyThatCannotBeHadIsolates(t *testing.T) {
	o := objects()
	o.Policies[0].Spec.Ingress[1].From[0].IPBlock.CIDR = "ten"
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.Ask(Question{From: "front", To: "web-0", Port: Port{Number: 8080, Protocol: 6}, Namespace: "shop"})
	if err != nil || got[0].Allowed() || got[0].Ingress.Why != "the default deny of NetworkPolicy shop/web" {
		t.Errorf("%+v, %v", got, err)
	}
	if n := w.Notes(&o.Policies[0]); len(n) != 1 || !strings.Contains(n[0], `isolates the pods that it selects and allows them nothing, for not a rule: spec.ingress[1].from[0].ipBlock.cidr: "ten"`) {
		t.Errorf("%q", n)
	}
}

func TestParsePort(t *testing.T) {
	for text, want := range map[string]string{
		"80": "80/TCP", "53/udp": "53/UDP", "http": "http/TCP", "dns/UDP": "dns/UDP", "icmp": "ICMP", "9/sctp": "9/SCTP",
	} {
		if got, err := ParsePort(text); err != nil || got.String() != want {
			t.Errorf("%q became %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "65536", "80/", "80/icmp", "/TCP", "80/81"} {
		if got, err := ParsePort(text); err == nil {
			t.Errorf("%q became %v", text, got)
		}
	}
	// A number that is no port was answered with how a port is written.
	for _, number := range []string{"0", "65536", "99999", "99999999999999999999"} {
		if _, err := ParsePort(number + "/udp"); err == nil || !strings.Contains(err.Error(), number+" is no port (1 to 65535)") {
			t.Errorf("%s: %v", number, err)
		}
	}
}
