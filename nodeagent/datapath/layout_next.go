// SPDX-License-Identifier: Apache-2.0

//go:build kubecilium_next

package datapath

import "github.com/kube-cilium/kube-cilium/bpf"

// conntrackLayout is that of a release to come, for the tests of an upgrade and of the way back: the connection table
// has another number and so another pin, and its entries are carried over one by one.
func conntrackLayout() layout {
	return layout{name: bpf.MapsMapConntrack, version: 2, reads: map[int]convert{1: asItIs}}
}
