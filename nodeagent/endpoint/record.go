// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

// MaxID is the highest endpoint ID: MAX_ENDPOINTS of bpf/lib/types.h, less one.
const MaxID = 4095

// State is how far an endpoint has come.
type State string

const (
	// Creating: kernel objects may exist in part. A restarted agent undoes them.
	Creating State = "creating"
	// Ready: the datapath is complete.
	Ready State = "ready"
)

// Endpoint is one pod interface on this node. It is immutable: Set hands out copies.
type Endpoint struct {
	ID uint16 `json:"id"`
	cni.Attachment
	Pod cni.Pod `json:"pod"`
	// Netns is the path of the pod's network namespace, as the runtime named it.
	Netns string `json:"netns"`
	// Interface is the host's end; Ifindex its number, 0 until it exists.
	Interface string     `json:"interface"`
	Ifindex   int        `json:"ifindex,omitempty"`
	MAC       MAC        `json:"mac"`
	HostMAC   MAC        `json:"hostMAC"`
	IPv4      netip.Addr `json:"ipv4,omitzero"`
	IPv6      netip.Addr `json:"ipv6,omitzero"`
	// MTU is the largest packet that the pod sends off the node, on its routes; DeviceMTU the largest that it takes, on
	// both ends of the pair: what comes from outside the tunnel may be larger than what fits into it.
	MTU       int `json:"mtu"`
	DeviceMTU int `json:"deviceMTU"`
	// Labels are nil while nobody could say who the pod is.
	Labels identity.Labels `json:"labels,omitempty"`
	// Identity is confirmed by the API server, or identity.Pending.
	Identity identity.Number `json:"identity"`
	// Subject and Ports are as in Who.
	Subject identity.Labels    `json:"subject,omitempty"`
	Ports   []policy.NamedPort `json:"ports,omitempty"`
	State   State              `json:"state"`
	Created time.Time          `json:"created"`
	// BootID is the boot in which all this is true.
	BootID string `json:"bootID"`
	// segment is the size with which both ends of the pair are made; not kept, the datapath knows what is due.
	segment datapath.SegmentSize
}

// MAC is a hardware address that reads well in JSON.
type MAC [6]byte

func (m MAC) String() string               { return net.HardwareAddr(m[:]).String() }
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads xx:xx:xx:xx:xx:xx.
func (m *MAC) UnmarshalText(text []byte) error {
	hw, err := net.ParseMAC(string(text))
	if err != nil || len(hw) != len(m) {
		return fmt.Errorf("%q is not a MAC address", text)
	}
	copy(m[:], hw)
	return nil
}

// Addresses are those that the endpoint has, IPv4 first.
func (e *Endpoint) Addresses() []netip.Addr {
	out := make([]netip.Addr, 0, 2)
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// Who is who the endpoint's pod is.
func (e *Endpoint) Who() Who {
	return Who{Labels: e.Labels, Identity: e.Identity, Subject: e.Subject, Ports: e.Ports}
}

func (e *Endpoint) is(w Who) {
	e.Labels, e.Identity, e.Subject, e.Ports = w.Labels, w.Identity, w.Subject, w.Ports
}

// Owner is the name under which the endpoint holds its addresses.
func (e *Endpoint) Owner() string { return e.ContainerID + "/" + e.IfName }

// DatapathPod is the endpoint as the datapath knows it.
func (e *Endpoint) DatapathPod() datapath.Pod {
	return datapath.Pod{
		ID: e.ID, Interface: e.Interface, Ifindex: e.Ifindex,
		MAC: net.HardwareAddr(e.MAC[:]), HostMAC: net.HardwareAddr(e.HostMAC[:]),
		IPv4: e.IPv4, IPv6: e.IPv6, Identity: uint32(e.Identity),
	}
}

// validate refuses a record that this package cannot have written.
func (e *Endpoint) validate() error {
	switch {
	case e.ID == 0 || int(e.ID) > MaxID:
		return fmt.Errorf("id %d is not 1 to %d", e.ID, MaxID)
	case e.Interface != InterfaceName(e.Attachment):
		return fmt.Errorf("interface %q does not belong to container %q", e.Interface, e.ContainerID)
	case e.State != Creating && e.State != Ready:
		return fmt.Errorf("state %q", e.State)
	case e.State == Ready && e.Ifindex <= 0:
		return errors.New("ready without an interface")
	case e.Identity != identity.Pending && !e.Identity.Allocated():
		return fmt.Errorf("identity %d", e.Identity)
	case e.IPv4.IsValid() && !e.IPv4.Is4(), e.IPv6.IsValid() && !e.IPv6.Is6():
		return errors.New("an address of the wrong family")
	}
	return cni.CheckAttachment(e.Attachment)
}

// records is the folder of the records, one file each.
type records struct {
	dir string
}

func (r records) file(id uint16) string {
	return filepath.Join(r.dir, strconv.Itoa(int(id))+".json")
}

func (r records) write(e *Endpoint) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("record of endpoint %d: %w", e.ID, err)
	}
	if err := cni.WriteFileOfThisBoot(r.file(e.ID), data, 0o600); err != nil {
		return fmt.Errorf("record of endpoint %d: %w", e.ID, err)
	}
	return nil
}

func (r records) remove(id uint16) error {
	if err := os.Remove(r.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record of endpoint %d: %w", id, err)
	}
	return nil
}

// read returns the records of this boot. Those of an earlier boot and those that cannot be read are removed, the
// latter with a complaint, cni.ErrTorn or that this package cannot have written them: without a record there is nothing
// that could be adopted.
func (r records) read(bootID string) (list []*Endpoint, complaints []error, err error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("endpoint records: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(r.dir, entry.Name())
		name, ok := strings.CutSuffix(entry.Name(), ".json")
		if !ok {
			_ = os.Remove(path) // a temporary file of an agent that died
			continue
		}
		e := &Endpoint{}
		err := cni.ReadFileOfThisBoot(path, e)
		if err == nil && e.BootID != bootID {
			_ = os.Remove(path)
			continue
		}
		if err == nil {
			err = e.validate()
		}
		if err == nil && name != strconv.Itoa(int(e.ID)) {
			err = fmt.Errorf("holds endpoint %d", e.ID)
		}
		if err != nil {
			complaints = append(complaints, fmt.Errorf("endpoint record %s: %w", entry.Name(), err))
			_ = os.Remove(path)
			continue
		}
		list = append(list, e)
	}
	return list, complaints, nil
}
