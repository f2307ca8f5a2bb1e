// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kube-cilium/kube-cilium/test/cluster/image"
)

func spec(t *testing.T, content string) image.Spec {
	t.Helper()
	source := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(source, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return image.Spec{
		Ref: "docker.io/example/app:dev", Entrypoint: []string{"/usr/bin/app"}, User: "65532:65532",
		Files: []image.File{{Path: "/usr/bin/app", Source: source}, {Path: "/bin/app", Link: "/usr/bin/app"}},
	}
}

func TestImageHoldsItsFilesAndItsUser(t *testing.T) {
	img, err := spec(t, "x").Build("arm64", true)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Architecture != "arm64" || config.Config.User != "65532:65532" || config.Config.Entrypoint[0] != "/usr/bin/app" {
		t.Errorf("config %+v", config)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	reader, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	names := entries(t, reader)
	for _, want := range []string{"tmp/", "etc/passwd", "usr/", "usr/bin/", "usr/bin/app", "bin/app"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing in %v", want, names)
		}
	}
	if slices.Index(names, "usr/bin/") > slices.Index(names, "usr/bin/app") {
		t.Error("a file comes before its folder")
	}
}

func TestSameInputSameFile(t *testing.T) {
	folder := t.TempDir()
	keep := func(content string) string {
		t.Helper()
		a, err := image.Keep(folder, "amd64", spec(t, content))
		if err != nil {
			t.Fatal(err)
		}
		return a.Path
	}
	first := keep("x")
	if again := keep("x"); again != first {
		t.Errorf("%s and %s", first, again)
	}
	if other := keep("y"); other == first {
		t.Error("another program, the same file")
	}
	left, err := os.ReadDir(folder)
	if err != nil || len(left) != 2 {
		t.Errorf("%d files beside two archives, %v", len(left)-2, err)
	}
}

func TestPruneKeepsWhatIsUsed(t *testing.T) {
	folder := t.TempDir()
	var kept []string
	for _, content := range []string{"used", "fresh", "old"} {
		a, err := image.Keep(folder, "amd64", spec(t, content))
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, a.Path)
	}
	yesterday := time.Now().Add(-24 * time.Hour)
	for _, i := range []int{0, 2} {
		if err := os.Chtimes(kept[i], yesterday, yesterday); err != nil {
			t.Fatal(err)
		}
	}
	if err := image.Prune(folder, time.Now().Add(-time.Hour), kept[:1]); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil || len(left) != 2 || slices.Contains(left, kept[2]) {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestArchiveNamesEachArchitecture(t *testing.T) {
	images := map[string]v1.Image{}
	for _, arch := range []string{"arm64", "amd64"} {
		img, err := spec(t, arch).Build(arch, true)
		if err != nil {
			t.Fatal(err)
		}
		images[arch] = img
	}
	index := image.Index(images)
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(manifest.Manifests); n != 2 || manifest.Manifests[0].Platform.Architecture != "amd64" {
		t.Errorf("%+v", manifest.Manifests)
	}
	path := filepath.Join(t.TempDir(), "app.oci.tar")
	if err := image.WriteIndex(path, "docker.io/example/app:v1", index); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	archive := tar.NewReader(f)
	for {
		header, err := archive.Next()
		if err != nil {
			t.Fatal("no index.json")
		}
		if header.Name == "index.json" {
			break
		}
	}
	var top v1.IndexManifest
	if err := json.NewDecoder(archive).Decode(&top); err != nil {
		t.Fatal(err)
	}
	if len(top.Manifests) != 1 || top.Manifests[0].Annotations["io.containerd.image.name"] != "docker.io/example/app:v1" {
		t.Errorf("%+v", top.Manifests)
	}
}

func TestOnePathTwice(t *testing.T) {
	s := spec(t, "x")
	s.Files = append(s.Files, image.File{Path: "/bin/app", Content: "y"})
	if _, err := s.Build("amd64", false); !errors.Is(err, image.ErrTwice) {
		t.Errorf("%v", err)
	}
}

func TestProductWithoutSource(t *testing.T) {
	p := image.Product{Name: "x", Mains: []string{"cmd/x"}, Module: "."}
	if _, err := p.Spec(t.Context(), t.TempDir(), t.TempDir(), "amd64", "dev", "dev"); !errors.Is(err, image.ErrNotThere) {
		t.Errorf("%v", err)
	}
}

func entries(t *testing.T, r io.Reader) []string {
	t.Helper()
	var names []string
	archive := tar.NewReader(r)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
	}
}
