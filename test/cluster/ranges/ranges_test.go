// SPDX-License-Identifier: Apache-2.0

package ranges_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/kube-cilium/kube-cilium/test/cluster/ranges"
)

func TestClustersShareNoAddress(t *testing.T) {
	var seen []netip.Prefix
	for index := 1; index <= ranges.Max; index++ {
		r, err := ranges.For(index, ranges.Dual)
		if err != nil {
			t.Fatal(err)
		}
		if p, found := r.Overlaps(seen); found {
			t.Fatalf("index %d: %s overlaps a cluster before it", index, p)
		}
		for i, p := range r.All() {
			if p != p.Masked() {
				t.Errorf("index %d: %s has host bits", index, p)
			}
			for _, q := range r.All()[i+1:] {
				if p.Overlaps(q) {
					t.Errorf("index %d: %s overlaps %s", index, p, q)
				}
			}
		}
		seen = append(seen, r.All()...)
	}
}

func TestAddressesStayInsideTheMachine(t *testing.T) {
	test := []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("2001:db8::/32")}
	for index := 1; index <= ranges.Max; index++ {
		r, _ := ranges.For(index, ranges.Dual)
		for _, p := range r.All() {
			private := p.Addr().IsPrivate()
			for _, t := range test {
				private = private || t.Contains(p.Addr())
			}
			if !private {
				t.Errorf("%s is neither private nor a test range", p)
			}
		}
	}
}

func TestBadInput(t *testing.T) {
	for _, index := range []int{-1, 0, ranges.Max + 1} {
		if _, err := ranges.For(index, ranges.Dual); !errors.Is(err, ranges.ErrIndex) {
			t.Errorf("index %d: %v", index, err)
		}
	}
	if _, err := ranges.For(1, "ipv5"); !errors.Is(err, ranges.ErrFamily) {
		t.Errorf("family: %v", err)
	}
}

func TestFamilies(t *testing.T) {
	for family, want := range map[ranges.Family]string{ranges.IPv4: "172.30.7.11", ranges.IPv6: "fd6b:6375:7::b", ranges.Dual: "172.30.7.11"} {
		r, err := ranges.For(7, family)
		if err != nil {
			t.Fatal(err)
		}
		hosts := ranges.Host(r.Nodes, ranges.WorkerBase+1)
		if hosts[0].String() != want {
			t.Errorf("%s: first address %s, want %s", family, hosts[0], want)
		}
		if n := len(hosts); (family == ranges.Dual) != (n == 2) {
			t.Errorf("%s: %d addresses", family, n)
		}
	}
}

func TestPodsOfWorkers(t *testing.T) {
	r, _ := ranges.For(3, ranges.Dual)
	got := r.PodsOf(2)
	if got[0].String() != "10.103.2.0/24" || got[1].String() != "fd6b:6375:3:102::/64" {
		t.Errorf("got %v", got)
	}
	for i, p := range got {
		if !r.Pods[i].Contains(p.Addr()) {
			t.Errorf("%s outside %s", p, r.Pods[i])
		}
	}
}
