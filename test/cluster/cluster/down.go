// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kube-cilium/kube-cilium/test/cluster/cgroup"
	"github.com/kube-cilium/kube-cilium/test/cluster/netspace"
)

// downTimeout bounds how long killed processes may take to go.
const downTimeout = 30 * time.Second

// Down removes a cluster whole: processes, namespaces, cgroups, routes, files.
// It needs no more than the name, may be repeated, and goes on past an error.
func (h *Host) Down(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	names, err := h.all()
	if err != nil {
		return err
	}
	if !slices.Contains(names, name) {
		h.Progress("there is nothing of a cluster %s (%s)", name, h.Store().there())
	}
	tree, err := cgroup.Find()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	var failed []error
	failed = append(failed, tree.Remove(ctx, "kc-"+name))
	for _, space := range netspace.List("kc-" + name + "-") {
		if belongs(space, name) {
			failed = append(failed, netspace.Remove(space))
		}
	}
	// Routes last: until now a packet of the cluster might have been under way.
	state, err := h.Store().Load(name)
	if err == nil {
		failed = append(failed, netspace.Unguard(state.Ranges.All()))
	} else if !errors.Is(err, ErrAbsent) {
		failed = append(failed, err)
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("down %s: %w", name, err)
	}
	return os.RemoveAll(h.Store().folder(name))
}

// belongs tells kc-NAME-cp from kc-NAME-other-cp of a cluster "NAME-other".
func belongs(space, name string) bool {
	suffix := strings.TrimPrefix(space, "kc-"+name+"-")
	return !strings.Contains(suffix, "-")
}

// DownAll removes every cluster on this machine, also those whose state is
// gone, and every route that any left behind.
func (h *Host) DownAll(ctx context.Context) error {
	names, err := h.all()
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range names {
		h.Progress("removing cluster %s", name)
		failed = append(failed, h.Down(ctx, name))
	}
	left, err := netspace.Guarded()
	failed = append(failed, err, netspace.Unguard(left))
	return errors.Join(failed...)
}

// all finds clusters by their folders, namespaces and cgroups.
func (h *Host) all() ([]string, error) {
	tree, err := cgroup.Find()
	if err != nil {
		return nil, err
	}
	names := h.Store().Names()
	for _, space := range netspace.List("kc-") {
		rest := strings.TrimPrefix(space, "kc-")
		if i := strings.LastIndex(rest, "-"); i > 0 {
			names = append(names, rest[:i])
		}
	}
	for _, hierarchy := range tree {
		found, _ := filepath.Glob(filepath.Join(hierarchy.Dir, "kc-*"))
		for _, dir := range found {
			names = append(names, strings.TrimPrefix(filepath.Base(dir), "kc-"))
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return slices.DeleteFunc(names, func(name string) bool { return CheckName(name) != nil }), nil
}
