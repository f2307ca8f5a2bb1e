// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestBadCommandLinesSayWhatIsWrong(t *testing.T) {
	cache := t.TempDir()
	for line, want := range map[string]string{
		"up --cni other":                   "--cni",
		"up --workers -1":                  "--workers",
		"up --name Dev":                    "--name",
		"up --lag 5s --cni bridge":         "--lag",
		"up --uplinks two":                 "uplinks",
		"up --no-such-flag":                "no-such-flag",
		"down --name a/b":                  "--name",
		"status --name nobody":             "no such cluster: nobody",
		"status --name nobody -o yaml":     "no such cluster: nobody",
		"exec --name nobody worker-1 -- x": "no such cluster: nobody",
		"exec worker-1":                    "requires at least 2 arg",
		"load-images --name nobody":        "no such cluster: nobody",
	} {
		cmd := newCommand()
		cmd.SetArgs(append(strings.Fields(line), "--cache", cache))
		if strings.Contains(line, "-- x") {
			cmd.SetArgs(append([]string{"--cache", cache}, strings.Fields(line)...))
		}
		cmd.SetContext(t.Context())
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", line, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(cache, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("bad input left %v, %v", left, err)
	}
}

// The old KUBECONFIG stayed in force when the cluster was gone: eval of nothing succeeds.
func TestKubectlEnvOfNoClusterFailsInTheShell(t *testing.T) {
	for _, args := range [][]string{{"kubectl-env", "--name", "nobody"}, {"kubectl-env", "--cluster", "nobody"}, {"kubectl-env", "nobody"}} {
		var out, errOut strings.Builder
		if code := run(t.Context(), append(args, "--cache", t.TempDir()), &out, &errOut); code == 0 || strings.Count(errOut.String(), "\n") != 1 {
			t.Errorf("%v: exit %d, stderr %q", args, code, errOut.String())
		}
		for _, script := range []string{`eval "$1" && echo done; echo "$KUBECONFIG"`, `eval $1 && echo done; echo "$KUBECONFIG"`} {
			sh := exec.Command("sh", "-c", script, "sh", out.String())
			sh.Env = append(os.Environ(), "KUBECONFIG=/another/cluster")
			if got, err := sh.CombinedOutput(); err != nil || string(got) != "/dev/null\n" {
				t.Errorf("%v: %s: %v, %q", args, script, err, got)
			}
		}
	}
	var out, errOut strings.Builder
	if code := run(t.Context(), []string{"status", "--name", "nobody", "--cache", t.TempDir()}, &out, &errOut); code != 1 || out.Len() > 0 {
		t.Errorf("another verb: exit %d, stdout %q", code, out.String())
	}
}

func TestSourceIsFoundFromBelow(t *testing.T) {
	root := findSource()
	if root == "" {
		t.Fatal("the repository is not found from its own folder")
	}
	t.Chdir(filepath.Join(root, "test"))
	if again := findSource(); again != root {
		t.Errorf("%s and %s", root, again)
	}
	t.Chdir(os.TempDir())
	if elsewhere := findSource(); elsewhere != "" {
		t.Errorf("found %s from a folder outside", elsewhere)
	}
}
