// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrTorn means that a file ends before what was written to it does, or holds something else: the machine stopped before
// it was on the disk, and so it is of an earlier boot.
var ErrTorn = errors.New("it was not on the disk when the machine stopped")

// WriteFile writes a whole file or nothing: a temporary file beside it, synced, then renamed over it. The mode holds
// whatever the umask. Who dies in it leaves the temporary file: see RemoveUnfinished.
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

// ReadFileOfThisBoot reads JSON that WriteFileOfThisBoot has written. It returns fs.ErrNotExist, or ErrTorn once: such a
// file is removed. Whether it is of this boot is for the caller to see in it.
func ReadFileOfThisBoot(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	err = json.Unmarshal(data, into)
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		_ = os.Remove(path)
		return fmt.Errorf("%w: %w", ErrTorn, err)
	}
	return err
}

// TakeUpFileOfThisBoot is ReadFileOfThisBoot for who alone writes path, before its first write: what the process before it
// has left unfinished goes.
func TakeUpFileOfThisBoot(path string, into any) error {
	RemoveUnfinished(path)
	_ = os.Remove(path + ".new") // what the release before this one wrote first
	return ReadFileOfThisBoot(path, into)
}

// RemoveUnfinished takes away what processes that died while they wrote path have left beside it. Only for who alone
// writes path, before its first write.
func RemoveUnfinished(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return // nothing is there, or nothing can be done; the writer will say so
	}
	for _, e := range entries {
		random, ok := strings.CutPrefix(e.Name(), "."+filepath.Base(path)+".")
		if ok && random != "" && strings.Trim(random, "0123456789") == "" {
			_ = os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}
