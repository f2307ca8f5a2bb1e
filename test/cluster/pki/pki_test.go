// SPDX-License-Identifier: Apache-2.0

package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kube-cilium/kube-cilium/test/cluster/pki"
)

func TestServerCertificateNamesItsAddresses(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.NewCA(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	addrs := []netip.Addr{netip.MustParseAddr("172.30.1.1"), netip.MustParseAddr("fd6b:6375:1::1")}
	if err := ca.Issue("server", pki.Subject{User: "server", Names: []string{"kubernetes"}, Addresses: addrs}); err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue("client", pki.Subject{User: "someone", Groups: []string{"system:masters"}}); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	raw, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil || !pool.AppendCertsFromPEM(raw) {
		t.Fatalf("ca.crt: %v", err)
	}
	server := load(t, dir, "server")
	for _, name := range []string{"172.30.1.1", "fd6b:6375:1::1", "kubernetes"} {
		if _, err := server.Verify(x509.VerifyOptions{Roots: pool, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := server.Verify(x509.VerifyOptions{Roots: pool, DNSName: "172.30.1.2"}); err == nil {
		t.Error("an address that was not asked for verifies")
	}
	if _, err := load(t, dir, "client").Verify(x509.VerifyOptions{Roots: pool}); err == nil {
		t.Error("a client certificate may serve")
	}
}

func TestKubeconfigIsSelfContained(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.NewCA(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue("admin", pki.Subject{User: "admin"}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "admin.kubeconfig")
	if err := ca.Kubeconfig(path, "admin", "dev", "https://[::1]:6443"); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), dir) {
		t.Error("names a file")
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: holds a key", info.Mode())
	}
	if err := ca.Kubeconfig(path, "nobody", "dev", "https://[::1]:6443"); err == nil {
		t.Error("a kubeconfig for a certificate that is not there")
	}
}

func load(t *testing.T, dir, name string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}
