// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kube-cilium/kube-cilium/test/cluster/cgroup"
	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
	"github.com/kube-cilium/kube-cilium/test/cluster/node"
	"github.com/kube-cilium/kube-cilium/test/cluster/pki"
	"github.com/kube-cilium/kube-cilium/test/cluster/ranges"
)

// ErrEnded says that a process of the control plane ended by itself.
var ErrEnded = errors.New("process ended")

const (
	apiPort     = "6443"
	lagPort     = "6444"
	etcdURL     = "http://127.0.0.1:2379"
	etcdPeerURL = "http://127.0.0.1:2380"
)

func (state *State) pki() string            { return filepath.Join(state.Dir, "pki") }
func (state *State) cp() string             { return filepath.Join(state.Dir, "cp") }
func (state *State) cgroup(p string) string { return filepath.Join("kc-"+state.Name, p) }
func (state *State) pem(file string) string { return filepath.Join(state.pki(), file) }

// certificates makes the cluster's PKI and every kubeconfig.
func (state *State) certificates() error {
	if err := os.MkdirAll(state.pki(), 0o700); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	ca, err := pki.NewCA(state.pki(), "ca")
	if err != nil {
		return err
	}
	front, err := pki.NewCA(state.pki(), "front-proxy-ca")
	if err != nil {
		return err
	}
	if err := pki.ServiceAccountKeys(state.pki()); err != nil {
		return err
	}
	if err := front.Issue("front-proxy-client", pki.Subject{User: "front-proxy-client"}); err != nil {
		return err
	}
	if err := ca.Issue("apiserver", state.apiServerSubject()); err != nil {
		return err
	}
	masters := []string{"system:masters"}
	users := map[string]pki.Subject{
		"apiserver-kubelet-client": {User: "kube-apiserver-kubelet-client", Groups: masters},
		"admin":                    {User: "admin", Groups: masters},
		"controller-manager":       {User: "system:kube-controller-manager"},
		"scheduler":                {User: "system:kube-scheduler"},
		"kube-proxy":               {User: "system:kube-proxy"},
	}
	for _, n := range state.Nodes {
		users[n.Name] = pki.Subject{
			User: "system:node:" + n.Name, Groups: []string{"system:nodes"}, Names: []string{n.Name}, Addresses: n.Addresses,
		}
	}
	for name, subject := range users {
		if err := ca.Issue(name, subject); err != nil {
			return err
		}
		if err := ca.Kubeconfig(state.pem(name+".kubeconfig"), name, state.Name, state.APIServers[0]); err != nil {
			return err
		}
	}
	state.InsideKubeconfig = state.pem("admin.kubeconfig")
	state.Kubeconfig = filepath.Join(state.Dir, "kubeconfig")
	return ca.Kubeconfig(state.Kubeconfig, "admin", "kc-"+state.Name, fmt.Sprintf("https://127.0.0.1:%d", state.ForwarderPort))
}

func (state *State) apiServerSubject() pki.Subject {
	addresses := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	addresses = append(addresses, state.ControlPlane.Addresses...)
	addresses = append(addresses, ranges.Host(state.Ranges.Services, 1)...)
	addresses = append(addresses, ranges.Host(state.Ranges.Uplink2, ranges.GatewayHost)...)
	return pki.Subject{
		User: "kube-apiserver", Addresses: addresses,
		Names: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		},
	}
}

// startControlPlane starts etcd, the API server and its two clients, each
// when what it needs answers.
func (state *State) startControlPlane(ctx context.Context) error {
	if err := state.Hierarchy.Make(state.cgroup("cp")); err != nil {
		return err
	}
	if err := os.MkdirAll(state.cp(), 0o755); err != nil {
		return err
	}
	etcd, err := state.startInside("etcd", "--data-dir="+filepath.Join(state.cp(), "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL, "--listen-peer-urls="+etcdPeerURL,
		"--initial-advertise-peer-urls="+etcdPeerURL, "--initial-cluster=default="+etcdPeerURL)
	if err != nil {
		return err
	}
	client, err := state.client()
	if err != nil {
		return err
	}
	if err := state.answers(ctx, client, "etcd", etcd, etcdURL+"/health"); err != nil {
		return err
	}
	server, err := state.startInside("kube-apiserver", state.apiServerFlags()...)
	if err != nil {
		return err
	}
	if err := state.answers(ctx, client, "kube-apiserver", server, state.APIServers[0]+"/readyz"); err != nil {
		return err
	}
	manager := append(state.clientFlags("controller-manager"), "--service-cluster-ip-range="+list(state.Ranges.Services),
		"--root-ca-file="+state.pem("ca.crt"), "--service-account-private-key-file="+state.pem("sa.key"),
		"--use-service-account-credentials=true", "--allocate-node-cidrs=false",
		"--cluster-signing-cert-file="+state.pem("ca.crt"), "--cluster-signing-key-file="+state.pem("ca.key"))
	if _, err := state.startInside("kube-controller-manager", manager...); err != nil {
		return err
	}
	_, err = state.startInside("kube-scheduler", state.clientFlags("scheduler")...)
	return err
}

func (state *State) apiServerFlags() []string {
	bind := "0.0.0.0"
	if state.Family.Has6() {
		bind = "::" // takes IPv4 too
	}
	return []string{
		"--etcd-servers=" + etcdURL, "--bind-address=" + bind, "--advertise-address=" + state.ControlPlane.Addresses[0].String(),
		"--secure-port=" + apiPort, "--tls-cert-file=" + state.pem("apiserver.crt"), "--tls-private-key-file=" + state.pem("apiserver.key"),
		"--client-ca-file=" + state.pem("ca.crt"), "--kubelet-certificate-authority=" + state.pem("ca.crt"),
		"--kubelet-client-certificate=" + state.pem("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + state.pem("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP,Hostname",
		"--service-account-key-file=" + state.pem("sa.pub"), "--service-account-signing-key-file=" + state.pem("sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-cluster-ip-range=" + list(state.Ranges.Services), "--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--requestheader-client-ca-file=" + state.pem("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User", "--proxy-client-cert-file=" + state.pem("front-proxy-client.crt"),
		"--proxy-client-key-file=" + state.pem("front-proxy-client.key"),
		// There is no Service network beside the API server: it picks endpoints itself.
		"--enable-aggregator-routing=true", "--profiling=false", "--shutdown-delay-duration=0s",
	}
}

func (state *State) clientFlags(name string) []string {
	config := state.pem(name + ".kubeconfig")
	return []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false",
	}
}

// startInside starts one of our binaries in the control plane's namespace and
// cgroup, detached from this program.
func (state *State) startInside(name string, args ...string) (int, error) {
	var pid int
	err := netspace.Do(state.ControlPlane.Space, func() error {
		var err error
		pid, err = state.start(name, exec.Command(state.Binaries[name], args...))
		return err
	})
	return pid, err
}

// start starts a command with its output in cp/NAME.log, in the control plane's cgroup, where down finds it: it enters
// that by itself before it begins, for this program may be killed at any moment.
func (state *State) start(name string, cmd *exec.Cmd) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", name, err)
	}
	log, err := os.Create(filepath.Join(state.cp(), name+".log"))
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	inside := exec.Command(self, append([]string{cgroup.RunCommand, state.cgroup("cp"), "--", cmd.Path}, cmd.Args[1:]...)...)
	inside.Stdout, inside.Stderr, inside.ExtraFiles = log, log, cmd.ExtraFiles
	inside.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := inside.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = inside.Wait() }() // or one that ended early would look alive
	return inside.Process.Pid, nil
}

// startForwarder gives the API server an address on the machine's loopback.
// The port is bound here, so that it is known and ours before anything starts.
func (state *State) startForwarder(self string, listener *net.TCPListener) error {
	file, err := listener.File()
	if err != nil {
		return fmt.Errorf("forwarder: %w", err)
	}
	defer file.Close()
	target := strings.TrimPrefix(state.APIServers[0], "https://")
	cmd := exec.Command(self, "forward", "--space", state.ControlPlane.Space, "--to", target)
	cmd.ExtraFiles = []*os.File{file}
	_, err = state.start("forward", cmd)
	return err
}

// lateResources are those by which agents learn of other nodes' pods.
const lateResources = "ciliumendpointslices,ciliumidentities"

// startLag starts the late way to the API server, which agents are told
// instead of the API server itself.
func (state *State) startLag(self string) error {
	if state.Lag == 0 {
		return nil
	}
	cmd := exec.Command(self, "lag", "--upstream", state.APIServers[0], "--listen", ":"+lagPort, "--pki", state.pki(),
		"--delay", state.Lag.String(), "--resources", lateResources)
	return netspace.Do(state.ControlPlane.Space, func() error {
		_, err := state.start("lag", cmd)
		return err
	})
}

// client speaks HTTP inside the control plane's namespace, as an administrator.
func (state *State) client() (*http.Client, error) {
	pair, err := tls.LoadX509KeyPair(state.pem("admin.crt"), state.pem("admin.key"))
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	ca, err := os.ReadFile(state.pem("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		return netspace.Dial(ctx, state.ControlPlane.Space, network, address)
	}
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: dial, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}},
	}}, nil
}

// answers waits until url says 200, or the process behind it ends.
func (state *State) answers(ctx context.Context, client *http.Client, name string, pid int, url string) error {
	ctx, cancel := context.WithTimeout(ctx, state.Timeout)
	defer cancel()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(response.Status)
		}
		if !node.Alive(pid) {
			return fmt.Errorf("%s: %w%s", name, ErrEnded, tail(filepath.Join(state.cp(), name+".log")))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w (log: %s)", name, err, filepath.Join(state.cp(), name+".log"))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// tail is the end of a log for an error message.
func tail(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return " (log: " + path + ")\n  " + strings.Join(lines, "\n  ")
}

func list[T fmt.Stringer](items []T) string {
	words := make([]string, 0, len(items))
	for _, item := range items {
		words = append(words, item.String())
	}
	return strings.Join(words, ",")
}
