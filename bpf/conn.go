// SPDX-License-Identifier: Apache-2.0

package bpf

import "golang.org/x/sys/unix"

// Over is what programs ask too (bpf/lib/conn.h): at the tick now there were so many of silence (2^30 ns of
// CLOCK_MONOTONIC each) that it is another connection. proto is the protocol's number in IP.
func (c MapsConn) Over(proto uint8, now uint32) bool {
	limit := MapsConnLifetimeLIFETIME_OTHER
	switch {
	case c.Flags&uint16(MapsConnFlagsCONN_CLOSING) != 0:
		limit = MapsConnLifetimeLIFETIME_CLOSING
	case c.Flags&uint16(MapsConnFlagsCONN_SETTLED) == 0:
		limit = MapsConnLifetimeLIFETIME_UNANSWERED
	case proto == unix.IPPROTO_TCP:
		limit = MapsConnLifetimeLIFETIME_TCP
	}
	return int32(now-c.Seen) > int32(limit)
}
