// SPDX-License-Identifier: Apache-2.0

// Package flow is the one vocabulary of what happened to packets: the names of
// reasons, hooks and reserved identities, the event that the agent tells of, and
// how it is printed. Agent, relay and plugins say the same words because they
// all take them from here; the words themselves stand in bpf/lib.
package flow

//go:generate go run ./reasongen ../../bpf/lib words_gen.go
