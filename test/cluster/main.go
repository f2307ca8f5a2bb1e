// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/test/cluster/cluster"
)

// errSource says that the program was not started inside the repository.
var errSource = errors.New("not inside the repository (run in test/cluster, or say --source)")

//go:embed packages.txt
var packages string

// cacheEnv names the folder that holds what was built and what runs.
const cacheEnv = "KUBE_CILIUM_CACHE"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// onError annotates a verb whose output a shell evaluates, with the line that it writes when it cannot do its work.
const onError = "on-error"

// run is main without the process.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	root := newCommand()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(errOut, "error:", err)
	if line := cmd.Annotations[onError]; line != "" {
		fmt.Fprintln(out, line)
	}
	return 1
}

// app is what every verb needs.
type app struct {
	name, cache, source, version string
}

func newCommand() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "A real Kubernetes on one machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.name, "name", "dev", "name of the cluster")
	flags.StringVar(&a.cache, "cache", "", "folder for built binaries and state (default $"+cacheEnv+", else kube-cilium in the user's cache)")
	flags.StringVar(&a.source, "source", "", "root of the repository (default: found from the current folder)")
	flags.StringVar(&a.version, "version", "", "what our programs in images say they are (default: the images' tag)")
	root.AddCommand(a.up(), a.down(), a.status(), a.kubectlEnv(), a.build(), a.assets(), a.images(), a.loadImages(), a.packages(), a.conformance(),
		a.exec(), a.execOutside(), a.execControlPlane())
	root.AddCommand(hidden()...)
	return root
}

// host finds the folders. The source is looked for only by verbs that build.
func (a *app) host(needSource bool) (*cluster.Host, error) {
	start := time.Now()
	h := &cluster.Host{
		Cache: a.cache, Source: a.source, Version: a.version, Packages: strings.Fields(packages),
		Progress: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
		},
	}
	var err error
	if h.Cache == "" {
		h.Cache = os.Getenv(cacheEnv)
	}
	if h.Cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("cache folder: %w (set %s)", err, cacheEnv)
		}
		h.Cache = filepath.Join(user, "kube-cilium")
	}
	if h.Cache, err = filepath.Abs(h.Cache); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(h.Cache, 0o755); err != nil {
		return nil, err
	}
	if h.Source == "" {
		h.Source = findSource()
	}
	if h.Source == "" && needSource {
		return nil, errSource
	}
	return h, nil
}

// findSource walks up from the current folder to the one that holds this module.
func findSource() string {
	dir, err := os.Getwd()
	for err == nil {
		if _, missing := os.Stat(filepath.Join(dir, "test", "cluster", "packages.txt")); missing == nil {
			return dir
		}
		above := filepath.Dir(dir)
		if above == dir {
			return ""
		}
		dir = above
	}
	return ""
}

// load finds the cluster that --name says.
func (a *app) load() (*cluster.Host, *cluster.State, error) {
	h, err := a.host(false)
	if err != nil {
		return nil, nil, err
	}
	state, err := h.Store().Load(a.name)
	return h, state, err
}
