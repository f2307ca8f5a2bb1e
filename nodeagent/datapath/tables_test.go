// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/delta"
	"github.com/kube-cilium/kube-cilium/internal/service"
)

// contents reads a whole map.
func contents[K comparable, V any](t testing.TB, d *Datapath, name string) map[K]V {
	t.Helper()
	out := map[K]V{}
	must(t, eachEntry(d.maps.open[name], false, func(k K, v V) bool { out[k] = v; return true }))
	return out
}

func frontend(address string, port uint16, backends ...string) service.Frontend {
	f := service.Frontend{Address: service.Address{IP: netip.MustParseAddr(address), Port: port, Protocol: service.TCP}}
	for _, b := range backends {
		f.Backends = append(f.Backends, netip.MustParseAddrPort(b))
	}
	return f
}

// served reads back who answers at an address, as a program would look it up.
func served(t testing.TB, d *Datapath, address string, port uint16) []string {
	t.Helper()
	var s bpf.Service
	key := serviceKey(service.Address{IP: netip.MustParseAddr(address), Port: port, Protocol: service.TCP})
	if err := d.maps.open[bpf.MapsMapServices].Lookup(key, &s); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	} else if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for slot := range s.Backends {
		var b bpf.Backend
		if err := d.maps.open[bpf.MapsMapBackends].Lookup(bpf.BackendKey{Service: s.Id, Slot: slot}, &b); err != nil {
			t.Fatalf("slot %d: %v", slot, err)
		}
		out = append(out, netip.AddrPortFrom(b.Addr.IP(), networkOrder(b.Port)).String())
	}
	return out
}

func TestServicesKeepTheirNumbersOverARestart(t *testing.T) {
	f := newFixture(t)
	d := f.open()
	table := []service.Frontend{
		frontend("10.96.0.1", 443, "172.30.0.1:6443"),
		frontend("fd00::a", 53, "[fd01::1]:5353", "[fd01::2]:5353"),
	}
	must(t, d.SetServices(table))
	if got := served(t, d, "fd00::a", 53); !slices.Equal(got, []string{"[fd01::1]:5353", "[fd01::2]:5353"}) {
		t.Errorf("backends %v", got)
	}
	services := contents[bpf.ServiceKey, bpf.Service](t, d, bpf.MapsMapServices)
	if len(services) != 4 { // two ports, two addresses
		t.Errorf("services %v", services)
	}
	must(t, d.Close())
	d = f.open()
	table = append([]service.Frontend{frontend("10.96.0.0", 80)}, table...)
	table[1] = frontend("10.96.0.1", 443)
	must(t, d.SetServices(table))
	after := contents[bpf.ServiceKey, bpf.Service](t, d, bpf.MapsMapServices)
	for k, s := range services {
		if after[k].Id != s.Id {
			t.Errorf("%s had number %d, now %d", k.Addr.IP(), s.Id, after[k].Id)
		}
	}
	if got := served(t, d, "10.96.0.1", 443); got == nil || len(got) != 0 {
		t.Errorf("a service without backends is there and refuses: %v", got)
	}
	must(t, d.SetServices(nil))
	if n := len(contents[bpf.ServiceKey, bpf.Service](t, d, bpf.MapsMapServices)); n != 0 {
		t.Errorf("%d services left", n)
	}
	if n := len(contents[bpf.BackendKey, bpf.Backend](t, d, bpf.MapsMapBackends)); n != 0 {
		t.Errorf("%d backends left", n)
	}
}

// Whatever tables came before, no service has a slot without a backend, and numbers are unique.
func TestServiceTables(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		actual := map[bpf.ServiceKey]bpf.Service{}
		for range 5 {
			var frontends []service.Frontend
			for port := range uint16(6) {
				n := rapid.IntRange(-1, 4).Draw(t, "backends")
				if n < 0 {
					continue
				}
				f := frontend("10.96.0.1", 80+port)
				for i := range n {
					f.Backends = append(f.Backends, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80))
				}
				frontends = append(frontends, f)
			}
			services, backends, err := serviceTables(frontends, actual)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[uint32]bool{}
			total := 0
			for k, s := range services {
				if s.Id == 0 {
					continue
				}
				if seen[s.Id] {
					t.Fatalf("number %d twice", s.Id)
				}
				seen[s.Id] = true
				if old, ok := actual[k]; ok && old.Id != s.Id {
					t.Fatalf("number changed from %d to %d", old.Id, s.Id)
				}
				for slot := range s.Backends {
					if _, ok := backends[bpf.BackendKey{Service: s.Id, Slot: slot}]; !ok {
						t.Fatalf("no backend in slot %d of %d", slot, s.Id)
					}
				}
				total += int(s.Backends)
			}
			if total != len(backends) {
				t.Fatalf("%d slots, %d backends", total, len(backends))
			}
			actual = services
		}
	})
}

func TestPeersAndPrefixesAreDiffed(t *testing.T) {
	f := newFixture(t)
	for _, forbidden := range [][]v1alpha1.KernelFeature{nil, {v1alpha1.FeatureBatchOperations}} {
		d := f.open()
		cfg := f.config()
		cfg.Forbidden = forbidden
		must(t, d.Configure(t.Context(), cfg))
		node := netip.MustParseAddr("198.18.0.9")
		peers := map[netip.Addr]Peer{node: {Node: node, Identity: uint32(bpf.MapsIdentityIDENTITY_REMOTE_NODE), Flags: uint32(bpf.MapsPeerFlagsPEER_NODE)}}
		for i := range 3000 {
			peers[netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})] = Peer{
				Node: node, Identity: 300 + uint32(i), Flags: uint32(bpf.MapsPeerFlagsPEER_TUNNEL | bpf.MapsPeerFlagsPEER_CLUSTER),
			}
		}
		must(t, d.SetPeers(peers))
		prefixes := map[netip.Prefix]Peer{}
		for i := range 1500 {
			prefixes[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)] = Peer{Node: node, Identity: 127}
			prefixes[netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, byte(i >> 8), byte(i)}), 64)] = Peer{Node: node, Identity: 127}
		}
		must(t, d.SetPrefixes(prefixes))
		// What the path's MTU is, programs wrote.
		must(t, d.maps.open[bpf.MapsMapNodes].Put(bpf.AddrFrom(node), bpf.Node{Mtu: 1400, MtuExpires: 7}))
		must(t, d.Close())

		d = f.open()
		got := contents[bpf.Addr, bpf.Peer](t, d, bpf.MapsMapPeers)
		want := map[bpf.Addr]bpf.Peer{}
		for a, p := range peers {
			want[bpf.AddrFrom(a)] = p.entry()
		}
		if !maps.Equal(got, want) {
			t.Errorf("%d peers, want %d", len(got), len(want))
		}
		if got := contents[bpf.PrefixKey, bpf.Peer](t, d, bpf.MapsMapPrefixes); len(got) != len(prefixes) {
			t.Errorf("%d prefixes, want %d", len(got), len(prefixes))
		}
		must(t, d.SetPeers(peers))
		if nodes := contents[bpf.Addr, bpf.Node](t, d, bpf.MapsMapNodes); len(nodes) != 1 || nodes[bpf.AddrFrom(node)].Mtu != 1400 {
			t.Errorf("nodes %v", nodes)
		}
		must(t, d.SetPeers(nil))
		must(t, d.SetPrefixes(nil))
		if n := len(contents[bpf.Addr, bpf.Peer](t, d, bpf.MapsMapPeers)) + len(contents[bpf.PrefixKey, bpf.Peer](t, d, bpf.MapsMapPrefixes)) +
			len(contents[bpf.Addr, bpf.Node](t, d, bpf.MapsMapNodes)); n != 0 {
			t.Errorf("%d entries left", n)
		}
		must(t, d.Close())
	}
}

func TestATableThatDoesNotFitChangesNothing(t *testing.T) {
	f := newFixture(t)
	d := f.open()
	must(t, d.SetServices([]service.Frontend{frontend("10.96.0.1", 80, "10.0.0.1:80")}))
	tooMany := make([]service.Frontend, 70000)
	for i := range tooMany {
		tooMany[i] = frontend("10.96.0.2", uint16(i))
		tooMany[i].IP = netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})
	}
	if err := d.SetServices(tooMany); !errors.Is(err, delta.ErrFull) {
		t.Fatalf("want ErrFull, got %v", err)
	}
	if got := served(t, d, "10.96.0.1", 80); !slices.Equal(got, []string{"10.0.0.1:80"}) {
		t.Errorf("backends %v", got)
	}
}

// ourRoutesText lists routes of protocol 201 as "prefix dev [via] [src]".
func ourRoutesText(t testing.TB) []string {
	t.Helper()
	present, err := ourRoutes()
	must(t, err)
	links, err := linkList()
	must(t, err)
	name := map[int]string{}
	for _, l := range links {
		name[l.Attrs().Index] = l.Attrs().Name
	}
	var out []string
	for p, rs := range present {
		for _, r := range rs {
			line := p.String() + " " + name[r.LinkIndex]
			if r.Gw != nil {
				line += " via " + r.Gw.String()
			}
			if r.Src != nil {
				line += " src " + r.Src.String()
			}
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return out
}

func TestRoutesAreRepairedAndOthersLeftAlone(t *testing.T) {
	f := newFixture(t)
	d := f.start(f.config())
	p := f.addPod(d, 3)
	letPass(t, d, p)
	must(t, d.SetPods([]Pod{p}))
	// Somebody else's route to one of the prefixes' neighbours.
	foreign := netip.MustParsePrefix("10.88.0.0/16")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: ipNet(foreign), Gw: outside4.AsSlice(), Protocol: unix.RTPROT_STATIC}))
	routes := []Route{{Prefix: netip.MustParsePrefix("10.78.1.0/24")}, {Prefix: netip.MustParsePrefix("fd78::/112")}}
	must(t, d.SetRoutes(routes))
	want := []string{
		"10.77.0.3/32 " + p.Interface, "10.78.1.0/24 kc_vxlan src " + node4.String(),
		"fd77::3/128 " + p.Interface, "fd78::/112 kc_vxlan src " + node6.String(),
	}
	if got := ourRoutesText(t); !slices.Equal(got, want) {
		t.Fatalf("routes %v, want %v", got, want)
	}
	// Gone, changed, and one too many.
	present, err := ourRoutes()
	must(t, err)
	must(t, netlink.RouteDel(&present[netip.MustParsePrefix("10.77.0.3/32")][0]))
	must(t, netlink.RouteDel(&present[netip.MustParsePrefix("fd78::/112")][0]))
	up, err := netlink.LinkByName("up0")
	must(t, err)
	must(t, netlink.RouteReplace(route{prefix: netip.MustParsePrefix("10.78.1.0/24"), ifindex: up.Attrs().Index}.netlink()))
	must(t, netlink.RouteAdd(route{prefix: netip.MustParsePrefix("10.79.0.0/24"), ifindex: up.Attrs().Index}.netlink()))
	must(t, d.refresh(t.Context()))
	if got := ourRoutesText(t); !slices.Equal(got, want) {
		t.Fatalf("after repair %v, want %v", got, want)
	}
	// A restarted agent that was told nothing yet takes nothing away.
	must(t, d.Close())
	d = f.start(f.config())
	if got := ourRoutesText(t); !slices.Equal(got, want) {
		t.Fatalf("after restart %v, want %v", got, want)
	}
	must(t, d.SetPods(nil))
	must(t, d.SetRoutes(nil))
	if got := ourRoutesText(t); len(got) != 0 {
		t.Fatalf("routes left: %v", got)
	}
	others, err := routeList(&netlink.Route{Protocol: unix.RTPROT_STATIC}, netlink.RT_FILTER_PROTOCOL)
	must(t, err)
	if len(others) != 1 {
		t.Errorf("somebody else's route was touched: %v", others)
	}
	must(t, netlink.RouteDel(&others[0]))
}

func TestNativeRoutes(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	cfg.Mode = v1alpha1.RoutingNative
	d := f.start(cfg)
	good := Route{Prefix: netip.MustParsePrefix("10.78.1.0/24"), Via: netip.MustParseAddr("198.18.0.50")}
	six := Route{Prefix: netip.MustParsePrefix("fd78::/112"), Via: netip.MustParseAddr("2001:db8:18::50")}
	bad := Route{Prefix: netip.MustParsePrefix("10.78.2.0/24"), Via: netip.MustParseAddr("203.0.113.1")}
	must(t, netlink.RouteDel(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: outside4.AsSlice()}))
	if err := d.SetRoutes([]Route{bad, good, six}); err == nil {
		t.Error("a gateway on no network of ours was accepted")
	}
	want := []string{"10.78.1.0/24 up0 via 198.18.0.50", "fd78::/112 up0 via 2001:db8:18::50"}
	if got := ourRoutesText(t); !slices.Equal(got, want) {
		t.Fatalf("routes %v, want %v", got, want)
	}
	// Somebody else's route to a node's prefix is theirs.
	theirs := Route{Prefix: netip.MustParsePrefix("10.78.3.0/24"), Via: netip.MustParseAddr("198.18.0.51")}
	static := netlink.Route{Dst: ipNet(theirs.Prefix), Gw: outside4.AsSlice(), Protocol: unix.RTPROT_STATIC}
	must(t, netlink.RouteAdd(&static))
	if err := d.SetRoutes([]Route{good, theirs}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("want EEXIST, got %v", err)
	}
	must(t, netlink.RouteDel(&static))
	must(t, d.SetRoutes([]Route{good}))
	if got := ourRoutesText(t); !slices.Equal(got, want[:1]) {
		t.Fatalf("routes %v, want %v", got, want[:1])
	}
	if d.PodMTU() != 1500 {
		t.Errorf("pod MTU %d, want the uplink's", d.PodMTU())
	}
}
