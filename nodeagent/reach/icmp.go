// SPDX-License-Identifier: Apache-2.0

package reach

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Protocol numbers of IANA, as icmp.ParseMessage wants them.
const (
	protocolICMP   = 1
	protocolICMPv6 = 58
)

// ping sends one echo request and waits for its reply. It needs CAP_NET_RAW.
func ping(ctx context.Context, to netip.Addr) error {
	network, protocol := "ip4:icmp", protocolICMP
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if to.Is6() {
		network, protocol, request, reply = "ip6:ipv6-icmp", protocolICMPv6, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := icmp.ListenPacket(network, "")
	if err != nil {
		return fmt.Errorf("open an ICMP socket: %w (needs CAP_NET_RAW)", err)
	}
	defer c.Close() //nolint:errcheck // nothing is buffered
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if p := c.IPv6PacketConn(); p != nil {
		var only ipv6.ICMPFilter // every socket gets every ICMP packet of the host
		only.SetAll(true)
		only.Accept(ipv6.ICMPTypeEchoReply)
		if err := p.SetICMPFilter(&only); err != nil {
			return fmt.Errorf("filter ICMP: %w", err)
		}
	}
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // never fails
	body := &icmp.Echo{ID: int(binary.BigEndian.Uint16(secret)), Seq: 1, Data: secret}
	out, err := (&icmp.Message{Type: request, Body: body}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(out, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("no echo reply: %w", ctx.Err())
			}
			return err
		}
		m, err := icmp.ParseMessage(protocol, buf[:n])
		if err != nil || m.Type != reply {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == body.ID && bytes.Equal(e.Data, body.Data) {
			return nil
		}
	}
}
