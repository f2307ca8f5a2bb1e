// SPDX-License-Identifier: Apache-2.0

// Package netspace makes network namespaces under /run/netns and acts inside
// them. Nothing here ever dials, listens or configures in the namespace that
// the program was started in, but for the routes that Guard adds.
package netspace
