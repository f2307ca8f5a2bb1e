// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kube-cilium/kube-cilium/test/cluster/image"
)

// TestPushedImageHasEveryArchitecture builds a small product for two
// architectures and pushes it to a registry on the loopback.
func TestPushedImageHasEveryArchitecture(t *testing.T) {
	source := t.TempDir()
	for file, text := range map[string]string{
		"go.mod": "module example.org/x\n\ngo 1.26\n", "cmd/x/main.go": "package main\n\nfunc main() { println(\"x\") }\n",
	} {
		path := filepath.Join(source, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	product := image.Product{Name: "x", Module: ".", Mains: []string{"cmd/x"}, User: "65532:65532"}
	index, err := product.Release(t.Context(), source, t.TempDir(), "v1", "v1", []string{"amd64", "arm64"})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New())
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/team/x:v1"
	if err := image.Push(t.Context(), ref, index); err != nil {
		t.Fatal(err)
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := remote.Image(parsed, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))
		if err != nil {
			t.Fatalf("%s: %v", arch, err)
		}
		config, err := img.ConfigFile()
		if err != nil || config.Architecture != arch || config.Config.Entrypoint[0] != "/usr/bin/x" {
			t.Errorf("%s: %+v, %v", arch, config, err)
		}
	}
	if err := image.Push(t.Context(), "not a name", index); err == nil {
		t.Error("pushed to what is no name")
	}
}
