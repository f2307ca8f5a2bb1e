// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/plugins/explain"
)

// somebody is an end of a random packet: a pod of this node (id), a pod elsewhere, or nobody's address.
type somebody struct {
	id       uint16
	identity identity.Number
	subject  *policy.Subject
	v4, v6   netip.Addr
}

func (s somebody) addr(v6 bool) netip.Addr {
	if v6 {
		return s.v6
	}
	return s.v4
}

// differ is a node whose programs are run on packets of our making.
type differ struct {
	t      *testing.T
	d      *Datapath
	r      *rand.Rand
	engine *policy.Engine
	progs  map[string]*ebpf.Program
	locals []somebody
	// others are the pods elsewhere and the world.
	others, elsewhere []somebody
	port              uint16
	// objects are what kubectl cilium policy explain has read, world what it makes of them.
	objects explain.Objects
	world   *explain.World
	// explained counts the packets of which somebody asked why.
	explained int
}

// TestKernelEqualsEvaluate: random NetworkPolicies, pods and packets; what the programs say on the tables that the engine
// made is what Evaluate says of the objects, with the same rule, on each side. What Explain says, and kubectl cilium
// policy explain from the objects alone, is the same again. KUBE_CILIUM_SEED repeats a run.
func TestKernelEqualsEvaluate(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("KUBE_CILIUM_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("KUBE_CILIUM_SEED=%d", seed)
	d := newDiffer(t, rand.New(rand.NewPCG(seed, 0)))
	const rounds, packets = 36, 300
	pairs, denied := 0, 0
	for round := range rounds {
		d.policies(round)
		for range packets {
			n, no := d.packet()
			pairs, denied = pairs+n, denied+no
			if t.Failed() {
				t.Fatalf("round %d", round)
			}
		}
	}
	t.Logf("%d verdicts compared, %d of them denials; %d pairs explained", pairs, denied, d.explained)
	if pairs < 10000 || denied < pairs/20 || denied > pairs*19/20 {
		t.Errorf("%d verdicts, %d denials: too few of one kind", pairs, denied)
	}
	if d.explained < 1000 {
		t.Errorf("%d pairs explained: too few", d.explained)
	}
}

func newDiffer(t *testing.T, r *rand.Rand) *differ {
	f := newFixture(t)
	d := &differ{t: t, d: f.open(), r: r, engine: policy.NewEngine(), progs: map[string]*ebpf.Program{}, port: 1024}
	for _, p := range bpf.DevicePrograms() {
		c, err := prepare(p.Load, constants{"node_ipv4": bpf.AddrFrom(node4), "node_ipv6": bpf.AddrFrom(node6), "uplink_ifindex": uint32(1),
			"have_redirect_peer": true, "have_redirect_neigh": true, "pod_mtu": uint32(1500), "device_mtu": uint32(1500)}, d.d.maps)
		must(t, err)
		progs, err := c.load()
		must(t, err)
		d.progs[p.Name] = progs[p.Name]
	}
	t.Cleanup(func() { closeAll(d.progs) })
	namespaces := map[string]map[string]string{}
	for _, name := range []string{"one", "two"} {
		namespaces[name] = map[string]string{"kubernetes.io/metadata.name": name, "team": "t" + name}
		d.objects.Namespaces = append(d.objects.Namespaces, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: namespaces[name]}})
	}
	d.objects.Nodes = []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "here"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Address: node4.String()}, {Address: node6.String()}}}}}
	d.objects.ClusterName = "default"
	numbers := map[string]identity.Number{}
	pod := func(i int, id uint16) somebody {
		who := somebody{id: id, v4: netip.AddrFrom4([4]byte{10, 1, byte(i / 16), byte(i)}), v6: netip.MustParseAddr(fmt.Sprintf("fd00:1::%x:%x", i/16, i))}
		o := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, "one", "two"), Name: fmt.Sprintf("pod-%d", i), Labels: map[string]string{"app": pick(r, "a", "b", "c")}},
			Spec:       corev1.PodSpec{NodeName: "elsewhere"},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: who.v4.String()}, {IP: who.v6.String()}}},
		}
		if id != 0 {
			o.Spec.NodeName = "here"
		}
		if r.IntN(2) == 0 {
			o.Labels["tier"] = pick(r, "x", "y")
		}
		key := fmt.Sprint(o.Namespace, o.Labels)
		n, known := numbers[key]
		if !known {
			n = identity.Number(300 + len(numbers))
			numbers[key] = n
		}
		// Of one identity all pods name the same ports; one of them is a sidecar's.
		always := corev1.ContainerRestartPolicyAlways
		o.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80 + int32(n%3)}}}}
		o.Spec.InitContainers = []corev1.Container{
			{Ports: []corev1.ContainerPort{{Name: "dns", Protocol: corev1.ProtocolUDP, ContainerPort: 53}}, RestartPolicy: &always},
			{Ports: []corev1.ContainerPort{{Name: "nobody", ContainerPort: 443}}},
		}
		p, err := policy.FromPod(&o, namespaces[o.Namespace], d.objects.ClusterName, identity.DefaultFilter())
		must(t, err)
		if !known {
			d.engine.SetIdentity(n, p.Labels, p.Ports)
		}
		subject := p.Subject()
		who.identity, who.subject = n, &subject
		d.objects.Pods = append(d.objects.Pods, o)
		return who
	}
	for i := range 6 {
		p := pod(i+1, uint16(i+1))
		d.locals = append(d.locals, p)
		must(t, d.d.ensureUnanswered(p.id))
		for _, a := range []netip.Addr{p.v4, p.v6} {
			must(t, d.d.maps.open[bpf.MapsMapEndpoints].Put(bpf.AddrFrom(a), bpf.Endpoint{Ifindex: 1, Identity: uint32(p.identity), Id: p.id}))
		}
	}
	for i := range 20 {
		p := pod(i+32, 0)
		p.subject = nil
		d.elsewhere = append(d.elsewhere, p)
	}
	d.others = slices.Clone(d.elsewhere)
	for _, p := range d.others {
		for _, a := range []netip.Addr{p.v4, p.v6} {
			must(t, d.d.maps.open[bpf.MapsMapPeers].Put(bpf.AddrFrom(a), bpf.Peer{Identity: uint32(p.identity),
				Flags: uint32(bpf.MapsPeerFlagsPEER_NATIVE | bpf.MapsPeerFlagsPEER_CLUSTER)}))
		}
	}
	for i := range 8 {
		d.others = append(d.others, somebody{identity: identity.World,
			v4: netip.AddrFrom4([4]byte{192, 168, byte(i * 32), byte(i)}), v6: netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::%x", i*0x2000, i))})
	}
	return d
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// policies makes other objects and brings them into force.
func (d *differ) policies(round int) {
	r := d.r
	for i := range 4 {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, "one", "two"), Name: fmt.Sprintf("p%d", i)}}
		d.objects.Policies = slices.DeleteFunc(d.objects.Policies, func(o networkingv1.NetworkPolicy) bool {
			if o.Name == np.Name {
				d.engine.DeletePolicy(policy.RefOf(&o))
			}
			return o.Name == np.Name
		})
		if r.IntN(4) == 0 {
			continue
		}
		np.Spec.PodSelector = d.selector()
		if r.IntN(3) > 0 {
			np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
			for range r.IntN(3) {
				np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.peers(), Ports: d.ports()})
			}
		}
		if r.IntN(3) > 0 || len(np.Spec.PolicyTypes) == 0 {
			np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
			for range r.IntN(3) {
				np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.peers(), Ports: d.ports()})
			}
		}
		rules, _, err := policy.FromNetworkPolicy(np)
		must(d.t, err)
		must(d.t, d.engine.SetPolicy(policy.RefOf(np), rules))
		d.objects.Policies = append(d.objects.Policies, *np)
	}
	var err error
	d.world, err = explain.New(d.objects)
	must(d.t, err)
	for again := true; again; {
		pods := map[uint16]PodPolicy{}
		for _, p := range d.locals {
			in, out := d.engine.Tables(*p.subject)
			pods[p.id] = PodPolicy{Ingress: in, Egress: out}
		}
		classes := d.engine.Classes()
		failed, err := d.d.SetPolicy(pods, classes)
		must(d.t, err)
		if len(failed) > 0 {
			d.t.Fatalf("round %d: %v", round, failed)
		}
		again = d.engine.ClassesInForce(classes)
	}
	if d.engine.Waiting() {
		d.t.Fatalf("round %d: the engine waits for classes", round)
	}
	for _, p := range d.locals {
		in, out := d.engine.Tables(*p.subject)
		holds(d.t, d.d, p.id, policy.Ingress, in)
		holds(d.t, d.d, p.id, policy.Egress, out)
	}
}

func (d *differ) selector() metav1.LabelSelector {
	switch d.r.IntN(4) {
	case 0:
		return metav1.LabelSelector{}
	case 1:
		return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpExists}}}
	case 2:
		return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "app", Operator: pick(d.r, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: []string{"a", "b"}}}}
	}
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": pick(d.r, "a", "b", "c")}}
}

func (d *differ) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range d.r.IntN(4) {
		switch d.r.IntN(4) {
		case 0:
			s := d.selector()
			out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: &s})
		case 1:
			s, ns := d.selector(), metav1.LabelSelector{MatchLabels: map[string]string{"team": pick(d.r, "tone", "ttwo")}}
			out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: &s, NamespaceSelector: &ns})
		case 2:
			out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}})
		default:
			block := pick(d.r,
				networkingv1.IPBlock{CIDR: "0.0.0.0/0"}, networkingv1.IPBlock{CIDR: "::/0"},
				networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"192.168.64.0/18", "10.1.0.0/24"}},
				networkingv1.IPBlock{CIDR: "192.168.0.0/16", Except: []string{"192.168.128.0/17"}},
				networkingv1.IPBlock{CIDR: "192.168.192.0/18"}, networkingv1.IPBlock{CIDR: "10.1.2.0/23"},
				networkingv1.IPBlock{CIDR: "2001:db8::/32", Except: []string{"2001:db8:4000::/34"}}, networkingv1.IPBlock{CIDR: "fd00:1::/64"})
			out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: &block})
		}
	}
	return out
}

func (d *differ) ports() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range d.r.IntN(3) {
		proto := pick(d.r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		p := networkingv1.NetworkPolicyPort{Protocol: &proto}
		switch d.r.IntN(4) {
		case 0:
		case 1:
			first, last := intstr.FromInt32(75+d.r.Int32N(10)), 90+d.r.Int32N(9000)
			p.Port, p.EndPort = &first, &last
		case 2:
			name := intstr.FromString(pick(d.r, "http", "dns", "nobody"))
			p.Port = &name
		default:
			number := intstr.FromInt32(pick[int32](d.r, 53, 80, 81, 443, 8080))
			p.Port = &number
		}
		out = append(out, p)
	}
	return out
}

// packet runs one and compares; it says how many verdicts were compared and how many of them were denials.
func (d *differ) packet() (compared, denied int) {
	r := d.r
	v6 := r.IntN(2) == 0
	d.port++
	if d.port == 0 {
		d.port = 1024
	}
	at := pick(r, d.locals...)
	other := pick(r, d.others...)
	if r.IntN(2) == 0 {
		for other = pick(r, d.locals...); other.id == at.id; other = pick(r, d.locals...) {
		}
	}
	f := policy.Flow{
		Protocol: pick[uint8](r, unix.IPPROTO_TCP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP),
		Port:     pick[uint16](r, 53, 80, 81, 82, 90, 443, 8080, uint16(r.IntN(1<<16))),
	}
	prog, ctx := "from_pod", testContext{Ifindex: 1}
	from, to := at, other
	if r.IntN(2) == 0 && other.id == 0 {
		from, to = other, at
		prog = pick(r, "from_netdev", "to_pod")
		ctx.IngressIfindex = 1
		switch {
		case prog == "to_pod" && r.IntN(4) == 0: // a socket of this node, or of somebody with its address
			from = somebody{identity: identity.Host, v4: node4, v6: node6}
			if r.IntN(2) == 0 {
				from.identity = identity.Pending
			} else {
				ctx.IngressIfindex = 0
			}
			for _, a := range []netip.Addr{node4, node6} {
				must(d.t, d.d.maps.open[bpf.MapsMapEndpoints].Put(bpf.AddrFrom(a), bpf.Endpoint{Identity: 1, Flags: uint16(bpf.MapsEndpointFlagsENDPOINT_HOST)}))
			}
		case prog == "to_pod" && r.IntN(2) == 0:
			ctx.Mark = uint32(bpf.MapsMarkMARK_ACCEPTED) | uint32(from.identity)<<16
		}
	} else {
		must(d.t, d.d.maps.open[bpf.MapsMapPodInterfaces].Put(uint32(1), bpf.PodInterface{
			Ipv4: bpf.AddrFrom(at.v4), Ipv6: bpf.AddrFrom(at.v6), Identity: uint32(at.identity), Id: at.id}))
	}
	end := func(s somebody) policy.End {
		return policy.End{Pod: s.subject, Identity: s.identity, Addr: s.addr(v6)}
	}
	f.Source, f.Destination = end(from), end(to)
	decision := d.engine.Evaluate(f)

	d.d.policy.moved = true
	must(d.t, d.d.judgeAgain())
	ret, err := d.progs[prog].Run(&ebpf.RunOptions{Data: frame(from.addr(v6), to.addr(v6), f.Protocol, d.port, f.Port), Context: &ctx})
	must(d.t, err)
	home := at.id
	if passed := int32(ret) != 2; passed != (decision.Verdict == policy.Allow) {
		d.t.Errorf("%s: %+v -> %+v protocol %d port %d: passed %v, decision %+v", prog, from, to, f.Protocol, f.Port, passed, decision)
		return 0, 0
	}
	conn := d.conn(home, from.addr(v6), to.addr(v6), f.Protocol, d.port, f.Port)
	walk := d.engine.Explain(f)
	answer := d.ask(f)
	d.explained++
	// A pod elsewhere is judged there: the objects know that side too.
	whole := !slices.ContainsFunc(d.elsewhere, func(s somebody) bool { return s.v4 == other.v4 })
	if walk.Verdict != decision.Verdict || (walk.Nearest != nil) != (walk.Verdict == policy.Deny) || whole && answer.Allowed() != (decision.Verdict == policy.Allow) {
		d.t.Errorf("%s: %+v -> %+v protocol %d port %d: decision %+v, explained %+v, from the objects %+v", prog, from, to, f.Protocol, f.Port, decision, walk, answer)
	}
	explained, answered := []policy.Side{walk.Egress, walk.Ingress}, []explain.Side{answer.Egress, answer.Ingress}
	for i, side := range []policy.Side{decision.Egress, decision.Ingress} {
		if side.Verdict == 0 || i == 0 && from.id == 0 || i == 1 && (to.id == 0 || decision.Egress.Verdict == policy.Deny && from.id != 0) {
			continue
		}
		got := conn.Side[i]
		compared++
		if allowed := got.Verdict == 1; allowed != (side.Verdict == policy.Allow) || got.Rule != uint32(side.Rule) {
			d.t.Errorf("%s: %+v -> %+v protocol %d port %d: side %d says %+v, the objects %+v", prog, from, to, f.Protocol, f.Port, i, got, side)
		}
		if why := explained[i]; (got.Verdict == 1) != (why.Verdict == policy.Allow) || got.Rule != uint32(why.Rule) {
			d.t.Errorf("%s: %+v -> %+v protocol %d port %d: side %d says %+v, explained %+v", prog, from, to, f.Protocol, f.Port, i, got, why)
		}
		if why := answered[i]; (got.Verdict == 1) != (why.Verdict == "allowed") || got.Rule != 0 && why.Why != d.name(got.Rule) {
			d.t.Errorf("%s: %+v -> %+v protocol %d port %d: side %d says %+v (%s), from the objects %+v", prog, from, to, f.Protocol, f.Port, i, got, d.name(got.Rule), why)
		}
		if side.Verdict == policy.Deny {
			denied++
		}
	}
	return compared, denied
}

// ask is the question of kubectl cilium policy explain, with addresses for both ends.
func (d *differ) ask(f policy.Flow) explain.Answer {
	world := d.world
	if f.Source.Identity == identity.Pending {
		// The node's address, forwarded by a stack: as if nobody had it, and its cluster had that prefix.
		o := d.objects
		o.Nodes = nil
		o.Members = []v1alpha1.CiliumNode{{Spec: v1alpha1.CiliumNodeSpec{PodCIDRs: []string{f.Source.Addr.String() + "/" + strconv.Itoa(f.Source.Addr.BitLen())}}}}
		var err error
		world, err = explain.New(o)
		must(d.t, err)
	}
	answers, err := world.Ask(explain.Question{From: f.Source.Addr.String(), To: f.Destination.Addr.String(), Port: explain.Port{Number: f.Port, Protocol: f.Protocol}})
	must(d.t, err)
	if len(answers) != 1 {
		d.t.Fatalf("%+v: %d answers", f, len(answers))
	}
	return answers[0]
}

// name is a rule in the words of kubectl cilium policy explain.
func (d *differ) name(rule uint32) string {
	p, _ := d.engine.Provenance(policy.RuleID(rule))
	var origins []string
	for _, o := range p.Origins {
		origins = append(origins, strings.TrimSpace(o.Ref.String()+" "+o.Path))
	}
	name := strings.Join(origins, ", ")
	if p.Default {
		name = "the default deny of " + name
	}
	return name
}

// conn is the entry that the packet made.
func (d *differ) conn(home uint16, src, dst netip.Addr, proto uint8, sport, dport uint16) bpf.Conn {
	table, err := innerMap(d.d.maps.open[bpf.MapsMapUnanswered], home)
	must(d.t, err)
	defer table.Close()
	a, b := flowSide{bpf.AddrFrom(src), networkOrder(sport)}, flowSide{bpf.AddrFrom(dst), networkOrder(dport)}
	if a.after(b) {
		a, b = b, a
	}
	var c bpf.Conn
	must(d.t, table.Lookup(bpf.FlowKey{Lo: a.addr, LoPort: a.port, Hi: b.addr, HiPort: b.port, Proto: proto}, &c))
	return c
}

// testContext is what the kernel lets a test set of struct __sk_buff.
type testContext struct {
	_              [2]uint32
	Mark           uint32
	_              [6]uint32
	IngressIfindex uint32
	Ifindex        uint32
	_              [30]uint32
	GSOSegs        uint32
	_              [2]uint32
	GSOSize        uint32
	_              uint32
	_              uint64
}

// frame is a first packet: SYN for TCP.
func frame(src, dst netip.Addr, proto uint8, sport, dport uint16) []byte {
	l4 := make([]byte, 20)
	binary.BigEndian.PutUint16(l4, sport)
	binary.BigEndian.PutUint16(l4[2:], dport)
	switch proto {
	case unix.IPPROTO_TCP:
		l4[12], l4[13] = 5<<4, 2
	case unix.IPPROTO_UDP:
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	}
	b := make([]byte, 12, 80)
	if src.Is4() {
		b = append(b, 8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, proto, 0, 0)
	} else {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, proto, 64)
	}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	return append(b, l4...)
}

// TestTablesChangeUnderTraffic: while tables are changed where they are, exchanged, shared, dropped and come back, no
// packet that both the old and the new policy allow is refused, and none that both refuse passes; new connections and
// established ones.
func TestTablesChangeUnderTraffic(t *testing.T) {
	d := newDiffer(t, rand.New(rand.NewPCG(1, 2)))
	const always, never = 7001, 7002
	pod := d.locals[0]
	tableOf := func(r *rand.Rand) *policy.Table {
		rule := policy.RuleID(1 + r.IntN(3))
		out := &policy.Table{Entries: map[policy.Key]policy.Entry{}, Default: policy.RuleID(90 + r.IntN(2))}
		allow := func(k policy.Key) {
			out.Entries[k] = policy.Entry{Verdict: policy.Allow, Rule: rule, Precedence: 5}
		}
		// The one who is always allowed, in one of the ways to say so; and others who come and go.
		switch r.IntN(4) {
		case 0:
			allow(policy.Key{Peer: always})
		case 1:
			allow(policy.Key{Peer: always, Protocol: unix.IPPROTO_TCP})
		default:
			allow(policy.Key{Peer: always, Protocol: unix.IPPROTO_TCP, Bits: 16, Port: 80})
		}
		for i := range r.IntN(40) {
			allow(policy.Key{Peer: policy.Peer(400 + i + r.IntN(5)), Protocol: unix.IPPROTO_TCP, Bits: 16, Port: 80})
		}
		if r.IntN(2) == 0 {
			out.Entries[policy.Key{Peer: never}] = policy.Entry{Verdict: policy.Deny, Rule: rule, Precedence: 1}
		}
		return out
	}
	if _, err := d.d.SetPolicy(map[uint16]PodPolicy{pod.id: {Ingress: tableOf(d.r)}}, nil); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan string, 1)
	packets := 0
	go func() {
		defer close(done)
		port := uint16(1024)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if port++; port == 0 {
				port = 1024
			}
			for who, pass := range map[uint32]bool{always: true, never: false} {
				for _, sport := range []uint16{port, 7} {
					ctx := testContext{Ifindex: 1, IngressIfindex: 1, Mark: uint32(bpf.MapsMarkMARK_ACCEPTED) | who<<16}
					src := netip.AddrFrom4([4]byte{10, 9, 0, byte(who)})
					ret, err := d.progs["to_pod"].Run(&ebpf.RunOptions{Data: frame(src, pod.v4, unix.IPPROTO_TCP, sport, 80), Context: &ctx})
					if packets++; err != nil || (int32(ret) != 2) != pass {
						done <- fmt.Sprintf("packet %d of %d, port %d: %d, %v", packets, who, sport, int32(ret), err)
						return
					}
				}
			}
		}
	}()
	for i := range 150 {
		pods := map[uint16]PodPolicy{pod.id: {Ingress: tableOf(d.r)}}
		for _, p := range d.locals[1:] {
			pods[p.id] = PodPolicy{Ingress: pods[pod.id].Ingress}
			if d.r.IntN(3) == 0 {
				pods[p.id] = PodPolicy{Ingress: tableOf(d.r), Egress: tableOf(d.r)}
			}
		}
		failed, err := d.d.SetPolicy(pods, nil)
		must(t, err)
		if len(failed) > 0 {
			t.Fatal(failed)
		}
		select {
		case wrong := <-done:
			t.Fatalf("after change %d: %s", i, wrong)
		default:
		}
	}
	close(stop)
	if wrong := <-done; wrong != "" {
		t.Error(wrong)
	}
	t.Logf("%d packets", packets)
}
