// SPDX-License-Identifier: Apache-2.0

package datapath

import "errors"

var (
	// ErrNotSupported: the kernel lacks a feature.
	ErrNotSupported = errors.New("not supported by the kernel")
	// ErrForbidden: the kernel has the feature and the configuration says not to use it.
	ErrForbidden = errors.New("forbidden by the configuration")
	// ErrKernelTooOld: a feature without which nothing works, and for which there is no other way.
	ErrKernelTooOld = errors.New("kernel too old (needs Linux 5.10 with BPF_SYSCALL, NET_CLS_BPF and NET_CLS_ACT)")
	// ErrNoBPFFS: pins have nowhere to live.
	ErrNoBPFFS = errors.New("no bpf file system there (mount -t bpf bpf /sys/fs/bpf on the host, and mount it into the agent with HostToContainer propagation)")
	// ErrNoCgroup2: socket translation has nowhere to attach.
	ErrNoCgroup2 = errors.New("no cgroup2 file system there (mount -t cgroup2 none /sys/fs/cgroup/unified on the host, or boot with cgroup v2)")
	// ErrMissingCapability: the process may not do what it is for.
	ErrMissingCapability = errors.New("missing capability")
	// ErrNoIPv6: an IPv6 address is asked for and the kernel has no IPv6.
	ErrNoIPv6 = errors.New("no IPv6 in this kernel (boot without ipv6.disable=1, or take the IPv6 pool out of the CiliumConfig)")
	// ErrNoUplink: no device carries traffic off the node.
	ErrNoUplink = errors.New("no uplink found")
	// ErrTunnelPortTaken: another VXLAN device or socket has the tunnel's UDP port.
	ErrTunnelPortTaken = errors.New("tunnel port is taken (choose another with the CiliumConfig's routing.tunnelPort)")
	// ErrNewerLayout: what is pinned was made by a newer release in a way that this one cannot read.
	ErrNewerLayout = errors.New("pinned by a newer release in a layout that this one does not know")
	// ErrNotConfigured: Configure has not succeeded yet.
	ErrNotConfigured = errors.New("datapath is not configured yet")
)
