// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrSpecs says that a spec failed, or that none ran.
var ErrSpecs = errors.New("conformance")

// Policies are the specs that ask for policy.
const Policies = `\[sig-network\].*(Netpol|NetworkPolicy)`

// sctpTraffic are specs that send SCTP packets; other specs only name it in rules.
const sctpTraffic = `\[Feature:SCTPConnectivity\]`

// end is how long specs may clean up once they were told to stop.
const end = time.Minute

// Run is one run of specs.
type Run struct {
	// Folder holds the binaries conformance and ginkgo.
	Folder              string
	Kubeconfig, Kubectl string
	Focus, Skip         []string
	// Processes is how many specs run at a time.
	Processes int
	// Report is the folder for conformance.xml and conformance.log.
	Report string
	// Progress says one line.
	Progress func(format string, args ...any)
}

// Specs runs the specs and returns what became of them; a failed spec is ErrSpecs.
func (r Run) Specs(ctx context.Context) (Summary, error) {
	report, err := filepath.Abs(r.Report)
	if err != nil {
		return Summary{}, err
	}
	if err := os.MkdirAll(report, 0o755); err != nil {
		return Summary{}, fmt.Errorf("conformance: %w", err)
	}
	scratch, err := os.MkdirTemp("", "conformance-")
	if err != nil {
		return Summary{}, fmt.Errorf("conformance: %w", err)
	}
	defer os.RemoveAll(scratch)
	// ginkgo knows a built suite by its ending.
	suite := filepath.Join(scratch, "e2e.test")
	if err := os.Symlink(filepath.Join(r.Folder, "conformance"), suite); err != nil {
		return Summary{}, fmt.Errorf("conformance: %w", err)
	}
	log, err := os.Create(filepath.Join(report, "conformance.log"))
	if err != nil {
		return Summary{}, fmt.Errorf("conformance: %w", err)
	}
	defer log.Close()

	lines := filepath.Join(scratch, "progress")
	cmd := exec.CommandContext(ctx, filepath.Join(r.Folder, "ginkgo"), r.args(suite, report, lines, r.skipped())...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "KUBECONFIG="+r.Kubeconfig, "KUBECACHEDIR="+filepath.Join(scratch, "kubectl-cache"))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = end
	if err := cmd.Start(); err != nil {
		return Summary{}, fmt.Errorf("conformance: %w", err)
	}
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	summary, err := r.follow(lines, over)
	if summary.Failed > 0 {
		return summary, fmt.Errorf("%w: %d specs failed (%s says why)", ErrSpecs, summary.Failed, log.Name())
	}
	if err != nil {
		return summary, fmt.Errorf("%w: %w (%s says why)", ErrSpecs, err, log.Name())
	}
	if summary.Passed == 0 {
		return summary, fmt.Errorf("%w: no spec is named %s", ErrSpecs, strings.Join(r.Focus, " or "))
	}
	return summary, nil
}

// skipped are the specs to leave out: SCTP traffic where the kernel has none.
func (r Run) skipped() []string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	if err == nil {
		_ = unix.Close(fd)
		return r.Skip
	}
	r.Progress("this kernel has no SCTP (%v): specs that send it are left out", err)
	return append([]string{sctpTraffic}, r.Skip...)
}

func (r Run) args(suite, report, lines string, skip []string) []string {
	args := []string{"run", "--no-color", "--timeout=3h", "--procs=" + strconv.Itoa(r.Processes),
		"--output-dir=" + report, "--junit-report=conformance.xml"}
	for _, f := range r.Focus {
		args = append(args, "--focus="+f)
	}
	for _, s := range skip {
		args = append(args, "--skip="+s)
	}
	return append(args, suite, "--", "--kubeconfig="+r.Kubeconfig, "--kubectl-path="+r.Kubectl, "--provider=skeleton", "--progress-file="+lines)
}

// follow reads what the processes say of each spec until the run is over.
func (r Run) follow(lines string, over <-chan error) (Summary, error) {
	var s Summary
	var read int
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var err error
		var done bool
		select {
		case err = <-over:
			done = true
		case <-tick.C:
		}
		raw, readErr := os.ReadFile(lines)
		if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
			return s, errors.Join(err, readErr)
		}
		whole := bytes.LastIndexByte(raw, '\n') + 1
		for line := range bytes.Lines(raw[read:whole]) {
			said, addErr := s.add(line)
			if addErr != nil {
				return s, errors.Join(err, addErr)
			}
			if said != "" {
				r.Progress("%s", said)
			}
		}
		read = whole
		if done {
			return s, err
		}
	}
}
