// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/kube-cilium/kube-cilium/test/cluster/cgroup"
)

// ErrMachine says that a cluster cannot run on this machine as it is.
var ErrMachine = errors.New("this machine cannot run a cluster")

// Preflight checks all that is needed before anything is built, and reports
// everything that is missing at once, with the remedy.
func Preflight(packages []string) (cgroup.Tree, error) {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "not root (run it as root: it makes namespaces, mounts and cgroups)")
	}
	tree, err := cgroup.Find()
	if err != nil {
		missing = append(missing, err.Error())
	}
	if _, err := exec.LookPath("go"); err != nil {
		missing = append(missing, "no go command on the PATH (install Go, see the README)")
	}
	if absent := absentPackages(packages); len(absent) > 0 {
		missing = append(missing, "packages are missing: apt-get install -y "+strings.Join(absent, " "))
	}
	known, err := os.ReadFile("/proc/filesystems")
	for _, kind := range []string{"overlay", "bpf", "tmpfs"} {
		if err == nil && !strings.Contains(string(known), "\t"+kind+"\n") && exec.Command("modprobe", kind).Run() != nil {
			missing = append(missing, "the kernel has no "+kind+" file system")
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%w:\n  %s", ErrMachine, strings.Join(missing, "\n  "))
	}
	return tree, nil
}

// absentPackages asks dpkg. Where there is no dpkg, what is missing shows when
// it is used.
func absentPackages(packages []string) []string {
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		return nil
	}
	var absent []string
	for _, name := range packages {
		out, err := exec.Command("dpkg-query", "--show", "--showformat=${Status}", name).Output()
		if err != nil || !strings.HasSuffix(string(out), " installed") {
			absent = append(absent, name)
		}
	}
	return absent
}
