// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Program is one object file that holds the program of one hook on a device.
type Program struct {
	Name string // of the function in the object, and of the file
	Hook Hook   // its slot in the map `hooks`
	spec func() (*ebpf.CollectionSpec, error)
}

// Load reads the object that was built in, with a desk for each processor that this machine may have.
func (p Program) Load() (*ebpf.CollectionSpec, error) {
	spec, err := p.spec()
	if err != nil {
		return nil, err
	}
	return spec, GiveDesks(spec)
}

// GiveDesks sets how many desks (bpf/lib/desk.h) the objects of a program ask the kernel for.
func GiveDesks(spec *ebpf.CollectionSpec) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count processors: %w", err)
	}
	if desks := spec.Maps["desks"]; desks != nil {
		desks.MaxEntries = uint32(cpus)
	}
	return nil
}

// DevicePrograms lists the programs that the stubs call, by their slots.
func DevicePrograms() []Program {
	return []Program{
		{"from_pod", MapsHookHOOK_FROM_POD, LoadFromPod},
		{"to_pod", MapsHookHOOK_TO_POD, LoadToPod},
		{"from_netdev", MapsHookHOOK_FROM_NETDEV, LoadFromNetdev},
		{"to_netdev", MapsHookHOOK_TO_NETDEV, LoadToNetdev},
		{"from_overlay", MapsHookHOOK_FROM_OVERLAY, LoadFromOverlay},
		{"to_overlay", MapsHookHOOK_TO_OVERLAY, LoadToOverlay},
	}
}

// SocketPrograms names the programs of LoadSock and where in the cgroup each is attached.
func SocketPrograms() map[string]ebpf.AttachType {
	return map[string]ebpf.AttachType{
		"connect4":     ebpf.AttachCGroupInet4Connect,
		"connect6":     ebpf.AttachCGroupInet6Connect,
		"sendmsg4":     ebpf.AttachCGroupUDP4Sendmsg,
		"sendmsg6":     ebpf.AttachCGroupUDP6Sendmsg,
		"recvmsg4":     ebpf.AttachCGroupUDP4Recvmsg,
		"recvmsg6":     ebpf.AttachCGroupUDP6Recvmsg,
		"getpeername4": ebpf.AttachCgroupInet4GetPeername,
		"getpeername6": ebpf.AttachCgroupInet6GetPeername,
	}
}
