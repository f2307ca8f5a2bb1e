// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"net/netip"

	"github.com/go-logr/logr"

	"github.com/kube-cilium/kube-cilium/internal/service"
)

// Options say where the kernel's file systems are. Two agents on one machine have different ones.
type Options struct {
	// BPFFS is the mount point of the bpf file system; "/sys/fs/bpf" when empty.
	BPFFS string
	// CgroupRoot is the cgroup2 directory whose sockets see services. Empty: the first cgroup2 mount.
	CgroupRoot string
	// ProcSysNet is the host's /proc/sys/net; that when empty.
	ProcSysNet string
	Log        logr.Logger
}

// Datapath is this node's kernel side. Its methods may be called from several goroutines.
type Datapath struct {
	opts Options
}

// Open probes the kernel, checks what it needs, and opens or makes the pinned maps.
func Open(opts Options) (*Datapath, error) { return &Datapath{opts: opts}, nil }

// Close gives back file descriptors. Everything in the kernel stays and goes on.
func (d *Datapath) Close() error { return nil }

// Configure brings devices, sysctls, the tunnel device and programs to cfg. It is idempotent and adopts what is pinned.
func (d *Datapath) Configure(ctx context.Context, cfg Config) error { return nil }

// Run repairs devices, routes, neighbours and sysctls, on netlink events and once in a while, until ctx ends.
func (d *Datapath) Run(ctx context.Context) error { return nil }

// RunConntrackGC ages connections until ctx ends.
func (d *Datapath) RunConntrackGC(ctx context.Context) error { return nil }

// Features are the probed kernel features.
func (d *Datapath) Features() []Feature { return nil }

// PodMTU is the largest packet that a pod may send off the node, in bytes.
func (d *Datapath) PodMTU() int { return 0 }

// SetPods makes the given pods the only ones.
func (d *Datapath) SetPods(pods []Pod) error { return nil }

// AddPod adds or replaces one pod; when it returns, the pod's datapath is complete.
func (d *Datapath) AddPod(pod Pod) error { return nil }

// RemovePod takes one pod away; one that is gone is no error.
func (d *Datapath) RemovePod(id uint16) error { return nil }

// SetHostAddresses makes the given addresses the host's own.
func (d *Datapath) SetHostAddresses(addrs []netip.Addr) error { return nil }

// SetPeers makes peers the whole table of exact addresses.
func (d *Datapath) SetPeers(peers map[netip.Addr]Peer) error { return nil }

// SetPrefixes makes prefixes the whole table of prefixes.
func (d *Datapath) SetPrefixes(prefixes map[netip.Prefix]Peer) error { return nil }

// SetServices makes frontends the whole table of services.
func (d *Datapath) SetServices(frontends []service.Frontend) error { return nil }

// SetRoutes makes routes the only routes to peers' prefixes; only routes of protocol 201 are touched.
func (d *Datapath) SetRoutes(routes []Route) error { return nil }

// Counters are the packets of each hook and reason, the non-zero ones.
func (d *Datapath) Counters() ([]Counter, error) { return nil, nil }

// Maps are the pinned maps, by name.
func (d *Datapath) Maps() []MapInfo { return nil }

// Programs are the programs in force, by name.
func (d *Datapath) Programs() []ProgramInfo { return nil }

// Uninstall removes every kernel object of ours on this node; pods' interfaces are the pods' and stay.
func Uninstall(opts Options) error { return nil }
