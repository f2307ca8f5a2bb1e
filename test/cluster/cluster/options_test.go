// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/test/cluster/ranges"
)

func TestBadOptionsAreNamed(t *testing.T) {
	good := Options{Name: "dev", Workers: 2, Family: ranges.Dual, KubeProxy: "none", CNI: CNIOurs, Uplinks: 1}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for flag, change := range map[string]func(*Options){
		"--name":          func(o *Options) { o.Name = "Not/Good" },
		"--workers":       func(o *Options) { o.Workers = -1 },
		"--ip-family":     func(o *Options) { o.Family = "ipv5" },
		"--kube-proxy":    func(o *Options) { o.KubeProxy = "ipvs" },
		"--cni":           func(o *Options) { o.CNI = "other" },
		"--uplinks":       func(o *Options) { o.Uplinks = 3 },
		"--lag":           func(o *Options) { o.Lag = time.Hour },
		"--cilium-config": func(o *Options) { o.CNI, o.CiliumConfig = CNINone, "file" },
	} {
		o := good
		change(&o)
		if err := o.Validate(); !errors.Is(err, ErrOption) || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

func TestKubeProxyUnlessSaid(t *testing.T) {
	for cni, want := range map[string]string{CNIOurs: "none", CNINone: "none", CNIBridge: "nftables"} {
		o := Options{CNI: cni}
		if o.Complete(); o.KubeProxy != want {
			t.Errorf("%s: %s", cni, o.KubeProxy)
		}
	}
	said := Options{CNI: CNIBridge, KubeProxy: "iptables"}
	if said.Complete(); said.KubeProxy != "iptables" {
		t.Error("what was said is lost")
	}
}

func TestFreeRangesAvoidTheMachinesNetworks(t *testing.T) {
	used := []netip.Prefix{netip.MustParsePrefix("172.30.1.0/24"), netip.MustParsePrefix("10.102.0.0/15"), netip.MustParsePrefix("2001:db8:4::/48")}
	index, _, err := free(ranges.IPv4, used)
	if err != nil || index != 5 {
		t.Errorf("index %d, %v: want 5, as 1 to 4 overlap", index, err)
	}
	if _, _, err := free(ranges.Dual, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); !errors.Is(err, ErrFull) {
		t.Errorf("everything taken: %v", err)
	}
}

func TestNamespacesOfAnotherCluster(t *testing.T) {
	for space, want := range map[string]bool{"kc-a-cp": true, "kc-a-n12": true, "kc-a-b-cp": false} {
		if belongs(space, "a") != want {
			t.Errorf("%s: %v", space, !want)
		}
	}
}

func TestAbsentCluster(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	if _, err := store.Load("x"); !errors.Is(err, ErrAbsent) {
		t.Errorf("%v", err)
	}
	if err := os.MkdirAll(filepath.Join(store.Dir, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Load("x"); !errors.Is(err, ErrAbsent) {
		t.Errorf("a folder without state: %v", err)
	}
}

func TestGeneratedConfigHasThePools(t *testing.T) {
	r, err := ranges.For(4, ranges.Dual)
	if err != nil {
		t.Fatal(err)
	}
	text, err := GeneratedConfig(r.Pods)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kind: CiliumConfig", "10.104.0.0/16", "fd6b:6375:4:100::/56", "maskSize: 24", "maskSize: 64"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}
