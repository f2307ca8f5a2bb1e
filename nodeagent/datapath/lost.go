// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// EventsLost is how many events the ring buffer had no room for, since the maps were made.
func (d *Datapath) EventsLost() (uint64, error) {
	d.mu.Lock()
	metrics := d.maps.open[bpf.MapsMapMetrics]
	d.mu.Unlock()
	reasons := metrics.MaxEntries() / uint32(bpf.MapsHookHOOK_MAX)
	var sum uint64
	var perCPU []bpf.Counter
	for hook := range bpf.MapsHookHOOK_MAX {
		if err := metrics.Lookup(uint32(hook)*reasons+uint32(bpf.MapsMetricSlotMETRIC_EVENTS_LOST), &perCPU); err != nil {
			return 0, fmt.Errorf("read metrics: %w", err)
		}
		for _, c := range perCPU {
			sum += c.Packets
		}
	}
	return sum, nil
}
