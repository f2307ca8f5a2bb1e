// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"crypto/sha256"
	"encoding/hex"
)

// shorten cuts a name to a length and keeps it apart from others that begin the same.
func shorten(name string, most int) string {
	if len(name) <= most {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	mark := "." + hex.EncodeToString(sum[:8])
	return name[:most-len(mark)] + mark
}
