// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// needRoot skips a test that loads programs when we are not root; under KUBE_CILIUM_TEST_ROOT it fails instead.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		if err := rlimit.RemoveMemlock(); err != nil {
			t.Fatal(err)
		}
		return
	}
	if os.Getenv("KUBE_CILIUM_TEST_ROOT") != "" {
		t.Fatal("needs root to load eBPF programs")
	}
	t.Skip("needs root to load eBPF programs")
}

// flags are the constants with two values; each program must load with every one of them flipped.
var flags = []string{
	"encap_in_bpf", "have_redirect_peer", "have_redirect_neigh", "masquerade_ipv4", "masquerade_ipv6",
	"have_coarse_clock", "have_set_retval",
}

// numbers are the constants where zero turns something off.
var numbers = map[string]uint32{"uplink_ifindex": 1, "overlay_ifindex": 2}

// setConstant sets a constant where the object has it.
func setConstant(t testing.TB, spec *ebpf.CollectionSpec, name string, value any) bool {
	t.Helper()
	v := spec.Variables[name]
	if v == nil {
		return false
	}
	if err := v.Set(value); err != nil {
		t.Fatalf("set %s: %v", name, err)
	}
	return true
}

func configure(t testing.TB, spec *ebpf.CollectionSpec, on bool) {
	for _, f := range flags {
		setConstant(t, spec, f, on)
	}
	for name, n := range numbers {
		if !on {
			n = 0
		}
		setConstant(t, spec, name, n)
	}
	setConstant(t, spec, "tunnel_port", uint16(8472))
}

func verify(t *testing.T, spec *ebpf.CollectionSpec) {
	t.Helper()
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		var verr *ebpf.VerifierError
		if errors.As(err, &verr) {
			n := len(verr.Log)
			t.Fatalf("%v\n%s", err, strings.Join(verr.Log[max(0, n-30):], "\n"))
		}
		t.Fatal(err)
	}
	for name, p := range c.Programs {
		if info, err := p.Info(); err == nil {
			insns, _ := info.VerifiedInstructions()
			t.Logf("%s: %d instructions verified", name, insns)
		}
	}
	c.Close()
}

// TestVerifier loads every program with each constant off, on, and flipped alone both ways.
func TestVerifier(t *testing.T) {
	needRoot(t)
	programs := map[string]func() (*ebpf.CollectionSpec, error){"sock": bpf.LoadSock, "stub": bpf.LoadStub}
	for _, p := range bpf.DevicePrograms() {
		programs[p.Name] = p.Load
	}
	for name, program := range programs {
		t.Run(name, func(t *testing.T) {
			for _, base := range []bool{false, true} {
				load := func(flip string) {
					spec, err := program()
					if err != nil {
						t.Fatal(err)
					}
					configure(t, spec, base)
					name := fmt.Sprintf("all %v", base)
					if flip != "" {
						if !setConstant(t, spec, flip, any(!base)) {
							return
						}
						name += " but " + flip
					}
					t.Run(name, func(t *testing.T) { verify(t, spec) })
				}
				load("")
				for _, f := range flags {
					load(f)
				}
			}
		})
	}
}
