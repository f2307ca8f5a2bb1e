// SPDX-License-Identifier: Apache-2.0

// Package policy turns policy objects into rules of one shape, and rules into the tables that the kernel asks. The same
// rules answer three questions: the table of a pod, a verdict with the rule that decided (Evaluate), and the walk-through
// with the nearest miss (Explain). It knows neither kernel nor client.
package policy
