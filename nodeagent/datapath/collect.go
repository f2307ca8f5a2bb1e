// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// collectInterval is how long a connection that is over lies about. Programs take it for none; it only holds memory.
const collectInterval = 30 * time.Second

// collector removes connections that are over.
type collector struct {
	mu *sync.Mutex
	// departed addresses were a pod's that is gone: its connections go with the next round.
	departed map[netip.Addr]bool
	// map's name -> entries at the last round.
	counts map[string]int64
}

func newCollector() collector {
	return collector{mu: &sync.Mutex{}, departed: map[netip.Addr]bool{}, counts: map[string]int64{}}
}

func (c *collector) filled(name string) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.counts[name]
	return n, ok
}

// noteDeparted compares the pods of now with those to come.
func (d *Datapath) noteDeparted(wanted map[uint16]Pod) {
	d.gc.mu.Lock()
	defer d.gc.mu.Unlock()
	for _, p := range d.pods {
		for _, a := range p.addrs() {
			d.gc.departed[a] = true
		}
	}
	for _, p := range wanted {
		for _, a := range p.addrs() {
			delete(d.gc.departed, a)
		}
	}
}

// tick is the kernel's clock as programs count it: 2^30 ns of CLOCK_MONOTONIC.
func tick() (uint32, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return uint32(uint64(ts.Nano()) >> 30), nil
}

// flowSide is one (address, port) pair of a connection's name; the port is in network order, as in the map.
type flowSide struct {
	addr bpf.Addr
	port uint16
}

// after orders two sides as programs do: by address, then by port, each as bytes in network order.
func (s flowSide) after(o flowSide) bool {
	if c := bytes.Compare(s.addr.B[:], o.addr.B[:]); c != 0 {
		return c > 0
	}
	return networkOrder(s.port) > networkOrder(o.port)
}

func isEcho(proto uint8) bool { return proto == unix.IPPROTO_ICMP || proto == unix.IPPROTO_ICMPV6 }

// renamed is the connection's name with one side put in the place of another: the masqueraded name for the original
// and back. An echo has one identifier on both sides, and its asker stays the asker.
func renamed(k bpf.FlowKey, hi bool, side flowSide) bpf.FlowKey {
	other := flowSide{k.Lo, k.LoPort}
	if !hi {
		other = flowSide{k.Hi, k.HiPort}
	}
	if isEcho(k.Proto) {
		other.port = side.port
	}
	out := bpf.FlowKey{Proto: k.Proto, Class: k.Class, Zone: k.Zone}
	nowHi := side.after(other)
	if nowHi {
		out.Hi, out.HiPort, out.Lo, out.LoPort = side.addr, side.port, other.addr, other.port
	} else {
		out.Lo, out.LoPort, out.Hi, out.HiPort = side.addr, side.port, other.addr, other.port
	}
	if k.Class != uint8(bpf.MapsFlowClassFLOW_ORDINARY) && nowHi != hi {
		out.Class = uint8(bpf.MapsFlowClassFLOW_ECHO_FROM_LO) + uint8(bpf.MapsFlowClassFLOW_ECHO_FROM_HI) - k.Class
	}
	return out
}

// pointerOf is the name of the entry that leads back to a masqueraded connection.
func pointerOf(k bpf.FlowKey, c bpf.Conn) bpf.FlowKey {
	return renamed(k, c.Flags&uint16(bpf.MapsConnFlagsCONN_FROM_HI) != 0, flowSide{c.Addr, c.Port})
}

// RunConntrackGC ages connections, and counts them for Maps, until ctx ends.
func (d *Datapath) RunConntrackGC(ctx context.Context) error {
	ticker := time.NewTicker(collectInterval)
	defer ticker.Stop()
	for {
		removed, err := d.collect(ctx)
		if err != nil {
			d.log.Error(err, "collect connections")
		}
		d.log.V(1).Info("collected connections", "removed", removed)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// collect is one round over the answered and every endpoint's unanswered connections.
func (d *Datapath) collect(ctx context.Context) (int, error) {
	now, err := tick()
	if err != nil {
		return 0, err
	}
	d.gc.mu.Lock()
	departed := d.gc.departed
	d.gc.departed = map[netip.Addr]bool{}
	d.gc.mu.Unlock()
	gone := map[bpf.Addr]bool{}
	for a := range departed {
		gone[bpf.AddrFrom(a)] = true
	}
	// A clone: Configure may put another map in its place meanwhile.
	d.mu.Lock()
	batch := d.maps.batch
	answered, err := d.maps.open[bpf.MapsMapConntrack].Clone()
	var young, fragments, names *ebpf.Map
	if err == nil {
		young, err = d.maps.open[bpf.MapsMapYoung].Clone()
	}
	if err == nil {
		fragments, err = d.maps.open[bpf.MapsMapFragments].Clone()
	}
	if err == nil {
		names, err = d.maps.open[bpf.MapsMapServiceNames].Clone()
	}
	var unanswered *ebpf.Map
	if err == nil {
		unanswered, err = d.maps.open[bpf.MapsMapUnanswered].Clone()
	}
	ids := d.unansweredIDs()
	d.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("collect connections: %w", err)
	}
	defer unanswered.Close()
	var pruned error
	for _, id := range ids {
		if d.leave(id) {
			pruned = errors.Join(pruned, dropUnanswered(unanswered, id))
			d.leaving.end(id)
		}
	}
	defer answered.Close()
	defer young.Close()
	defer fragments.Close()
	defer names.Close()

	round := round{now: now, batch: batch, gone: gone, answered: answered}
	if round.host, err = d.unansweredTable(0); err != nil {
		return 0, err
	}
	if round.host != nil {
		defer round.host.Close()
	}
	// The young first: what leaves them meanwhile is met in the other table, where it is before it goes here.
	removed, left, err := round.sweepYoung(young)
	if err != nil {
		return removed, fmt.Errorf("collect young connections: %w", err)
	}
	d.gc.set(bpf.MapsMapYoung, int64(left))
	swept, left, err := round.sweep(answered)
	removed += swept
	if err != nil {
		return removed, fmt.Errorf("collect connections: %w", err)
	}
	d.gc.set(bpf.MapsMapConntrack, int64(left))
	for _, id := range ids {
		if ctx.Err() != nil {
			return removed, nil
		}
		table, err := d.unansweredTable(id)
		if err != nil {
			return removed, err
		}
		if table == nil {
			continue
		}
		n, _, err := round.sweep(table)
		table.Close()
		removed += n
		if err != nil {
			return removed, fmt.Errorf("collect unanswered connections of endpoint %d: %w", id, err)
		}
	}
	return removed, errors.Join(pruned,
		count[bpf.FragmentKey, bpf.Fragment](&d.gc, bpf.MapsMapFragments, fragments, batch),
		count[bpf.ServiceNameKey, bpf.ServiceName](&d.gc, bpf.MapsMapServiceNames, names, batch))
}

// count is for a map that programs write and that looks after itself.
func count[K, V any](c *collector, name string, m *ebpf.Map, batch bool) error {
	n := int64(0)
	if err := eachEntry(m, batch, func(K, V) bool { n++; return true }); err != nil {
		return fmt.Errorf("count %s: %w", name, err)
	}
	c.set(name, n)
	return nil
}

func (c *collector) set(name string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[name] = n
}

func (d *Datapath) unansweredTable(id uint16) (*ebpf.Map, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return innerMap(d.maps.open[bpf.MapsMapUnanswered], id)
}

// round is one pass of the collector.
type round struct {
	now   uint32
	batch bool
	gone  map[bpf.Addr]bool
	// answered and host (the table of endpoint 0) are where pointers are.
	answered, host *ebpf.Map
}

// done is true for what nobody needs: it is over, or an end of it is a pod that is gone.
func (r *round) done(k bpf.FlowKey, c bpf.Conn) bool {
	if c.Over(k.Proto, r.now) || r.gone[k.Lo] || r.gone[k.Hi] {
		return true
	}
	return c.Flags&uint16(bpf.MapsConnFlagsCONN_POINTER) != 0 && r.gone[c.Addr]
}

// sweep removes what is done from one table, and with a masqueraded connection the entry that leads back to it. It
// keeps in memory only what goes; each is looked at once more before it goes, for a packet may have come since.
func (r *round) sweep(table *ebpf.Map) (removed, left int, err error) {
	var doomed []bpf.FlowKey
	err = eachEntry(table, r.batch, func(k bpf.FlowKey, c bpf.Conn) bool {
		if r.done(k, c) {
			doomed = append(doomed, k)
		} else {
			left++
		}
		return true
	})
	if err != nil {
		return 0, left, err
	}
	for _, k := range doomed {
		var c bpf.Conn
		if err := table.Lookup(k, &c); errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		} else if err != nil {
			return removed, left, err
		}
		if !r.done(k, c) {
			left++
			continue
		}
		if err := r.removePointerOf(k, c); err != nil {
			return removed, left, err
		}
		if err := table.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return removed, left, err
		}
		removed++
	}
	return removed, left, nil
}

// sweepYoung empties the places of connections with an end at a pod that is gone, and counts those in use. Where one is
// over, its place is free: programs take it as it is.
func (r *round) sweepYoung(young *ebpf.Map) (emptied, left int, err error) {
	inUse := func(y bpf.YoungConn) bool { return y.Key.Proto != 0 && !y.Conn.Over(y.Key.Proto, r.now) }
	var doomed []uint32
	err = eachEntry(young, r.batch, func(place uint32, y bpf.YoungConn) bool {
		switch {
		case !inUse(y):
		case r.done(y.Key, y.Conn):
			doomed = append(doomed, place)
		default:
			left++
		}
		return true
	})
	if err != nil {
		return 0, left, err
	}
	for _, place := range doomed {
		var y bpf.YoungConn
		if err := young.LookupWithFlags(place, &y, ebpf.LookupLock); err != nil {
			return emptied, left, err
		}
		if !inUse(y) || !r.done(y.Key, y.Conn) {
			continue
		}
		if err := r.removePointerOf(y.Key, y.Conn); err != nil {
			return emptied, left, err
		}
		// Nobody's from now on: it rests a tick before programs give it away.
		if err := young.Update(place, bpf.YoungConn{Conn: bpf.Conn{Seen: r.now}}, ebpf.UpdateLock); err != nil {
			return emptied, left, err
		}
		emptied++
	}
	return emptied, left, nil
}

// originOf is the side that began the connection.
func originOf(k bpf.FlowKey, c bpf.Conn) flowSide {
	if c.Flags&uint16(bpf.MapsConnFlagsCONN_FROM_HI) != 0 {
		return flowSide{k.Hi, k.HiPort}
	}
	return flowSide{k.Lo, k.LoPort}
}

// removePointerOf removes what leads back to a masqueraded connection.
func (r *round) removePointerOf(k bpf.FlowKey, c bpf.Conn) error {
	if c.Flags&uint16(bpf.MapsConnFlagsCONN_MASQUERADED) == 0 {
		return nil
	}
	return r.removePointer(pointerOf(k, c), originOf(k, c))
}

// removePointer deletes only a pointer that leads back to origin: the name may be a connection of the host's by now, or
// that of another pod's.
func (r *round) removePointer(k bpf.FlowKey, origin flowSide) error {
	for _, table := range []*ebpf.Map{r.answered, r.host} {
		if table == nil {
			continue
		}
		var c bpf.Conn
		if err := table.Lookup(k, &c); err != nil || c.Flags&uint16(bpf.MapsConnFlagsCONN_POINTER) == 0 ||
			c.Addr != origin.addr || c.Port != origin.port {
			continue
		}
		if err := table.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}
