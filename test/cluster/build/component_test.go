// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEveryComponentIsPinned(t *testing.T) {
	for _, c := range append(Components(), Conformance()) {
		version, err := c.Version("../components")
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if line := strings.Join(c.args(version), " "); strings.Contains(line, "{") {
			t.Errorf("%s: unfilled flag in %s", c.Name, line)
		}
	}
}

func TestKeyFollowsWhatIsBuilt(t *testing.T) {
	folder := t.TempDir()
	write := func(file, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(folder, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "x", file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	key := func(c Component) string {
		t.Helper()
		k, err := c.Key(folder)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	c := Component{Name: "x", Module: "example.org/x", Packages: []string{"."}}
	write("go.mod", "module y\nrequire example.org/x v1.2.3 // indirect\n")
	first := key(c)
	if again := key(c); again != first {
		t.Errorf("the same input gives %s and %s", first, again)
	}
	tagged := c
	tagged.Tags = "seccomp"
	if key(tagged) == first {
		t.Error("a tag does not count")
	}
	write("main.go", "package main")
	if key(c) == first {
		t.Error("a source file does not count")
	}
	write("go.mod", "module y\nrequire example.org/other v1.2.3\n")
	if _, err := c.Key(folder); !errors.Is(err, ErrModule) {
		t.Errorf("module not required: %v", err)
	}
}
