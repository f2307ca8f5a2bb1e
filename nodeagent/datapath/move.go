// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
)

const (
	// calmTime is how long no pod has to have come or gone before the first moves over: a rollout brings several a
	// second, and each of them would wait for the lock.
	calmTime = 2 * time.Second
	// lockShare bounds what of the lock of all devices moving takes: one part in so many. Whoever wants it in the
	// meantime, an ADD or a daemon of the host, finds it free three times out of four.
	lockShare = 4
	// leastPause is for a kernel that attaches at once.
	leastPause = 20 * time.Millisecond
)

// churn is when a pod last came or went, and how many are on their way.
type churn struct {
	// calm is calmTime, but in tests.
	calm     time.Duration
	mu       sync.Mutex
	last     time.Time
	underWay int
	// changed is told when there may be something to move.
	changed chan struct{}
}

// stir is called when a pod comes or goes; what it returns, when that is done.
func (d *Datapath) stir() func() {
	d.churn.add(1)
	return func() { d.churn.add(-1) }
}

func (c *churn) add(n int) {
	c.mu.Lock()
	c.last = time.Now()
	c.underWay += n
	c.mu.Unlock()
	c.tell()
}

func (c *churn) tell() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// still tells whether no pod is on its way.
func (c *churn) still() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.underWay == 0
}

// untilCalm is how long to wait at least.
func (c *churn) untilCalm() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.underWay > 0 {
		return c.calm
	}
	return time.Until(c.last.Add(c.calm))
}

// movePods gives what pods send a link in the place of its filter, one pod at a time and when no pod comes or goes,
// until ctx ends. A link is quicker by half a microsecond a packet, and nobody takes it away.
func (d *Datapath) movePods(ctx context.Context) {
	refused := map[int]bool{} // until something changes, so that one that fails does not stop the others
	for ctx.Err() == nil {
		p, ok := d.nextToMove(refused)
		wait := d.churn.untilCalm()
		switch {
		case !ok:
			select {
			case <-ctx.Done():
			case <-d.churn.changed:
			case <-time.After(repairInterval):
			}
			clear(refused)
			continue
		case wait > 0:
		default:
			held, moved, err := d.movePod(ctx, p)
			if err != nil && !errors.Is(err, unix.ENODEV) && !isGone(p) {
				d.log.Error(err, "move a pod's interface from filter to link", "interface", p.Interface)
			}
			if !moved {
				refused[p.Ifindex] = true
			}
			wait = max((lockShare-1)*held, leastPause)
		}
		pause(ctx, wait)
	}
}

func pause(ctx context.Context, wait time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
}

// nextToMove is the first pod whose filter judges where a link could.
func (d *Datapath) nextToMove(refused map[int]bool) (Pod, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.done || !d.attach.tcx {
		return Pod{}, false
	}
	on := d.attach.devices(bpf.MapsHookHOOK_FROM_POD)
	for _, id := range slices.Sorted(maps.Keys(d.pods)) {
		p := d.pods[id]
		if on[p.Interface] == (attachment{p.Ifindex, clsact}) && !refused[p.Ifindex] {
			return p, true
		}
	}
	return Pod{}, false
}

// movePod also tells how long it held the locks, and whether a link judges now. The locks are let go while it waits for
// programs to end: what is attached then is complete, and whoever comes in between may finish it or undo it.
func (d *Datapath) movePod(ctx context.Context, p Pod) (held time.Duration, moved bool, err error) {
	const hook = bpf.MapsHookHOOK_FROM_POD
	held, err = d.alone(ctx, p, func() error {
		filters, err := ourFilters(hook, p.device())
		if err != nil || len(filters) == 0 { // none: taken away by somebody, and the repair knows
			return err
		}
		if err := d.attach.beginLink(hook, p.device()); err != nil {
			return err
		}
		d.attach.note(hook, p.device(), tcx)
		moved = true
		return nil
	})
	if !moved {
		return held, false, err
	}
	if err := waitForPrograms(); err != nil {
		return held, true, err
	}
	_, err = d.alone(ctx, p, func() error {
		if !d.attach.linkIsOn(hook, p.device()) {
			return nil
		}
		return d.attach.finishLink(hook, p.device())
	})
	return held, true, err
}

// alone does something to the pod while nothing else is done to any, and never makes those that come wait for those
// that are at it. It does nothing where the pod has gone or links may not be used any longer.
func (d *Datapath) alone(ctx context.Context, p Pod, do func() error) (held time.Duration, err error) {
	for !d.wiring.TryLock() {
		if pause(ctx, leastPause); ctx.Err() != nil {
			return 0, nil
		}
	}
	defer d.wiring.Unlock()
	d.mu.Lock()
	now, ok := d.pods[p.ID]
	ok = ok && now.Ifindex == p.Ifindex && now.Interface == p.Interface && d.attach.tcx && !d.closed
	d.mu.Unlock()
	if !ok {
		return 0, nil
	}
	start := time.Now()
	err = do()
	return time.Since(start), err
}
