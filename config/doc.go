// SPDX-License-Identifier: Apache-2.0

// Package config holds no code: its tests apply what the folder installs to a real API server.
package config
