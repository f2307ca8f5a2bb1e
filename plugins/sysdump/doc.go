// SPDX-License-Identifier: Apache-2.0

// Package sysdump gathers into one archive what somebody needs who helps from afar: objects, what the agents report, the
// eBPF maps, flows and logs. Archives travel, so they hold only what is known to be safe: of each kind the fields in
// kinds.go, of a log line the keys in log.go. What nobody has listed is left out, and the words that are left are looked
// through for what looks like a secret. Secrets are never read.
package sysdump
