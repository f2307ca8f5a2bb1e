// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/internal/testenv"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kubectl-cilium": main})
}

// TestScripts runs the verbs against a real API server. A script's `objects FILE` creates what the file holds, with
// its status, and takes it away when the script ends; `stable` writes the last stdout without ages into the file
// stable, for cmp; `usage ARGS` wants exit code 1, a line on stderr and nothing on stdout. UPDATE=1 writes what cmp found.
func TestScripts(t *testing.T) {
	env := testenv.Start(t)
	c, err := client.New(env.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	testscript.RunT(oneByOne{t}, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("KUBECONFIG", env.Kubeconfig)
			e.Setenv("HOME", e.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"objects": func(ts *testscript.TestScript, _ bool, args []string) {
				for _, file := range args {
					createAll(ts, c, ts.ReadFile(file))
				}
			},
			"usage": func(ts *testscript.TestScript, _ bool, args []string) {
				// Through a shell for its exit code, which exec does not tell.
				err := ts.Exec("sh", append([]string{"-c", `kubectl-cilium "$@"; test $? = 1`, "sh"}, args...)...)
				ts.Check(err)
				if out, said := ts.ReadFile("stdout"), ts.ReadFile("stderr"); out != "" || strings.Count(said, "\n") != 1 {
					ts.Fatalf("stdout %q, stderr %q", out, said)
				}
			},
			"stable": func(ts *testscript.TestScript, _ bool, _ []string) {
				got := ages.ReplaceAllString(ts.ReadFile("stdout"), "Ns")
				ts.Check(os.WriteFile(ts.MkAbs("stable"), []byte(got), 0o600))
			},
		},
		UpdateScripts: os.Getenv("UPDATE") != "",
	})
}

// oneByOne keeps scripts from running at once: objects of the cluster have one name for all of them.
type oneByOne struct{ *testing.T }

func (oneByOne) Parallel()       {}
func (t oneByOne) Verbose() bool { return testing.Verbose() }
func (t oneByOne) Run(name string, f func(testscript.T)) {
	t.T.Run(name, func(t *testing.T) { f(oneByOne{t}) })
}

var ages = regexp.MustCompile(`\b([0-9]+d)?([0-9]+h)?([0-9]+m)?[0-9]+s\b`)

// createAll creates every object of a YAML stream, and its status where it has one.
func createAll(ts *testscript.TestScript, c client.Client, text string) {
	ctx := context.Background()
	docs := utilyaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(text), 4096)
	for {
		u := &unstructured.Unstructured{}
		err := docs.Decode(&u.Object)
		if errors.Is(err, io.EOF) {
			return
		}
		ts.Check(err)
		if len(u.Object) == 0 {
			continue
		}
		status, has := u.Object["status"]
		err = c.Create(ctx, u)
		if u.GetKind() == "Namespace" && apierrors.IsAlreadyExists(err) {
			continue // nobody takes a namespace away here: there is no controller manager
		}
		ts.Check(err)
		if u.GetKind() != "Namespace" {
			gone := u.DeepCopy()
			ts.Defer(func() { ts.Check(client.IgnoreNotFound(c.Delete(ctx, gone, client.GracePeriodSeconds(0)))) })
		}
		if has {
			setGeneration(status, u.GetGeneration())
			u.Object["status"] = status
			ts.Check(c.Status().Update(ctx, u))
		}
	}
}

// setGeneration gives conditions the object's generation where a file leaves it out.
func setGeneration(status any, generation int64) {
	fields, _ := status.(map[string]any)
	conditions, _ := fields["conditions"].([]any)
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok {
			if _, has := m["reason"]; has && m["observedGeneration"] == nil && m["lastHeartbeatTime"] == nil && m["lastProbeTime"] == nil {
				m["observedGeneration"] = generation
			}
		}
	}
}

func allCommands(cmd *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, c := range cmd.Commands() {
		all = append(append(all, c), allCommands(c)...)
	}
	return all
}

// Every example in a help text is a command line that is understood.
func TestExamplesAreReal(t *testing.T) {
	for _, cmd := range allCommands(newRoot(testStreams())) {
		for _, line := range exampleLines(cmd.Example) {
			root := newRoot(testStreams())
			found, args, err := root.Find(line)
			if err != nil {
				t.Errorf("%s: example %q: %v", cmd.CommandPath(), line, err)
				continue
			}
			if found.CommandPath() != cmd.CommandPath() {
				t.Errorf("%s: example %q is of %s", cmd.CommandPath(), line, found.CommandPath())
			}
			if err := found.ParseFlags(args); err != nil {
				t.Errorf("%s: example %q: %v", cmd.CommandPath(), line, err)
			} else if err := found.ValidateArgs(found.Flags().Args()); err != nil {
				t.Errorf("%s: example %q: %v", cmd.CommandPath(), line, err)
			}
		}
		if cmd.Example == "" && !cmd.HasSubCommands() {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
	}
}

// So is every one in the docs.
func TestDocsAreReal(t *testing.T) {
	for _, doc := range []string{"kubectl-cilium.md", "troubleshooting.md"} {
		page, err := os.ReadFile(filepath.Join("..", "..", "docs", doc))
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for line := range strings.SplitSeq(string(page), "\n") {
			line, _, _ = strings.Cut(strings.TrimPrefix(line, "$ "), "#")
			if doc == "troubleshooting.md" { // in tables, between backquotes
				_, line, _ = strings.Cut(line, "`kubectl cilium ")
				line, _, _ = strings.Cut("kubectl cilium "+line, "`")
				line, _, _ = strings.Cut(line, " | ")
			}
			if args, found := strings.CutPrefix(line, "kubectl cilium "); !found || args == "" {
				continue
			}
			seen++
			for _, args := range exampleLines(line) {
				found, rest, err := newRoot(testStreams()).Find(args)
				if err == nil {
					err = found.ParseFlags(rest)
				}
				if err == nil {
					err = found.ValidateArgs(found.Flags().Args())
				}
				if err != nil {
					t.Errorf("%s: %q: %v", doc, line, err)
				}
			}
		}
		if seen < 5 {
			t.Errorf("%s: only %d command lines were found", doc, seen)
		}
	}
}

func TestEveryVerbSaysItsNameAsPeopleTypeIt(t *testing.T) {
	for _, cmd := range allCommands(newRoot(testStreams())) {
		if got := cmd.UseLine(); !regexp.MustCompile(`^kubectl cilium `).MatchString(got) {
			t.Errorf("usage of %s is %q", cmd.Name(), got)
		}
	}
}

func TestCompletionOffersVerbsAndMaps(t *testing.T) {
	s := testStreams()
	out := s.Out.(*bytes.Buffer)
	if code := run(t.Context(), s, []string{"__complete", "map", ""}); code != 0 || !bytes.Contains(out.Bytes(), []byte("dump\t")) {
		t.Errorf("exit %d: %s", code, out)
	}
	if !slices.Contains(mapNames(), "conntrack") {
		t.Error("conntrack is not offered")
	}
}
