// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"

	"k8s.io/cli-runtime/pkg/genericiooptions"
)

func testStreams() genericiooptions.IOStreams {
	return genericiooptions.IOStreams{In: &bytes.Buffer{}, Out: &bytes.Buffer{}, ErrOut: &bytes.Buffer{}}
}

// exampleLines are the arguments of each command line in an example, as a shell without variables would split them.
func exampleLines(example string) [][]string {
	var all [][]string
	for line := range strings.SplitSeq(example, "\n") {
		_, rest, found := strings.Cut(line, "kubectl cilium ")
		if !found || strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		rest = strings.TrimSuffix(rest, ")")
		var args []string
		for _, field := range strings.Fields(rest) {
			args = append(args, strings.ReplaceAll(field, "'", ""))
		}
		all = append(all, args)
	}
	return all
}
