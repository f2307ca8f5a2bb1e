// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// errFull means that the archive would become larger than allowed.
var errFull = errors.New("the archive is full (--max-size)")

// archive is a .tar.gz or, by its name, a .zip. It appears under its name when it is whole. It is safe for use by several
// goroutines.
type archive struct {
	mu    sync.Mutex
	path  string
	file  *os.File
	add   func(name string, data []byte) error
	close func() error
	// left is how many bytes, before compression, may still come in.
	left  int64
	files []entry
}

// entry is one file in the archive.
type entry struct {
	name string
	size int
}

// newArchive refuses a name that exists. Everything in it lies in one folder.
func newArchive(path, folder string, limit int64, now time.Time) (*archive, error) {
	if _, err := os.Stat(path); err == nil {
		return nil, fmt.Errorf("%s exists already", path)
	}
	// 0600: what is in it concerns whoever may read the cluster.
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return nil, err
	}
	a := &archive{path: path, file: file, left: limit}
	if strings.HasSuffix(path, ".zip") {
		z := zip.NewWriter(file)
		a.close = z.Close
		a.add = func(name string, data []byte) error {
			w, err := z.CreateHeader(&zip.FileHeader{Name: folder + "/" + name, Method: zip.Deflate, Modified: now})
			if err != nil {
				return err
			}
			_, err = w.Write(data)
			return err
		}
		return a, nil
	}
	g := gzip.NewWriter(file)
	t := tar.NewWriter(g)
	a.close = func() error { return errors.Join(t.Close(), g.Close()) }
	a.add = func(name string, data []byte) error {
		err := t.WriteHeader(&tar.Header{Name: folder + "/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: now, Format: tar.FormatPAX})
		if err != nil {
			return err
		}
		_, err = t.Write(data)
		return err
	}
	return a, nil
}

// put adds a file. It returns errFull where it does not fit.
func (a *archive) put(name string, data []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if int64(len(data)) > a.left {
		return errFull
	}
	a.left -= int64(len(data))
	a.files = append(a.files, entry{name, len(data)})
	return a.add(name, data)
}

// putLast adds a file whatever the limit says: the summary always fits.
func (a *archive) putLast(name string, data []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.add(name, data)
}

// finish gives the archive its name.
func (a *archive) finish() error {
	err := errors.Join(a.close(), a.file.Sync(), a.file.Close())
	if err == nil {
		err = os.Rename(a.file.Name(), a.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(a.file.Name()))
	}
	return nil
}

// drop leaves nothing behind.
func (a *archive) drop() error { return errors.Join(a.file.Close(), os.Remove(a.file.Name())) }

// limited reads at most limit bytes and says whether there was more.
func limited(r io.Reader, limit int64) (data []byte, cut bool, err error) {
	data, err = io.ReadAll(io.LimitReader(r, limit+1))
	if int64(len(data)) > limit {
		return data[:limit], true, err
	}
	return data, false, err
}
