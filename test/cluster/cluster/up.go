// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kube-cilium/kube-cilium/test/cluster/build"
	"github.com/kube-cilium/kube-cilium/test/cluster/image"
	"github.com/kube-cilium/kube-cilium/test/cluster/node"
	"github.com/kube-cilium/kube-cilium/test/cluster/ranges"
)

// ErrNotReady says that a part of the cluster did not become ready in time.
var ErrNotReady = errors.New("not ready in time")

// DevTag is the tag of images built from the working tree.
const DevTag = "dev"

// Host is a machine that clusters run on.
type Host struct {
	// Cache holds built binaries, images and the clusters' state.
	Cache string
	// Source is the root of this repository.
	Source string
	// Version is what our programs in images say they are; "" is the images' tag.
	Version string
	// Packages are the Debian packages that a cluster needs.
	Packages []string
	// Progress takes one line at a time for people.
	Progress func(format string, args ...any)
}

// Store is the host's clusters.
func (h *Host) Store() Store { return Store{Dir: filepath.Join(h.Cache, "clusters")} }

func (h *Host) cache() build.Cache {
	return build.Cache{Dir: h.Cache, Components: filepath.Join(h.Source, "test/cluster/components"), Progress: h.Progress}
}

// Build builds every component and base image that is not in the cache.
func (h *Host) Build(ctx context.Context) (build.Binaries, []image.Archive, error) {
	built, err := h.cache().All(ctx)
	if err != nil {
		return nil, nil, err
	}
	archives, err := h.baseImages(ctx, built)
	return built, archives, err
}

// Assets builds what a control plane without nodes is made of, and returns the
// folder with its binaries.
func (h *Host) Assets(ctx context.Context) (string, error) {
	_, err := h.cache().All(ctx)
	return filepath.Join(h.Cache, "bin"), err
}

// Conformance builds what runs Kubernetes' NetworkPolicy specs, and returns its folder.
func (h *Host) Conformance(ctx context.Context) (string, error) {
	return h.cache().Folder(ctx, build.Conformance())
}

// Up brings a cluster up. The remains of one of that name that was cut short
// are removed first; one that is up is ErrUp.
func (h *Host) Up(ctx context.Context, o Options) (*State, error) {
	tree, err := Preflight(h.Packages)
	if err != nil {
		return nil, err
	}
	if err := h.clear(ctx, o.Name); err != nil {
		return nil, err
	}
	built, base, err := h.Build(ctx)
	if err != nil {
		return nil, err
	}
	ours, err := h.nodeImages(ctx, o.CNI)
	if err != nil {
		return nil, fmt.Errorf("--cni %s: %w", o.CNI, err)
	}
	state, err := h.Store().reserve(o)
	if err != nil {
		return nil, err
	}
	state.Hierarchy, state.Binaries, state.Images = tree, built, append(base, ours...)
	if err := h.start(ctx, state, base, ours); err != nil {
		return nil, fmt.Errorf("%w\n(what has started is left for a look in %s; %s)", err, state.Dir, removes(o.Name))
	}
	return state, nil
}

// removes says how a cluster is taken down, to who came by make and to who came without.
func removes(name string) string {
	return fmt.Sprintf("make down CLUSTER=%s, or test-cluster down --name %s, removes it", name, name)
}

func (h *Host) clear(ctx context.Context, name string) error {
	old, err := h.Store().Load(name)
	switch {
	case errors.Is(err, ErrAbsent):
		return nil
	case err == nil && old.Phase == PhaseUp && node.Alive(old.pid("kube-apiserver")):
		return fmt.Errorf("%w: %s (kubeconfig %s; %s)", ErrUp, name, old.Kubeconfig, removes(name))
	}
	h.Progress("removing what is left of cluster %s", name)
	return h.Down(ctx, name)
}

func (h *Host) start(ctx context.Context, state *State, base, ours []image.Archive) error {
	state.name()
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return fmt.Errorf("forwarder: %w", err)
	}
	defer listener.Close()
	state.ForwarderPort = listener.Addr().(*net.TCPAddr).Port
	self, err := state.copySelf()
	if err != nil {
		return err
	}
	h.Progress("cluster %s: network (nodes %s, pods %s)", state.Name, list(state.Ranges.Nodes), list(state.Ranges.Pods))
	if err := state.layOut(); err != nil {
		return err
	}
	if err := state.certificates(); err != nil {
		return err
	}
	if err := state.save(); err != nil {
		return err
	}
	h.Progress("cluster %s: control plane", state.Name)
	if err := state.startControlPlane(ctx); err != nil {
		return err
	}
	if err := state.startForwarder(self, listener); err != nil {
		return err
	}
	if err := state.startLag(self); err != nil {
		return err
	}
	if err := h.startNodes(ctx, self, state, base, ours); err != nil {
		return err
	}
	if err := h.settle(ctx, state); err != nil {
		return err
	}
	state.Phase = PhaseUp
	if err := state.save(); err != nil {
		return err
	}
	return h.prune()
}

// name fills in all that follows from the name, the index and the options.
func (state *State) name() {
	r := state.Ranges
	place := func(suffix string, host int) Place {
		space := "kc-" + state.Name + "-" + suffix
		return Place{Space: space, Netns: "/run/netns/" + space, Addresses: ranges.Host(r.Nodes, host)}
	}
	state.ControlPlane = place("cp", ranges.GatewayHost)
	state.Outside = place("outside", ranges.OutsideHost)
	state.Outside.World = ranges.Host(r.World, worldHost)
	state.ClusterDNS = ranges.Host(r.Services, 10)
	agentPort := apiPort
	if state.Lag > 0 {
		agentPort = lagPort
	}
	for _, a := range state.ControlPlane.Addresses {
		state.APIServers = append(state.APIServers, "https://"+net.JoinHostPort(a.String(), apiPort))
		state.AgentServers = append(state.AgentServers, "https://"+net.JoinHostPort(a.String(), agentPort))
	}
	for number := 1; number <= state.Workers; number++ {
		n := Node{Place: place(fmt.Sprintf("n%d", number), ranges.WorkerBase+number), Name: fmt.Sprintf("worker-%d", number)}
		n.Cgroup = state.cgroup(n.Name)
		if v2 := state.Hierarchy.V2(); v2 != "" {
			n.Cgroup2 = filepath.Join(v2, n.Cgroup)
		}
		if state.CNI == CNIBridge {
			n.Pods = r.PodsOf(number)
		}
		n.Logs = filepath.Join(state.Dir, n.Name, "log")
		state.Nodes = append(state.Nodes, n)
	}
}

// copySelf keeps this program beside the state: what it starts outlives the
// temporary file that "go run" made of it.
func (state *State) copySelf() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("own program: %w", err)
	}
	raw, err := os.ReadFile(self)
	if err != nil {
		return "", fmt.Errorf("own program: %w", err)
	}
	path := filepath.Join(state.Dir, "cluster")
	return path, os.WriteFile(path, raw, 0o755)
}

// nodeConfig is what worker N (from 1) must know.
func (state *State) nodeConfig(number int) node.Config {
	c := node.Config{
		Cluster: state.Name, Number: number, Hierarchy: state.Hierarchy, PKI: state.pki(), Shared: []string{state.Dir},
		Binaries: state.Binaries, ClusterPods: state.Ranges.Pods, ClusterDNS: state.ClusterDNS[:1],
		Resolver: state.Outside.World, Bridge: state.CNI == CNIBridge, KubeProxy: state.KubeProxy,
	}
	if c.KubeProxy == "none" {
		c.KubeProxy = ""
	}
	return c
}

func (h *Host) startNodes(ctx context.Context, self string, state *State, base, ours []image.Archive) error {
	if len(state.Nodes) == 0 {
		return nil
	}
	store, err := h.store(ctx, self, state, base)
	if err != nil {
		return err
	}
	for i := range state.Nodes {
		n := &state.Nodes[i]
		h.Progress("cluster %s: %s (%s)", state.Name, n.Name, list(n.Addresses))
		c := state.nodeConfig(i + 1)
		c.Name, c.Space, c.Cgroup, c.Addresses, c.Pods = n.Name, n.Space, n.Cgroup, n.Addresses, n.Pods
		c.Dir = filepath.Join(state.Dir, n.Name)
		c.Images = paths(ours)
		c.Shared = append(c.Shared, h.Cache)
		if err := node.CloneStore(store, filepath.Join(c.Dir, "containerd")); err != nil {
			return err
		}
		if n.InitPID, err = node.Start(self, c); err != nil {
			return err
		}
		if err := state.save(); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until the cluster does what it was asked to.
func (h *Host) settle(ctx context.Context, state *State) error {
	for _, n := range state.Nodes {
		if err := state.registered(ctx, n); err != nil {
			return err
		}
	}
	if err := state.setPodCIDRs(ctx); err != nil {
		return err
	}
	if state.CNI == CNIOurs {
		h.Progress("cluster %s: installing kube-cilium", state.Name)
		if err := h.installOurs(ctx, state); err != nil {
			return err
		}
	}
	if err := state.apply(ctx, state.dnsManifest()); err != nil {
		return err
	}
	if state.CNI == CNINone || len(state.Nodes) == 0 {
		h.Progress("cluster %s: up without a pod network", state.Name)
		return nil
	}
	h.Progress("cluster %s: waiting for nodes and DNS", state.Name)
	if err := state.wait(ctx, "wait", "--for=condition=Ready", "nodes", "--all"); err != nil {
		return err
	}
	if state.CNI == CNIOurs {
		for _, part := range []string{"daemonset/cilium-agent", "deployment/cilium-operator"} {
			if err := state.wait(ctx, "rollout", "status", "--namespace="+systemNamespace, part); err != nil {
				return err
			}
		}
	}
	return state.wait(ctx, "rollout", "status", "--namespace=kube-system", "deployment/coredns")
}

// registered waits until the node's kubelet has made its Node object.
func (state *State) registered(ctx context.Context, n Node) error {
	deadline := time.Now().Add(state.Timeout)
	for {
		_, err := state.kubectl(ctx, "", "get", "node", n.Name)
		if err == nil {
			return nil
		}
		if !node.Alive(n.InitPID) {
			return fmt.Errorf("%s: %w%s", n.Name, ErrEnded, tail(filepath.Join(state.Dir, n.Name, "init.log")))
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w: %w (logs: %s)", n.Name, ErrNotReady, err, n.Logs)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// setPodCIDRs writes the prefixes of the bridge plugin's nodes where
// Kubernetes has them. We choose them, as routes were laid for them already.
func (state *State) setPodCIDRs(ctx context.Context) error {
	for _, n := range state.Nodes {
		if len(n.Pods) == 0 {
			continue
		}
		patch := fmt.Sprintf(`{"spec":{"podCIDR":%q,"podCIDRs":[%s]}}`, n.Pods[0], quoted(n.Pods))
		if _, err := state.kubectl(ctx, "", "patch", "node", n.Name, "--patch", patch); err != nil {
			return err
		}
	}
	return nil
}

func quoted(prefixes []netip.Prefix) string {
	var words []string
	for _, p := range prefixes {
		words = append(words, fmt.Sprintf("%q", p))
	}
	return strings.Join(words, ",")
}

// kubectl runs kubectl as an administrator, through the forwarder.
func (state *State) kubectl(ctx context.Context, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, state.Binaries["kubectl"], append([]string{"--kubeconfig", state.Kubeconfig}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECACHEDIR="+state.KubectlCache())
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func (state *State) apply(ctx context.Context, manifest string) error {
	_, err := state.kubectl(ctx, manifest, "apply", "--server-side", "--filename=-")
	return err
}

// wait runs a kubectl command that waits by itself. Its error shows the nodes
// and pods as they were at the end, and the last that ours said.
func (state *State) wait(ctx context.Context, args ...string) error {
	_, err := state.kubectl(ctx, "", append(args, "--timeout="+state.Timeout.String())...)
	if err == nil {
		return nil
	}
	shown, showErr := state.kubectl(ctx, "", "get", "nodes,pods", "--all-namespaces", "--output=wide")
	if showErr != nil {
		shown = showErr.Error()
	}
	if state.CNI == CNIOurs {
		said, _ := state.kubectl(ctx, "", "logs", "--namespace="+systemNamespace, "--selector=app.kubernetes.io/part-of=kube-cilium",
			"--all-containers", "--prefix", "--tail=4")
		shown += "\n" + said
	}
	return fmt.Errorf("%w: %w\n%s", ErrNotReady, err, shown)
}
