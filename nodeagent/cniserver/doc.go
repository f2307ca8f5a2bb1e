// SPDX-License-Identifier: Apache-2.0

// Package cniserver answers the CNI plugin over a unix socket that only root may use.
//
// It owns the socket and the meaning of the verbs; endpoint owns the interfaces. Everything that comes in is bounded
// and checked here: the plugin of another version, or another program of root, may be at the other end.
package cniserver
