// SPDX-License-Identifier: Apache-2.0

package nodetest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-logr/logr/funcr"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/testenv"
	"github.com/kube-cilium/kube-cilium/nodeagent"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

// link is the way to the API server. It can be cut, and it counts the writes that cross it.
type link struct {
	mu     sync.Mutex
	cut    bool
	conns  []net.Conn
	writes []time.Time
}

func (l *link) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return nil, errors.New("cut on purpose")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err == nil {
		l.conns = append(l.conns, c)
	}
	return c, err
}

func (l *link) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for _, c := range l.conns {
			_ = c.Close()
		}
		l.conns = nil
	}
}

// most is the largest number of writes in any minute.
func (l *link) most() (most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, from := range l.writes {
		n := 0
		for _, w := range l.writes[i:] {
			if w.Sub(from) < time.Minute {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

type transport struct {
	link *link
	next http.RoundTripper
}

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet {
		t.link.mu.Lock()
		t.link.writes = append(t.link.writes, time.Now())
		t.link.mu.Unlock()
	}
	return t.next.RoundTrip(r)
}

// world is one node of a cluster whose operator and kubelet are the test.
type world struct {
	t       *testing.T
	client  client.Client
	link    *link
	config  *rest.Config
	options nodeagent.Options
	node    *nodetest.Node
	stop    func()

	mu     sync.Mutex
	errors []string // that the agent has logged
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, link: &link{}, node: nodetest.New(t)}
	env := testenv.Start(t)
	s := runtime.NewScheme()
	nodetest.Must(t, errors.Join(clientgoscheme.AddToScheme(s), v1alpha1.AddToScheme(s)))
	var err error
	w.client, err = client.New(env.Config, client.Options{Scheme: s})
	nodetest.Must(t, err)
	w.config = rest.CopyConfig(env.Config)
	w.config.Dial = w.link.dial
	w.config.Wrap(func(next http.RoundTripper) http.RoundTripper { return transport{w.link, next} })
	dir := t.TempDir()
	plugin := filepath.Join(dir, "cilium-cni")
	cmd := exec.Command("go", "build", "-o", plugin, "github.com/kube-cilium/kube-cilium/cmd/cilium-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	w.options = nodeagent.Options{
		Node: "node-1", Holder: "test", BPFFS: w.node.Options.BPFFS, CgroupRoot: w.node.Options.CgroupRoot, ProcSysNet: "/proc/sys/net",
		BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), Plugin: plugin,
		StateDir: filepath.Join(dir, "state"), SocketDir: filepath.Join(dir, "run"),
		HealthAddress: "127.0.0.1:9879", MetricsAddress: "127.0.0.1:9962",
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AgentLeaseNamespace}})
	w.create(node)
	node.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: nodetest.NodeIPv4.String()}, {Type: corev1.NodeInternalIP, Address: nodetest.NodeIPv6.String()},
		{Type: corev1.NodeHostName, Address: "node-1"},
	}
	nodetest.Must(t, w.client.Status().Update(t.Context(), node))
	w.create(&v1alpha1.CiliumConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ConfigName}, Spec: v1alpha1.CiliumConfigSpec{IPAM: &v1alpha1.IPAMConfig{
		IPv4: &v1alpha1.AddressPool{CIDRs: []string{"10.7.0.0/16"}}, IPv6: &v1alpha1.AddressPool{CIDRs: []string{"fd00:7::/56"}},
	}}})
	w.stop = func() {}
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) create(o client.Object) {
	w.t.Helper()
	nodetest.Must(w.t, w.client.Create(w.t.Context(), o))
}

// start is a new agent's process, as far as that goes within one.
func (w *world) start() {
	w.t.Helper()
	w.options.Log = funcr.New(func(name, text string) {
		w.t.Log(name, text)
		if strings.Contains(text, `"error"=`) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.errors = append(w.errors, text)
		}
	}, funcr.Options{})
	agent, err := nodeagent.New(w.options, w.config, nil)
	nodetest.Must(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- agent.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("the agent ended: %v", err)
		}
		w.stop = func() {}
	}
}

func (w *world) eventually(what string, within time.Duration, try func() error) {
	w.t.Helper()
	var err error
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	w.t.Fatalf("%s: %v", what, err)
}

func (w *world) probe(path string) error {
	resp, err := http.Get("http://127.0.0.1:9879/" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // a test
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return nil
}

// cni runs the installed plugin.
func (w *world) cni(command, pod, uid string, netns *nodetest.Pod) error {
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "kube-cilium", "type": "cilium-cni", "socketDir": w.options.SocketDir, "stateDir": w.options.StateDir,
	})
	nodetest.Must(w.t, err)
	cmd := exec.Command(filepath.Join(w.options.BinDir, "cilium-cni"))
	cmd.Stdin = bytes.NewReader(conf)
	cmd.Env = []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + pod, "CNI_NETNS=" + netns.Path, "CNI_IFNAME=eth0", "CNI_PATH=/",
		"CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + pod + ";K8S_POD_UID=" + uid,
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", command, pod, err, out)
	}
	return nil
}

func (w *world) pod(name string) *corev1.Pod {
	w.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	w.create(p)
	return p
}

func (w *world) record(name string) (*endpoint.Endpoint, error) {
	files, err := filepath.Glob(filepath.Join(w.options.StateDir, "endpoints", "*.json"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		var e endpoint.Endpoint
		if data, err := os.ReadFile(f); err == nil && json.Unmarshal(data, &e) == nil && e.ContainerID == name {
			return &e, nil
		}
	}
	return nil, fmt.Errorf("no record of %s", name)
}

// pend makes a pod, while there is no agent, one whose number nobody has confirmed.
func (w *world) pend(name string) {
	w.t.Helper()
	e, err := w.record(name)
	nodetest.Must(w.t, err)
	e.Identity = identity.Pending
	data, err := json.Marshal(e)
	nodetest.Must(w.t, err)
	nodetest.Must(w.t, os.WriteFile(filepath.Join(w.options.StateDir, "endpoints", fmt.Sprintf("%d.json", e.ID)), data, 0o600))
	nodetest.Must(w.t, os.Remove(filepath.Join(w.options.StateDir, "last-pods.json")))
}

// TestAgent lives through a node's day: installed beside another CNI, without prefixes, with them, pods, an outage, a
// restart in it, and the API server's return.
func TestAgent(t *testing.T) {
	w := newWorld(t)
	other := filepath.Join(w.options.ConfDir, "00-other.conf")
	nodetest.Must(t, os.MkdirAll(w.options.ConfDir, 0o755))
	nodetest.Must(t, os.WriteFile(other, []byte("{}"), 0o600))
	w.start()
	condition := func(kind, reason string) func() error {
		return func() error {
			var r v1alpha1.CiliumNodeReport
			if err := w.client.Get(t.Context(), client.ObjectKey{Name: "node-1"}, &r); err != nil {
				return err
			}
			if c := meta.FindStatusCondition(r.Status.Conditions, kind); c == nil || c.Reason != reason {
				return fmt.Errorf("%s is %+v, want %s", kind, c, reason)
			}
			return nil
		}
	}
	w.eventually("refused beside another CNI", 10*time.Second, condition(v1alpha1.ConditionReady, "OtherCNI"))
	nodetest.Must(t, w.probe("healthz"))
	if w.probe("readyz") == nil {
		t.Error("ready beside another CNI")
	}
	nodetest.Must(t, os.Remove(other))
	w.eventually("waiting for prefixes", 30*time.Second, condition(v1alpha1.ConditionReady, "NoPrefix"))
	own := &v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: v1alpha1.CiliumNodeSpec{PodCIDRs: []string{"10.7.0.0/24", "fd00:7::/64"}}}
	w.create(own)
	w.eventually("ready", 20*time.Second, func() error { return w.probe("readyz") })
	w.eventually("ready for people", 20*time.Second, condition(v1alpha1.ConditionReady, "Ready"))

	first, space := w.pod("first"), w.node.NewPod("first")
	nodetest.Must(t, w.cni("ADD", "first", string(first.UID), space))
	var slice v1alpha1.CiliumEndpointSlice
	w.eventually("others hear of the pod", 20*time.Second, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKey{Name: "node-1-1"}, &slice); err != nil {
			return err
		}
		if len(slice.Spec.Endpoints) != 1 || slice.Spec.Endpoints[0].Name != "first" || len(slice.Spec.Endpoints[0].Addresses) != 2 {
			return fmt.Errorf("%+v", slice.Spec)
		}
		return nil
	})
	var id v1alpha1.CiliumIdentity
	nodetest.Must(t, w.client.Get(t.Context(), client.ObjectKey{Name: fmt.Sprint(slice.Spec.Endpoints[0].Identity)}, &id))
	if id.Spec.Labels["k8s:app"] != "web" || id.Spec.Labels["k8s:io.kubernetes.pod.namespace"] != "default" {
		t.Errorf("%v", id.Spec.Labels)
	}
	w.eventually("people see the pod", 20*time.Second, func() error {
		var e v1alpha1.CiliumEndpoint
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(first), &e); err != nil {
			return err
		}
		if e.Status.Identity.ID != slice.Spec.Endpoints[0].Identity || e.Status.State != v1alpha1.EndpointReady {
			return fmt.Errorf("%+v", e.Status)
		}
		return nil
	})
	var lease coordinationv1.Lease
	nodetest.Must(t, w.client.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.AgentLeaseNamespace, Name: "cilium-agent-node-1"}, &lease))
	nodetest.Must(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(own), own))
	if len(own.Status.Addresses) != 2 || own.Status.BootID == "" || !meta.IsStatusConditionTrue(own.Status.Conditions, v1alpha1.ConditionReady) {
		t.Errorf("%+v", own.Status)
	}

	// Another label: another identity, here and for the others.
	first.Labels["app"] = "db"
	nodetest.Must(t, w.client.Update(t.Context(), first))
	w.eventually("the pod is somebody else", 20*time.Second, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKey{Name: "node-1-1"}, &slice); err != nil {
			return err
		}
		if fmt.Sprint(slice.Spec.Endpoints[0].Identity) == id.Name {
			return errors.New("it still has its old identity")
		}
		return nil
	})

	// Less is to be reported: the running programs are told, and people see it.
	var cfg v1alpha1.CiliumConfig
	nodetest.Must(t, w.client.Get(t.Context(), client.ObjectKey{Name: v1alpha1.ConfigName}, &cfg))
	cfg.Spec.Flows.Reporting = v1alpha1.FlowReportingOff
	nodetest.Must(t, w.client.Update(t.Context(), &cfg))
	w.eventually("flows are off", 20*time.Second, func() error {
		var r v1alpha1.CiliumNodeReport
		if err := w.client.Get(t.Context(), client.ObjectKey{Name: "node-1"}, &r); err != nil {
			return err
		}
		if r.Status.FlowReporting != v1alpha1.FlowReportingOff {
			return fmt.Errorf("reported as %q", r.Status.FlowReporting)
		}
		return nil
	})
	settings, err := ebpf.LoadPinnedMap(filepath.Join(datapath.Folder(w.options.BPFFS), bpf.MapsMapLiveSettings+"_v1"), &ebpf.LoadPinOptions{ReadOnly: true})
	nodetest.Must(t, err)
	defer settings.Close() //nolint:errcheck // a test
	var live bpf.Settings
	nodetest.Must(t, settings.Lookup(uint32(0), &live))
	if live.ReportInterval != uint32(bpf.MapsReportIntervalREPORT_NOTHING) {
		t.Errorf("%+v", live)
	}

	// The API server goes. A new agent starts, and serves.
	second := w.pod("second")
	w.link.set(true)
	w.stop()
	began := time.Now()
	w.start()
	w.eventually("ready without an API server", 25*time.Second, func() error { return w.probe("readyz") })
	t.Logf("ready after %v without an API server", time.Since(began))
	nodetest.Must(t, w.cni("ADD", "second", string(second.UID), w.node.NewPod("second")))
	if e, err := w.record("second"); err != nil || e.Identity != 127 {
		t.Errorf("a pod of which nobody knows: %+v, %v", e, err)
	}
	// A sandbox that is made anew is the pod that it was.
	nodetest.Must(t, w.cni("DEL", "first", string(first.UID), space))
	nodetest.Must(t, w.cni("ADD", "first", string(first.UID), space))
	if e, err := w.record("first"); err != nil || int64(e.Identity) != slice.Spec.Endpoints[0].Identity {
		t.Errorf("a pod that was known: %+v, %v", e, err)
	}
	w.link.set(false)
	w.eventually("both pods for the others", 60*time.Second, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKey{Name: "node-1-1"}, &slice); err != nil {
			return err
		}
		if len(slice.Spec.Endpoints) != 2 || slices.ContainsFunc(slice.Spec.Endpoints, func(e v1alpha1.SliceEndpoint) bool { return e.Identity < 256 }) {
			return fmt.Errorf("%+v", slice.Spec.Endpoints)
		}
		return nil
	})
	for _, p := range []*corev1.Pod{first, second} {
		nodetest.Must(t, w.cni("DEL", p.Name, string(p.UID), space))
	}
	w.eventually("no slice is left", 20*time.Second, func() error {
		var list v1alpha1.CiliumEndpointSliceList
		if err := w.client.List(t.Context(), &list); err != nil || len(list.Items) > 0 {
			return fmt.Errorf("%d slices, %w", len(list.Items), err)
		}
		return nil
	})
	if n := w.link.most(); n > 60 {
		t.Errorf("%d writes in a minute", n)
	}
}

// TestChurnStaysWithinTheBudget: forty pods come at once, and the API server hears at most sixty writes in a minute.
func TestChurnStaysWithinTheBudget(t *testing.T) {
	w := newWorld(t)
	w.create(&v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: v1alpha1.CiliumNodeSpec{PodCIDRs: []string{"10.7.0.0/24", "fd00:7::/64"}}})
	w.start()
	w.eventually("ready", 20*time.Second, func() error { return w.probe("readyz") })
	const pods = 40
	for i := range pods {
		name := fmt.Sprintf("p%d", i)
		p := w.pod(name)
		nodetest.Must(t, w.cni("ADD", name, string(p.UID), w.node.NewPod(name)))
	}
	w.eventually("others hear of all", 30*time.Second, func() error {
		var slice v1alpha1.CiliumEndpointSlice
		if err := w.client.Get(t.Context(), client.ObjectKey{Name: "node-1-1"}, &slice); err != nil {
			return err
		}
		if len(slice.Spec.Endpoints) != pods {
			return fmt.Errorf("%d pods", len(slice.Spec.Endpoints))
		}
		return nil
	})
	// Nothing says that nothing more is to come: five seconds are room for what people read and for whoever writes without
	// measure, at which the bound is aimed. On a slower machine less is written in them, never more.
	time.Sleep(5 * time.Second)
	t.Logf("%d writes", w.link.most())
	if n := w.link.most(); n > 60 {
		t.Errorf("%d writes in a minute", n)
	}
}

// TestDeletedCiliumNodeTookReportAndSlices: garbage collection takes what a deleted CiliumNode owned, also when the
// operator has made another by then, and nobody wrote it again before its counters changed. The test is the collector.
func TestDeletedCiliumNodeTookReportAndSlices(t *testing.T) {
	w := newWorld(t)
	node := func() *v1alpha1.CiliumNode {
		return &v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: v1alpha1.CiliumNodeSpec{PodCIDRs: []string{"10.7.0.0/24", "fd00:7::/64"}}}
	}
	own := node()
	w.create(own)
	w.start()
	w.eventually("ready", 20*time.Second, func() error { return w.probe("readyz") })
	pod := w.pod("first")
	nodetest.Must(t, w.cni("ADD", "first", string(pod.UID), w.node.NewPod("first")))
	key := client.ObjectKey{Name: "node-1"}
	there := func(uid types.UID) error {
		var r v1alpha1.CiliumNodeReport
		var s v1alpha1.CiliumEndpointSlice
		if err := errors.Join(w.client.Get(t.Context(), key, &r), w.client.Get(t.Context(), client.ObjectKey{Name: "node-1-1"}, &s)); err != nil {
			return err
		}
		for _, o := range []client.Object{&r, &s} {
			if refs := o.GetOwnerReferences(); len(refs) != 1 || refs[0].UID != uid {
				return fmt.Errorf("%T is owned by %+v, want %s", o, refs, uid)
			}
		}
		if len(s.Spec.Endpoints) != 1 || !meta.IsStatusConditionTrue(r.Status.Conditions, v1alpha1.ConditionReady) || len(r.Status.Maps) == 0 {
			return fmt.Errorf("%+v, %+v", s.Spec, r.Status)
		}
		return nil
	}
	w.eventually("report and slice", 20*time.Second, func() error { return there(own.UID) })

	nodetest.Must(t, w.client.Delete(t.Context(), own))
	nodetest.Must(t, w.client.Delete(t.Context(), &v1alpha1.CiliumNodeReport{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}))
	nodetest.Must(t, w.client.Delete(t.Context(), &v1alpha1.CiliumEndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "node-1-1"}}))
	w.eventually("a report without a CiliumNode", 20*time.Second, func() error {
		return w.client.Get(t.Context(), key, &v1alpha1.CiliumNodeReport{})
	})
	own = node()
	w.create(own)
	w.eventually("report and slice of the next CiliumNode", 20*time.Second, func() error { return there(own.UID) })

	// Replaced at once: what names the old one is about to be taken.
	nodetest.Must(t, w.client.Delete(t.Context(), own))
	own = node()
	w.create(own)
	w.eventually("report and slice change their owner", 20*time.Second, func() error { return there(own.UID) })
	before := w.link.most()
	time.Sleep(5 * time.Second) // five rounds of whoever looks each second and writes again and again
	if n := w.link.most(); n > before+3 || n > 40 {
		t.Errorf("%d writes in a minute, %d of them with nothing to say", n, n-before)
	}
}

// TestRestartTookBackDatapathReady: a restarted agent reported DatapathReady=False until it had written its tables, and
// for the operator a node without an agent was then one whose datapath had never been ready.
func TestRestartTookBackDatapathReady(t *testing.T) {
	w := newWorld(t)
	w.create(&v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: v1alpha1.CiliumNodeSpec{PodCIDRs: []string{"10.7.0.0/24", "fd00:7::/64"}}})
	w.start()
	path := func() (metav1.Condition, error) {
		var r v1alpha1.CiliumNodeReport
		if err := w.client.Get(t.Context(), client.ObjectKey{Name: "node-1"}, &r); err != nil {
			return metav1.Condition{}, err
		}
		c := meta.FindStatusCondition(r.Status.Conditions, v1alpha1.ConditionDatapathReady)
		if c == nil || c.Status != metav1.ConditionTrue {
			return metav1.Condition{}, fmt.Errorf("%+v", c)
		}
		return *c, nil
	}
	w.eventually("ready", 20*time.Second, func() error { return w.probe("readyz") })
	var first metav1.Condition
	w.eventually("ready for people", 20*time.Second, func() (err error) { first, err = path(); return err })
	pod, space := w.pod("first"), w.node.NewPod("first")
	nodetest.Must(t, w.cni("ADD", "first", string(pod.UID), space))
	numbered := func() error {
		if e, err := w.record("first"); err != nil || !e.Identity.Allocated() {
			return fmt.Errorf("%+v, %w", e, err)
		}
		return nil
	}
	w.eventually("the pod has its number", 20*time.Second, numbered)
	// It starts without its prefixes, so that it cannot write its tables.
	w.stop()
	nodetest.Must(t, w.client.Delete(t.Context(), &v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}))
	w.pend("first")
	time.Sleep(time.Second) // conditions' times have seconds
	w.start()
	w.eventually("adopted", 10*time.Second, func() error {
		if c, err := path(); err != nil {
			t.Fatal(err)
		} else if c.Reason != "Adopted" || !c.LastTransitionTime.Equal(&first.LastTransitionTime) {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})

	// A pod that is pending meanwhile gets its number with the tables. That it has to wait was an error.
	w.eventually("its number is known", 20*time.Second, func() error {
		data, err := os.ReadFile(filepath.Join(w.options.StateDir, "last-pods.json"))
		if err != nil || !strings.Contains(string(data), string(pod.UID)) {
			return fmt.Errorf("%s, %w", data, err)
		}
		return nil
	})
	if numbered() == nil {
		t.Error("it has its number without tables")
	}
	w.create(&v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: v1alpha1.CiliumNodeSpec{PodCIDRs: []string{"10.7.0.0/24", "fd00:7::/64"}}})
	w.eventually("the pod has its number again", 20*time.Second, numbered)
	w.mu.Lock()
	if i := slices.IndexFunc(w.errors, func(text string) bool { return strings.Contains(text, datapath.ErrNotConfigured.Error()) }); i >= 0 {
		t.Errorf("logged as an error: %s", w.errors[i])
	}
	w.mu.Unlock()
	nodetest.Must(t, w.cni("DEL", "first", string(pod.UID), space))

	// Where somebody has emptied the bpf file system, nothing is in force.
	w.stop()
	nodetest.Must(t, w.client.Delete(t.Context(), &v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}))
	nodetest.Must(t, w.node.Datapath.Close())
	nodetest.Must(t, os.RemoveAll(filepath.Join(w.options.BPFFS, "kube-cilium")))
	w.start()
	w.eventually("nothing to adopt", 10*time.Second, func() error {
		var r v1alpha1.CiliumNodeReport
		nodetest.Must(t, w.client.Get(t.Context(), client.ObjectKey{Name: "node-1"}, &r))
		if c := meta.FindStatusCondition(r.Status.Conditions, v1alpha1.ConditionDatapathReady); c == nil || c.Status != metav1.ConditionFalse {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}
