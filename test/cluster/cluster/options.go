// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/kube-cilium/kube-cilium/test/cluster/ranges"
)

// ErrOption says that an option of up has a value that it cannot have.
var ErrOption = errors.New("bad option")

// Kinds of pod network that up can install.
const (
	CNIOurs   = "ours"
	CNIBridge = "bridge"
	CNINone   = "none"
)

// Options are what a cluster is asked to be.
type Options struct {
	Name      string        `json:"name"`
	Workers   int           `json:"workers"`
	Family    ranges.Family `json:"ipFamily"`
	KubeProxy string        `json:"kubeProxy"`
	CNI       string        `json:"cni"`
	// Lag delays the watch events of slices and identities on their way to agents.
	Lag         time.Duration `json:"lag,omitempty"`
	CutSegments bool          `json:"cutSegments,omitempty"`
	Uplinks     int           `json:"uplinks"`
	// CiliumConfig is a file to apply instead of the generated object.
	CiliumConfig string `json:"ciliumConfig,omitempty"`
	// Timeout bounds each wait for the cluster to become ready.
	Timeout time.Duration `json:"timeout"`
}

// namePattern keeps every derived name short: kc-NAME-outside is a file name,
// a cgroup and part of a label.
var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`)

// CheckName reports whether a name may be a cluster's.
func CheckName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%w: --name %q (at most 20 of a-z, 0-9 and -, not at the ends)", ErrOption, name)
	}
	return nil
}

// Complete fills in what follows from other options.
func (o *Options) Complete() {
	if o.KubeProxy == "" {
		o.KubeProxy = "none"
		if o.CNI == CNIBridge {
			o.KubeProxy = "nftables"
		}
	}
}

// Validate says the first thing that is wrong, by the flag's name.
func (o Options) Validate() error {
	if err := CheckName(o.Name); err != nil {
		return err
	}
	if o.Workers < 0 || o.Workers > ranges.MaxWorkers {
		return fmt.Errorf("%w: --workers %d (0 to %d)", ErrOption, o.Workers, ranges.MaxWorkers)
	}
	for _, choice := range []struct {
		flag, value string
		allowed     []string
	}{
		{"--ip-family", string(o.Family), []string{"ipv4", "ipv6", "dual"}},
		{"--kube-proxy", o.KubeProxy, []string{"none", "iptables", "nftables"}},
		{"--cni", o.CNI, []string{CNIOurs, CNIBridge, CNINone}},
	} {
		if !slices.Contains(choice.allowed, choice.value) {
			return fmt.Errorf("%w: %s %q (one of %v)", ErrOption, choice.flag, choice.value, choice.allowed)
		}
	}
	if o.Uplinks != 1 && o.Uplinks != 2 {
		return fmt.Errorf("%w: --uplinks %d (1 or 2)", ErrOption, o.Uplinks)
	}
	if o.Lag < 0 || o.Lag > time.Minute {
		return fmt.Errorf("%w: --lag %s (0 to 1m)", ErrOption, o.Lag)
	}
	if o.CNI != CNIOurs && (o.Lag > 0 || o.CiliumConfig != "") {
		return fmt.Errorf("%w: --lag and --cilium-config need --cni ours", ErrOption)
	}
	return nil
}
