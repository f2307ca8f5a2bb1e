// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveBuffer holds seconds of a 1 kHz stream: on a busy machine a process may not run for that long, and what its
// own socket drops meanwhile says nothing about the network.
const receiveBuffer = 16 << 20

// deepen enlarges a socket's receive buffer past the machine's limit (needs CAP_NET_ADMIN).
func deepen(c net.PacketConn) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no file descriptor", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	}); err != nil {
		return err
	}
	if set != nil {
		return fmt.Errorf("enlarge the receive buffer: %w (needs CAP_NET_ADMIN)", set)
	}
	return nil
}
