// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/bpf"
)

const (
	// ordinarySegment is the kernel's default of gso_max_size and gro_max_size, bytes.
	ordinarySegment = 65536
	// bigSegment is what BIG TCP asks for: beyond it one stream gains nothing.
	bigSegment = 196608
	// kindPhysical is the netlink kind of a device that a driver of hardware made: none.
	kindPhysical = "device"
)

// segments are what a device says of the largest segment that it takes whole, in bytes.
type segments struct {
	physical bool
	// tso is what its driver can be asked for; gso what the stack may hand to it now, of IPv6 and IPv4; 0: the kernel
	// does not tell (tso: before Linux 5.19, gso of IPv4: before 6.3).
	tso, gso, gso4 int
}

func segmentsOf(l netlink.Link) segments {
	a := l.Attrs()
	return segments{l.Type() == kindPhysical, int(a.TSOMaxSize), int(a.GSOMaxSize), int(a.GSOIPv4MaxSize)}
}

// take is true of a device that may be handed such segments.
func (s segments) take(size SegmentSize) bool { return s.gso >= size.IPv6 && s.gso4 >= size.IPv4 }

// beyond is true of a device that may be handed larger ones, of one family at least.
func (s segments) beyond(size SegmentSize) bool { return s.gso > size.IPv6 || s.gso4 > size.IPv4 }

// SegmentSize is the largest segment of each family that a device takes whole, in bytes.
type SegmentSize struct{ IPv4, IPv6 int }

// OrdinarySegments is the kernel's default.
func OrdinarySegments() SegmentSize { return SegmentSize{ordinarySegment, ordinarySegment} }

func (s SegmentSize) String() string {
	if s.IPv4 == s.IPv6 {
		return fmt.Sprintf("%d bytes", s.IPv4)
	}
	return fmt.Sprintf("%d bytes of IPv4, %d of IPv6", s.IPv4, s.IPv6)
}

// SetSegmentSize sets in one message how large a segment the stack may hand to a device, and may put together of what
// the device received. The device is one of the calling thread's namespace.
func SetSegmentSize(ifindex int, size SegmentSize) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(ifindex)
	req.AddData(msg)
	for attr, n := range map[int]int{
		unix.IFLA_GSO_MAX_SIZE: size.IPv6, unix.IFLA_GRO_MAX_SIZE: size.IPv6,
		unix.IFLA_GSO_IPV4_MAX_SIZE: size.IPv4, unix.IFLA_GRO_IPV4_MAX_SIZE: size.IPv4,
	} {
		req.AddData(nl.NewRtAttr(attr, nl.Uint32Attr(uint32(n))))
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set the segment size to %s: %w", size, err)
	}
	return nil
}

// decideSegments is how large the segments are that pods' devices take whole, and how that came; err is that of a
// kernel or a configuration that rules BIG TCP out. stack: the host's stack forwards IPv6, for us or for others.
func decideSegments(cfg Config, uplinks []uplink, stack bool) (_ SegmentSize, why string, err error) {
	const ordinary = "segments of 64 KiB"
	small, size := OrdinarySegments(), bigSegment
	switch {
	case cfg.BigTCP != v1alpha1.BigTCPAuto:
		return small, ordinary, ErrForbidden
	case cfg.Mode != v1alpha1.RoutingNative:
		return small, ordinary + ": no larger one fits into the tunnel (routing.mode is " + string(cfg.Mode) + ")", nil
	case len(uplinks) == 0:
		return small, ordinary + ": there is no uplink", nil
	}
	for _, u := range uplinks {
		s := u.segments
		switch {
		case s.tso == 0 || s.gso4 == 0:
			return small, ordinary, fmt.Errorf("%w: gso_ipv4_max_size (Linux 6.3)", ErrNotSupported)
		case s.physical && s.tso <= ordinarySegment:
			return small, fmt.Sprintf("%s: the driver of %s takes no more than %d bytes at once (tso_max_size)", ordinary, u.name, s.tso), nil
		case s.physical:
			size = min(size, s.tso)
		case min(s.gso, s.gso4) <= ordinarySegment:
			return small, fmt.Sprintf("%s: %s hands frames on to devices that this node does not see; raise its "+
				"gso_max_size and gso_ipv4_max_size to %d where all of them take that", ordinary, u.name, bigSegment), nil
		default:
			size = min(size, s.gso, s.gso4)
		}
	}
	big := SegmentSize{size, size}
	// The stack forwards no IPv6 segment with a jumbo option: it counts the option into each piece (ip6_pkt_too_big).
	if stack || len(uplinks) > 1 {
		big.IPv6 = ordinarySegment
		return big, "segments of " + big.String() + ": the host's stack forwards here, or may have to (several uplinks, no RedirectNeigh, or " +
			"net.ipv6.conf.all.forwarding), and does not forward larger ones of IPv6", nil
	}
	return big, "segments of " + big.String(), nil
}

// forwardsIPv6 is true where the host's stack forwards IPv6 for others than us: to a NodePort or hostPort of somebody
// else, or to another guest of the node. What cannot be read is taken for a yes.
func forwardsIPv6(net *procSysNet, uplinks []uplink) bool {
	paths := []string{"ipv6/conf/all/forwarding"}
	for _, u := range uplinks {
		paths = append(paths, "ipv6/conf/"+u.name+"/force_forwarding") // Linux 6.17
	}
	return slices.ContainsFunc(paths, func(path string) bool {
		now, err := net.read(path)
		return now != "0" && !errors.Is(err, fs.ErrNotExist)
	})
}

// sizeUplinks decides, and marks the uplinks that are to be raised. What we raised and should not be any longer is
// lowered at once, as long as it is known that it was us; who is to be raised is, after it is written down. An uplink
// that refuses to be lowered is no reason to go without a datapath: it is told, and tried again.
func (d *Datapath) sizeUplinks(cfg Config, uplinks []uplink) (SegmentSize, error) {
	known, err := d.devices.Actual()
	if err != nil {
		return SegmentSize{}, err
	}
	size, why, ruledOut := decideSegments(cfg, uplinks, d.stack || forwardsIPv6(d.sysctl, uplinks))
	d.bigTCP = Feature{Name: "BigTCP", Outcome: Supported, Using: why, Err: ruledOut}
	switch {
	case errors.Is(ruledOut, ErrForbidden):
		d.bigTCP.Outcome = Forbidden
	case ruledOut != nil:
		d.bigTCP.Outcome = Unsupported
	}
	there := map[uint32]bool{}
	for i := range uplinks {
		u := &uplinks[i]
		there[uint32(u.index)] = true
		u.raised = raisedByUs(known[uint32(u.index)])
		if u.raised && u.beyond(size) {
			lower := SegmentSize{min(u.gso4, size.IPv4), min(u.gso, size.IPv6)}
			if err := SetSegmentSize(u.index, lower); err != nil {
				d.refusesLower(u.name, err)
				continue
			}
			u.gso4, u.gso = lower.IPv4, lower.IPv6
		}
		u.raised = size != OrdinarySegments() && (u.raised || !u.take(size))
	}
	for index, dev := range known {
		if there[index] || !raisedByUs(dev) {
			continue
		}
		if err := SetSegmentSize(int(index), OrdinarySegments()); err != nil && !vanished(err) {
			d.refusesLower(fmt.Sprintf("former uplink %d", index), err)
		}
	}
	return size, nil
}

func (d *Datapath) refusesLower(name string, err error) {
	d.bigTCP.Using += fmt.Sprintf("; %s keeps larger ones: %v", name, err)
}

// raiseUplinks comes after setDevices, and when the programs are in force that know such segments: only then pods' devices
// follow. An uplink that refuses leaves pods with 64 KiB.
func (d *Datapath) raiseUplinks(uplinks []uplink, size SegmentSize) {
	for _, u := range uplinks {
		if !u.raised || u.take(size) {
			continue
		}
		if err := SetSegmentSize(u.index, size); err != nil {
			size = OrdinarySegments()
			d.bigTCP.Using = fmt.Sprintf("segments of 64 KiB: %s refuses: %v", u.name, err)
			break
		}
	}
	if d.maxSegment == size {
		return
	}
	d.maxSegment = size
	select {
	case d.resized <- struct{}{}:
	default:
	}
}

func raisedByUs(dev bpf.Device) bool {
	return dev.Flags&uint16(bpf.MapsDeviceFlagsDEVICE_BIG_TCP) != 0
}

// MaxSegment is what both ends of a pod's interface are to take whole; zero before Configure.
func (d *Datapath) MaxSegment() SegmentSize {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.maxSegment
}

// Resized tells when MaxSegment has turned; also once after a start. There is one listener.
func (d *Datapath) Resized() <-chan struct{} { return d.resized }

// putUplinksBack is for uninstall: uplinks that an agent raised, as the pinned table knows them.
func putUplinksBack(folder string) error {
	var errs []error
	for _, l := range layouts() {
		if l.name != bpf.MapsMapDevices {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(folder, PinName(l.name, l.version)), nil)
		if err != nil {
			continue // nothing was ever written down
		}
		var index uint32
		var dev bpf.Device
		it := m.Iterate()
		for it.Next(&index, &dev) {
			if !raisedByUs(dev) {
				continue
			}
			if err := SetSegmentSize(int(index), OrdinarySegments()); err != nil && !vanished(err) {
				errs = append(errs, fmt.Errorf("uplink %d: %w", index, err))
			}
		}
		errs = append(errs, it.Err(), m.Close())
	}
	return errors.Join(errs...)
}
