// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/kube-cilium/kube-cilium/internal/identity"
)

// cluster is what a story applies objects to. Identities are numbered by their labels, whatever the order.
type cluster struct {
	*Engine
	namespaces map[string]map[string]string
	pods       map[string]*corev1.Pod
	known      map[identity.Number]bool
}

func newCluster() *cluster {
	return &cluster{NewEngine(), map[string]map[string]string{}, map[string]*corev1.Pod{}, map[identity.Number]bool{}}
}

func (c *cluster) documents(t *testing.T, data []byte, f func(kind string, document []byte)) {
	t.Helper()
	for text := range strings.SplitSeq(string(data), "\n---\n") {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(text), &meta); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if meta.Kind != "" {
			f(meta.Kind, []byte(text))
		}
	}
}

func unmarshal[T any](t *testing.T, data []byte) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict(data, out); err != nil {
		t.Fatalf("%v in\n%s", err, data)
	}
	return out
}

func (c *cluster) apply(t *testing.T, data []byte) {
	t.Helper()
	c.documents(t, data, func(kind string, doc []byte) {
		switch kind {
		case "Namespace":
			n := unmarshal[corev1.Namespace](t, doc)
			c.namespaces[n.Name] = n.Labels
		case "Pod":
			p := unmarshal[corev1.Pod](t, doc)
			c.pods[p.Namespace+"/"+p.Name] = p
		case "NetworkPolicy":
			np := unmarshal[networkingv1.NetworkPolicy](t, doc)
			rules, _, err := FromNetworkPolicy(np)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetPolicy(RefOf(np), rules); err != nil {
				t.Fatal(err)
			}
		}
	})
	c.identities(t)
}

func (c *cluster) remove(t *testing.T, data []byte) {
	t.Helper()
	c.documents(t, data, func(kind string, doc []byte) {
		var meta metav1.PartialObjectMetadata
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			t.Fatal(err)
		}
		switch kind {
		case "Namespace":
			delete(c.namespaces, meta.Name)
		case "Pod":
			delete(c.pods, meta.Namespace+"/"+meta.Name)
		case "NetworkPolicy":
			c.DeletePolicy(Ref{KindNetworkPolicy, meta.Namespace, meta.Name})
		}
	})
	c.identities(t)
}

func (c *cluster) identities(t *testing.T) {
	t.Helper()
	labels, ports := map[identity.Number]identity.Labels{}, map[identity.Number][]NamedPort{}
	for _, p := range c.pods {
		e := c.end(t, p.Namespace+"/"+p.Name)
		l, err := identity.ForPod(c.workload(p), identity.DefaultFilter())
		if err != nil {
			t.Fatal(err)
		}
		labels[e.Identity] = l
		ports[e.Identity] = append(ports[e.Identity], e.Pod.Ports...)
	}
	for n := range c.known {
		if labels[n] == nil {
			delete(c.known, n)
			c.DeleteIdentity(n)
		}
	}
	for n, l := range labels {
		c.known[n] = true
		c.SetIdentity(n, l, ports[n])
	}
}

func (c *cluster) workload(p *corev1.Pod) identity.Workload {
	return identity.Workload{Namespace: p.Namespace, Labels: p.Labels, NamespaceLabels: c.namespaces[p.Namespace]}
}

// end of a connection: a pod's name or an address of the world.
func (c *cluster) end(t *testing.T, name string) End {
	t.Helper()
	if a, err := netip.ParseAddr(name); err == nil {
		return End{Identity: identity.World, Addr: a}
	}
	p := c.pods[name]
	if p == nil {
		t.Fatalf("no pod %s", name)
	}
	l, err := identity.ForPod(c.workload(p), identity.DefaultFilter())
	if err != nil {
		t.Fatal(err)
	}
	whole, err := identity.ForPod(c.workload(p), identity.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	s := &Subject{Labels: whole, Whole: true}
	for _, container := range p.Spec.Containers {
		for _, port := range container.Ports {
			if port.Name != "" {
				s.Ports = append(s.Ports, NamedPort{port.Name, protocolNumber(t, string(port.Protocol)), uint16(port.ContainerPort)})
			}
		}
	}
	e := End{Pod: s, Identity: identity.KeyFromCluster("story").Candidate(l, 0)}
	if p.Status.PodIP != "" {
		e.Addr = netip.MustParseAddr(p.Status.PodIP)
	}
	return e
}

func protocolNumber(t *testing.T, name string) uint8 {
	t.Helper()
	n, ok := map[string]uint8{"": 6, "TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}[name]
	if !ok {
		t.Fatalf("protocol %q", name)
	}
	return n
}

// flow reads "FROM TO PORT/PROTOCOL".
func (c *cluster) flow(t *testing.T, text string) Flow {
	t.Helper()
	f := strings.Fields(text)
	if len(f) != 3 {
		t.Fatalf("%q (want FROM TO PORT/PROTOCOL)", text)
	}
	port, protocol, _ := strings.Cut(f[2], "/")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return Flow{Source: c.end(t, f[0]), Destination: c.end(t, f[1]), Protocol: protocolNumber(t, protocol), Port: uint16(n)}
}

func TestMistakes(t *testing.T) {
	a, err := txtar.ParseFile("testdata/mistakes.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range a.Files[1:] {
		t.Run(strings.TrimSuffix(f.Name, ".yaml"), func(t *testing.T) {
			c := newCluster()
			c.apply(t, a.Files[0].Data)
			c.apply(t, f.Data)
			_, rest, _ := strings.Cut(string(f.Data), "# explain ")
			question, rest, _ := strings.Cut(rest, "\n# want ")
			want, _, _ := strings.Cut(rest, "\n")
			w := c.Explain(c.flow(t, question))
			got := "allowed"
			if w.Nearest != nil {
				got = fmt.Sprintf("%s: %s", w.Nearest.Aspect, w.Nearest)
			}
			if got != want {
				t.Errorf("%s\n got %s\nwant %s\n%+v", question, got, want, w)
			}
			if (w.Verdict == Allow) != (w.Nearest == nil) {
				t.Errorf("verdict %s, nearest %v", w.Verdict, w.Nearest)
			}
		})
	}
}

// text prints the tables of a pod with names for numbers.
func (c *cluster) text(t *testing.T, pod string) string {
	t.Helper()
	names := map[Peer]string{Anyone: "anyone"}
	for p, n := range c.Classes() {
		names[n] = p.String()
	}
	for name := range c.pods {
		names[Peer(c.end(t, name).Identity)] = name
	}
	origins := func(id RuleID) string {
		p, _ := c.Provenance(id)
		var texts []string
		for _, o := range p.Origins {
			texts = append(texts, o.String())
		}
		return strings.Join(texts, ", ")
	}
	var out strings.Builder
	ingress, egress := c.Tables(*c.end(t, pod).Pod)
	for i, table := range []*Table{ingress, egress} {
		if table == nil {
			continue
		}
		side := []string{"ingress", "egress"}[i]
		var lines []string
		for k, e := range table.Entries {
			lines = append(lines, fmt.Sprintf("%s %s %s/%d %s: %s\n", side, names[k.Peer], portName(k.Protocol, k.Port), k.Bits, e.Verdict, origins(e.Rule)))
		}
		slices.Sort(lines)
		fmt.Fprintf(&out, "%s%s default: %s\n", strings.Join(lines, ""), side, origins(table.Default))
	}
	return out.String()
}

func TestTables(t *testing.T) {
	a, err := txtar.ParseFile("testdata/tables.txtar")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range a.Files {
		files[f.Name] = f.Data
	}
	live := newCluster()
	present := map[string][]byte{} // object -> its document
	each := func(data []byte, f func(name string, doc []byte)) {
		live.documents(t, data, func(kind string, doc []byte) {
			var meta metav1.PartialObjectMetadata
			if err := yaml.Unmarshal(doc, &meta); err != nil {
				t.Fatal(err)
			}
			f(kind+" "+meta.Namespace+"/"+meta.Name, doc)
		})
	}
	for line := range strings.SplitSeq(string(a.Comment), "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "apply":
			live.apply(t, files[f[1]])
			each(files[f[1]], func(name string, doc []byte) { present[name] = doc })
		case len(f) == 2 && f[0] == "delete":
			live.remove(t, files[f[1]])
			each(files[f[1]], func(name string, _ []byte) { delete(present, name) })
		case len(f) == 3 && f[0] == "tables":
			want := string(files[f[2]])
			if got := live.text(t, f[1]); got != want {
				t.Errorf("%s:\n%swant\n%s", line, got, want)
			}
			for range 20 { // the order of a map is another one each time
				fresh := newCluster()
				for _, doc := range present {
					fresh.apply(t, doc)
				}
				if got := fresh.text(t, f[1]); got != want {
					t.Errorf("%s, objects in another order:\n%swant\n%s", line, got, want)
				}
			}
		}
	}
}
