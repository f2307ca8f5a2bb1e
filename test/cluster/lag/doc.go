// SPDX-License-Identifier: Apache-2.0

// Package lag is a slow way to an API server: it passes every request on, but
// what a watch of some resources says arrives later. A client sees what it
// sees behind an overloaded API server: its own writes at once, those of
// others late, and all in order.
package lag
