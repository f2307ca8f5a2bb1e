// SPDX-License-Identifier: Apache-2.0

// Package endpoint makes and keeps the network interfaces of this node's pods.
//
// An interface is made in one transaction: address, record, veth pair, the pod's end, the datapath, the host's end. If
// a step fails everything before it is undone. If the agent dies in between, the record on disk says what there may
// be, and the next agent undoes it. A record that is complete is adopted: nothing of a running pod is touched.
//
// Records live in the state folder, one file each, stamped with the boot id: after a reboot none of them is true any
// more, so they are dropped and their addresses are free again.
package endpoint
