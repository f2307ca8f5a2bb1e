// SPDX-License-Identifier: Apache-2.0

// Package version holds the version that the build put into a binary.
package version

// Version of this build, as git describe says it; set by the linker.
var Version = "dev"
