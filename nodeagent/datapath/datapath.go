// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/delta"
)

// Options say where the kernel's file systems are. Two agents on one machine have different ones. Devices, routes and
// sysctls are those of the network namespace in which the process runs.
type Options struct {
	// BPFFS is the mount point of the bpf file system; "/sys/fs/bpf" when empty.
	BPFFS string
	// CgroupRoot is the cgroup2 directory whose sockets see services. Empty: the first cgroup2 mount.
	CgroupRoot string
	// ProcSysNet is the host's /proc/sys/net; that when empty.
	ProcSysNet string
	Log        logr.Logger
}

func (o Options) complete() (Options, error) {
	if o.BPFFS == "" {
		o.BPFFS = "/sys/fs/bpf"
	}
	if o.ProcSysNet == "" {
		o.ProcSysNet = "/proc/sys/net"
	}
	if o.Log.GetSink() == nil {
		o.Log = logr.Discard()
	}
	if o.CgroupRoot == "" {
		root, err := firstCgroup2()
		if err != nil {
			return o, err
		}
		o.CgroupRoot = root
	}
	return o, nil
}

func (o Options) folder() string { return filepath.Join(o.BPFFS, pinFolder) }

// Folder is where everything of ours is pinned: maps as NAME_vLAYOUT, below it links and programs.
func Folder(bpffs string) string {
	if bpffs == "" {
		bpffs = "/sys/fs/bpf"
	}
	return filepath.Join(bpffs, pinFolder)
}

// firstCgroup2 looks through the mounts.
func firstCgroup2() (string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("/proc/self/mounts: %w", ErrNoCgroup2)
}

// Datapath is this node's kernel side. Its methods may be called from several goroutines.
type Datapath struct {
	opts   Options
	log    logr.Logger
	sysctl *procSysNet

	// wiring is held for writing while programs, maps or devices are exchanged, and for reading while one pod is
	// wired: the kernel lets that wait (see AddPod), and many pods come at once. mu guards everything below but what
	// only the holder of wiring changes: closed, maps, progs, attach, cfg. It is taken after wiring.
	wiring sync.RWMutex
	mu     sync.Mutex
	closed bool
	kernel *kernel
	maps   *mapSet
	progs  *programs
	attach *attacher

	// cfg is nil until Configure was called; done is true when it has succeeded at least once.
	cfg     *Config
	done    bool
	uplinks []uplink
	// onLink4 and onLink6 are the prefixes that the programs take for the uplink's own; invalid: none.
	onLink4, onLink6 netip.Prefix
	overlay          device
	podMTU           int
	// deviceMTU is the underlay's.
	deviceMTU int
	// encap is true where programs build the VXLAN header.
	encap bool
	// stack is true where the host's stack forwards what the programs cannot redirect.
	stack bool
	// maxSegment is the segment size that pods' devices are to take; resized tells when it turned. bigTCP says why.
	maxSegment SegmentSize
	resized    chan struct{}
	bigTCP     Feature
	// forwardNote says how the FORWARD chain was dealt with; "" where the stack path is not in use.
	forwardNote string
	// forwardAway: there is no rule of ours.
	forwardAway bool

	endpoints  *delta.Table[bpf.Addr, bpf.Endpoint]
	interfaces *delta.Table[uint32, bpf.PodInterface]
	peers      *delta.Table[bpf.Addr, bpf.Peer]
	prefixes   *delta.Table[bpf.PrefixKey, bpf.Peer]
	devices    *delta.Table[uint32, bpf.Device]
	services   *delta.Table[bpf.ServiceKey, bpf.Service]
	backends   *delta.Table[bpf.BackendKey, bpf.Backend]

	policy policyWriter

	// about is what was asked of programs the last time.
	about map[programKey]programAbout

	// What we were told; nil: nothing yet, so what is adopted stays.
	pods  map[uint16]Pod
	hosts map[netip.Addr]bool
	// podsKnown and routesKnown are true when a whole table was given: then what is not in it may go.
	podsKnown   bool
	routesKnown bool
	routes      []Route

	// spare makes tables of unanswered flows ahead of the pods that will want them.
	spare spare
	// churn is when a pod last came or went.
	churn churn
	// leaving are tables of unanswered flows that are being taken away; it is asked with or without mu.
	leaving leaving
	// health is what the last Configure or repair said.
	health error

	gc collector
}

// Open probes the kernel, checks what it needs (ErrMissingCapability, ErrNoBPFFS, ErrNoCgroup2, ErrKernelTooOld), and
// opens or makes the pinned maps.
func Open(opts Options) (*Datapath, error) {
	opts, err := opts.complete()
	if err != nil {
		return nil, err
	}
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	if err := checkMount(opts.BPFFS, unix.BPF_FS_MAGIC, ErrNoBPFFS); err != nil {
		return nil, err
	}
	if err := checkMount(opts.CgroupRoot, unix.CGROUP2_SUPER_MAGIC, ErrNoCgroup2); err != nil {
		return nil, err
	}
	// Kernels before 5.11 count maps against the process's locked memory.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit of locked memory: %w", err)
	}
	k := &kernel{known: map[v1alpha1.KernelFeature]error{}}
	if err := k.require(); err != nil {
		return nil, err
	}
	for _, sub := range []string{"", "links", "programs"} {
		if err := os.MkdirAll(filepath.Join(opts.folder(), sub), 0o700); err != nil {
			return nil, fmt.Errorf("make pin folder: %w", err)
		}
	}
	if err := lockPins(opts.folder()); err != nil {
		return nil, err
	}
	m, err := openMaps(opts.folder(), layouts())
	if err != nil {
		return nil, err
	}
	return assemble(opts, k, m), nil
}

func assemble(opts Options, k *kernel, m *mapSet) *Datapath {
	progs := &programs{folder: filepath.Join(opts.folder(), "programs"), maps: m}
	return &Datapath{
		opts:   opts,
		log:    opts.Log,
		sysctl: &procSysNet{root: opts.ProcSysNet},
		kernel: k,
		maps:   m,
		progs:  progs,
		attach: &attacher{
			folder: filepath.Join(opts.folder(), "links"), progs: progs, tcx: true,
			attached: map[bpf.Hook]map[string]attachment{}, scanned: map[bpf.Hook]bool{}, sockets: map[string]string{},
		},
		endpoints:  delta.New(&mapStore[bpf.Addr, bpf.Endpoint]{m, bpf.MapsMapEndpoints}),
		interfaces: delta.New(&mapStore[uint32, bpf.PodInterface]{m, bpf.MapsMapPodInterfaces}),
		peers:      delta.New(&mapStore[bpf.Addr, bpf.Peer]{m, bpf.MapsMapPeers}),
		prefixes:   delta.New(&mapStore[bpf.PrefixKey, bpf.Peer]{m, bpf.MapsMapPrefixes}),
		devices:    delta.New(&mapStore[uint32, bpf.Device]{m, bpf.MapsMapDevices}),
		services:   delta.New(&mapStore[bpf.ServiceKey, bpf.Service]{m, bpf.MapsMapServices}),
		backends:   delta.New(&mapStore[bpf.BackendKey, bpf.Backend]{m, bpf.MapsMapBackends}),
		policy:     newPolicyWriter(m),
		resized:    make(chan struct{}, 1),
		gc:         newCollector(),
		churn:      churn{calm: calmTime, changed: make(chan struct{}, 1)},
	}
}

func checkMount(path string, magic int64, missing error) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("%s: %w: %w", path, missing, err)
	}
	if int64(st.Type) != magic {
		return fmt.Errorf("%s: %w", path, missing)
	}
	return nil
}

// Close gives back file descriptors. Everything in the kernel stays and goes on.
func (d *Datapath) Close() error {
	d.wiring.Lock()
	defer d.wiring.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.progs.close()
	if d.policy.slots != nil {
		if err := d.policy.slots.close(); err != nil {
			return fmt.Errorf("unmap policies: %w", err)
		}
		d.policy.slots = nil
	}
	if err := d.maps.close(); err != nil {
		return fmt.Errorf("close maps: %w", err)
	}
	return nil
}

// EventsMap is the ring buffer of drops and traces. It belongs to the Datapath; there is one reader.
func (d *Datapath) EventsMap() *ebpf.Map { return d.maps.open[bpf.MapsMapEvents] }

// Features are the probed kernel features. A probe that could not tell is asked again each time.
func (d *Datapath) Features() []Feature {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.kernel.features(d.forbidden())
	for i := range out {
		if out[i].Name == string(v1alpha1.FeatureAdjustRoomEncap) && d.cfg != nil && !d.encap {
			out[i].Using = "VXLAN header built by the device"
			if d.cfg.Mode == v1alpha1.RoutingNative {
				out[i].Using = "not in use: native routing"
			}
		}
	}
	if d.bigTCP.Name != "" {
		out = append(out, d.bigTCP)
	}
	if d.forwardNote != "" {
		out = append(out, Feature{Name: "ForwardRule", Outcome: Supported, Using: d.forwardNote})
	}
	return out
}

func (d *Datapath) forbidden() []v1alpha1.KernelFeature {
	if d.cfg == nil {
		return nil
	}
	return d.cfg.Forbidden
}

// has is true when the feature is there and allowed. "Could not tell" counts as no.
func (d *Datapath) has(name v1alpha1.KernelFeature) bool {
	for _, f := range d.kernel.features(d.forbidden()) {
		if f.Name == string(name) {
			return f.Outcome == Supported
		}
	}
	return false
}

// PodMTU is the largest packet that a pod may send off the node, in bytes; 0 before Configure.
func (d *Datapath) PodMTU() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.podMTU
}

// DeviceMTU is the largest packet that a pod must take, in bytes; 0 before Configure. It is the underlay's also where
// the tunnel leaves less for what a pod sends: packets from outside, and of flows that skip the tunnel, come whole.
func (d *Datapath) DeviceMTU() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.deviceMTU
}

var errNoHostEnd = errors.New("the host's end of the pod's interface is gone")
