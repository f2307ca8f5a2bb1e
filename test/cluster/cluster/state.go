// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/test/cluster/cgroup"
	"github.com/kube-cilium/kube-cilium/test/cluster/image"
	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
	"github.com/kube-cilium/kube-cilium/test/cluster/ranges"
)

// ErrUp says that a cluster of this name is up already.
var ErrUp = errors.New("cluster is up already")

// ErrAbsent says that there is no cluster of this name.
var ErrAbsent = errors.New("no such cluster")

// ErrFull says that no set of ranges is free.
var ErrFull = errors.New("no free address ranges")

// Phases of a cluster. One found starting was cut short.
const (
	PhaseStarting = "starting"
	PhaseUp       = "up"
)

// State is all that is known about a cluster; "status -o json" prints it.
type State struct {
	Options
	Phase   string    `json:"phase"`
	Started time.Time `json:"started"`
	Index   int       `json:"index"`
	Dir     string    `json:"dir"`
	// Kubeconfig is for people and tests: through the forwarder.
	Kubeconfig string `json:"kubeconfig"`
	// InsideKubeconfig is for commands run inside the control plane's namespace.
	InsideKubeconfig string `json:"insideKubeconfig"`
	// APIServers are URLs of the API server as nodes reach it.
	APIServers []string `json:"apiServers"`
	// AgentServers are what agents are told, the late way with --lag.
	AgentServers  []string      `json:"agentServers"`
	ForwarderPort int           `json:"forwarderPort"`
	Ranges        ranges.Ranges `json:"ranges"`
	ClusterDNS    []netip.Addr  `json:"clusterDNS"`

	ControlPlane Place             `json:"controlPlane"`
	Outside      Place             `json:"outside"`
	Nodes        []Node            `json:"nodes"`
	Hierarchy    cgroup.Tree       `json:"hierarchy"`
	Binaries     map[string]string `json:"binaries"`
	Images       []image.Archive   `json:"images"`
}

// Place is a network namespace of the cluster.
type Place struct {
	// Space is its name, Netns the file to enter it by.
	Space     string       `json:"space"`
	Netns     string       `json:"netns"`
	Addresses []netip.Addr `json:"addresses"`
	// World are addresses reached through a router only (outside alone has them).
	World []netip.Addr `json:"world,omitempty"`
}

// Node is one worker.
type Node struct {
	Place
	Name string `json:"name"`
	// InitPID is the node's first process: "nsenter --target PID --all".
	InitPID int    `json:"initPID"`
	Cgroup  string `json:"cgroup"`
	// Cgroup2 is the node's directory in cgroup2, as the machine sees it.
	Cgroup2 string `json:"cgroup2"`
	// Pods are the node's prefixes with the bridge plugin; our operator gives its own.
	Pods []netip.Prefix `json:"pods,omitempty"`
	Logs string         `json:"logs"`
}

// Store is where clusters keep their state: a folder each.
type Store struct{ Dir string }

func (s Store) folder(name string) string { return filepath.Join(s.Dir, name) }

// Load returns a cluster's state, or ErrAbsent.
func (s Store) Load(name string) (*State, error) {
	raw, err := os.ReadFile(filepath.Join(s.folder(name), "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s (%s)", ErrAbsent, name, s.there())
	}
	if err != nil {
		return nil, fmt.Errorf("state of %s: %w", name, err)
	}
	state := &State{}
	if err := json.Unmarshal(raw, state); err != nil {
		return nil, fmt.Errorf("state of %s: %w", name, err)
	}
	return state, nil
}

// KubectlCache is where kubectl is to remember what this API server serves: each cluster has a port of its own, so in
// the user's cache every one would leave a folder.
func (state *State) KubectlCache() string { return filepath.Join(state.Dir, "kubectl-cache") }

// Names lists the clusters that have a folder, whole or not.
func (s Store) Names() []string {
	entries, _ := os.ReadDir(s.Dir)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// there says which clusters --name can say.
func (s Store) there() string {
	names := s.Names()
	if len(names) == 0 {
		return "there is none: make up, or the verb up, brings one up"
	}
	return "there are: " + strings.Join(names, ", ")
}

// save writes the state at once or not at all.
func (state *State) save() error {
	raw, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return fmt.Errorf("state of %s: %w", state.Name, err)
	}
	path := filepath.Join(state.Dir, "state.json")
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return fmt.Errorf("state of %s: %w", state.Name, err)
	}
	return os.Rename(path+".new", path)
}

// reservation is taken by every run on this machine, whatever its cache folder.
const reservation = "/run/lock/kube-cilium-cluster"

// reserve finds a free index, records it and guards its ranges, under a lock
// that all runs on the machine share.
func (s Store) reserve(o Options) (*State, error) {
	if err := os.MkdirAll(filepath.Dir(reservation), 0o755); err != nil {
		return nil, fmt.Errorf("reserve ranges: %w", err)
	}
	lock, err := os.OpenFile(reservation, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("reserve ranges: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("reserve ranges: %w", err)
	}
	used, err := netspace.Used()
	if err != nil {
		return nil, fmt.Errorf("reserve ranges: %w", err)
	}
	state := &State{Options: o, Phase: PhaseStarting, Started: time.Now().UTC(), Dir: s.folder(o.Name)}
	if state.Index, state.Ranges, err = free(o.Family, used); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(state.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("reserve ranges: %w", err)
	}
	if err := state.save(); err != nil {
		return nil, err
	}
	return state, netspace.Guard(state.Ranges.All())
}

// free returns the first index none of whose ranges, in either family, overlaps used.
func free(family ranges.Family, used []netip.Prefix) (int, ranges.Ranges, error) {
	for index := 1; index <= ranges.Max; index++ {
		both, err := ranges.For(index, ranges.Dual)
		if err != nil {
			return 0, both, err
		}
		if _, taken := both.Overlaps(used); taken {
			continue
		}
		r, err := ranges.For(index, family)
		return index, r, err
	}
	return 0, ranges.Ranges{}, fmt.Errorf("%w: all %d sets overlap a route of this machine (other clusters? see down --all)", ErrFull, ranges.Max)
}
