// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"bufio"
	"bytes"
	"fmt"
	"regexp"
	"strings"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// safeKeys are the keys of our own log lines and of the libraries' whose values are told. The value of any other is left
// out, so that what is logged one day under a new key does not leave the cluster by itself.
var safeKeys = keys(`address apiServers attempt bindAddress bytes class command container controller controllerGroup
	controllerKind count device dropped endpoint endpoints entries err error every family feature for from generation group
	hook id identity ifindex index interface kind kinds last layout leader level limit lock logger lost map message mode msg
	mtu name namespace namespaces network node nodes object pass path plugin pod pods policies policy port ports prefix
	prefixes program programs protocol queue reader readers reason reconcileID removed resource resourceVersion retry revision
	rule rules secure seconds slice source state status step table tables thread time timeout to type uid until using version
	why worker workers`)

func keys(text string) map[string]bool {
	all := map[string]bool{}
	for k := range strings.FieldsSeq(text) {
		all[k] = true
	}
	return all
}

var (
	// klogHead is SEVERITY DATE TIME THREAD FILE:LINE].
	klogHead = regexp.MustCompile(`^[IWEF][0-9]{4} [0-9:.]+ +[0-9]+ [A-Za-z0-9_./-]+:[0-9]+\] `)
	slogHead = regexp.MustCompile(`^time=[0-9T:.Z+-]+ level=[A-Z]+ `)
	pair     = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_.]*)=`)
	// trace are the lines of a crash: what a stack of Go says of itself.
	trace = regexp.MustCompile(`^(panic:|fatal error:|runtime:|goroutine [0-9]+|created by |\[signal |SIG[A-Z]+|PC=|exit status|\t?/?[A-Za-z0-9_./@~+-]+\.(go|s):[0-9]+( \+0x[0-9a-f]+)?$|[A-Za-z0-9_./@~-]+\.[A-Za-z0-9_.()*\[\]-]*\((0x[0-9a-f]+|[{}, ?.])*\)$|cilium-(agent|operator): |$)`)
)

// ScrubLog leaves out of a log what is not known to be safe: lines of another shape than those that our binaries and a
// crashed Go program write, values under unknown keys, and what looks like a secret in the rest.
func ScrubLog(text []byte) []byte {
	// Keys span lines, and a line is looked at alone.
	text = pem.ReplaceAllLiteral(text, []byte(leftOut))
	var out bytes.Buffer
	foreign := 0
	tell := func() {
		if foreign > 0 {
			fmt.Fprintf(&out, "<%d lines left out: not of our programs' shape>\n", foreign)
			foreign = 0
		}
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(make([]byte, 0, 64<<10), 1<<20)
	for lines.Scan() {
		line, ok := logLine(lines.Text())
		if !ok {
			foreign++
			continue
		}
		tell()
		out.WriteString(line)
		out.WriteByte('\n')
	}
	tell()
	if lines.Err() != nil {
		out.WriteString("<the rest is left out: a line is longer than anything our programs write>\n")
	}
	return out.Bytes()
}

func logLine(line string) (string, bool) {
	line = strings.TrimSuffix(line, "\r")
	if head := klogHead.FindString(line); head != "" {
		return head + logPairs(line[len(head):]), true
	}
	if slogHead.MatchString(line) {
		return logPairs(line), true
	}
	if trace.MatchString(line) {
		return strings.ReplaceAll(flow.Safe(Scrub(line)), `\t`, "\t"), true
	}
	return "", false
}

// logPairs keeps the words before the first pair and the pairs with safe keys.
func logPairs(rest string) string {
	var b strings.Builder
	for rest != "" {
		if m := pair.FindStringSubmatch(rest); m != nil {
			value, after := cutValue(rest[len(m[0]):])
			if !safeKeys[m[1]] {
				value = leftOut
			}
			b.WriteString(m[0] + flow.Safe(Scrub(value)))
			rest = after
		} else {
			var word string
			word, rest = cutValue(rest)
			b.WriteString(flow.Safe(Scrub(word)))
		}
		if strings.HasPrefix(rest, " ") {
			b.WriteByte(' ')
			rest = strings.TrimLeft(rest, " ")
		} else if rest != "" {
			b.WriteByte(' ') // a value that ends oddly: what follows is looked at as its own word
		}
	}
	return Scrub(b.String())
}

// cutValue takes a quoted string, a bracketed value or one word from the front.
func cutValue(s string) (value, rest string) {
	if s == "" {
		return "", ""
	}
	switch s[0] {
	case '"':
		for i := 1; i < len(s); i++ {
			switch s[i] {
			case '\\':
				i++
			case '"':
				return s[:i+1], s[i+1:]
			}
		}
		return s, ""
	case '{', '[':
		depth := 0
		for i := 0; i < len(s); i++ {
			switch s[i] {
			case '"':
				_, after := cutValue(s[i:])
				i = len(s) - len(after) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return s[:i+1], s[i+1:]
				}
			}
		}
		return s, ""
	}
	if i := strings.IndexByte(s, ' '); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}
