// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-logr/logr/funcr"
	"github.com/go-logr/logr/testr"
	"github.com/vishvananda/netlink"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

// open is a policy that allows everything.
type open struct{ *datapath.Datapath }

func (o open) Admit(_ context.Context, e *Endpoint) func() error {
	return func() error { return o.SetPodPolicy(e.ID, datapath.PodPolicy{}) }
}
func (o open) Dismiss(e *Endpoint) error { return o.DropPodPolicy(e.ID) }

// agent is one life of an agent on a node.
type agent struct {
	*Set
	t         *testing.T
	node      *nodetest.Node
	addresses *ipam.Allocator
	options   Options
}

func newAgent(t *testing.T, n *nodetest.Node, stateDir string, hook func(step) error) *agent {
	t.Helper()
	a := &agent{t: t, node: n, addresses: ipam.NewAllocator(time.Now)}
	a.addresses.SetPrefixes([]netip.Prefix{netip.MustParsePrefix("10.7.0.0/24"), netip.MustParsePrefix("fd00:7::/120")})
	boot, err := cni.BootID()
	nodetest.Must(t, err)
	a.options = Options{
		StateDir: stateDir, BootID: boot, ProcSysNet: "/proc/sys/net", Datapath: n.Datapath, Policy: open{n.Datapath}, Addresses: a.addresses,
		Identify: func(context.Context, cni.Pod) (Who, error) {
			return Who{Labels: identity.Labels{"k8s:app": "web"}, Identity: 300}, nil
		},
		Changed: func() {}, Log: testr.New(t),
	}
	if hook == nil {
		hook = func(step) error { return nil }
	}
	a.Set, err = newSet(a.options, hook)
	nodetest.Must(t, err)
	nodetest.Must(t, a.Restore())
	return a
}

// restart is the next agent of the same boot.
func (a *agent) restart() *agent {
	a.t.Helper()
	a.node.Restart()
	return newAgent(a.t, a.node, a.options.StateDir, nil)
}

// traces is everything that a pod may leave behind on this node.
func (a *agent) traces() []string {
	a.t.Helper()
	var out []string
	links, err := hostEnds()
	nodetest.Must(a.t, err)
	out = append(out, links...)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		nodetest.Must(a.t, err)
		for _, r := range routes {
			if l, err := netlink.LinkByIndex(r.LinkIndex); err != nil || l.Attrs().Name != datapath.OverlayDevice {
				out = append(out, "route "+r.String())
			}
		}
	}
	out = append(out, keys[bpf.Addr, bpf.Endpoint](a, bpf.MapsMapEndpoints, func(e bpf.Endpoint) bool { return e.Id != 0 })...)
	out = append(out, keys[uint32, bpf.PodInterface](a, bpf.MapsMapPodInterfaces, func(bpf.PodInterface) bool { return true })...)
	files, err := os.ReadDir(a.records.dir)
	nodetest.Must(a.t, err)
	for _, f := range files {
		out = append(out, "file "+f.Name())
	}
	for _, u := range a.addresses.Usage() {
		if u.Used > 0 {
			out = append(out, fmt.Sprintf("%d addresses of %s", u.Used, u.Prefix))
		}
	}
	pins, err := filepath.Glob(filepath.Join(datapath.Folder(a.node.Options.BPFFS), "links", "*kc[0-9a-f]*"))
	nodetest.Must(a.t, err)
	return append(out, pins...)
}

func keys[K comparable, V any](a *agent, name string, counts func(V) bool) []string {
	a.t.Helper()
	pins, err := filepath.Glob(filepath.Join(datapath.Folder(a.node.Options.BPFFS), name+"_v*"))
	nodetest.Must(a.t, err)
	var out []string
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, nil)
		nodetest.Must(a.t, err)
		var k K
		var v V
		for it := m.Iterate(); it.Next(&k, &v); {
			if counts(v) {
				out = append(out, fmt.Sprintf("%s %v", name, k))
			}
		}
		nodetest.Must(a.t, m.Close())
	}
	return out
}

func (a *agent) expectClean() {
	a.t.Helper()
	if left := a.traces(); len(left) > 0 {
		a.t.Errorf("left behind: %s", strings.Join(left, ", "))
	}
}

func attachment(name string) cni.Attachment { return cni.Attachment{ContainerID: name, IfName: "eth0"} }

func (a *agent) add(name string, pod *nodetest.Pod) (*Endpoint, error) {
	return a.Add(a.t.Context(), attachment(name), cni.Pod{Namespace: "default", Name: name, UID: name + "-uid"}, pod.Path, pod.File)
}

func TestAddCheckDelete(t *testing.T) {
	a := newAgent(t, nodetest.New(t), t.TempDir(), nil)
	one, two := a.node.NewPod("one"), a.node.NewPod("two")
	e1, err := a.add("one", one)
	nodetest.Must(t, err)
	e2, err := a.add("two", two)
	nodetest.Must(t, err)
	if e1.ID == e2.ID || e1.IPv4 == e2.IPv4 || e1.IPv6 == e2.IPv6 || e1.MAC == e2.MAC || e1.HostMAC[0]&3 != 2 {
		t.Errorf("%+v and %+v", e1, e2)
	}
	nodetest.Must(t, a.Check(t.Context(), attachment("one"), one.File))
	if _, err := a.add("one", one); !errors.Is(err, ErrExists) {
		t.Errorf("ADD again: %v", err)
	}
	nodetest.Must(t, a.Check(t.Context(), attachment("one"), one.File))
	for _, ip := range e2.Addresses() {
		out, err := one.Run("ping", "-c", "1", "-W", "2", "-n", ip.String())
		if err != nil {
			t.Errorf("ping %s: %v\n%s", ip, err, out)
		}
	}
	for range 2 {
		nodetest.Must(t, a.Delete(t.Context(), attachment("one")))
	}
	if err := a.Check(t.Context(), attachment("one"), one.File); !errors.Is(err, ErrUnknown) {
		t.Errorf("CHECK after DEL: %v", err)
	}
	two.Remove() // the namespace goes before the DEL comes
	nodetest.Must(t, a.Delete(t.Context(), attachment("two")))
	a.expectClean()
}

func TestCheckFindsTampering(t *testing.T) {
	a := newAgent(t, nodetest.New(t), t.TempDir(), nil)
	for name, tamper := range map[string]func(p *nodetest.Pod, e *Endpoint) (string, error){
		"address": func(p *nodetest.Pod, e *Endpoint) (string, error) {
			return p.Run("ip", "addr", "del", e.IPv4.String()+"/32", "dev", "eth0")
		},
		"address6": func(p *nodetest.Pod, e *Endpoint) (string, error) {
			return p.Run("ip", "addr", "del", e.IPv6.String()+"/128", "dev", "eth0")
		},
		"route": func(p *nodetest.Pod, _ *Endpoint) (string, error) { return p.Run("ip", "route", "del", "default") },
		"route6": func(p *nodetest.Pod, _ *Endpoint) (string, error) {
			return p.Run("ip", "-6", "route", "del", "default")
		},
		"neighbour": func(p *nodetest.Pod, _ *Endpoint) (string, error) {
			return p.Run("ip", "neigh", "replace", "169.254.1.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0")
		},
		"mtu": func(p *nodetest.Pod, _ *Endpoint) (string, error) {
			return p.Run("ip", "link", "set", "eth0", "mtu", "1400")
		},
		"down": func(p *nodetest.Pod, _ *Endpoint) (string, error) { return p.Run("ip", "link", "set", "eth0", "down") },
		"mac": func(p *nodetest.Pod, _ *Endpoint) (string, error) {
			return p.Run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:02")
		},
		"sysctl": func(p *nodetest.Pod, _ *Endpoint) (string, error) {
			return p.Run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra")
		},
		"host route": func(_ *nodetest.Pod, e *Endpoint) (string, error) {
			return nodetest.Here(t, "ip", "route", "del", e.IPv4.String()), nil
		},
		"host neighbour": func(_ *nodetest.Pod, e *Endpoint) (string, error) {
			return nodetest.Here(t, "ip", "neigh", "del", e.IPv4.String(), "dev", e.Interface), nil
		},
		"host end": func(_ *nodetest.Pod, e *Endpoint) (string, error) {
			return nodetest.Here(t, "ip", "link", "set", e.Interface, "down"), nil
		},
		"gone": func(_ *nodetest.Pod, e *Endpoint) (string, error) {
			return nodetest.Here(t, "ip", "link", "del", e.Interface), nil
		},
		"endpoints map": func(_ *nodetest.Pod, e *Endpoint) (string, error) {
			return "", a.forgetInMap(bpf.MapsMapEndpoints, bpf.AddrFrom(e.IPv4))
		},
		"interfaces map": func(_ *nodetest.Pod, e *Endpoint) (string, error) {
			return "", a.forgetInMap(bpf.MapsMapPodInterfaces, uint32(e.Ifindex))
		},
	} {
		t.Run(name, func(t *testing.T) {
			id := strings.ReplaceAll("t-"+name, " ", "-")
			p := a.node.NewPod(id)
			e, err := a.add(id, p)
			nodetest.Must(t, err)
			nodetest.Must(t, a.Check(t.Context(), attachment(id), p.File))
			if out, err := tamper(p, e); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if err := a.Check(t.Context(), attachment(id), p.File); !errors.Is(err, ErrNotAsAdded) {
				t.Errorf("CHECK: %v", err)
			}
			nodetest.Must(t, a.Delete(t.Context(), attachment(id)))
		})
	}
	a.expectClean()
}

func (a *agent) forgetInMap(name string, key any) error {
	pins, err := filepath.Glob(filepath.Join(datapath.Folder(a.node.Options.BPFFS), name+"_v*"))
	if err != nil || len(pins) == 0 {
		return fmt.Errorf("pins of %s: %v, %w", name, pins, err)
	}
	m, err := ebpf.LoadPinnedMap(pins[0], nil)
	if err != nil {
		return err
	}
	defer m.Close() //nolint:errcheck // a test
	return m.Delete(key)
}

var addSteps = []step{stepReserved, stepRecorded, stepLinked, stepPodEnd, stepPolicy, stepDatapath, stepCommitted}

func TestAddFailsWhole(t *testing.T) {
	n, dir := nodetest.New(t), t.TempDir()
	for _, at := range addSteps {
		t.Run(string(at), func(t *testing.T) {
			broken := errors.New("broken on purpose")
			a := newAgent(t, n, dir, func(s step) error {
				if s == at {
					return broken
				}
				return nil
			})
			p := n.NewPod("fails")
			if _, err := a.add("fails", p); !errors.Is(err, broken) {
				t.Fatalf("ADD: %v", err)
			}
			a.expectClean()
			if out, _ := p.Run("ip", "-o", "link"); strings.Contains(out, "eth0") {
				t.Errorf("the pod kept its interface: %s", out)
			}
			nodetest.Must(t, a.Delete(t.Context(), attachment("fails")))
			p.Remove()
		})
	}
}

func TestAgentDiesInAdd(t *testing.T) {
	n, dir := nodetest.New(t), t.TempDir()
	for _, at := range addSteps {
		t.Run(string(at), func(t *testing.T) {
			a := newAgent(t, n, dir, func(s step) error {
				if s == at {
					return errDied
				}
				return nil
			})
			p := n.NewPod("dies")
			if _, err := a.add("dies", p); !errors.Is(err, errDied) {
				t.Fatalf("ADD: %v", err)
			}
			next := a.restart()
			if at == stepCommitted {
				// It was complete; only nobody heard of it.
				nodetest.Must(t, next.Check(t.Context(), attachment("dies"), p.File))
			} else {
				nodetest.Must(t, next.Sweep())
				next.expectClean()
			}
			nodetest.Must(t, next.Delete(t.Context(), attachment("dies")))
			next.expectClean()
			// And the runtime tries again, in the same namespace.
			_, err := next.add("dies", p)
			nodetest.Must(t, err)
			nodetest.Must(t, next.Check(t.Context(), attachment("dies"), p.File))
			nodetest.Must(t, next.Delete(t.Context(), attachment("dies")))
			next.expectClean()
			p.Remove()
		})
	}
}

func TestAgentDiesInDelete(t *testing.T) {
	n, dir := nodetest.New(t), t.TempDir()
	for _, at := range []step{stepUnlinked, stepCleared} {
		t.Run(string(at), func(t *testing.T) {
			a := newAgent(t, n, dir, func(s step) error {
				if s == at {
					return errDied
				}
				return nil
			})
			p := n.NewPod("dies")
			_, err := a.add("dies", p)
			nodetest.Must(t, err)
			if err := a.Delete(t.Context(), attachment("dies")); !errors.Is(err, errDied) {
				t.Fatalf("DEL: %v", err)
			}
			next := a.restart()
			nodetest.Must(t, next.Delete(t.Context(), attachment("dies")))
			next.expectClean()
			p.Remove()
		})
	}
}

func TestRestartAdopts(t *testing.T) {
	a := newAgent(t, nodetest.New(t), t.TempDir(), nil)
	one, two := a.node.NewPod("one"), a.node.NewPod("two")
	e1, err := a.add("one", one)
	nodetest.Must(t, err)
	_, err = a.add("two", two)
	nodetest.Must(t, err)
	before := nodetest.Here(t, "ip", "-d", "-o", "link", "show", "dev", e1.Interface)
	next := a.restart()
	if after := nodetest.Here(t, "ip", "-d", "-o", "link", "show", "dev", e1.Interface); after != before {
		t.Errorf("the interface was touched:\n%s\n%s", before, after)
	}
	got, ok := next.Get(attachment("one"))
	if !ok || got.IPv4 != e1.IPv4 || got.Identity != 300 || got.Labels["k8s:app"] != "web" {
		t.Fatalf("restored %+v", got)
	}
	nodetest.Must(t, next.Check(t.Context(), attachment("one"), one.File))
	e3, err := next.add("three", a.node.NewPod("three"))
	nodetest.Must(t, err)
	if e3.IPv4 == e1.IPv4 || e3.ID == e1.ID {
		t.Errorf("a new pod got what an adopted one has: %+v", e3)
	}
	// GC after a crash: the runtime knows only one of them.
	nodetest.Must(t, next.Keep(t.Context(), []cni.Attachment{attachment("two")}))
	if list := next.List(); len(list) != 1 || list[0].ContainerID != "two" {
		t.Errorf("after GC: %v", list)
	}
	nodetest.Must(t, next.Check(t.Context(), attachment("two"), two.File))
	// A reboot: records of another boot are worth nothing.
	rebooted := next.options
	rebooted.BootID = "another boot"
	rebooted.Addresses = ipam.NewAllocator(time.Now)
	s, err := New(rebooted)
	nodetest.Must(t, err)
	nodetest.Must(t, s.Restore())
	nodetest.Must(t, s.Sweep())
	(&agent{Set: s, t: t, node: a.node, addresses: rebooted.Addresses}).expectClean()
}

func TestFreedAddressRestsOverARestart(t *testing.T) {
	a := newAgent(t, nodetest.New(t), t.TempDir(), nil)
	e, err := a.add("one", a.node.NewPod("one"))
	nodetest.Must(t, err)
	nodetest.Must(t, a.Delete(t.Context(), attachment("one")))
	next := a.restart()
	if err := next.addresses.Reserve(e.IPv4, "somebody"); !errors.Is(err, ipam.ErrResting) {
		t.Errorf("a freed address is given at once: %v", err)
	}
}

// A failed ADD freed its address, and the agent that died after it gave the address to the next pod at once.
func TestAddressOfAFailedAddRestsOverARestart(t *testing.T) {
	var freed netip.Addr
	n, dir := nodetest.New(t), t.TempDir()
	a := newAgent(t, n, dir, nil)
	a.Set.step = func(at step) error {
		if at == stepPolicy {
			for _, e := range a.byID {
				freed = e.IPv4
			}
			return errors.New("on purpose")
		}
		return nil
	}
	if _, err := a.add("one", n.NewPod("one")); err == nil {
		t.Fatal("ADD succeeded")
	}
	next := a.restart()
	if err := next.addresses.Reserve(freed, "somebody"); !errors.Is(err, ipam.ErrResting) {
		t.Errorf("%s, freed by a failed ADD, is given at once: %v", freed, err)
	}
}

// A pod is refused, and nothing is left of it, when its policy cannot be had.
func TestAddIsRefusedWithoutPolicy(t *testing.T) {
	a := newAgent(t, nodetest.New(t), t.TempDir(), nil)
	a.Policy = refuses{open{a.node.Datapath}}
	if _, err := a.add("one", a.node.NewPod("one")); !errors.Is(err, datapath.ErrPolicyFull) {
		t.Errorf("ADD: %v", err)
	}
	a.expectClean()
}

type refuses struct{ open }

func (refuses) Admit(context.Context, *Endpoint) func() error {
	return func() error { return datapath.ErrPolicyFull }
}

func TestDamagedRecordsAreDropped(t *testing.T) {
	n, dir := nodetest.New(t), t.TempDir()
	a := newAgent(t, n, dir, nil)
	e, err := a.add("one", n.NewPod("one"))
	nodetest.Must(t, err)
	good, err := os.ReadFile(a.records.file(e.ID))
	nodetest.Must(t, err)
	for name, content := range map[string]string{
		"7.json": "", "8.json": "{", "9.json": string(good), "10.json": `{"id":10,"interface":"eth0","bootID":"` + a.BootID + `"}`, "x.tmp": "x",
	} {
		nodetest.Must(t, os.WriteFile(filepath.Join(dir, "endpoints", name), []byte(content), 0o600))
	}
	for _, name := range []string{restingFile, restingFile + ".new", "." + restingFile + ".4711"} {
		nodetest.Must(t, os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600))
	}
	errs, remarks := 0, 0
	log := funcr.New(func(_, text string) {
		if strings.Contains(text, `"error"=`) {
			errs++
		} else {
			remarks++
		}
	}, funcr.Options{})
	for _, want := range []int{2, 0} { // what makes no sense is an error, what the machine's stop has cut off is none
		a.node.Restart()
		errs, remarks = 0, 0
		o := a.options
		o.Log, o.Datapath, o.Policy, o.Addresses = log, a.node.Datapath, open{a.node.Datapath}, ipam.NewAllocator(time.Now)
		o.Addresses.SetPrefixes(a.addresses.Prefixes())
		s, err := New(o)
		nodetest.Must(t, err)
		nodetest.Must(t, s.Restore())
		if errs != want || (remarks == 3) != (want > 0) {
			t.Errorf("%d errors and %d remarks", errs, remarks)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*"+restingFile+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	next := a.restart()
	if list := next.List(); len(list) != 1 || list[0].ID != e.ID {
		t.Errorf("restored %v", list)
	}
	nodetest.Must(t, next.Delete(t.Context(), attachment("one")))
	next.expectClean()
}

func TestSetIdentity(t *testing.T) {
	a := newAgent(t, nodetest.New(t), t.TempDir(), nil)
	e, err := a.add("one", a.node.NewPod("one"))
	nodetest.Must(t, err)
	nodetest.Must(t, a.SetIdentity(t.Context(), attachment("one"), Who{Labels: identity.Labels{"k8s:app": "db"}, Identity: 400}))
	found := keys[bpf.Addr, bpf.Endpoint](a, bpf.MapsMapEndpoints, func(v bpf.Endpoint) bool { return v.Id == e.ID && v.Identity == 400 })
	if len(found) != 2 {
		t.Errorf("addresses with the new identity: %v", found)
	}
	if got, _ := a.restart().Get(attachment("one")); got == nil || got.Identity != 400 || got.Labels["k8s:app"] != "db" {
		t.Errorf("restored %+v", got)
	}
}

func TestHundredPodsUpAndDownLeaveNothing(t *testing.T) {
	a := newAgent(t, nodetest.New(t), t.TempDir(), nil)
	const pods, atOnce = 100, 8
	var mu sync.Mutex
	var took []time.Duration
	each := func(do func(i int) error) {
		var work sync.WaitGroup
		next := make(chan int)
		for range atOnce {
			work.Go(func() {
				for i := range next {
					if err := do(i); err != nil {
						t.Errorf("pod %d: %v", i, err)
					}
				}
			})
		}
		for i := range pods {
			next <- i
		}
		close(next)
		work.Wait()
	}
	spaces := make([]*nodetest.Pod, pods)
	for i := range spaces {
		spaces[i] = a.node.NewPod(fmt.Sprintf("p%d", i))
	}
	each(func(i int) error {
		start := time.Now()
		_, err := a.add(fmt.Sprintf("p%d", i), spaces[i])
		mu.Lock()
		took = append(took, time.Since(start))
		mu.Unlock()
		return err
	})
	if n := len(a.List()); n != pods {
		t.Errorf("%d endpoints", n)
	}
	var sum, worst time.Duration
	for _, d := range took {
		sum, worst = sum+d, max(worst, d)
	}
	t.Logf("ADD: mean %v, worst %v", sum/pods, worst)
	each(func(i int) error { return a.Delete(context.Background(), attachment(fmt.Sprintf("p%d", i))) })
	a.expectClean()
}

func TestExhaustedPrefix(t *testing.T) {
	a := newAgent(t, nodetest.New(t), t.TempDir(), nil)
	a.addresses.SetPrefixes([]netip.Prefix{netip.MustParsePrefix("10.7.0.0/31"), netip.MustParsePrefix("fd00:7::/120")})
	for _, name := range []string{"one", "two"} {
		_, err := a.add(name, a.node.NewPod(name))
		nodetest.Must(t, err)
	}
	p := a.node.NewPod("three")
	if _, err := a.add("three", p); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("ADD: %v", err)
	}
	for _, u := range a.addresses.Usage() {
		if u.Prefix.Addr().Is6() && u.Used != 2 {
			t.Errorf("an address of the other family is kept: %+v", u)
		}
	}
}

func TestRecordRoundTrip(t *testing.T) {
	e := &Endpoint{
		ID: 5, Attachment: attachment("c"), Interface: InterfaceName(attachment("c")), Ifindex: 9, MAC: newMAC(), HostMAC: newMAC(),
		IPv4: netip.MustParseAddr("10.0.0.1"), Identity: identity.Pending, State: Ready, MTU: 1450, BootID: "b",
	}
	data, err := json.Marshal(e)
	nodetest.Must(t, err)
	var back Endpoint
	nodetest.Must(t, json.Unmarshal(data, &back))
	nodetest.Must(t, back.validate())
	if back.MAC != e.MAC || back.IPv4 != e.IPv4 || back.IPv6.IsValid() {
		t.Errorf("%+v", back)
	}
}

// FuzzRecord: what lies in the state folder never makes the agent adopt an interface that is not ours.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":1,"containerID":"c","ifname":"eth0","interface":"kc2e7d2c03a950","state":"creating","identity":127,"bootID":"b"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var e Endpoint
		if json.Unmarshal(data, &e) != nil || e.validate() != nil {
			return
		}
		if !hostEnd.MatchString(e.Interface) || e.ID == 0 || e.ID > MaxID {
			t.Errorf("accepted %+v", e)
		}
	})
}

// TestStepsOfAdd logs how long each step takes, one pod at a time.
func TestStepsOfAdd(t *testing.T) {
	var last time.Time
	sums := map[step]time.Duration{}
	a := newAgent(t, nodetest.New(t), t.TempDir(), func(s step) error {
		now := time.Now()
		sums[s] += now.Sub(last)
		last = now
		return nil
	})
	const pods = 40
	for i := range pods {
		p := a.node.NewPod(fmt.Sprintf("s%d", i))
		last = time.Now()
		_, err := a.add(fmt.Sprintf("s%d", i), p)
		nodetest.Must(t, err)
	}
	for _, s := range addSteps {
		t.Logf("until %-10s %v", s, sums[s]/pods)
	}
}
