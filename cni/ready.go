// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// bootIDFile changes with each boot of the machine.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// BootID names this boot of the machine.
func BootID() (string, error) {
	id, err := os.ReadFile(bootIDFile)
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// MarkReady notes that the datapath was ready in this boot: from now on pods on this node have their network also
// while the agent is away.
func MarkReady(stateDir, bootID string) error {
	path := filepath.Join(stateDir, ReadyName)
	RemoveUnfinished(path)
	if err := WriteFile(path, []byte(bootID+"\n"), 0o600); err != nil {
		return fmt.Errorf("mark ready: %w", err)
	}
	return nil
}

// WasReady tells whether MarkReady was called in this boot.
func WasReady(stateDir string) bool {
	marked, err := os.ReadFile(filepath.Join(stateDir, ReadyName))
	if err != nil {
		return false
	}
	now, err := BootID()
	return err == nil && now != "" && strings.TrimSpace(string(marked)) == now
}
