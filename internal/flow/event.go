// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"net/netip"
	"time"
)

// Event is one thing that happened to a packet, as the agent tells it. Its JSON is what `cilium-agent inspect
// monitor` writes, one event a line.
type Event struct {
	// Time by the node's wall clock.
	Time time.Time `json:"time"`
	// Node that saw it; filled in by whoever reads from more than one.
	Node   string `json:"node,omitempty"`
	Type   Type   `json:"type"`
	Hook   Hook   `json:"hook"`
	Reason Reason `json:"reason"`
	// Protocol is the IP protocol number, 0 when the packet is not IP or could not be read so far.
	Protocol uint8 `json:"protocol"`
	// TCPFlags as in the header, 0 for other protocols.
	TCPFlags uint8 `json:"tcpFlags,omitempty"`
	// ICMPType and ICMPCode count only with protocols 1 and 58.
	ICMPType uint8 `json:"icmpType,omitempty"`
	ICMPCode uint8 `json:"icmpCode,omitempty"`

	Source      Party `json:"source"`
	Destination Party `json:"destination"`
	// Translated is the other name of the one who is masqueraded: of the source, or, in an answer that came in by an uplink,
	// of the destination. Invalid where nothing was translated.
	Translated netip.AddrPort `json:"translated,omitzero"`

	// Reply is nil where the direction is not known.
	Reply *bool `json:"reply,omitempty"`
	// First of its connection that this node accepted.
	First bool `json:"first,omitempty"`
	// Ingress is true on the way into the endpoint, false on the way out.
	Ingress  bool `json:"ingress,omitempty"`
	Fragment bool `json:"fragment,omitempty"`
	Tunnel   bool `json:"tunnel,omitempty"`

	// Endpoint of the node that the event is about; 0: none.
	Endpoint uint16 `json:"endpoint,omitempty"`
	// Interface is the name at the time of reading, or the number where the interface was already gone.
	Interface string `json:"interface,omitempty"`
	// Ifindex is its number; 0: none.
	Ifindex uint32 `json:"ifindex,omitempty"`
	// Length in bytes of the packet as the hook saw it.
	Length uint32 `json:"length"`
	// Rules that decided, by policy.Direction: of the source's egress and of the destination's ingress. 0: not judged
	// here, or no policy selects the pod.
	Rules [2]uint32 `json:"rules,omitzero"`
	// Decided says in words what Rules stand for, in the same order; nil where that is not known. Filled in by the agent
	// for whoever watches.
	Decided *[2]string `json:"decided,omitempty"`
}

// Party is one side of a packet.
type Party struct {
	// Address is invalid when the packet is not IP or was cut short.
	Address netip.Addr `json:"address,omitzero"`
	// Port in host order; 0 where the protocol has none. For ICMP echo it is the identifier.
	Port     uint16 `json:"port,omitempty"`
	Identity uint32 `json:"identity,omitempty"`
	// Name is namespace/name of the pod, the node's name or the service's; filled in by the plugin.
	Name string `json:"name,omitempty"`
	// Labels of the identity; filled in by the plugin.
	Labels []string `json:"labels,omitempty"`
	// Who had the address when the event was seen; nil where that is not known. Filled in by the agent.
	Who *Who `json:"-"`
}

// Clean makes every string of an event that came over a wire fit for a terminal.
func (e *Event) Clean() {
	e.Node, e.Interface = Safe(e.Node), Safe(e.Interface)
	if e.Decided != nil {
		e.Decided = &[2]string{Safe(e.Decided[0]), Safe(e.Decided[1])}
	}
	for _, p := range [...]*Party{&e.Source, &e.Destination} {
		p.Name = Safe(p.Name)
		p.Address = p.Address.WithZone(Safe(p.Address.Zone()))
		for i := range p.Labels {
			p.Labels[i] = Safe(p.Labels[i])
		}
	}
}

// Message is one line of a stream of events: an event, or how many were lost since the last line because the reader
// did not keep up.
type Message struct {
	Event *Event `json:"event,omitempty"`
	Lost  uint64 `json:"lost,omitempty"`
}
