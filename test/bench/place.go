// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// errEnded means that a worker closed its output before it answered.
var errEnded = errors.New("it closed its output")

// place is a network namespace in which a worker can run.
type place struct {
	// enter is the command line in front of what runs there.
	enter []string
	ips   map[string]string // family -> address
	// procs is the cgroup.procs file of the pod's cgroup2, where the socket programs see it; empty: none.
	procs string
}

func (p place) command(args ...string) *exec.Cmd {
	line := append(append([]string{}, p.enter...), args...)
	return exec.Command(line[0], line[1:]...)
}

// netns is a namespace of this machine by name.
func netns(name string) place { return place{enter: []string{"nsenter", "--net=/run/netns/" + name}} }

// sh runs a command line and returns its output; words are split at spaces.
func sh(line string) (string, error) {
	f := strings.Fields(line)
	return output(exec.Command(f[0], f[1:]...))
}

func output(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// all runs command lines until one fails.
func all(lines ...string) error {
	for _, l := range lines {
		if _, err := sh(l); err != nil {
			return err
		}
	}
	return nil
}

// process is a worker that runs in a place.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// start runs this program in the place, before everything else on the machine: what else runs here should not
// decide a ratio. Of cgroups it enters none but one in cgroup2, a pod's or one as deep, so that every shape's workers are scheduled alike.
func (p place) start(args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	first := place{enter: append([]string{"nice", "-n", "-20"}, p.enter...)}
	cmd := first.command(append([]string{self}, args...)...)
	cmd.Stderr = os.Stderr
	// The runtime's preemption is a signal, which would cut blocking system calls short.
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", strings.Join(cmd.Args, " "), err)
	}
	w := &process{cmd: cmd, in: in, out: bufio.NewScanner(out)}
	if p.procs != "" {
		if err := os.WriteFile(p.procs, []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			w.stop()
			return nil, fmt.Errorf("enter the pod's cgroup: %w", err)
		}
	}
	return w, nil
}

// serve starts a server on CPU 0 and waits until it listens.
func (p place) serve() (*process, error) {
	w, err := p.start("server", "0")
	if err != nil {
		return nil, err
	}
	if !w.out.Scan() || w.out.Text() != "ready" {
		w.stop()
		return nil, errors.New("the server did not start")
	}
	return w, nil
}

// stop closes the worker's stdin, which ends it, and waits.
func (p *process) stop() {
	_ = p.in.Close()
	_ = p.cmd.Wait()
}

func (p *process) do(j job) (tally, error) {
	b, _ := json.Marshal(j)
	if _, err := p.in.Write(append(b, '\n')); err != nil {
		return tally{}, err
	}
	if !p.out.Scan() {
		return tally{}, fmt.Errorf("worker ended: %w", errors.Join(p.out.Err(), errEnded))
	}
	var t tally
	if err := json.Unmarshal(p.out.Bytes(), &t); err != nil {
		return tally{}, err
	}
	if t.Error != "" {
		return t, fmt.Errorf("%s to %s: %s", j.Kind, j.Dst, t.Error)
	}
	return t, nil
}
