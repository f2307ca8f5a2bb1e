// SPDX-License-Identifier: Apache-2.0

package events

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"time"
	"unsafe"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/flow"
)

var (
	// ErrShort means that a record ends before the last field of struct event.
	ErrShort = errors.New("record is short")
	// ErrRange means that a type, hook or reason is none of those in bpf/lib, or that they contradict one another.
	ErrRange = errors.New("record holds a number without a meaning")
)

// RecordSize is what struct event takes in the ring, in bytes. A longer record is from a newer program that has added
// fields behind; what is known of it is read.
const RecordSize = int(unsafe.Sizeof(bpf.Event{}))

// Decode reads one record of the ring. It returns ErrShort or ErrRange for one that cannot be trusted.
func Decode(raw []byte) (bpf.Event, error) {
	if len(raw) < RecordSize {
		return bpf.Event{}, ErrShort
	}
	var e bpf.Event
	// The ring holds the struct as this machine's C compiler laid it out, which bpf2go repeats with every padding
	// spelled out; there are no pointers in it.
	copy((*[RecordSize]byte)(unsafe.Pointer(&e))[:], raw)
	kind, reason := flow.Type(e.Type), flow.Reason(e.Reason)
	if !kind.Known() || !reason.Known() || !flow.Hook(e.Hook).Known() {
		return bpf.Event{}, ErrRange
	}
	if kind == flow.Drop && !reason.Dropped() || kind == flow.Trace && reason.Dropped() {
		return bpf.Event{}, ErrRange
	}
	return e, nil
}

// Event gives a decoded record its form for people. Boot is the wall clock's time at which the kernel's monotonic
// clock stood at zero; iface is the name of e.Ifindex, or "".
func Event(e *bpf.Event, boot time.Time, iface string) flow.Event {
	out := flow.Event{
		Time: boot.Add(time.Duration(min(e.Time, 1<<62))),
		Type: flow.Type(e.Type), Hook: flow.Hook(e.Hook), Reason: flow.Reason(e.Reason),
		Protocol: e.Proto, TCPFlags: e.TcpFlags, ICMPType: e.IcmpType, ICMPCode: e.IcmpCode,
		Source:      flow.Party{Address: e.Saddr.IP(), Port: hostOrder(e.Sport), Identity: e.SrcIdentity},
		Destination: flow.Party{Address: e.Daddr.IP(), Port: hostOrder(e.Dport), Identity: e.DstIdentity},
		Ingress:     has(e, bpf.MapsEventFlagsEVENT_INGRESS),
		First:       has(e, bpf.MapsEventFlagsEVENT_FIRST),
		Fragment:    has(e, bpf.MapsEventFlagsEVENT_FRAGMENT),
		Tunnel:      has(e, bpf.MapsEventFlagsEVENT_TUNNEL),
		Endpoint:    e.Endpoint, Interface: iface, Ifindex: e.Ifindex, Length: e.Length, Rules: e.Rules,
	}
	if iface == "" && e.Ifindex != 0 {
		out.Interface = "if" + strconv.FormatUint(uint64(e.Ifindex), 10)
	}
	if has(e, bpf.MapsEventFlagsEVENT_DIRECTION_KNOWN) {
		out.Reply = &forward
		if has(e, bpf.MapsEventFlagsEVENT_REPLY) {
			out.Reply = &reply
		}
	}
	if has(e, bpf.MapsEventFlagsEVENT_TRANSLATED) {
		out.Translated = netip.AddrPortFrom(e.XlateAddr.IP(), hostOrder(e.XlatePort))
		if bpf.Hook(e.Hook) == bpf.MapsHookHOOK_FROM_NETDEV { // it came for our name and goes to who has it
			d := &out.Destination
			before := netip.AddrPortFrom(d.Address, d.Port)
			d.Address, out.Translated = out.Translated.Addr(), before
			if before.Port() != 0 { // an ICMP error has none of its own
				d.Port = hostOrder(e.XlatePort)
			}
		}
	}
	return out
}

// forward and reply are what Event.Reply points to: an allocation for each event would be most of its cost.
var forward, reply = false, true

func has(e *bpf.Event, flag bpf.MapsEventFlags) bool { return uint32(e.Flags)&uint32(flag) != 0 }

// hostOrder turns a __be16 as read from memory into a number.
func hostOrder(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}
