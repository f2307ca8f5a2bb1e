// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

const (
	// PluginType is the plugin's file name and the only type that it accepts.
	PluginType = "cilium-cni"
	// NetworkName is the name in the configuration that the agent writes.
	NetworkName = "kube-cilium"
	// DefaultSocketDir and DefaultStateDir hold where the configuration does not say otherwise.
	DefaultSocketDir = "/run/kube-cilium"
	DefaultStateDir  = "/var/lib/kube-cilium"
	// SocketName, ReadyName and QueueName are what lies in these folders.
	SocketName = "cni.sock"
	ReadyName  = "cni-ready"
	QueueName  = "cni-deletes"
)

// Exit codes of our own; below 100 they are the specification's.
const (
	CodeExists     = 101 // ADD for an interface that exists
	CodeNotAsAdded = 102 // CHECK found a difference
)

// NetConf is the plugin's part of the network configuration.
type NetConf struct {
	types.NetConf
	// SocketDir and StateDir are absolute paths, by default the constants above.
	SocketDir string `json:"socketDir,omitempty"`
	StateDir  string `json:"stateDir,omitempty"`
}

// form is what a name may be made of: ASCII letters and digits, and some others besides. No regular expression: to
// compile these took a third of the processor time of a call.
type form struct {
	most int
	// others may stand where letters and digits may, but not at the ends that are named.
	others            string
	notFirst, notLast bool
	lowerCase         bool
}

var (
	nameForm   = form{most: 128, others: "_.-", notFirst: true} // of networks and containers
	ifNameForm = form{most: 15, others: "_.@-", notFirst: true}
	dnsForm    = form{most: 253, others: ".-", notFirst: true, notLast: true, lowerCase: true}
	uidForm    = form{most: 64, others: "-"}
)

func (f form) fits(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z' && !f.lowerCase:
		case strings.IndexByte(f.others, c) < 0, i == 0 && f.notFirst, i == len(s)-1 && f.notLast:
			return false
		}
	}
	return s != "" && len(s) <= f.most
}

// ParseConf reads and checks a network configuration. Name and type are strict: they must never be parts of a path
// (CVE-2021-20206). Its errors are *types.Error.
func ParseConf(stdin []byte) (*NetConf, error) {
	c := &NetConf{}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "the network configuration is not JSON that we know", err.Error())
	}
	if c.Type != PluginType {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("type: %q, want %q", c.Type, PluginType), "")
	}
	if !nameForm.fits(c.Name) {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("name: %q has characters that a name must not have", c.Name), "")
	}
	if c.IPAM.Type != "" {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "ipam.type: the agent gives addresses itself; leave it out", "")
	}
	for _, d := range []struct {
		field string
		dir   *string
		def   string
	}{{"socketDir", &c.SocketDir, DefaultSocketDir}, {"stateDir", &c.StateDir, DefaultStateDir}} {
		if *d.dir == "" {
			*d.dir = d.def
		}
		if !filepath.IsAbs(*d.dir) || filepath.Clean(*d.dir) != *d.dir {
			return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s: %q is not a clean absolute path", d.field, *d.dir), "")
		}
	}
	return c, nil
}

// CheckAttachment refuses names that could be parts of a path or that no kernel accepts. Its error is a *types.Error.
func CheckAttachment(a Attachment) error {
	if !nameForm.fits(a.ContainerID) {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_CONTAINERID: %q is not a container ID", a.ContainerID), "")
	}
	if !ifNameForm.fits(a.IfName) || a.IfName == "lo" {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_IFNAME: %q is not an interface name", a.IfName), "")
	}
	return nil
}

// CheckNetns refuses namespace paths that are not absolute and clean. Its error is a *types.Error.
func CheckNetns(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS: %q is not a clean absolute path", path), "")
	}
	return nil
}

// ParseArgs reads the pod out of CNI_ARGS (K=V pairs separated by semicolons). Keys that we do not know are the
// runtime's business. Its error is a *types.Error.
func ParseArgs(args string) (Pod, error) {
	var p Pod
	fields := map[string]struct {
		to    *string
		valid form
	}{
		"K8S_POD_NAMESPACE": {&p.Namespace, dnsForm},
		"K8S_POD_NAME":      {&p.Name, dnsForm},
		"K8S_POD_UID":       {&p.UID, uidForm},
	}
	for pair := range strings.SplitSeq(args, ";") {
		k, v, _ := strings.Cut(pair, "=")
		f, ok := fields[k]
		if !ok || v == "" {
			continue
		}
		if !f.valid.fits(v) {
			return Pod{}, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: %s=%q is not valid", k, v), "")
		}
		*f.to = v
	}
	return p, nil
}

// attachments converts GC's list and leaves out what could never have been ours.
func attachments(list []types.GCAttachment) []Attachment {
	out := make([]Attachment, 0, len(list))
	for _, a := range list {
		if a := (Attachment{ContainerID: a.ContainerID, IfName: a.IfName}); CheckAttachment(a) == nil {
			out = append(out, a)
		}
	}
	return slices.Clip(out)
}
