// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"regexp"
	"strings"
)

// leftOut stands where something was.
const leftOut = "<left out>"

// shapes of what nobody should read. They are the second net: the first is that only listed fields come this far.
var (
	pem       = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]+-----.*?(-----END [A-Z0-9 ]+-----|\z)`)
	bearer    = regexp.MustCompile(`(?i)\b(bearer|basic)[ :=]+[A-Za-z0-9._~+/=-]{6,}`)
	jwt       = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{5,}(\.[A-Za-z0-9_-]*){0,2}`)
	userInfo  = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/@\s"']+@`)
	bootstrap = regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`)
	// named is KEY=VALUE or "key": "value" where the key says that the value is secret.
	named = regexp.MustCompile(`(?i)([a-z0-9_.-]*(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|auth(?:orization)?|cookie|session[_-]?id)[a-z0-9_-]*\\?["']?\s*[:=]\s*)(\\?"(?:[^"\\]|\\.)*\\?"|'[^']*'|[^\s,;&"'}\]]+)`)
	run   = regexp.MustCompile(`[A-Za-z0-9+/_-]{16,}={0,2}`)
	hex   = regexp.MustCompile(`^[0-9a-fA-F]{32,}$`)
	uid   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// Scrub leaves out of free text what looks like a key, a token or a password.
func Scrub(text string) string {
	if len(text) < 6 {
		return text
	}
	text = pem.ReplaceAllString(text, leftOut)
	text = jwt.ReplaceAllString(text, leftOut)
	text = bearer.ReplaceAllString(text, "$1 "+leftOut)
	text = userInfo.ReplaceAllString(text, "${1}"+leftOut+"@")
	text = named.ReplaceAllString(text, "${1}"+leftOut)
	text = bootstrap.ReplaceAllString(text, leftOut)
	return scrubRuns(text)
}

// scrubRuns leaves out long runs of letters and digits that no name has.
func scrubRuns(text string) string {
	found := run.FindAllStringIndex(text, -1)
	if found == nil {
		return text
	}
	var b strings.Builder
	last := 0
	for _, at := range found {
		b.WriteString(text[last:at[0]])
		word := text[at[0]:at[1]]
		if random(word) && !strings.HasSuffix(text[:at[0]], "sha256:") {
			word = leftOut
		}
		b.WriteString(word)
		last = at[1]
	}
	b.WriteString(text[last:])
	return b.String()
}

// random tells a key from a name or a path: long hexadecimal; a part between slashes and hyphens in which capitals, small
// letters and digits are mixed, or that changes between letters and digits all the time.
func random(word string) bool {
	if uid.MatchString(word) {
		return false
	}
	for part := range strings.FieldsFuncSeq(word, func(r rune) bool { return strings.ContainsRune("/_=-", r) }) {
		switch {
		case hex.MatchString(part), len(part) >= 16 && mixed(part) && changes(part) > len(part)/4,
			len(part) >= 24 && digits(part) > 0 && changes(part) > len(part)/4, len(part) >= 16 && strings.ToUpper(part) == part && digits(part) < len(part) && digits(part) > 0:
			return true
		}
	}
	// Base64 has slashes, base64url hyphens: short parts of a long run count together.
	return mixed(word) && changes(word) > len(word)/2
}

func digits(s string) int {
	n := 0
	for _, r := range s {
		if r >= '0' && r <= '9' {
			n++
		}
	}
	return n
}

func mixed(s string) bool {
	var upper, lower, digit bool
	for _, r := range s {
		upper = upper || r >= 'A' && r <= 'Z'
		lower = lower || r >= 'a' && r <= 'z'
		digit = digit || r >= '0' && r <= '9'
	}
	return upper && lower && digit
}

// changes counts how often the sort of character changes: often in what is random, seldom in a name.
func changes(s string) int {
	kind := func(r byte) int {
		switch {
		case r >= 'A' && r <= 'Z':
			return 1
		case r >= 'a' && r <= 'z':
			return 2
		case r >= '0' && r <= '9':
			return 3
		}
		return 4
	}
	n := 0
	for i := 1; i < len(s); i++ {
		if kind(s[i]) != kind(s[i-1]) {
			n++
		}
	}
	return n
}
