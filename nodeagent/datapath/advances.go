// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"

	"github.com/kube-cilium/kube-cilium/bpf"
)

const (
	// mostAdvance is how many connections of a pod may begin in the table of all within a minute (bpf/lib/conntrack.h).
	mostAdvance = 256
	// advanceShare is the part of the table of all that one pod's advance is at most: 256 where the table has its usual
	// size. A pod that floods the world holds four times as much, two windows and a pointer for each.
	advanceShare = 1024
)

// advanceSize is a pod's advance with a table of all of so many entries.
func advanceSize(conntrackMax uint32) uint32 {
	return min(mostAdvance, max(1, conntrackMax/advanceShare))
}

// setAdvances gives every pod what left says. Whatever a program that runs meanwhile reads of an entry, it looks into
// the small tables: others may have filled them without a word.
func (m *mapSet) setAdvances(left func(endpoint uint32) uint32) error {
	advances := m.open[bpf.MapsMapAdvances]
	now, err := tick()
	if err != nil {
		return err
	}
	for id := range advances.MaxEntries() {
		if err := advances.Put(id, bpf.Advance{Window: max(now, 1), Left: left(id), Apart: now}); err != nil {
			return fmt.Errorf("set the advance of endpoint %d: %w", id, err)
		}
	}
	return nil
}

// grantAdvances begins everybody's window.
func (m *mapSet) grantAdvances(size uint32) error {
	return m.setAdvances(func(endpoint uint32) uint32 {
		if endpoint == 0 {
			return uint32(bpf.MapsAdvanceSizeADVANCE_OF_HOST) * size
		}
		return size
	})
}

// holdAdvances makes connections begin in the small tables, which all programs share, while the table of all changes:
// what began in the old one would be missing in the new. It ends by itself, within a minute.
func (m *mapSet) holdAdvances() error {
	return m.setAdvances(func(uint32) uint32 { return uint32(bpf.MapsAdvanceSizeADVANCE_HELD) })
}
