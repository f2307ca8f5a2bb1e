// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

// big is true of an endpoint whose devices take other segments than the kernel gives a new device.
func (e *Endpoint) big() bool {
	return e.segment != datapath.OrdinarySegments() && e.segment != (datapath.SegmentSize{})
}

// resizeRetry and resizeRest are how soon a pod whose devices refused a size is tried again: first, and in the end.
const (
	resizeRetry = time.Second
	resizeRest  = time.Minute
)

// FollowSegments gives the devices of pods that are there already the datapath's segment size, each time that it
// turns, until ctx ends; what is refused is tried again. Connections go on meanwhile: what is too large for a device the
// kernel cuts.
func (s *Set) FollowSegments(ctx context.Context, turned <-chan struct{}) error {
	var wait time.Duration
	var retry <-chan time.Time
	said := map[string]string{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-turned:
		case <-s.again:
		case <-retry:
		}
		refused := map[string]string{}
		for _, e := range s.List() {
			if err := s.resize(ctx, e.Attachment); err != nil {
				pod := e.Pod.Namespace + "/" + e.Pod.Name
				if refused[pod] = err.Error(); said[pod] != err.Error() {
					s.Log.Error(err, "a pod keeps the segment size that it has; trying on", "pod", pod)
				}
			}
		}
		if said = refused; len(refused) == 0 {
			wait, retry = 0, nil
			continue
		}
		wait = min(max(2*wait, resizeRetry), resizeRest)
		retry = time.After(wait)
	}
}

func (s *Set) ringResize() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// resize leaves alone what is as it should be: the host's end comes last, so it tells of both.
func (s *Set) resize(ctx context.Context, a cni.Attachment) error {
	release, err := s.acquire(ctx, a)
	if err != nil {
		return err
	}
	defer release()
	e, ok := s.Get(a)
	size := s.Datapath.MaxSegment()
	if !ok || size == (datapath.SegmentSize{}) {
		return nil
	}
	host, err := netlink.LinkByName(e.Interface)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.Interface, err)
	}
	// A kernel before Linux 6.3 says nothing of IPv4, and is never asked for more than it has.
	if has := host.Attrs(); int(has.GSOMaxSize) == size.IPv6 && (has.GSOIPv4MaxSize == 0 || int(has.GSOIPv4MaxSize) == size.IPv4) {
		return nil
	}
	netns, err := os.Open(e.Netns)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the pod is going
	}
	if err != nil {
		return fmt.Errorf("the pod's network namespace: %w", err)
	}
	defer netns.Close() //nolint:errcheck // only read
	err = podEndDo(e, s.ProcSysNet, netns, func(p *podEnd) error {
		link, err := p.h.LinkByName(e.IfName)
		if isGone(err) || err == nil && !bytes.Equal(link.Attrs().HardwareAddr, e.MAC[:]) {
			return nil // not the interface that we made
		}
		if err != nil {
			return fmt.Errorf("%s in the pod: %w", e.IfName, err)
		}
		return datapath.SetSegmentSize(link.Attrs().Index, size)
	})
	if err != nil {
		return err
	}
	return datapath.SetSegmentSize(host.Attrs().Index, size)
}
