// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// nameAnnotation is where containerd's import reads an image's full name.
const nameAnnotation = "io.containerd.image.name"

// refAnnotation is where the OCI image layout has the tag.
const refAnnotation = "org.opencontainers.image.ref.name"

// Archive is an image written to a file.
type Archive struct {
	Ref string `json:"ref"`
	// Path has the digest in its name, so the same path is the same image.
	Path string `json:"path"`
}

// Keep writes the image for this machine into folder unless it is there.
func Keep(folder, arch string, s Spec) (Archive, error) {
	img, err := s.Build(arch, false)
	if err != nil {
		return Archive{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return Archive{}, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	name := strings.NewReplacer("/", "_", ":", "_").Replace(s.Ref)
	a := Archive{Ref: s.Ref, Path: filepath.Join(folder, name+"-"+digest.Hex[:12]+".tar")}
	now := time.Now()
	if err := os.Chtimes(a.Path, now, now); err == nil {
		return a, nil // the time says that it is in use: see Prune
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return a, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	return a, write(a.Path, s.Ref, func(p layout.Path, options ...layout.Option) error { return p.AppendImage(img, options...) })
}

// Prune removes archives from folder that nobody asked Keep for since a time,
// and that are not among those in use.
func Prune(folder string, since time.Time, inUse []string) error {
	archives, err := filepath.Glob(filepath.Join(folder, "*.tar"))
	if err != nil {
		return fmt.Errorf("prune images: %w", err)
	}
	for _, path := range archives {
		info, err := os.Stat(path)
		if err != nil || info.ModTime().After(since) || slices.Contains(inUse, path) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("prune images: %w", err)
		}
	}
	return nil
}

// Index joins the image of each architecture under one name.
func Index(images map[string]v1.Image) v1.ImageIndex {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range sortedKeys(images) {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        images[arch],
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	return index
}

// WriteIndex writes an image of several architectures as an OCI archive.
func WriteIndex(path, ref string, index v1.ImageIndex) error {
	return write(path, ref, func(p layout.Path, options ...layout.Option) error { return p.AppendIndex(index, options...) })
}

// write makes an OCI layout in a folder beside path, then one tar of it.
func write(path, ref string, add func(layout.Path, ...layout.Option) error) error {
	scratch, err := os.MkdirTemp(filepath.Dir(path), "image-")
	if err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	defer os.RemoveAll(scratch)
	folder, err := layout.Write(filepath.Join(scratch, "layout"), empty.Index)
	if err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	_, tag, _ := strings.Cut(ref[strings.LastIndex(ref, "/")+1:], ":")
	if err := add(folder, layout.WithAnnotations(map[string]string{nameAnnotation: ref, refAnnotation: tag})); err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	whole := filepath.Join(scratch, "whole.tar")
	if err := pack(whole, string(folder)); err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	if err := os.Rename(whole, path); err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	return nil
}

// pack writes a folder as a tar without owners and times.
func pack(to, folder string) (err error) {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := tar.NewWriter(out)
	err = filepath.WalkDir(folder, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return packFile(w, folder, file)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

func packFile(w *tar.Writer, folder, file string) error {
	name, err := filepath.Rel(folder, file)
	if err != nil {
		return err
	}
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, in)
	return err
}
