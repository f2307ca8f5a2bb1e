// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the eBPF programs and what Go needs of them: the compiled
// objects and the structs, enums and maps that both sides share. They are
// written once, in C, under lib/; bpf2go makes the Go. Loading and attaching is
// the agent's work (nodeagent/datapath).
//
// docs/design/maps.md is the contract: key, value, byte order, owner, reader
// and growth of each map.
package bpf
