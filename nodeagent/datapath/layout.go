// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// layout is the version of a map's key and value; the pin is named NAME_vLAYOUT. A release that changes a struct of
// bpf/lib/types.h gives its maps the next number here and says in reads how an entry of the other number becomes one
// of this. A layout is readable one release before it is written, so that the release before can be gone back to.
type layout struct {
	name    string
	version int
	// other version -> how an entry of it becomes one of ours; the result's false: leave the entry behind.
	reads map[int]convert
	// fill is called with a map that was just made, before it has its name.
	fill func(*mapSet, *ebpf.Map) error
	// keep says what to do with the old entries when the map is made anew with another size or layout.
	keep keep
}

type convert func(key, value []byte) (newKey, newValue []byte, ok bool)

type keep int

const (
	// keepEntries copies them, before the programs change over and once more after.
	keepEntries keep = iota
	// keepNothing starts empty: nothing in it is worth a copy.
	keepNothing
)

func layouts() []layout {
	return []layout{
		{name: bpf.MapsMapHooks, version: 1, keep: keepNothing},
		{name: bpf.MapsMapEndpoints, version: 1},
		{name: bpf.MapsMapPodInterfaces, version: 1},
		{name: bpf.MapsMapPeers, version: 1},
		{name: bpf.MapsMapPrefixes, version: 1},
		{name: bpf.MapsMapNodes, version: 1},
		{name: bpf.MapsMapDevices, version: 1},
		{name: bpf.MapsMapAdvances, version: 1, keep: keepNothing}, // before those whose copy it holds
		conntrackLayout(),
		{name: bpf.MapsMapYoung, version: 1},
		{name: bpf.MapsMapUnanswered, version: 1, keep: keepNothing},
		{name: bpf.MapsMapFragments, version: 1},
		{name: bpf.MapsMapServices, version: 1},
		{name: bpf.MapsMapBackends, version: 1},
		{name: bpf.MapsMapServiceNames, version: 1},
		{name: bpf.MapsMapPolicies, version: 1, fill: openPods},
		{name: bpf.MapsMapVerdicts, version: 1},
		{name: bpf.MapsMapVerdictRanges, version: 1},
		{name: bpf.MapsMapClasses, version: 1},
		{name: bpf.MapsMapMetrics, version: 1},
		{name: bpf.MapsMapLiveSettings, version: 1},
		{name: bpf.MapsMapEvents, version: 1, keep: keepNothing},
	}
}

// openPods is for the upgrade from a release that knew no policy: the pods that it wired go on as they are until they
// are told of. A pod that comes later is closed until then.
func openPods(m *mapSet, policies *ebpf.Map) error {
	open := bpf.PolicySide{Flags: uint16(bpf.MapsPolicyFlagsPOLICY_NONE)}
	var err error
	each := eachEntry(m.open[bpf.MapsMapPodInterfaces], m.batch, func(_ uint32, pod bpf.PodInterface) bool {
		err = policies.Put(uint32(pod.Id), bpf.Policy{Side: [2]bpf.PolicySide{open, open}})
		return err == nil
	})
	return errors.Join(each, err)
}

// PinName is the name under which a map of the given layout is pinned.
func PinName(name string, version int) string { return fmt.Sprintf("%s_v%d", name, version) }

// ParsePinName is the inverse of PinName; false for what is not a map's pin.
func ParsePinName(pin string) (name string, version int, ok bool) {
	i := strings.LastIndex(pin, "_v")
	if i <= 0 {
		return "", 0, false
	}
	version, err := strconv.Atoi(pin[i+2:])
	if err != nil || version <= 0 {
		return "", 0, false
	}
	return pin[:i], version, true
}

// asItIs is for a layout that differs in its number only.
func asItIs(key, value []byte) ([]byte, []byte, bool) { return key, value, true }
