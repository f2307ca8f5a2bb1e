// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// maxQueued bounds one file of the queue, in bytes.
	maxQueued = 4096
	// writtenBy is when no plugin is still at a file that it began to write, however slow the disk.
	writtenBy = 10 * time.Minute
)

// Queue is the folder of the DELs that nobody answered: one file each, so that plugins that run at once do not meet.
// The plugin puts, the agent takes. Putting the same attachment twice leaves one file.
type Queue struct {
	dir string
}

// NewQueue is the queue in a state folder, which need not exist.
func NewQueue(stateDir string) Queue { return Queue{dir: filepath.Join(stateDir, QueueName)} }

func (q Queue) file(a Attachment) string {
	sum := sha256.Sum256([]byte(a.ContainerID + "/" + a.IfName))
	return filepath.Join(q.dir, hex.EncodeToString(sum[:16])+".json")
}

// Put keeps a on disk, for root only.
func (q Queue) Put(a Attachment) error {
	if err := os.MkdirAll(q.dir, 0o700); err != nil {
		return fmt.Errorf("queue DEL: %w", err)
	}
	data, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("queue DEL: %w", err)
	}
	if err := WriteFile(q.file(a), data, 0o600); err != nil {
		return fmt.Errorf("queue DEL: %w", err)
	}
	return nil
}

// Remove takes a away; one that is not there is no error.
func (q Queue) Remove(a Attachment) error {
	if err := os.Remove(q.file(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unqueue DEL: %w", err)
	}
	return nil
}

// removeOld takes away what a plugin wrote that did not live to rename it.
func (q Queue) removeOld(e fs.DirEntry) {
	if info, err := e.Info(); err == nil && e.Type().IsRegular() && time.Since(info.ModTime()) > writtenBy {
		_ = os.Remove(filepath.Join(q.dir, e.Name()))
	}
}

// List returns what is queued. Files that are not ours or are damaged are taken away: they name nobody.
func (q Queue) List() ([]Attachment, error) {
	entries, err := os.ReadDir(q.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("queued DELs: %w", err)
	}
	var out []Attachment
	for _, e := range entries {
		path := filepath.Join(q.dir, e.Name())
		if !strings.HasSuffix(e.Name(), ".json") || !e.Type().IsRegular() {
			q.removeOld(e) // a plugin's temporary file
			continue
		}
		var a Attachment
		info, err := e.Info()
		if err != nil {
			continue
		}
		data := []byte{}
		if info.Size() <= maxQueued {
			data, err = os.ReadFile(path)
		}
		if err != nil || json.Unmarshal(data, &a) != nil || CheckAttachment(a) != nil {
			_ = os.Remove(path)
			continue
		}
		out = append(out, a)
	}
	return out, nil
}
