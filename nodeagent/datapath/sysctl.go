// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// setting is one file below /proc/sys/net and what it has to say.
type setting struct {
	path  string // such as ipv4/conf/eth0/rp_filter
	value string
	// optional: a kernel without the file is fine.
	optional bool
}

// podSettings are those of the host's end of a pod's interface. route_localnet is never set, here or elsewhere: with
// it a neighbour reaches 127.0.0.1 (CVE-2020-8558).
func podSettings(dev string, ipv6 bool) []setting {
	v4, v6 := "ipv4/conf/"+dev+"/", "ipv6/conf/"+dev+"/"
	return append([]setting{
		// The larger of this and conf/all counts: 2 asks only for some route back, which every pod has. The programs
		// check the source exactly.
		{path: v4 + "rp_filter", value: "2"},
		// A packet that the programs hand to the stack for another host is forwarded, not thrown away.
		{path: v4 + "forwarding", value: "1"},
	}, ipv6Settings(v6, ipv6)...)
}

func ipv6Settings(v6 string, wanted bool) []setting {
	return []setting{
		// Before IPv6 is switched on: no address of its own, no listening to routers (CVE-2020-10749).
		{path: v6 + "accept_ra", value: "0", optional: true},
		{path: v6 + "addr_gen_mode", value: "1", optional: true},
		{path: v6 + "accept_dad", value: "0", optional: true},
		{path: v6 + "disable_ipv6", value: map[bool]string{true: "0", false: "1"}[wanted], optional: !wanted},
		{path: v6 + "forwarding", value: "1", optional: !wanted},
	}
}

// overlaySettings are those of the VXLAN device. A packet that a remote host sent to this one comes in here and its
// source is routed by the uplink: 2 as above.
func overlaySettings(ipv6 bool) []setting {
	return append([]setting{
		{path: "ipv4/conf/" + OverlayDevice + "/rp_filter", value: "2"},
		{path: "ipv4/conf/" + OverlayDevice + "/forwarding", value: "1"},
	}, ipv6Settings("ipv6/conf/"+OverlayDevice+"/", ipv6)...)
}

// forwardSettings are needed where the host's stack forwards what the programs cannot redirect. A host that takes its
// routes from router advertisements stops doing so when it forwards, unless accept_ra is 2.
func forwardSettings(net *procSysNet, uplinks []uplink, ipv4, ipv6 bool) []setting {
	var out []setting
	if ipv4 {
		out = append(out, setting{path: "ipv4/ip_forward", value: "1"})
	}
	if ipv6 {
		for _, u := range uplinks {
			path := "ipv6/conf/" + u.name + "/accept_ra"
			if now, err := net.read(path); err == nil && now == "1" {
				out = append(out, setting{path: path, value: "2"})
			}
		}
		out = append(out, setting{path: "ipv6/conf/all/forwarding", value: "1"})
	}
	return out
}

// procSysNet is the host's /proc/sys/net, wherever it is mounted.
type procSysNet struct{ root string }

func (p *procSysNet) read(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(p.root, path))
	return strings.TrimSpace(string(b)), err
}

// apply writes what differs. A file of a device that has gone meanwhile is no error.
func (p *procSysNet) apply(settings []setting) error {
	var errs []error
	for _, s := range settings {
		now, err := p.read(s.path)
		if errors.Is(err, fs.ErrNotExist) {
			switch {
			case s.optional, !p.device(s.path):
			case strings.HasPrefix(s.path, "ipv6/"):
				errs = append(errs, fmt.Errorf("sysctl net/%s: %w", s.path, ErrNoIPv6))
			default:
				errs = append(errs, fmt.Errorf("sysctl net/%s: %w", s.path, err))
			}
			continue
		}
		if err == nil && now != s.value {
			err = os.WriteFile(filepath.Join(p.root, s.path), []byte(s.value), 0)
			if err != nil && !p.device(s.path) {
				err = nil // gone between the two
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set sysctl net/%s to %s: %w", s.path, s.value, err))
		}
	}
	return errors.Join(errs...)
}

// device is true when the device that the path names is there.
func (p *procSysNet) device(path string) bool {
	parts := strings.Split(path, "/")
	if len(parts) < 4 || parts[1] != "conf" {
		return true
	}
	_, err := os.Stat(filepath.Join(p.root, "ipv4/conf", parts[2]))
	return err == nil
}
