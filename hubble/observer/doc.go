// SPDX-License-Identifier: Apache-2.0

// Package observer keeps the last flows of a node and serves them over gRPC with
// Hubble's published API, so that whatever speaks that API can read them.
//
// A Ring holds events as they came, without copying what is the same in many of
// them; a flow.Flow is made when somebody reads it, not when the packet passes. A
// reader that is slower than the ring turns is told how many it has missed; it
// holds up neither the ring nor another reader.
package observer
