// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/cli-runtime/pkg/genericiooptions"
)

func streams() (genericiooptions.IOStreams, *bytes.Buffer, *bytes.Buffer) {
	var out, errOut bytes.Buffer
	return genericiooptions.IOStreams{In: &bytes.Buffer{}, Out: &out, ErrOut: &errOut}, &out, &errOut
}

// Every command line in the help and in the docs is understood.
func TestExamplesAreReal(t *testing.T) {
	s, _, _ := streams()
	flows, _, err := newRoot(s).Find([]string{"flows"})
	if err != nil {
		t.Fatal(err)
	}
	text := flows.Example
	for _, doc := range []string{"kubectl-cilium.md", "troubleshooting.md"} {
		page, err := os.ReadFile(filepath.Join("..", "..", "docs", doc))
		if err != nil {
			t.Fatal(err)
		}
		text += "\n" + string(page)
	}
	seen := 0
	for line := range strings.SplitSeq(text, "\n") {
		args, found := strings.CutPrefix(strings.TrimSpace(line), "kubectl hubble ")
		if !found {
			continue
		}
		args, _, _ = strings.Cut(args, "#")
		seen++
		cmd, rest, err := newRoot(s).Find(strings.Fields(args))
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err != nil || cmd.Name() != "flows" {
			t.Errorf("kubectl hubble %s: %v", args, err)
		}
	}
	if seen < 6 {
		t.Errorf("only %d examples were found", seen)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"flows extra", `unknown command "extra"`},
		{"nothing", `unknown command "nothing"`},
		{"flows -o xml", "compact or json"},
		{"flows --type gossip", "drop, trace or verdict"},
		{"flows --last -1", "negative"},
		{"flows --color sometimes", "auto, always or never"},
		{"flows --last many", "invalid argument"},
	} {
		s, out, errOut := streams()
		code := run(t.Context(), s, append([]string{"--kubeconfig", "/dev/null", "-n", "default"}, strings.Fields(tt.args)...))
		if code != exitUsage || out.Len() != 0 || !strings.Contains(errOut.String(), tt.want) {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", tt.args, code, out, errOut)
		}
	}
}

func TestHelpSaysKubectlHubble(t *testing.T) {
	s, out, _ := streams()
	if code := run(t.Context(), s, []string{"flows", "--help"}); code != 0 || !strings.Contains(out.String(), "kubectl hubble flows [flags]") {
		t.Errorf("exit %d: %s", code, out)
	}
}
