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
)

// maxQueued bounds one file of the queue, in bytes.
const maxQueued = 4096

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
			continue // a plugin's temporary file
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

// WriteFile writes a whole file or nothing: a temporary file beside it, synced, then renamed over it. The mode holds
// whatever the umask.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return writeFile(path, data, mode, (*os.File).Sync)
}

// WriteFileOfThisBoot is WriteFile for what counts in this boot alone: it outlives every process, and not the machine,
// and so does not wait for the disk.
func WriteFileOfThisBoot(path string, data []byte, mode fs.FileMode) error {
	return writeFile(path, data, mode, func(*os.File) error { return nil })
}

func writeFile(path string, data []byte, mode fs.FileMode, sync func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), sync(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
