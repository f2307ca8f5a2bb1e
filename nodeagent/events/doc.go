// SPDX-License-Identifier: Apache-2.0

// Package events takes drops and traces out of the kernel's ring buffer and
// hands them to whoever asks. The ring has one reader, the agent; everybody else
// subscribes here, in the process or over a unix socket. No reader can hold up
// another one or the ring: a subscriber that does not keep up loses events and is
// told how many.
//
// A record is foreign bytes until Decode has looked at it: one that is short, or
// whose numbers have no meaning here, is counted and left out.
package events
