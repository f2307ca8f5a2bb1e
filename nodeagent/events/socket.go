// SPDX-License-Identifier: Apache-2.0

package events

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// ErrAgentAway means that nobody serves the socket: the agent is not running or not yet that far.
var ErrAgentAway = errors.New("the agent does not serve events")

// SocketPath is where the agent serves events.
const SocketPath = "/run/kube-cilium/inspect/events.sock"

const (
	// maxClients bounds what many readers can cost the agent.
	maxClients = 16
	// clientQueue is how many events may wait for one reader.
	clientQueue = 2048
	// requestTimeout and writeTimeout bound how long a client may do nothing.
	requestTimeout = 5 * time.Second
	writeTimeout   = 10 * time.Second
	// maxRequest and maxMessage bound a line, in bytes.
	maxRequest = 4 << 10
	maxMessage = 64 << 10
)

// Request is the one line that a client writes.
type Request struct {
	// Last asks for that many past events first.
	Last int `json:"last,omitempty"`
	// Follow asks for those to come as well.
	Follow bool `json:"follow,omitempty"`
	// Types wanted; none means all.
	Types []flow.Type `json:"types,omitempty"`
}

func (r *Request) wants(e *flow.Event) bool {
	for _, t := range r.Types {
		if t == e.Type {
			return true
		}
	}
	return len(r.Types) == 0
}

// Server hands events to local processes of root over a unix socket.
type Server struct {
	Reader *Reader
	// Path of the socket; SocketPath unless said.
	Path string
	Log  logr.Logger
}

// Run serves until ctx is done. A socket that a dead agent left behind is replaced.
func (s *Server) Run(ctx context.Context) error {
	l, err := listen(s.path())
	if err != nil {
		return fmt.Errorf("serve events: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var clients sync.WaitGroup
	defer clients.Wait()
	slots := make(chan struct{}, maxClients)
	for {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve events: accept: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			s.Log.Info("turned a reader of events away", "readers", maxClients)
			_ = conn.Close()
			continue
		}
		clients.Go(func() {
			defer func() { <-slots }()
			if err := s.serve(ctx, conn); err != nil {
				s.Log.V(1).Info("a reader of events is gone", "error", err.Error())
			}
		})
	}
}

func (s *Server) path() string {
	if s.Path == "" {
		return SocketPath
	}
	return s.Path
}

// listen makes the socket under a passing name, so that it is never there with another mode than 0600.
func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	passing := path + ".new"
	if err := os.Remove(passing); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: passing, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name may be a successor's by then
	if err := errors.Join(os.Chmod(passing, 0o600), os.Rename(passing, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (s *Server) serve(ctx context.Context, conn *net.UnixConn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := fromRoot(conn); err != nil {
		s.Log.Info("refused a reader of events", "reason", err.Error())
		return err
	}
	req, err := readRequest(conn)
	if err != nil {
		return err
	}
	past, sub := s.Reader.Subscribe(req.Last, clientQueue)
	defer sub.Close()
	w := &messageWriter{conn: conn, buf: bufio.NewWriterSize(conn, 32<<10)}
	for i := range past {
		if req.wants(&past[i]) {
			s.Reader.decided(&past[i])
			if err := w.write(flow.Message{Event: &past[i]}); err != nil {
				return err
			}
		}
	}
	if err := w.flush(); err != nil || !req.Follow {
		return err
	}
	// A client says nothing more; reading tells when it has hung up.
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		sub.Close()
	}()
	return s.follow(sub, req, w)
}

func (s *Server) follow(sub *Subscription, req *Request, w *messageWriter) error {
	for e := range sub.C() {
		if n := sub.TakeLost(); n > 0 {
			if err := w.write(flow.Message{Lost: n}); err != nil {
				return err
			}
		}
		if req.wants(&e) {
			s.Reader.decided(&e)
			if err := w.write(flow.Message{Event: &e}); err != nil {
				return err
			}
		}
		if len(sub.C()) == 0 {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return w.flush()
}

// fromRoot refuses anybody but root: the socket's mode does already, unless somebody changed it.
func fromRoot(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("peer credentials: %w", credErr)
	}
	if cred.Uid != 0 && cred.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("user %d is not root", cred.Uid)
	}
	return nil
}

func readRequest(conn net.Conn) (*Request, error) {
	if err := conn.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return nil, err
	}
	// One byte at a time past the line would be the client's fault; there is none.
	line, err := bufio.NewReader(io.LimitReader(conn, maxRequest)).ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	var req Request
	if err := json.Unmarshal(line, &req); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	return &req, conn.SetReadDeadline(time.Time{})
}

type messageWriter struct {
	conn net.Conn
	buf  *bufio.Writer
}

func (w *messageWriter) write(m flow.Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := w.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err = w.buf.Write(append(line, '\n'))
	return err
}

func (w *messageWriter) flush() error {
	if err := w.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	return w.buf.Flush()
}

// Read asks the agent behind the socket at path and calls each for every message until there are no more, ctx is
// done or each returns an error. It returns ErrAgentAway when nobody serves the socket.
func Read(ctx context.Context, path string, req Request, each func(flow.Message) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w at %s", ErrAgentAway, path)
	}
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4096), maxMessage)
	for lines.Scan() {
		var m flow.Message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if err := each(m); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	return nil
}
