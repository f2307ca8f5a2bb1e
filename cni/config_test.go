// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

// TestFormsAreThoseOfThePatterns compares with regular expressions, which say the same and are slow to make.
func TestFormsAreThoseOfThePatterns(t *testing.T) {
	const signs = "aZ09_.-@/ \x00é"
	for _, f := range []struct {
		form
		pattern string
	}{
		{nameForm, `^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`},
		{ifNameForm, `^[a-zA-Z0-9][a-zA-Z0-9_.@-]{0,14}$`},
		{dnsForm, `^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`},
		{uidForm, `^[a-zA-Z0-9-]{1,64}$`},
	} {
		want := regexp.MustCompile(f.pattern)
		check := func(s string) {
			t.Helper()
			if got := f.fits(s); got != want.MatchString(s) {
				t.Errorf("%s: %q: %v", f.pattern, s, got)
			}
		}
		check("")
		for n := range 256 {
			check(strings.Repeat("a", n))
			check(strings.Repeat("a", n) + "\n")
		}
		for range 20000 {
			b := make([]byte, rand.IntN(5)+1)
			for i := range b {
				b[i] = signs[rand.IntN(len(signs))]
			}
			check(string(b))
		}
	}
}
