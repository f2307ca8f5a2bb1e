// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ErrNotThere says that the source of a product image is not in the tree.
var ErrNotThere = errors.New("source is not there")

// Product is one of our own images, built from main packages of this repository.
type Product struct {
	// Name is the last part of the image's name.
	Name string
	// Mains are package folders relative to the repository; each becomes
	// /usr/bin/ and its last element. The first is the entrypoint.
	Mains []string
	// Module is the folder of their go.mod, relative to the repository.
	Module string
	User   string
}

// Repository is the registry path of our images.
const Repository = "docker.io/kube-cilium"

// nonRoot is the user of images that need no privilege.
const nonRoot = "65532:65532"

// Products lists our images.
func Products() []Product {
	return []Product{
		{Name: "cilium-agent", Module: ".", Mains: []string{"cmd/cilium-agent", "cmd/cilium-cni"}},
		{Name: "cilium-operator", Module: ".", Mains: []string{"cmd/cilium-operator"}, User: nonRoot},
		{Name: "demo", Module: "test/cluster", Mains: []string{"test/cluster/demo"}, User: nonRoot},
	}
}

// Ref is the image's full name under a tag.
func (p Product) Ref(tag string) string { return Repository + "/" + p.Name + ":" + tag }

// Spec builds the product's binaries from source into scratch, with a version in them, and returns the
// image around them. The error is ErrNotThere while a main package is missing.
func (p Product) Spec(ctx context.Context, source, scratch, arch, tag, version string) (Spec, error) {
	s := Spec{Ref: p.Ref(tag), User: p.User}
	for _, main := range p.Mains {
		folder := filepath.Join(source, main)
		if found, _ := filepath.Glob(filepath.Join(folder, "*.go")); len(found) == 0 {
			return s, fmt.Errorf("image %s: %s: %w", p.Name, main, ErrNotThere)
		}
		binary := filepath.Join(scratch, arch, filepath.Base(main))
		if err := goBuild(ctx, filepath.Join(source, p.Module), folder, arch, version, binary); err != nil {
			return s, fmt.Errorf("image %s: %w", p.Name, err)
		}
		inside := "/usr/bin/" + filepath.Base(main)
		s.Files = append(s.Files, File{Path: inside, Source: binary})
		if s.Entrypoint == nil {
			s.Entrypoint = []string{inside}
		}
	}
	return s, nil
}

// versionVariable is what a product's binaries say with --version.
const versionVariable = "github.com/kube-cilium/kube-cilium/internal/version.Version"

// goBuild builds one static binary with a version in it. The Go command's own cache makes it quick
// when nothing changed.
func goBuild(ctx context.Context, module, folder, arch, version, to string) error {
	relative, err := filepath.Rel(module, folder)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X "+versionVariable+"="+version,
		"-o", to, "./"+relative)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s for %s: %w\n%s", relative, arch, err, bytes.TrimSpace(out))
	}
	return nil
}

// Release builds a product for several architectures under one name.
func (p Product) Release(ctx context.Context, source, scratch, tag, version string, archs []string) (v1.ImageIndex, error) {
	images := map[string]v1.Image{}
	for _, arch := range archs {
		s, err := p.Spec(ctx, source, scratch, arch, tag, version)
		if err != nil {
			return nil, err
		}
		if images[arch], err = s.Build(arch, true); err != nil {
			return nil, err
		}
	}
	return Index(images), nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
