// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"sync"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// spareTables are made ahead. Putting a table into its slot makes the writer wait until every program that runs has
// ended (a grace period, some 10 ms); ids are given out in turn, so the next pods find theirs ready.
const spareTables = 16

// spare makes tables ahead, one run at a time.
type spare struct {
	sync.WaitGroup
	mu      sync.Mutex
	running bool
	// after is the id behind which tables are made ahead; 0: none yet.
	after uint16
}

// holds is true for the ids whose tables are kept although no pod has them.
func (s *spare) holds(id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.after != 0 && id > s.after && id <= s.after+spareTables
}

// spareAfter makes the tables behind id in the background. What goes wrong there is found again, and said, when a pod
// wants the table.
func (d *Datapath) spareAfter(id uint16) {
	s := &d.spare
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after = id
	if s.running {
		return
	}
	s.running = true
	s.Go(func() {
		for made := true; made; {
			made = d.makeSpare()
		}
	})
}

// makeSpare makes the first table that is missing; false when there is none to make.
func (d *Datapath) makeSpare() bool {
	d.wiring.RLock()
	defer d.wiring.RUnlock()
	d.spare.mu.Lock()
	after := d.spare.after
	d.spare.mu.Unlock()
	for id := after + 1; id <= after+spareTables && uint32(id) < d.maxEndpoints(); id++ {
		inner, err := innerMap(d.maps.open[bpf.MapsMapUnanswered], id)
		if err == nil && inner != nil {
			inner.Close()
			continue
		}
		if err == nil {
			err = d.ensureUnanswered(id)
		}
		if err == nil {
			return true
		}
		break
	}
	d.spare.mu.Lock()
	defer d.spare.mu.Unlock()
	d.spare.running = false
	return false
}
