// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// restartDelay is the pause before a service that ended is started again.
const restartDelay = time.Second

// supervisor runs processes as the first process of a PID namespace has to:
// it also collects every orphan, so nobody else may wait for a child.
type supervisor struct {
	log string
	env []string

	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

func newSupervisor(logs string, env []string) *supervisor {
	s := &supervisor{log: logs, env: env, waiting: map[int]chan syscall.WaitStatus{}}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	go func() {
		for range signals {
			s.collect()
		}
	}()
	return s
}

type process struct {
	pid   int
	ended <-chan syscall.WaitStatus
}

// collect reaps all that has ended. One signal may stand for many ends.
func (s *supervisor) collect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if ended, ours := s.waiting[pid]; ours {
			ended <- status
			delete(s.waiting, pid)
		}
	}
}

// start runs a program with its output appended to NAME.log. The lock is held
// until the PID is known, or a quick end would be collected as an orphan's.
func (s *supervisor) start(name string, args ...string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(s.log, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		return nil, err
	}
	defer null.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec(args[0], args, &syscall.ProcAttr{
		Dir: "/", Env: s.env, Files: []uintptr{null.Fd(), log.Fd(), log.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	ended := make(chan syscall.WaitStatus, 1)
	s.waiting[pid] = ended
	return &process{pid: pid, ended: ended}, nil
}

// run waits for a program to end well.
func (s *supervisor) run(name string, args ...string) error {
	p, err := s.start(name, args...)
	if err != nil {
		return err
	}
	if status := <-p.ended; status != 0 {
		return fmt.Errorf("%s: exit status %d, signal %d (see %s.log)", name, status.ExitStatus(), status.Signal(), name)
	}
	return nil
}

// keep runs a service for as long as the node lives.
func (s *supervisor) keep(name string, args ...string) error {
	p, err := s.start(name, args...)
	if err != nil {
		return err
	}
	go func() {
		for {
			status := <-p.ended
			fmt.Fprintf(os.Stderr, "%s %s ended: exit status %d, signal %d; starting it again\n",
				time.Now().UTC().Format(time.RFC3339), name, status.ExitStatus(), status.Signal())
			time.Sleep(restartDelay)
			if p, err = s.start(name, args...); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
		}
	}()
	return nil
}
