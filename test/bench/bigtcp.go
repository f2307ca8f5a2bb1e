// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"

	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

const (
	ordinarySegment = 65536
	bigSegment      = 196608
)

// takeSegments has a device of the calling thread's namespace take segments of this size. ip of Debian 12 does not know
// those of IPv4.
func takeSegments(device string, size int) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("%s: %w", device, err)
	}
	if err := datapath.SetSegmentSize(l.Attrs().Index, datapath.SegmentSize{IPv4: size, IPv6: size}); err != nil {
		return fmt.Errorf("%s: %w", device, err)
	}
	return nil
}

// sizeWire has both ends of the wire take segments of this size. Nodes that forward IPv6 keep that at 64 KiB, so these do
// not as long as the size is another.
func (o *ours) sizeWire(ctx context.Context, size int) error {
	for _, n := range o.Nodes {
		pid, err := o.agentPID(ctx, n.Name)
		if err != nil {
			return err
		}
		id, err := strconv.Atoi(pid)
		if err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			h, err := vns.GetFromPid(id)
			if err == nil {
				err = errors.Join(vns.Set(h), h.Close())
			}
			if err == nil {
				err = takeSegments(wireDevice, size)
			}
			if err == nil {
				forwards := map[bool]string{true: "1", false: "0"}[size == ordinarySegment]
				err = os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte(forwards), 0)
			}
			done <- err
		}()
		if err := <-done; err != nil {
			return err
		}
	}
	return nil
}

// podsTake waits until the agents have given every pod the size.
func (o *ours) podsTake(size int) error {
	want := fmt.Sprintf(" gso_max_size %d ", size)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		missing := ""
		for name, p := range o.pods {
			out, err := output(p.command("ip", "-d", "link", "show", "eth0"))
			if err != nil {
				return err
			}
			if !strings.Contains(out, want) {
				missing = name
			}
		}
		if missing == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("pod %s does not take segments of %d bytes after a minute", missing, size)
		}
	}
}

// bigTCPFigures are one stream's where every device takes segments of more than 64 KiB, beside the veth pair whose
// devices take 64 KiB, and what a pair gains by itself. All other figures are of devices of 64 KiB: the wire of the
// bench is a virtual device, whose sizes the agents leave alone.
func bigTCPFigures(ctx context.Context, log io.Writer, c *ours, g *ground, pair shape, rounds, millis int) (figures []Figure, err error) {
	h := g.another("big")
	big, err := h.straight()
	if err != nil {
		return nil, err
	}
	big.name = "veth pair, BIG TCP"
	for _, side := range []string{"va", "vb"} {
		if err := h.inside(side, func() error { return takeSegments("veth0", bigSegment) }); err != nil {
			return nil, err
		}
	}
	if err := c.sizeWire(ctx, bigSegment); err != nil {
		return nil, err
	}
	if err := c.configure(ctx, `{"spec":{"routing":{"mode":"Native"},"bigTCP":"Auto"}}`); err != nil {
		return nil, err
	}
	if err := c.podsTake(bigSegment); err != nil {
		return nil, err
	}
	from, same, other := c.pods["client"], c.pods["same"], c.pods["other"]
	figures, err = measure(ctx, log, "BIG TCP", []shape{
		pair, big,
		{name: "same node, BIG TCP", client: from, server: same, dst: same.ips["4"]},
		{name: "two nodes, native, BIG TCP", client: from, server: other, dst: other.ips["4"]},
	}, pair.name, []string{"stream"}, rounds, millis, promised)
	if err != nil {
		return nil, err
	}
	if err := c.configure(ctx, `{"spec":{"routing":{"mode":"VXLAN"},"bigTCP":"Off"}}`); err != nil {
		return nil, err
	}
	if err := c.sizeWire(ctx, ordinarySegment); err != nil {
		return nil, err
	}
	return figures, c.podsTake(ordinarySegment)
}
