// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"sync"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// spareTables are made ahead. Putting a table into its slot makes the writer wait until every program that runs has
// ended (a grace period, some 10 ms); ids are given out in turn, so the next pods find theirs ready.
const spareTables = 16

// spare makes tables ahead, one run at a time.
type spare struct {
	mu      sync.Mutex
	running bool
	// after is the id behind which tables are made ahead, once used is true.
	after uint16
	used  bool
}

// holds is true for the ids whose tables are kept although no pod has them.
func (s *spare) holds(id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used && id > s.after && id <= s.after+spareTables
}

// spareAfter makes the tables behind id in the background. What goes wrong there is found again, and said, when a pod
// wants the table.
func (d *Datapath) spareAfter(id uint16) {
	s := &d.spare
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after, s.used = id, true
	if s.running {
		return
	}
	s.running = true
	go func() {
		for made := true; made; {
			made = d.makeSpare()
		}
	}()
}

// makeSpare makes the tables that are missing, all in one grace period where the kernel has batch calls for this map
// (Linux 5.14); false when there was none to make.
func (d *Datapath) makeSpare() bool {
	d.wiring.RLock()
	defer d.wiring.RUnlock()
	if d.closed {
		return false
	}
	outer := d.maps.open[bpf.MapsMapUnanswered]
	d.spare.mu.Lock()
	after := d.spare.after
	d.spare.mu.Unlock()
	var slots, tables []uint32
	var made []*ebpf.Map
	defer func() {
		for _, m := range made {
			m.Close() // the outer map holds it
		}
	}()
	for id := after + 1; id <= after+spareTables && uint32(id) < d.maxEndpoints(); id++ {
		if inner, err := innerMap(outer, id); err == nil && inner != nil {
			inner.Close()
			continue
		}
		m, err := ebpf.NewMap(d.unansweredSpec(id))
		if err != nil {
			break
		}
		made = append(made, m)
		slots, tables = append(slots, uint32(id)), append(tables, uint32(m.FD()))
	}
	if len(slots) > 0 && d.maps.batch {
		if _, err := outer.BatchUpdate(slots, tables, nil); err == nil {
			return true
		}
	}
	if len(slots) > 0 && outer.Put(slots[0], tables[0]) == nil {
		return true
	}
	d.spare.mu.Lock()
	defer d.spare.mu.Unlock()
	d.spare.running = false
	return false
}
