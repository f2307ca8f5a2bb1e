// SPDX-License-Identifier: Apache-2.0

// Package service turns Services and EndpointSlices into frontends: an address,
// a port, a protocol, and the backends behind them. It is a pure function of the
// objects; the order in which they came does not show in the table. Writing the
// table into the kernel is the datapath's work.
package service
