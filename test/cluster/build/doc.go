// SPDX-License-Identifier: Apache-2.0

// Package build builds the binaries of other projects that a cluster runs,
// each from a small Go module under components/ that pins it, and keeps them.
// What is kept is named for a hash of everything it was built from, so a
// version bump rebuilds that component and nothing else.
package build
