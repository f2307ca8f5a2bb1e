// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uninstall removes every kernel object of ours on this node: links, filters, socket programs, routes, neighbours,
// the FORWARD rule, the VXLAN device, and the pins; uplinks take segments of the ordinary size. Pods' interfaces are the
// pods' and stay. So does ip_forward, for we cannot know who else needs it by now. What is gone already is no error; all
// is tried, and errors are joined.
func Uninstall(opts Options) error {
	folder := Folder(opts.BPFFS)
	errs := []error{removeLinks(filepath.Join(folder, "links"))}
	links, err := linkList()
	if err != nil {
		errs = append(errs, err)
	}
	for _, l := range links {
		errs = append(errs, removeFilters(l))
		if IsPodDevice(l.Attrs().Name) {
			errs = append(errs, removePermanentNeighbours(l))
		}
	}
	errs = append(errs, removeAllRoutes(), putUplinksBack(folder))
	errs = append(errs, removeForwardRule(), removeOverlay(), removeFolder(folder))
	return errors.Join(errs...)
}

func removeLinks(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if err := removeLink(filepath.Join(folder, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("remove link %s: %w", e.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func removeFolder(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) && err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

// removeFilters takes our filters off, and the clsact that nobody has a filter on any longer. Whoever has a TCX
// program there keeps it: that does not need the qdisc.
func removeFilters(l netlink.Link) error {
	dev := device{l.Attrs().Name, l.Attrs().Index}
	removed := false
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		ours, err := filtersNamed(dev, parent, func(name string) bool { return strings.HasPrefix(name, filterPrefix) })
		if err == nil {
			err = deleteFilters(ours)
		}
		if err != nil {
			return fmt.Errorf("filters of %s: %w", dev.name, err)
		}
		removed = removed || len(ours) > 0
	}
	if !removed {
		return nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if left, err := netlink.FilterList(l, parent); err != nil || len(left) > 0 {
			return nil
		}
	}
	if err := netlink.QdiscDel(clsactOn(dev)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !vanished(err) {
		return fmt.Errorf("remove clsact of %s: %w", dev.name, err)
	}
	return nil
}

func removePermanentNeighbours(l netlink.Link) error {
	list, err := again(func() ([]netlink.Neigh, error) { return netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL) })
	if vanished(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list neighbours of %s: %w", l.Attrs().Name, err)
	}
	var errs []error
	for _, n := range list {
		if n.State != netlink.NUD_PERMANENT || net.IP.IsMulticast(n.IP) {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) && !vanished(err) {
			errs = append(errs, fmt.Errorf("delete neighbour %s: %w", n.IP, err))
		}
	}
	return errors.Join(errs...)
}

func removeAllRoutes() error {
	present, err := ourRoutes()
	if err != nil {
		return err
	}
	var errs []error
	for prefix, routes := range present {
		for _, r := range routes {
			if err := netlink.RouteDel(&r); err != nil && !vanished(err) {
				errs = append(errs, fmt.Errorf("delete route to %s: %w", prefix, err))
			}
		}
	}
	return errors.Join(errs...)
}
