// SPDX-License-Identifier: Apache-2.0

//go:build !kubecilium_next

package datapath

import "github.com/kube-cilium/kube-cilium/bpf"

// conntrackLayout reads what the build with the tag kubecilium_next writes: going back from it loses no connection.
func conntrackLayout() layout {
	return layout{name: bpf.MapsMapConntrack, version: 1, reads: map[int]convert{2: asItIs}}
}
