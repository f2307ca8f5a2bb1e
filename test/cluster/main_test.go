// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
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
