// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ErrTwice says that two files of an image have one path.
var ErrTwice = errors.New("path is there twice")

// File is one file of an image: Content, or what lies at Source on this
// machine, or a symbolic link.
type File struct {
	Path    string
	Source  string
	Content string
	Link    string
	// Mode defaults to 0755.
	Mode int64
}

// Spec says what is in an image and what it runs.
type Spec struct {
	// Ref is the full name with its tag.
	Ref        string
	Entrypoint []string
	Cmd        []string
	// User is numeric, so that runAsNonRoot can be checked; empty is root.
	User  string
	Files []File
}

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// accounts are in every image: a process may ask for its own name.
var accounts = []File{
	{Path: "/etc/passwd", Mode: 0o644, Content: "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home/user:/bin/sh\n" +
		"nobody:x:65534:65534:nobody:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/sh\n"},
	{Path: "/etc/group", Mode: 0o644, Content: "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n" +
		"nogroup:x:65534:\nnonroot:x:65532:\n"},
}

// Build makes the image for an architecture. A compressed layer is what
// registries expect; an uncompressed one is quicker to import.
func (s Spec) Build(arch string, compressed bool) (v1.Image, error) {
	raw, err := s.layer()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	layer := static.NewLayer(raw, types.OCIUncompressedLayer)
	if compressed {
		layer, err = tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
			tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", s.Ref, err)
		}
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{CreatedBy: "kube-cilium"}})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	file = file.DeepCopy()
	file.Architecture, file.OS = arch, "linux"
	file.Config = v1.Config{Entrypoint: s.Entrypoint, Cmd: s.Cmd, User: s.User, WorkingDir: "/", Env: []string{searchPath}}
	return mutate.ConfigFile(img, file)
}

// layer writes the files as one tar, in the order of their paths and without times.
func (s Spec) layer() ([]byte, error) {
	files := slices.Concat(accounts, s.Files)
	slices.SortStableFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	var out bytes.Buffer
	l := &layerWriter{tar: tar.NewWriter(&out), seen: map[string]bool{"/": true}}
	if err := l.folder("/tmp", 0o1777); err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := l.file(f); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	if err := l.tar.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

type layerWriter struct {
	tar  *tar.Writer
	seen map[string]bool
}

func (l *layerWriter) folder(name string, mode int64) error {
	if l.seen[name] {
		return nil
	}
	if err := l.folder(path.Dir(name), 0o755); err != nil {
		return err
	}
	l.seen[name] = true
	return l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name[1:] + "/", Mode: mode})
}

func (l *layerWriter) file(f File) error {
	if l.seen[f.Path] {
		return ErrTwice
	}
	if err := l.folder(path.Dir(f.Path), 0o755); err != nil {
		return err
	}
	l.seen[f.Path] = true
	header := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path[1:], Mode: f.Mode}
	if f.Mode == 0 {
		header.Mode = 0o755
	}
	if f.Link != "" {
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, f.Link, 0o777
		return l.tar.WriteHeader(header)
	}
	content := []byte(f.Content)
	if f.Source != "" {
		var err error
		if content, err = os.ReadFile(f.Source); err != nil {
			return err
		}
	}
	header.Size = int64(len(content))
	if err := l.tar.WriteHeader(header); err != nil {
		return err
	}
	_, err := l.tar.Write(content)
	return err
}
