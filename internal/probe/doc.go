// SPDX-License-Identifier: Apache-2.0

// Package probe asks whether an address can be reached, and answers to whoever asks: both ends of a connectivity test.
// `cilium-agent probe` runs it in the test's pods; the plugin reads the results. It knows no cluster.
package probe
