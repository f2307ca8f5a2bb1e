// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/kube-cilium/kube-cilium/cni"
)

var (
	// ErrNoAddress means that neither the environment nor the state folder names an API server.
	ErrNoAddress = errors.New("no API server address (set " + EnvServers + ")")
	// ErrBadAddress means that an address is not of the form https://host[:port].
	ErrBadAddress = errors.New("not an API server address")
)

const (
	// EnvServers names the environment variable: URLs, separated by commas, in the order of preference.
	EnvServers = "KUBERNETES_API_SERVERS"
	// serverName is in the certificate of every API server that pods can reach by its name, whichever address they dial.
	serverName = "kubernetes.default.svc"
	stateFile  = "api-servers"
	// probeTimeout bounds how long a start waits for an answer; without one the start goes on, and so do the dials.
	probeTimeout = 3 * time.Second
	dialTimeout  = 5 * time.Second
)

// credentials is where kubelet puts the service account.
const credentials = "/var/run/secrets/kubernetes.io/serviceaccount"

// Config is Open and Servers.Config in one.
func Config(ctx context.Context, stateDir string) (*rest.Config, error) {
	s, err := Open(ctx, stateDir)
	if err != nil {
		return nil, err
	}
	return s.Config(), nil
}

// Servers is the list of API server addresses of one process, the one that answers first. All methods may be called
// from several goroutines.
type Servers struct {
	credentials string
	stateDir    string
	serverName  string

	mu      sync.Mutex
	fixed   []string // host:port from the environment; always part of the list
	list    []string // host:port, in the order of preference
	current int      // index in list of the one that answered last
}

// Open reads the addresses and asks all of them at once; the first in order that answers is used. If none answers
// within three seconds that is no error: the API server may be away, and dialling goes on. The state folder may be
// empty (then nothing is remembered). It returns ErrNoAddress, ErrBadAddress, or an error when the process has no
// service account.
func Open(ctx context.Context, stateDir string) (*Servers, error) {
	return open(ctx, stateDir, credentials)
}

func open(ctx context.Context, stateDir, credentials string) (*Servers, error) {
	ca, err := os.ReadFile(filepath.Join(credentials, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("service account: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("service account: no certificate in %s", filepath.Join(credentials, "ca.crt"))
	}
	if _, err := os.Stat(filepath.Join(credentials, "token")); err != nil {
		return nil, fmt.Errorf("service account: %w", err)
	}
	s := &Servers{credentials: credentials, stateDir: stateDir, serverName: serverName}
	if s.fixed, err = Parse(os.Getenv(EnvServers)); err != nil {
		return nil, fmt.Errorf("%s: %w", EnvServers, err)
	}
	s.list = slices.Clone(s.fixed)
	for _, known := range s.recall() {
		s.list = appendNew(s.list, known)
	}
	if host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"); host != "" && port != "" {
		s.list = appendNew(s.list, net.JoinHostPort(host, port))
	}
	if len(s.list) == 0 {
		return nil, ErrNoAddress
	}
	s.probe(ctx, pool)
	return s, nil
}

// Parse reads a list of URLs separated by commas and returns host:port of each. An absent scheme means https, an
// absent port 443 (6443 has to be said). It returns ErrBadAddress.
func Parse(list string) ([]string, error) {
	var out []string
	for _, item := range strings.Split(list, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		if !strings.Contains(item, "://") {
			item = "https://" + item
		}
		u, err := url.Parse(item)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return nil, fmt.Errorf("%w: %q (want https://host:port)", ErrBadAddress, item)
		}
		out = appendNew(out, net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
	}
	return out, nil
}

// probe asks each server with the names that its certificate may carry.
func (s *Servers) probe(ctx context.Context, pool *x509.CertPool) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	names := make([]string, len(s.list)) // "" where nothing answered
	var wg sync.WaitGroup
	for i, addr := range s.list {
		wg.Go(func() { names[i] = handshake(ctx, addr, pool) })
	}
	wg.Wait()
	for i, name := range names {
		if name != "" {
			s.current, s.serverName = i, name
			return
		}
	}
}

// handshake returns the name under which the server's certificate is good, or "".
func handshake(ctx context.Context, addr string, pool *x509.CertPool) string {
	host, _, _ := net.SplitHostPort(addr)
	for _, name := range []string{serverName, host} {
		d := tls.Dialer{
			NetDialer: &net.Dialer{Timeout: dialTimeout},
			Config:    &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12},
		}
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			conn.Close()
			return name
		}
	}
	return ""
}

// Config returns a configuration whose connections go to whichever server answers, with the pod's service account.
func (s *Servers) Config() *rest.Config {
	token, _ := os.ReadFile(filepath.Join(s.credentials, "token")) // read again from the file when it rotates
	return &rest.Config{
		Host:            "https://" + serverName,
		Dial:            s.Dial,
		QPS:             -1, // the API server's own fairness limits us; the agent counts its writes itself
		BearerToken:     string(token),
		BearerTokenFile: filepath.Join(s.credentials, "token"),
		TLSClientConfig: rest.TLSClientConfig{
			CAFile:     filepath.Join(s.credentials, "ca.crt"),
			ServerName: s.serverName,
		},
	}
}

// List returns host:port of each server, the current one first.
func (s *Servers) List() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(s.list[s.current:], s.list[:s.current])
}

// Dial connects to the current server, or to the next that accepts. The address asked for is ignored: it only names
// the cluster.
func (s *Servers) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var errs []error
	for _, addr := range s.List() {
		conn, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext(ctx, network, addr)
		if err != nil {
			errs = append(errs, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		s.prefer(addr)
		return &watchedConn{Conn: conn, servers: s, addr: addr}, nil
	}
	return nil, errors.Join(errs...)
}

func (s *Servers) prefer(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.list, addr); i >= 0 {
		s.current = i
	}
}

// distrust moves on from a server that accepted a connection and never said a word: a load balancer without backends,
// or an API server that hangs.
func (s *Servers) distrust(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list[s.current] == addr {
		s.current = (s.current + 1) % len(s.list)
	}
}

// Learn takes up the addresses (host:port) that the cluster itself names for its API servers and keeps them for the
// next start. Those from the environment stay first.
func (s *Servers) Learn(addrs []string) error {
	if len(addrs) == 0 {
		return nil // an empty list is an outage, not news
	}
	s.mu.Lock()
	now := s.list[s.current]
	list := slices.Clone(s.fixed)
	for _, a := range addrs {
		list = appendNew(list, a)
	}
	list = appendNew(list, now)
	s.list, s.current = list, slices.Index(list, now)
	s.mu.Unlock()
	return s.remember(addrs)
}

func (s *Servers) remember(addrs []string) error {
	if s.stateDir == "" || slices.Equal(addrs, s.recall()) {
		return nil
	}
	path := filepath.Join(s.stateDir, stateFile)
	cni.RemoveUnfinished(path)
	if err := cni.WriteFile(path, []byte(strings.Join(addrs, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("remember API servers: %w", err)
	}
	return nil
}

// recall reads what remember wrote. A damaged line is left out: the file only adds addresses to try.
func (s *Servers) recall() []string {
	if s.stateDir == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(s.stateDir, stateFile))
	if err != nil {
		return nil
	}
	var out []string
	for _, line := range strings.Fields(string(b)) {
		if _, _, err := net.SplitHostPort(line); err == nil {
			out = appendNew(out, line)
		}
	}
	return out
}

func appendNew(list []string, item string) []string {
	if slices.Contains(list, item) {
		return list
	}
	return append(list, item)
}

// watchedConn tells its Servers when it ends without having received anything.
type watchedConn struct {
	net.Conn
	servers *Servers
	addr    string

	mu    sync.Mutex
	heard bool
	told  bool
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	if n > 0 {
		c.heard = true
	}
	c.mu.Unlock()
	return n, err
}

func (c *watchedConn) Close() error {
	c.mu.Lock()
	tell := !c.heard && !c.told
	c.told = true
	c.mu.Unlock()
	if tell {
		c.servers.distrust(c.addr)
	}
	return c.Conn.Close()
}
