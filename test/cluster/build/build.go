// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Cache is where built binaries stay: components/NAME-KEY/, and in bin/ a link
// to the newest of each, for people and for other tools.
type Cache struct {
	Dir string
	// Components is the folder with a Go module per component.
	Components string
	// Progress says what is being done, one line each.
	Progress func(format string, args ...any)
}

// Binaries finds built binaries by name.
type Binaries map[string]string

// All returns every component's binaries, building what is not there.
func (c Cache) All(ctx context.Context) (Binaries, error) {
	found := Binaries{}
	for _, component := range Components() {
		dir, err := c.Folder(ctx, component)
		if err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("component %s: %w", component.Name, err)
		}
		for _, e := range entries {
			found[e.Name()] = filepath.Join(dir, e.Name())
		}
	}
	return found, nil
}

// Folder returns the folder of a component's binaries, building it if it is not there.
func (c Cache) Folder(ctx context.Context, component Component) (string, error) {
	key, err := component.Key(c.Components)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(c.Dir, "components", component.Name+"-"+key)
	unlock, err := lock(filepath.Join(c.Dir, "components"), component.Name+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, c.link(component, dir)
	}
	if err := c.build(ctx, component, dir); err != nil {
		return "", err
	}
	return dir, c.link(component, dir)
}

// build builds into a folder beside dir and renames it: dir is whole or not there.
func (c Cache) build(ctx context.Context, component Component, dir string) error {
	version, err := component.Version(c.Components)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(filepath.Dir(dir), component.Name+".building-")
	if err != nil {
		return fmt.Errorf("build %s: %w", component.Name, err)
	}
	defer os.RemoveAll(scratch)
	if err := os.Chmod(scratch, 0o755); err != nil {
		return fmt.Errorf("build %s: %w", component.Name, err)
	}
	output := scratch + "/"
	if component.Output != "" {
		output += component.Output
	}
	args := append(component.args(version), "-o", output)
	cmd := exec.CommandContext(ctx, "go", append(args, component.Packages...)...)
	cmd.Dir = filepath.Join(c.Components, component.Name)
	cgo := "0"
	if component.Cgo {
		cgo = "1"
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOWORK=off", "GOOS=linux", "GOFLAGS=")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out

	start := time.Now()
	c.Progress("building %s %s (the first time %s on two cores)", component.Name, version, component.Minutes)
	stop := every(15*time.Second, func() {
		c.Progress("building %s %s: %s so far", component.Name, version, time.Since(start).Round(time.Second))
	})
	err = cmd.Run()
	stop()
	if err != nil {
		return fmt.Errorf("build %s %s: %w\n%s", component.Name, version, err, bytes.TrimSpace(out.Bytes()))
	}
	c.Progress("built %s %s in %s", component.Name, version, time.Since(start).Round(time.Second))
	if err := os.Rename(scratch, dir); err != nil {
		return fmt.Errorf("build %s: %w", component.Name, err)
	}
	return nil
}

// link points bin/NAME at each binary of dir.
func (c Cache) link(component Component, dir string) error {
	if component.Unlinked {
		return nil
	}
	bin := filepath.Join(c.Dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	for _, e := range entries {
		target, name := filepath.Join(dir, e.Name()), filepath.Join(bin, e.Name())
		if now, err := os.Readlink(name); err == nil && now == target {
			continue
		}
		fresh := name + ".new"
		if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cache: %w", err)
		}
		if err := os.Symlink(target, fresh); err != nil {
			return fmt.Errorf("cache: %w", err)
		}
		if err := os.Rename(fresh, name); err != nil {
			return fmt.Errorf("cache: %w", err)
		}
	}
	return nil
}

// lock takes a file lock that ends with the process, so that two runs do not
// build the same thing at once.
func lock(dir, name string) (func(), error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// every calls act each interval until the returned function is called.
func every(interval time.Duration, act func()) (stop func()) {
	ticker, done := time.NewTicker(interval), make(chan struct{})
	go func() {
		for {
			select {
			case <-ticker.C:
				act()
			case <-done:
				return
			}
		}
	}()
	return func() { ticker.Stop(); close(done) }
}

// Source returns the folder of a component's own source in the module cache.
func (c Cache) Source(ctx context.Context, name string) (string, error) {
	for _, component := range Components() {
		if component.Name != name {
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", component.Module)
		cmd.Dir = filepath.Join(c.Components, name)
		cmd.Env = append(os.Environ(), "GOWORK=off")
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("source of %s: %w", name, err)
		}
		var module struct{ Dir string }
		if err := json.Unmarshal(out, &module); err != nil {
			return "", fmt.Errorf("source of %s: %w", name, err)
		}
		return module.Dir, nil
	}
	return "", fmt.Errorf("component %s: %w", name, ErrModule)
}
