// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// cluster is an authority and a service account folder in the form kubelet gives it.
type cluster struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir()}
	c.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, c.key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	c.cert, _ = x509.ParseCertificate(der)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, content := range map[string][]byte{"ca.crt": ca, "token": []byte("secret")} {
		if err := os.WriteFile(filepath.Join(c.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(EnvServers, "")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	return c
}

// server answers every request with its name; its certificate carries only the names given.
func (c *cluster) server(answer string, names ...string) *httptest.Server {
	c.t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour)}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.StartTLS()
	c.t.Cleanup(s.Close)
	return s
}

func (c *cluster) open(stateDir string) *Servers {
	c.t.Helper()
	s, err := open(context.Background(), stateDir, c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func ask(t *testing.T, s *Servers) string {
	t.Helper()
	client, err := rest.HTTPClientFor(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	client.CloseIdleConnections()
	resp, err := client.Get(s.Config().Host)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

// closedPort is an address of the loopback on which nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestFirstThatAnswers(t *testing.T) {
	c := newCluster(t)
	s := c.server("two", serverName)
	t.Setenv(EnvServers, "https://"+closedPort(t)+","+s.URL)
	if got := ask(t, c.open("")); got != "two" {
		t.Errorf("answered by %q", got)
	}
}

func TestFailsOverWhenTheServerGoes(t *testing.T) {
	c := newCluster(t)
	one, two := c.server("one", serverName), c.server("two", serverName)
	t.Setenv(EnvServers, one.URL+","+two.URL)
	s := c.open("")
	if got := ask(t, s); got != "one" {
		t.Fatalf("answered by %q", got)
	}
	one.Close()
	if got := ask(t, s); got != "two" {
		t.Errorf("answered by %q after the first went", got)
	}
}

// A load balancer without backends accepts and closes; dialling must move on from it.
func TestMovesOnFromASilentServer(t *testing.T) {
	c := newCluster(t)
	two := c.server("two", serverName)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	t.Setenv(EnvServers, "https://"+l.Addr().String()+","+two.URL)
	s := c.open("")
	s.prefer(l.Addr().String())
	conn, err := s.Dial(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	conn.Read(make([]byte, 1))
	conn.Close()
	if got := ask(t, s); got != "two" {
		t.Errorf("answered by %q", got)
	}
}

func TestCertificateByAddress(t *testing.T) {
	c := newCluster(t)
	s := c.server("by address", "127.0.0.1")
	t.Setenv(EnvServers, s.URL)
	if got := ask(t, c.open("")); got != "by address" {
		t.Errorf("answered by %q", got)
	}
}

func TestForeignAuthorityIsRefused(t *testing.T) {
	c, foreign := newCluster(t), newCluster(t)
	s := foreign.server("impostor", serverName)
	t.Setenv(EnvServers, s.URL)
	client, err := rest.HTTPClientFor(c.open("").Config())
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := client.Get("https://" + serverName); err == nil {
		resp.Body.Close()
		t.Error("talked to a server of another authority")
	}
}

func TestLearnedServersSurviveARestart(t *testing.T) {
	c := newCluster(t)
	one, two := c.server("one", serverName), c.server("two", serverName)
	state := t.TempDir()
	t.Setenv(EnvServers, one.URL)
	if err := c.open(state).Learn([]string{two.Listener.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	one.Close()
	t.Setenv(EnvServers, "")
	s := c.open(state)
	if got := ask(t, s); got != "two" {
		t.Errorf("answered by %q", got)
	}
	if err := s.Learn(nil); err != nil {
		t.Fatal(err)
	}
	if got := s.List(); !slices.Equal(got, []string{two.Listener.Addr().String()}) {
		t.Errorf("an empty list of endpoints was taken for news: %v", got)
	}
}

func TestNothingAnswers(t *testing.T) {
	c := newCluster(t)
	t.Setenv(EnvServers, closedPort(t))
	if s := c.open(""); len(s.List()) != 1 {
		t.Errorf("list %v", s.List())
	}
	t.Setenv(EnvServers, "")
	if _, err := open(t.Context(), "", c.dir); !errors.Is(err, ErrNoAddress) {
		t.Errorf("got %v, want ErrNoAddress", err)
	}
}

func TestParse(t *testing.T) {
	for _, row := range []struct {
		in   string
		want []string
		ok   bool
	}{
		{"", nil, true},
		{" https://10.0.0.1:6443 , https://10.0.0.2:6443,", []string{"10.0.0.1:6443", "10.0.0.2:6443"}, true},
		{"api.example", []string{"api.example:443"}, true},
		{"https://[fd00::1]:6443/", []string{"[fd00::1]:6443"}, true},
		{"https://a:1,https://a:1", []string{"a:1"}, true},
		{"http://10.0.0.1", nil, false},
		{"https://10.0.0.1/prefix", nil, false},
		{"https://", nil, false},
		{"https://u:p@10.0.0.1", nil, false},
	} {
		got, err := Parse(row.in)
		if (err == nil) != row.ok || (err != nil && !errors.Is(err, ErrBadAddress)) {
			t.Errorf("%q: error %v", row.in, err)
		}
		if !slices.Equal(got, row.want) {
			t.Errorf("%q: got %v, want %v", row.in, got, row.want)
		}
	}
}
