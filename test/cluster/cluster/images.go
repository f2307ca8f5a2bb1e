// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/kube-cilium/kube-cilium/test/cluster/build"
	"github.com/kube-cilium/kube-cilium/test/cluster/image"
	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
	"github.com/kube-cilium/kube-cilium/test/cluster/node"
)

// baseImages makes the images of other projects: they change with a version
// bump only, so nodes start with them in their stores.
func (h *Host) baseImages(ctx context.Context, built build.Binaries) ([]image.Archive, error) {
	source, err := h.cache().Source(ctx, "kubernetes")
	if err != nil {
		return nil, err
	}
	scratch, err := os.MkdirTemp(h.Cache, "images-")
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	defer os.RemoveAll(scratch)
	pause, err := image.Pause(ctx, source, scratch)
	if err != nil {
		return nil, err
	}
	agnhost, err := image.Agnhost(source, built["agnhost"])
	if err != nil {
		return nil, err
	}
	var archives []image.Archive
	for _, spec := range []image.Spec{pause, agnhost, image.CoreDNS(built["coredns"])} {
		archive, err := image.Keep(h.imageFolder(), runtime.GOARCH, spec)
		if err != nil {
			return nil, err
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

func (h *Host) version(tag string) string {
	if h.Version != "" {
		return h.Version
	}
	return tag
}

// ourImages builds our images from the source tree: those of the products, or
// all. What could not be built is left out and told by the second result.
func (h *Host) ourImages(ctx context.Context, tag string, products ...string) ([]image.Archive, error) {
	scratch, err := os.MkdirTemp(h.Cache, "images-")
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	defer os.RemoveAll(scratch)
	var archives []image.Archive
	var failed []error
	for _, product := range image.Products() {
		if len(products) > 0 && !slices.Contains(products, product.Name) {
			continue
		}
		h.Progress("building image %s", product.Ref(tag))
		spec, err := product.Spec(ctx, h.Source, scratch, runtime.GOARCH, tag, h.version(tag))
		if err != nil {
			failed = append(failed, err)
			continue
		}
		archive, err := image.Keep(h.imageFolder(), runtime.GOARCH, spec)
		if err != nil {
			return nil, err
		}
		archives = append(archives, archive)
	}
	return archives, errors.Join(failed...)
}

// nodeImages are what nodes of this cluster start with besides the base
// images. A cluster that is not ours needs the demo only; one that is made
// ready for ours by hand takes what can be built.
func (h *Host) nodeImages(ctx context.Context, cni string) ([]image.Archive, error) {
	if cni == CNIBridge {
		return h.ourImages(ctx, DevTag, "demo")
	}
	archives, err := h.ourImages(ctx, DevTag)
	if err != nil && cni == CNINone && ctx.Err() == nil {
		h.Progress("left out: %v", err)
		return archives, nil
	}
	return archives, err
}

// unusedFor is how long an archive stays that no cluster was made of.
const unusedFor = time.Hour

// prune removes archives of earlier builds: each build of ours makes new ones.
func (h *Host) prune() error {
	var inUse []string
	for _, name := range h.Store().Names() {
		if state, err := h.Store().Load(name); err == nil {
			inUse = append(inUse, paths(state.Images)...)
		}
	}
	return image.Prune(h.imageFolder(), time.Now().Add(-unusedFor), inUse)
}

func (h *Host) imageFolder() string { return filepath.Join(h.Cache, "images") }

// store returns a filled image store that nodes clone, filling it when the
// images or the runtime changed. It goes through a node-like process of this
// cluster, so that down finds it if it is cut short.
func (h *Host) store(ctx context.Context, self string, state *State, base []image.Archive) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, "layout 1", state.Binaries["containerd"])
	for _, a := range base {
		fmt.Fprintln(sum, a.Path)
	}
	folder := filepath.Join(h.Cache, "stores", hex.EncodeToString(sum.Sum(nil))[:12])
	if _, err := os.Stat(folder); err == nil {
		return folder, nil
	}
	h.Progress("filling the image store")
	c := state.nodeConfig(0)
	c.Name, c.Space, c.Cgroup = "store", "kc-"+state.Name+"-store", state.cgroup("store")
	c.Dir = filepath.Join(state.Dir, "store")
	c.Images = paths(base)
	c.Shared = append(c.Shared, h.Cache)
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	if err := netspace.Make(c.Space); err != nil {
		return "", err
	}
	if err := node.FillStore(ctx, self, c); err != nil {
		return "", err
	}
	if err := state.Hierarchy.Remove(ctx, c.Cgroup); err != nil {
		return "", err
	}
	if err := netspace.Remove(c.Space); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	// A second cluster may have been quicker: the folder is the same then.
	if err := os.Rename(filepath.Join(c.Dir, "containerd"), folder); err != nil {
		if _, there := os.Stat(folder); there != nil {
			return "", fmt.Errorf("image store: %w", err)
		}
	}
	return folder, os.RemoveAll(c.Dir)
}

// LoadImages builds our images under a tag and imports them into every node of
// a running cluster, and returns their names.
func (h *Host) LoadImages(ctx context.Context, name, tag string) ([]image.Archive, error) {
	state, err := h.Store().Load(name)
	if err != nil {
		return nil, err
	}
	archives, err := h.ourImages(ctx, tag)
	if err != nil {
		return nil, err
	}
	for _, n := range state.Nodes {
		for _, a := range archives {
			h.Progress("importing %s into %s", a.Ref, n.Name)
			command := append([]string{state.Binaries["ctr"]}, node.ImportArgs(a.Path)...)
			if err := h.InNode(ctx, state, n, command); err != nil {
				return nil, err
			}
		}
	}
	state.Images = merge(state.Images, archives)
	return archives, state.save()
}

// merge replaces archives of the same name.
func merge(old, fresh []image.Archive) []image.Archive {
	kept := slices.DeleteFunc(slices.Clone(old), func(a image.Archive) bool {
		return slices.ContainsFunc(fresh, func(b image.Archive) bool { return a.Ref == b.Ref })
	})
	return append(kept, fresh...)
}

// WriteImages writes our images for every architecture into folder as OCI
// archives, and pushes them when registry is not empty.
func (h *Host) WriteImages(ctx context.Context, folder, tag, registry string, archs []string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	scratch, err := os.MkdirTemp("", "images-")
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	defer os.RemoveAll(scratch)
	for _, product := range image.Products() {
		h.Progress("building %s for %s", product.Ref(tag), strings.Join(archs, ", "))
		index, err := product.Release(ctx, h.Source, scratch, tag, h.version(tag), archs)
		if err != nil {
			return err
		}
		file := filepath.Join(folder, product.Name+".oci.tar")
		if err := image.WriteIndex(file, product.Ref(tag), index); err != nil {
			return err
		}
		h.Progress("wrote %s", file)
		if registry != "" {
			if err := image.Push(ctx, registry+"/"+product.Name+":"+tag, index); err != nil {
				return err
			}
			h.Progress("pushed %s/%s:%s", registry, product.Name, tag)
		}
	}
	return nil
}

func paths(archives []image.Archive) []string {
	var out []string
	for _, a := range archives {
		out = append(out, a.Path)
	}
	return out
}
