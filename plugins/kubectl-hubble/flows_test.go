// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
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

// A question that cannot be answered gets one sentence and 1; a command line that makes no sense 2.
func TestWrongQuestions(t *testing.T) {
	for _, tt := range []struct {
		args, want string
		code       int
	}{
		{"flows extra", `unknown command "extra"`, exitUsage},
		{"nothing", `unknown command "nothing"`, exitUsage},
		{"flows --last many", `invalid argument "many" for --last: a whole number from 0 on is wanted (see kubectl hubble flows --help)`, exitUsage},
		{"flows --last -3", `invalid argument "-3" for --last: a whole number`, exitUsage},
		{"flows --colour", "unknown flag: --colour (see kubectl hubble flows --help)", exitUsage},
		{"flows --since 1m --until 5m", "--until 5m is before --since 1m", exitFailed},
		{"flows -o xml", "compact, table, dict, json, jsonpb", exitFailed},
		{"flows --type gossip", "not a type", exitFailed},
		{"flows --type trace:nowhere", "not a point of a trace", exitFailed},
		{"flows --color sometimes", "auto, always or never", exitFailed},
		{"flows --ip 10.0.0", "neither an address nor a prefix", exitFailed},
		{"flows --to-port http", `"http" is not a port`, exitFailed},
		{"flows --protocol ipx", "is not known", exitFailed},
		{"flows --verdict maybe", "not a verdict", exitFailed},
		{"flows --drop-reason-desc BECAUSE", "not a reason", exitFailed},
		{"flows --identity nobody", "neither a number", exitFailed},
		{"flows -l app=(", "not a label selector", exitFailed},
		{"flows --tcp-flags SIN", "not a TCP flag", exitFailed},
		{"flows --reply=perhaps", "true or false", exitFailed},
		{"flows --ip-version 5", "4 or 6", exitFailed},
		{"flows --traffic-direction up", "ingress or egress", exitFailed},
		{"flows --pod a/b/c", "is not [namespace/]name", exitFailed},
		{"flows --not", "not followed by a filter", exitFailed},
		{"flows --since yesterday", "neither how long ago", exitFailed},
		{"flows --pod a --to-pod b", "about the same side", exitFailed},
		{"flows --first 3 -f", "--first goes with", exitFailed},
		{"flows --all --last 3", "exclude one another", exitFailed},
		{"flows --input-file x -f", "exclude one another", exitFailed},
		{"flows --input-file /nowhere/flows.json", "no such file", exitFailed},
		{"flows -A --node-name [", "is not the pattern", exitFailed},
	} {
		s, out, errOut := streams()
		code := run(t.Context(), s, append([]string{"--kubeconfig", "/dev/null", "-n", "default"}, strings.Fields(tt.args)...))
		if code != tt.code || out.Len() != 0 || !strings.Contains(errOut.String(), tt.want) || strings.Count(errOut.String(), "\n") != 1 {
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
