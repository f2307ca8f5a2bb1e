// SPDX-License-Identifier: Apache-2.0

// Package commandline is what both plugins make of their command lines: completion by a second file beside the plugin, as
// kubectl 1.26 and later look for, and one sentence about what makes no sense.
package commandline
