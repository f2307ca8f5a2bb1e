// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"os"
	"path/filepath"
	"testing"
)

// TestPinsCannotBeOpenedForWriting is what keeps the inspect container from changing the network: root that may not
// override a file's mode gets no writable descriptor of a map.
func TestPinsCannotBeOpenedForWriting(t *testing.T) {
	f := newFixture(t)
	f.open()
	for _, l := range layouts() {
		info, err := os.Stat(filepath.Join(f.opts.folder(), PinName(l.name, l.version)))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != pinMode {
			t.Errorf("pin of %s has mode %#o, want %#o", l.name, info.Mode().Perm(), pinMode)
		}
	}
}
