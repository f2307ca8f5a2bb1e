// SPDX-License-Identifier: Apache-2.0

// Package inspect shows what is in the kernel without asking the agent: it opens
// the pinned maps read-only and writes them as JSON. So it works when the agent
// hangs, is away or was never there, in a container beside it that holds no
// capability and cannot write. Only `monitor` needs the agent, which is the one
// reader of the ring buffer, and only `uninstall` changes anything.
//
// Nothing of the cluster is known here: `kubectl cilium` fills in the names.
package inspect
