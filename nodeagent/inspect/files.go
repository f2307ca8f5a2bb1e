// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/nodeagent"
)

// nodeFiles says where the agent and the plugin keep files on a node. The directories themselves may be mount points,
// and the runtime's are not ours: only what is in them goes.
type nodeFiles struct {
	binDir, confDir, stateDir, socketDir string
}

// removeConfiguration comes before the datapath goes: from then on the runtime adds no pod.
func (f *nodeFiles) removeConfiguration() error {
	return removeFile(filepath.Join(f.confDir, nodeagent.ConfName))
}

func (f *nodeFiles) removeRest() error {
	return errors.Join(
		removeFile(filepath.Join(f.binDir, cni.PluginType)),
		emptyFolder(f.stateDir),
		emptyFolder(f.socketDir),
	)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %w", err)
	}
	return nil
}

func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("empty %w", err)
	}
	var errs []error
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("empty %w", err))
		}
	}
	return errors.Join(errs...)
}
