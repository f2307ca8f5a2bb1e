// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// confDir is where the inspect container sees the runtime's CNI configurations.
const confDir = "/host/etc/cni/net.d"

// maxConf bounds a configuration, in bytes: the runtime reads far smaller ones.
const maxConf = 1 << 20

// cniConf is one configuration. Others' hold kubeconfigs and passwords at times, so only fields that say which network it
// is are told.
type cniConf struct {
	File     string    `json:"file"`
	Modified time.Time `json:"modified"`
	Bytes    int64     `json:"bytes"`
	// Error says why the rest could not be read.
	Error string `json:"error,omitempty"`
	// Conf is what may be told of the file.
	*confFields
}

type confFields struct {
	CNIVersion  string       `json:"cniVersion,omitempty"`
	CNIVersions []string     `json:"cniVersions,omitempty"`
	Name        string       `json:"name,omitempty"`
	Type        string       `json:"type,omitempty"`
	Plugins     []confPlugin `json:"plugins,omitempty"`
	Delegates   []confFields `json:"delegates,omitempty"`
}

type confPlugin struct {
	Type         string          `json:"type"`
	MTU          json.Number     `json:"mtu,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
	IPAM         *struct {
		Type string `json:"type"`
	} `json:"ipam,omitempty"`
}

func cniCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "cni",
		Short: "List the runtime's CNI configurations by name and type, without what may be secret",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := readConfs(dir)
			if err != nil {
				return err
			}
			return write(cmd.OutOrStdout(), all)
		},
	}
	cmd.Flags().StringVar(&dir, "cni-conf-dir", confDir, "where the container runtime looks for configurations")
	return cmd
}

// readConfs looks at the files that a runtime would, in its order.
func readConfs(dir string) ([]cniConf, error) {
	files, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("CNI configurations: %w", err)
	}
	all := []cniConf{}
	for _, f := range files {
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(f.Name())) {
			continue
		}
		c := cniConf{File: f.Name()}
		if err := c.read(filepath.Join(dir, f.Name())); err != nil {
			c.Error = err.Error()
		}
		all = append(all, c)
	}
	return all, nil
}

func (c *cniConf) read(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	c.Modified, c.Bytes = info.ModTime().UTC(), info.Size()
	if !info.Mode().IsRegular() || info.Size() > maxConf {
		return fmt.Errorf("not a file of at most %d bytes", maxConf)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	c.confFields = &confFields{}
	if err := json.Unmarshal(text, c.confFields); err != nil {
		c.confFields = nil
		return errors.New("not JSON of a CNI configuration") // the decoder would quote what it found
	}
	return nil
}
