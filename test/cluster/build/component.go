// SPDX-License-Identifier: Apache-2.0

package build

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// ErrModule says that a component's go.mod does not require what it should.
var ErrModule = errors.New("module is not required")

// Component is what one module under components/ builds.
type Component struct {
	// Name is the folder under components/.
	Name string
	// Packages are main packages; the binary has the name of the last path
	// element unless Output says otherwise.
	Packages []string
	Output   string
	// Tags are build tags. Cgo is on only where the component needs it.
	Tags string
	Cgo  bool
	// Unlinked keeps the binaries out of bin/: a plugin named bridge must not
	// shadow the bridge command of someone who has bin/ on the PATH.
	Unlinked bool
	// Module is the required module whose version is the component's.
	Module string
	// LDFlags may hold {version}, {major} and {minor}.
	LDFlags string
	// Minutes is how long a first build takes on two cores, for people.
	Minutes string
}

const kubeVersion = "-X k8s.io/component-base/version."

// Components returns everything that a cluster needs, quickest first.
func Components() []Component {
	return []Component{
		{
			Name: "runc", Module: "github.com/opencontainers/runc", Minutes: "half a minute",
			Packages: []string{"github.com/opencontainers/runc"}, Tags: "seccomp", Cgo: true,
		},
		{
			Name: "cni", Module: "github.com/containernetworking/plugins", Minutes: "half a minute", Unlinked: true,
			Packages: []string{
				"github.com/containernetworking/plugins/plugins/main/bridge",
				"github.com/containernetworking/plugins/plugins/main/loopback",
				"github.com/containernetworking/plugins/plugins/main/ptp",
				"github.com/containernetworking/plugins/plugins/ipam/host-local",
				"github.com/containernetworking/plugins/plugins/meta/portmap",
			},
		},
		{
			Name: "etcd", Module: "go.etcd.io/etcd/server/v3", Minutes: "a minute",
			Packages: []string{"go.etcd.io/etcd/server/v3"}, Output: "etcd",
		},
		{
			Name: "coredns", Module: "github.com/coredns/coredns", Minutes: "one or two minutes",
			Packages: []string{"."}, Output: "coredns",
		},
		{
			Name: "containerd", Module: "github.com/containerd/containerd/v2", Minutes: "two or three minutes",
			Packages: []string{
				"github.com/containerd/containerd/v2/cmd/containerd",
				"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
				"github.com/containerd/containerd/v2/cmd/ctr",
			},
			Tags:    "no_btrfs no_devmapper no_zfs no_aufs",
			LDFlags: "-X github.com/containerd/containerd/v2/version.Version={version}",
		},
		{
			Name: "kubernetes", Module: "k8s.io/kubernetes", Minutes: "about ten minutes",
			Packages: []string{
				"k8s.io/kubernetes/cmd/kube-apiserver",
				"k8s.io/kubernetes/cmd/kubectl",
				"k8s.io/kubernetes/cmd/kube-controller-manager",
				"k8s.io/kubernetes/cmd/kube-scheduler",
				"k8s.io/kubernetes/cmd/kubelet",
				"k8s.io/kubernetes/cmd/kube-proxy",
				"k8s.io/kubernetes/test/images/agnhost",
			},
			LDFlags: kubeVersion + "gitVersion={version} " + kubeVersion + "gitMajor={major} " + kubeVersion + "gitMinor={minor} " +
				kubeVersion + "gitTreeState=clean " + kubeVersion + "gitCommit={version}",
		},
	}
}

// Conformance is what runs Kubernetes' NetworkPolicy specs; no cluster needs it. The second package is what runs several
// of the first at a time.
func Conformance() Component {
	return Component{
		Name: "conformance", Module: "k8s.io/kubernetes", Minutes: "some five minutes", Unlinked: true,
		Packages: []string{".", "github.com/onsi/ginkgo/v2/ginkgo"},
		LDFlags:  kubeVersion + "gitVersion={version}",
	}
}

// Version returns the version of the component's module, as its go.mod has it.
func (c Component) Version(folder string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(folder, c.Name, "go.mod"))
	if err != nil {
		return "", fmt.Errorf("component %s: %w", c.Name, err)
	}
	match := regexp.MustCompile(`(?m)^\s*(?:require\s+)?` + regexp.QuoteMeta(c.Module) + `\s+(v\S+)`).FindSubmatch(raw)
	if match == nil {
		return "", fmt.Errorf("component %s: %s: %w", c.Name, c.Module, ErrModule)
	}
	return string(match[1]), nil
}

// args is the go command's line but for the output folder.
func (c Component) args(version string) []string {
	numbers := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	numbers = append(numbers, "", "")
	flags := strings.NewReplacer("{version}", version, "{major}", numbers[0], "{minor}", numbers[1]).Replace(c.LDFlags)
	args := []string{"build", "-trimpath", "-buildvcs=false"}
	if c.Tags != "" {
		args = append(args, "-tags", c.Tags)
	}
	return append(args, "-ldflags", strings.TrimSpace("-s -w "+flags))
}

// Key is a hash of all that decides the component's binaries.
func (c Component) Key(folder string) (string, error) {
	version, err := c.Version(folder)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH, c.Cgo, c.args(version), c.Packages, c.Output)
	files, err := filepath.Glob(filepath.Join(folder, c.Name, "*"))
	if err != nil {
		return "", fmt.Errorf("component %s: %w", c.Name, err)
	}
	slices.Sort(files)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("component %s: %w", c.Name, err)
		}
		fmt.Fprintln(sum, filepath.Base(file), len(raw))
		sum.Write(raw)
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}
