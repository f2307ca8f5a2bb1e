// SPDX-License-Identifier: Apache-2.0

package nodetest_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

const udpPort = 8080

// sink counts the datagrams that arrive in a pod, by their first four bytes.
type sink struct {
	mu  sync.Mutex
	got map[uint32]int
}

// listen makes a pod take datagrams.
func listen(t *testing.T, p *nodetest.Pod) *sink {
	t.Helper()
	s := &sink{got: map[uint32]int{}}
	var conn *net.UDPConn
	nodetest.Must(t, p.Inside(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: udpPort})
		return err
	}))
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			if n >= 4 {
				s.mu.Lock()
				s.got[binary.BigEndian.Uint32(buf)]++
				s.mu.Unlock()
			}
		}
	}()
	return s
}

func (s *sink) count(stream uint32) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[stream]
}

// caughtUp waits until what had come into the pod before is counted: it all waits in one queue.
func (s *sink) caughtUp(t *testing.T, p *nodetest.Pod) {
	t.Helper()
	const mark = 0
	seen := s.count(mark)
	nodetest.Must(t, p.Inside(func() error {
		conn, err := net.Dial("udp", netip.AddrPortFrom(netip.IPv6Loopback(), udpPort).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(binary.BigEndian.AppendUint32(nil, mark))
		return err
	}))
	for end := time.Now().Add(patience); s.count(mark) == seen; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody counts what comes into the pod")
		}
	}
}

// patience is how long the test waits for what cannot fail to come.
const patience = 10 * time.Second

// stream is datagrams that leave a pod, one a millisecond for each address, until stop.
type stream struct {
	sent   atomic.Int64
	cancel context.CancelFunc
	done   chan struct{}
}

func newStream(p *nodetest.Pod, number uint32, to ...netip.Addr) *stream {
	ctx, cancel := context.WithCancel(context.Background())
	s := &stream{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_ = p.Inside(func() error {
			data := binary.BigEndian.AppendUint32(nil, number)
			conns := make([]net.Conn, len(to))
			for ctx.Err() == nil {
				for i, a := range to {
					if conns[i] == nil { // no route before the interface is up
						conns[i], _ = net.Dial("udp", netip.AddrPortFrom(a, udpPort).String())
					}
					if conns[i] == nil {
						continue
					}
					if _, err := conns[i].Write(data); err == nil {
						s.sent.Add(1)
					}
				}
				time.Sleep(time.Millisecond)
			}
			for _, c := range conns {
				if c != nil {
					_ = c.Close()
				}
			}
			return nil
		})
	}()
	return s
}

// goOn waits until so many more have left.
func (s *stream) goOn(t *testing.T, more int64) {
	t.Helper()
	want := s.sent.Load() + more
	for end := time.Now().Add(patience); s.sent.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("only %d of %d datagrams can be sent", more-want+s.sent.Load(), more)
		}
	}
}

// stop tells how many have left.
func (s *stream) stop() int {
	s.cancel()
	<-s.done
	return int(s.sent.Load())
}

// TestPolicies goes through the life of policies on one node: none, closed, open for some, a new pod under a default
// deny, an agent that is restarted. NCC-E003660-XE9: nobody could tell whether a policy is enforced; here nothing is
// asked of a policy before the node reports it in force, and everything from then on.
func TestPolicies(t *testing.T) {
	w := newWorld(t)
	w.create(&v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: v1alpha1.CiliumNodeSpec{PodCIDRs: []string{"10.7.0.0/24", "fd00:7::/64"}}})
	w.start()
	w.eventually("ready", 20*time.Second, func() error { return w.probe("readyz") })
	spaces := map[string]*nodetest.Pod{}
	number := uint32(0)
	start := func(name, app string) *corev1.Pod {
		t.Helper()
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": app}},
			Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Name: "c", Image: "i", Ports: []corev1.ContainerPort{
				{Name: "web", ContainerPort: udpPort, Protocol: corev1.ProtocolUDP},
			}}}},
		}
		w.create(p)
		spaces[name] = w.node.NewPod(name)
		return p
	}
	add := func(p *corev1.Pod) *endpoint.Endpoint {
		t.Helper()
		nodetest.Must(t, w.cni("ADD", p.Name, string(p.UID), spaces[p.Name]))
		e, err := w.record(p.Name)
		nodetest.Must(t, err)
		return e
	}
	server := add(start("server", "server"))
	clientPod := start("client", "client")
	add(clientPod)
	into := listen(t, spaces["server"])
	addresses := server.Addresses()
	var refused []uint32 // streams of which nothing may arrive
	// passes returns an error unless all of some datagrams of either family arrive, or none where they are not allowed.
	passes := func(from string, allowed bool) error {
		number++
		s := newStream(spaces[from], number, addresses...)
		s.goOn(t, 200)
		sent := s.stop()
		into.caughtUp(t, spaces["server"])
		// What is on its way between two pods of a node is there when it is sent, but on a machine that is too busy.
		for end := time.Now().Add(time.Second); allowed && into.count(number) < sent && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if got := into.count(number); allowed && got != sent || !allowed && got != 0 {
			return fmt.Errorf("%d of %d arrive, allowed: %t", got, sent, allowed)
		}
		if !allowed {
			refused = append(refused, number)
		}
		return nil
	}
	inForce := func(version string) {
		t.Helper()
		want, err := strconv.ParseUint(version, 10, 64)
		nodetest.Must(t, err)
		w.eventually("the policy is in force", 10*time.Second, func() error {
			var r v1alpha1.CiliumNodeReport
			if err := w.client.Get(t.Context(), client.ObjectKey{Name: "node-1"}, &r); err != nil {
				return err
			}
			if len(r.Status.Policies) != 1 || len(r.Status.Policies[0].Exceptions) > 0 {
				return fmt.Errorf("%+v", r.Status.Policies)
			}
			if got, err := strconv.ParseUint(r.Status.Policies[0].InForce, 10, 64); err != nil || got < want {
				return fmt.Errorf("%s, want %d", r.Status.Policies[0].InForce, want)
			}
			return nil
		})
	}
	expect := func(what, from string, allowed bool) {
		t.Helper()
		if err := passes(from, allowed); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	expect("without a policy", "client", true)

	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "server"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
	set := func(what string, rules ...networkingv1.NetworkPolicyIngressRule) {
		t.Helper()
		np.Spec.Ingress = rules
		var err error
		if np.ResourceVersion == "" {
			err = w.client.Create(t.Context(), np)
		} else {
			err = w.client.Update(t.Context(), np)
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		inForce(np.ResourceVersion)
	}
	udp, named := corev1.ProtocolUDP, intstr.FromString("web")
	from := func(peers ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicyIngressRule {
		return networkingv1.NetworkPolicyIngressRule{From: peers}
	}
	byLabel := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}}
	byNamespace := networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "default"}}}
	set("closed")
	expect("closed", "client", false)
	set("by label", from(byLabel))
	expect("by label", "client", true)
	set("by namespace", from(byNamespace))
	expect("by namespace", "client", true)
	e, err := w.record("client")
	nodetest.Must(t, err)
	block := func(a netip.Addr) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: netip.PrefixFrom(a, a.BitLen()).String()}}
	}
	set("by address", from(block(e.IPv4), block(e.IPv6)))
	expect("by address", "client", true)
	set("all but the address", from(
		networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{e.IPv4.String() + "/32"}}},
		networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "fd00::/8", Except: []string{e.IPv6.String() + "/128"}}},
	))
	expect("all but the address", "client", false)
	rule := from(byLabel)
	rule.Ports = []networkingv1.NetworkPolicyPort{{Protocol: &udp, Port: &named}}
	set("by label and the name of a port", rule)
	expect("by label and the name of a port", "client", true)

	// The client becomes somebody else.
	clientPod.Labels["app"] = "stranger"
	nodetest.Must(t, w.client.Update(t.Context(), clientPod))
	w.eventually("a client that is somebody else", 20*time.Second, func() error { return passes("client", false) })
	clientPod.Labels["app"] = "client"
	nodetest.Must(t, w.client.Update(t.Context(), clientPod))
	w.eventually("a client that is itself again", 20*time.Second, func() error { return passes("client", true) })

	// A policy, and at once a pod under it that sends from the first instant on.
	nodetest.Must(t, w.client.Delete(t.Context(), np))
	quiet := start("quiet", "quiet")
	silenced := newStream(spaces["quiet"], 1000, addresses...)
	w.create(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "quiet"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "quiet"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		},
	})
	add(quiet)
	silenced.goOn(t, 200)

	// cilium #47880 and CVE-2023-27595: an agent that starts again lets nothing through, loses nothing, and takes its
	// pods for who they were.
	throughout := newStream(spaces["client"], 2000, addresses...)
	var before *endpoint.Endpoint
	w.eventually("a number of the silenced pod", patience, func() (err error) {
		if before, err = w.record("quiet"); err == nil && !before.Who().Identity.Allocated() {
			err = fmt.Errorf("it is %d", before.Who().Identity)
		}
		return err
	})
	for range 2 {
		w.stop()
		w.start()
		w.eventually("ready again", 20*time.Second, func() error { return w.probe("readyz") })
	}
	throughout.goOn(t, 500)
	silenced.goOn(t, 500)
	after, err := w.record("quiet")
	nodetest.Must(t, err)
	if !reflect.DeepEqual(before.Who(), after.Who()) {
		t.Errorf("the pod was\n%+v, and is\n%+v", before.Who(), after.Who())
	}
	sent := throughout.stop()
	w.eventually(fmt.Sprintf("all %d datagrams sent over two starts of the agent", sent), patience, func() error {
		if got := into.count(2000); got != sent {
			return fmt.Errorf("%d arrive", got)
		}
		return nil
	})
	sent = silenced.stop()
	into.caughtUp(t, spaces["server"])
	if got := into.count(1000); got != 0 {
		t.Errorf("%d of %d datagrams arrive from a pod that a policy silences from its first instant", got, sent)
	}
	for _, number := range refused {
		if got := into.count(number); got != 0 {
			t.Errorf("%d datagrams of stream %d, which was refused, arrive in the end", got, number)
		}
	}
	var shown v1alpha1.CiliumEndpoint
	w.eventually("people see what is in force", 30*time.Second, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(quiet), &shown); err != nil {
			return err
		}
		if p := shown.Status.Policy; !p.Egress.Enforced || p.Ingress.Enforced || !reflect.DeepEqual(p.Egress.Policies, []string{"NetworkPolicy default/quiet"}) {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
}
