// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"strings"
	"testing"
)

// A mistyped name was taken down in silence.
func TestDownOfNothingSaysSo(t *testing.T) {
	var said []string
	h := &Host{Cache: t.TempDir(), Progress: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }}
	if err := h.Down(t.Context(), "test-nobody"); err != nil {
		t.Fatal(err)
	}
	if len(said) != 1 || !strings.Contains(said[0], "nothing of a cluster test-nobody (there is none") {
		t.Errorf("%q", said)
	}
}
