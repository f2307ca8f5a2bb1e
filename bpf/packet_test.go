// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"net/netip"
)

// Protocol numbers, TCP flags and ICMP types that the tests name.
const (
	protoICMP   = 1
	protoIGMP   = 2
	protoTCP    = 6
	protoUDP    = 17
	protoGRE    = 47
	protoICMPv6 = 58

	fin = 0x01
	syn = 0x02
	rst = 0x04
	psh = 0x08
	ack = 0x10
	ece = 0x40
)

type mac [6]byte

// packet is a frame to be built: well-formed, with right lengths and checksums, but for what the test asks otherwise.
type packet struct {
	dmac, smac mac
	src, dst   netip.Addr
	ttl        uint8 // 0: 64
	tos        uint8
	proto      uint8
	sport      uint16
	dport      uint16
	flags      uint8 // TCP

	// ICMP: type and code; id for echo; info is the second word where it is no echo.
	typ, code uint8
	id        uint16
	info      uint32

	payload []byte
	options []byte // IPv4 options, a multiple of 4
	ext     []byte // IPv6 extension headers as they stand, the last one's next header set
	next    uint8  // first IPv6 next header, with ext

	fragment   bool // is one
	fragOffset uint16
	more       bool
	fragID     uint32

	noChecksum bool // UDP: 0
}

func (p packet) v6() bool { return p.src.Is6() }

func (p packet) with(f func(*packet)) packet {
	f(&p)
	return p
}

// sum16 is the one's complement sum of b, to be folded.
func sum16(b []byte, sum uint32) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// transport builds the transport header and payload with its checksum over the pseudo header.
func (p packet) transport() []byte {
	if p.fragment && p.fragOffset != 0 {
		return p.payload
	}
	var h []byte
	check := 0
	switch p.proto {
	case protoTCP:
		h = make([]byte, 20)
		h[12] = 5 << 4
		h[13] = p.flags
		check = 16
	case protoUDP:
		h = make([]byte, 8)
		binary.BigEndian.PutUint16(h[4:], uint16(8+len(p.payload)))
		check = 6
	case protoICMP, protoICMPv6:
		h = make([]byte, 8)
		h[0], h[1] = p.typ, p.code
		if p.info != 0 {
			binary.BigEndian.PutUint32(h[4:], p.info)
		} else {
			binary.BigEndian.PutUint16(h[4:], p.id)
		}
		check = 2
	default:
		return p.payload
	}
	if p.proto == protoTCP || p.proto == protoUDP {
		binary.BigEndian.PutUint16(h[0:], p.sport)
		binary.BigEndian.PutUint16(h[2:], p.dport)
	}
	b := append(h, p.payload...)
	var sum uint32
	if p.proto != protoICMP {
		sum = sum16(p.src.AsSlice(), sum)
		sum = sum16(p.dst.AsSlice(), sum)
		sum += uint32(p.proto) + uint32(len(b))
	}
	c := fold(sum16(b, sum))
	if p.proto == protoUDP {
		if c == 0 {
			c = 0xffff
		}
		if p.noChecksum {
			c = 0
		}
	}
	binary.BigEndian.PutUint16(b[check:], c)
	return b
}

// network builds the packet without its Ethernet header.
func (p packet) network() []byte {
	body := p.transport()
	ttl := p.ttl
	if ttl == 0 {
		ttl = 64
	}
	if !p.v6() {
		h := make([]byte, 20, 20+len(p.options)+len(body))
		h = append(h, p.options...)
		h[0] = 4<<4 | byte(len(h)/4)
		h[1] = p.tos
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(body)))
		if p.fragment {
			binary.BigEndian.PutUint16(h[4:], uint16(p.fragID))
			off := p.fragOffset / 8
			if p.more {
				off |= 0x2000
			}
			binary.BigEndian.PutUint16(h[6:], off)
		}
		h[8], h[9] = ttl, p.proto
		copy(h[12:], p.src.AsSlice())
		copy(h[16:], p.dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], fold(sum16(h, 0)))
		return append(h, body...)
	}
	ext, next := p.ext, p.next
	if len(ext) == 0 {
		next = p.proto
	}
	if p.fragment {
		f := make([]byte, 8)
		f[0] = p.proto
		off := p.fragOffset
		if p.more {
			off |= 1
		}
		binary.BigEndian.PutUint16(f[2:], off)
		binary.BigEndian.PutUint32(f[4:], p.fragID)
		ext, next = append(append([]byte{}, ext...), f...), 44
	}
	h := make([]byte, 40)
	h[0] = 6<<4 | p.tos>>4
	h[1] = p.tos << 4
	binary.BigEndian.PutUint16(h[4:], uint16(len(ext)+len(body)))
	h[6], h[7] = next, ttl
	copy(h[8:], p.src.AsSlice())
	copy(h[24:], p.dst.AsSlice())
	return append(append(h, ext...), body...)
}

// frame builds the whole frame.
func (p packet) frame() []byte {
	typ := uint16(0x0800)
	if p.v6() {
		typ = 0x86dd
	}
	return ethernet(p.dmac, p.smac, typ, p.network())
}

func ethernet(dst, src mac, typ uint16, body []byte) []byte {
	b := append(append([]byte{}, dst[:]...), src[:]...)
	b = binary.BigEndian.AppendUint16(b, typ)
	return append(b, body...)
}

// vxlan puts a frame into the tunnel; the outer packet's addresses, port and TOS are p's.
func (p packet) vxlan(vni uint32, inner []byte) []byte {
	h := make([]byte, 8, 8+len(inner))
	h[0] = 0x08
	binary.BigEndian.PutUint32(h[4:], vni<<8)
	p.proto, p.payload, p.noChecksum = protoUDP, append(h, inner...), true
	return p.frame()
}

// reply is the packet of the other side: ends swapped.
func (p packet) reply() packet {
	p.src, p.dst = p.dst, p.src
	p.sport, p.dport = p.dport, p.sport
	p.smac, p.dmac = p.dmac, p.smac
	return p
}

// arp builds an ARP packet.
func arp(dst, src mac, op uint16, smac mac, sip netip.Addr, tmac mac, tip netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, byte(op >> 8), byte(op)}
	b = append(append(b, smac[:]...), sip.AsSlice()...)
	b = append(append(b, tmac[:]...), tip.AsSlice()...)
	return ethernet(dst, src, 0x0806, b)
}
