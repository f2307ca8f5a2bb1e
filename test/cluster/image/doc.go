// SPDX-License-Identifier: Apache-2.0

// Package image makes container images out of files, and archives of them
// that containerd imports: one layer, no base, no registry, no Docker engine.
// The same input always gives the same digest.
package image
