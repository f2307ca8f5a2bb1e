// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kubectl-hubble": main})
}

// TestScripts asks files instead of a cluster; the cluster is in test/e2e. UPDATE=1 writes what cmp found.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("KUBECONFIG", filepath.Join(e.WorkDir, "none"))
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": func(ts *testscript.TestScript, _ bool, args []string) { // exits CODE ARGS
				ts.Check(ts.Exec("sh", append([]string{"-c", `want=$1; shift; kubectl-hubble "$@"; test $? = $want`, "sh"}, args...)...))
			},
		},
		UpdateScripts: os.Getenv("UPDATE") != "",
	})
}

func streams() (genericiooptions.IOStreams, *bytes.Buffer, *bytes.Buffer) {
	var out, errOut bytes.Buffer
	return genericiooptions.IOStreams{In: &bytes.Buffer{}, Out: &out, ErrOut: &errOut}, &out, &errOut
}

func commands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		all = append(all, commands(c)...)
	}
	return all
}

// Every command line in the help and in the docs is understood.
func TestExamplesAreReal(t *testing.T) {
	s, _, _ := streams()
	var text strings.Builder
	for _, cmd := range commands(newRoot(s)) {
		text.WriteString(cmd.Example + "\n")
	}
	for _, doc := range []string{"hubble.md", "kubectl-cilium.md", "troubleshooting.md"} {
		page, err := os.ReadFile(filepath.Join("..", "..", "docs", doc))
		if err != nil {
			t.Fatal(err)
		}
		text.Write(page)
	}
	seen := 0
	for line := range strings.SplitSeq(text.String(), "\n") {
		args, found := strings.CutPrefix(strings.TrimSpace(line), "kubectl hubble ")
		if !found {
			continue
		}
		args, _, _ = strings.Cut(args, "#")
		args, _, _ = strings.Cut(args, ">")
		seen++
		cmd, rest, err := newRoot(s).Find(strings.Fields(args))
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err != nil || cmd.HasParent() && cmd.Name() == "kubectl-hubble" {
			t.Errorf("kubectl hubble %s: %v", args, err)
		}
	}
	if seen < 15 {
		t.Errorf("only %d examples were found", seen)
	}
}

// What makes no sense, or cannot be answered, gets one sentence.
func TestWrongQuestions(t *testing.T) {
	for _, tt := range []struct {
		args, want string
	}{
		{"flows extra", `unknown command "extra"`},
		{"nothing", `unknown command "nothing"`},
		{"flows --last many", `invalid argument "many" for --last: a whole number from 0 on is wanted (see kubectl hubble flows --help)`},
		{"flows --last -3", `invalid argument "-3" for --last: a whole number`},
		{"flows --colour", "unknown flag: --colour (see kubectl hubble flows --help)"},
		{"flows --since 1m --until 5m", "--until 5m is before --since 1m"},
		{"flows -o xml", "compact, table, dict, json, jsonpb"},
		{"flows --type gossip", "not a type: capture, drop, l7, policy-verdict, trace, trace-sock"},
		{"flows --type trace:nowhere", "not a point of a trace"},
		{"flows --color sometimes", "auto, always or never"},
		{"flows --ip 10.0.0", "neither an address nor a prefix"},
		{"flows --to-port http", `"http" is not a port`},
		{"flows --port 9-3", `"9-3" goes backwards: FIRST-LAST is wanted, and 9 is larger than 3`},
		{"flows --protocol ipx", "is not known"},
		{"flows --verdict maybe", "not a verdict: forwarded, dropped, error, audit, redirected, traced, translated"},
		{"flows --drop-reason-desc BECAUSE", "not a reason: complete it with <TAB>, or see Reasons in docs/hubble.md"},
		{"flows --uuid x", "--uuid x: not a UUID"},
		{"flows --uuid 0123456789abcdef0123456789abcdef0123", "not a UUID"},
		{"flows --workload /x", `--workload /x: "/x" is not [kind/]name`},
		{"flows --to-workload a/b/c", `"a/b/c" is not [kind/]name`},
		{"flows --from-workload ,", "neither kind nor name is given"},
		{"flows --identity nobody", "neither a number"},
		{"flows -l app=(", "not a label selector"},
		{"flows --tcp-flags SIN", "not a TCP flag"},
		{"flows --reply=perhaps", "true or false"},
		{"flows --ip-version 5", "4 or 6"},
		{"flows --traffic-direction up", "ingress or egress"},
		{"flows --pod a/b/c", "is not [namespace/]name"},
		{"flows --not", "not followed by a filter"},
		{"flows --since yesterday", "neither how long ago"},
		{"flows --pod a --to-pod b", "about the same side"},
		{"flows -t trace --drop-reason-desc TOO_BIG", "no flow fits both --type and --drop-reason-desc"},
		{"flows --first 3 -f", "--first goes with"},
		{"flows -f --until 1m", "--follow and --until exclude one another"},
		{"flows -f --since 5m --until 2100-01-01", "--follow and --until exclude one another"},
		{"flows --all --last 3", "exclude one another"},
		{"flows --input-file x -f", "exclude one another"},
		{"flows --input-file /nowhere/flows.json", "no such file"},
		{"flows -A --node-name [", "is not the pattern"},
	} {
		s, out, errOut := streams()
		code := run(t.Context(), s, append([]string{"--kubeconfig", "/dev/null", "-n", "default"}, strings.Fields(tt.args)...))
		if code != 1 || out.Len() != 0 || !strings.Contains(errOut.String(), tt.want) || strings.Count(errOut.String(), "\n") != 1 {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", tt.args, code, out, errOut)
		}
	}
}

// A message sent people to a page that had no list, and the page's words for filters ended in three dots.
func TestDocsListTheWordsOfFilters(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("..", "..", "docs", "hubble.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(content)
	words := slices.Concat(slices.Sorted(maps.Keys(eventTypes)), points())
	for _, verdict := range names(flowpb.Verdict_name) {
		words = append(words, strings.ToLower(verdict))
	}
	for _, w := range words {
		if !strings.Contains(page, "`"+w+"`") {
			t.Errorf("docs/hubble.md does not have the word `%s`", w)
		}
	}
	if !strings.Contains(page, "\n## Reasons\n") {
		t.Error("docs/hubble.md has no list of reasons")
	}
	for _, r := range flow.Reasons() {
		if line := fmt.Sprintf("\n| `%s` | `%s` | %s |\n", r, r.Published(), r.Text()); r.Dropped() && !strings.Contains(page, line) {
			t.Errorf("docs/hubble.md lacks:%s", line)
		}
	}
}

func TestHelpSaysKubectlHubble(t *testing.T) {
	s, out, _ := streams()
	if code := run(t.Context(), s, []string{"flows", "--help"}); code != 0 || !strings.Contains(out.String(), "kubectl hubble flows [flags]") {
		t.Errorf("exit %d: %s", code, out)
	}
}
