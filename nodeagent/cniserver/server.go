// SPDX-License-Identifier: Apache-2.0

package cniserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
)

// errNotRoot means that a process of another user got hold of the socket.
var errNotRoot = errors.New("only root may ask")

const (
	// atOnce bounds the requests that are worked on at the same time; more of them wait.
	atOnce = 16
	// receiveTimeout bounds how long a client may take to say what it wants.
	receiveTimeout = 5 * time.Second
	// workTimeout bounds one request. The plugin waits longer.
	workTimeout = 50 * time.Second
)

// Endpoints is what the verbs act on; *endpoint.Set is one.
type Endpoints interface {
	Add(ctx context.Context, a cni.Attachment, pod cni.Pod, netnsPath string, netns *os.File) (*endpoint.Endpoint, error)
	Delete(ctx context.Context, a cni.Attachment) error
	Check(ctx context.Context, a cni.Attachment, netns *os.File) error
	Keep(ctx context.Context, valid []cni.Attachment) error
}

// Server answers the plugin. Observe, if set, is called after each request.
type Server struct {
	// Dir holds the socket; it is made if missing, for root only.
	Dir       string
	Queue     cni.Queue
	Endpoints Endpoints
	Observe   func(cmd cni.Command, took time.Duration, failed bool)
	Log       logr.Logger
}

// Run works through the queued DELs, then serves until ctx ends. Requests under way are finished first.
func (s *Server) Run(ctx context.Context) error {
	l, err := s.listen()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	if err := s.replay(ctx); err != nil {
		s.Log.Error(err, "queued deletions are tried again later")
	}
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, atOnce)
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			defer c.Close() //nolint:errcheck // one request a connection
			s.serve(ctx, c)
		})
	}
}

// listen takes the socket over from an agent that died: the file is replaced in one step, so that there is no moment
// without a socket once there was one.
func (s *Server) listen() (*net.UnixListener, error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("socket folder: %w", err)
	}
	if err := os.Chmod(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("socket folder: %w", err)
	}
	path := filepath.Join(s.Dir, cni.SocketName)
	fresh := path + ".new"
	_ = os.Remove(fresh)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.SetUnlinkOnClose(false)
	// CVE-2022-29178: who can reach the socket can move any process's network.
	if err = os.Chmod(fresh, 0o600); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

func (s *Server) serve(ctx context.Context, c *net.UnixConn) {
	start := time.Now()
	_ = c.SetDeadline(start.Add(receiveTimeout))
	if err := checkPeer(c); err != nil {
		s.Log.Error(err, "a connection is refused")
		return
	}
	req, netns, err := cni.ReceiveRequest(c)
	if err != nil {
		_ = cni.SendResponse(c, failure(types.NewError(types.ErrDecodingFailure, "request", err.Error())))
		return
	}
	if netns != nil {
		defer netns.Close() //nolint:errcheck // only read
	}
	_ = c.SetDeadline(start.Add(workTimeout + receiveTimeout))
	// An agent that is told to end still finishes what it began.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), workTimeout)
	defer cancel()
	resp := s.answer(work, req, netns)
	if err := cni.SendResponse(c, resp); err != nil {
		s.Log.Error(err, "the plugin did not hear the answer", "command", req.Command, "container", req.ContainerID)
	}
	took := time.Since(start)
	if resp.Error != nil {
		s.Log.Info("a CNI request failed", "command", req.Command, "container", req.ContainerID,
			"pod", req.Pod.Namespace+"/"+req.Pod.Name, "code", resp.Error.Code, "error", resp.Error.Error())
	} else {
		s.Log.V(1).Info("a CNI request is done", "command", req.Command, "container", req.ContainerID,
			"pod", req.Pod.Namespace+"/"+req.Pod.Name, "took", took)
	}
	if s.Observe != nil {
		s.Observe(req.Command, took, resp.Error != nil)
	}
}

// answer never panics the agent: what a request does to it is that request's failure.
func (s *Server) answer(ctx context.Context, req *cni.Request, netns *os.File) (resp *cni.Response) {
	defer func() {
		if r := recover(); r != nil {
			s.Log.Error(fmt.Errorf("panic: %v", r), "a CNI request failed", "command", req.Command)
			resp = failure(types.NewError(types.ErrInternal, "the agent made a mistake", fmt.Sprint(r)))
		}
	}()
	result, err := s.do(ctx, req, netns)
	if err != nil {
		return failure(err)
	}
	return &cni.Response{Result: result}
}

func (s *Server) do(ctx context.Context, req *cni.Request, netns *os.File) (json.RawMessage, error) {
	switch req.Command {
	case cni.Add, cni.Check, cni.Del:
		if err := cni.CheckAttachment(req.Attachment); err != nil {
			return nil, err
		}
	}
	switch req.Command {
	case cni.Add, cni.Check:
		if err := checkNetns(netns); err != nil {
			return nil, err
		}
	}
	switch req.Command {
	case cni.Status:
		return nil, nil // the server runs only when the datapath is ready
	case cni.Add:
		if err := s.replay(ctx); err != nil {
			s.Log.Error(err, "queued deletions are tried again later")
		}
		e, err := s.Endpoints.Add(ctx, req.Attachment, req.Pod, req.Netns, netns)
		if err != nil {
			return nil, err
		}
		return json.Marshal(result(e))
	case cni.Del:
		return nil, s.Endpoints.Delete(ctx, req.Attachment)
	case cni.Check:
		return nil, s.Endpoints.Check(ctx, req.Attachment, netns)
	case cni.GC:
		return nil, errors.Join(s.replay(ctx), s.Endpoints.Keep(ctx, req.Valid))
	}
	return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("command %q is not known", req.Command), "")
}

// replay deletes what plugins queued while no agent answered.
func (s *Server) replay(ctx context.Context) error {
	queued, err := s.Queue.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range queued {
		if err := s.Endpoints.Delete(ctx, a); err != nil {
			errs = append(errs, fmt.Errorf("queued DEL of container %s: %w", a.ContainerID, err))
			continue
		}
		errs = append(errs, s.Queue.Remove(a))
	}
	return errors.Join(errs...)
}

// result is what ADD answers, in the form of CNI 1.1.0.
func result(e *endpoint.Endpoint) *types100.Result {
	sandbox := 1
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: e.Interface, Mac: e.HostMAC.String(), Mtu: e.DeviceMTU},
			{Name: e.IfName, Mac: e.MAC.String(), Mtu: e.DeviceMTU, Sandbox: e.Netns},
		},
	}
	for _, ip := range e.Addresses() {
		gw := endpoint.Gateway(ipam.FamilyOf(ip)).AsSlice()
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: &sandbox, Gateway: gw,
			Address: net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())},
		})
		all := netip.PrefixFrom(ip, 0).Masked()
		r.Routes = append(r.Routes, &types.Route{
			Dst: net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, ip.BitLen())}, GW: gw,
		})
	}
	return r
}

// failure gives every error the specification's code for it.
func failure(err error) *cni.Response {
	var coded *types.Error
	code := types.ErrInternal
	switch {
	case errors.As(err, &coded):
		return &cni.Response{Error: &cni.Error{Code: coded.Code, Message: coded.Msg, Details: coded.Details}}
	case errors.Is(err, endpoint.ErrExists):
		code = cni.CodeExists
	case errors.Is(err, endpoint.ErrNotAsAdded):
		code = cni.CodeNotAsAdded
	case errors.Is(err, endpoint.ErrUnknown):
		code = types.ErrUnknownContainer
	case errors.Is(err, endpoint.ErrNotReady), errors.Is(err, endpoint.ErrFull), errors.Is(err, ipam.ErrExhausted),
		errors.Is(err, ipam.ErrNoPrefix), errors.Is(err, context.DeadlineExceeded):
		code = types.ErrTryAgainLater
	}
	return &cni.Response{Error: &cni.Error{Code: code, Message: err.Error()}}
}

// checkPeer asks the kernel who is at the other end: the file's mode alone does not bind a descriptor that was passed on.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return fmt.Errorf("peer credentials: %w", err)
	}
	if cerr != nil {
		return fmt.Errorf("peer credentials: %w", cerr)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("%w: uid %d, pid %d", errNotRoot, cred.Uid, cred.Pid)
	}
	return nil
}

// checkNetns refuses what is no network namespace, and the agent's own.
func checkNetns(netns *os.File) error {
	if netns == nil {
		return types.NewError(types.ErrInvalidNetNS, cni.ErrNoNetns.Error(), "")
	}
	kind, err := unix.IoctlRetInt(int(netns.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return types.NewError(types.ErrInvalidNetNS, "CNI_NETNS is not a network namespace", "")
	}
	// Of this thread, not of the process: its first thread may be inside a pod at this moment.
	own, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return types.NewError(types.ErrIOFailure, "the agent's network namespace", err.Error())
	}
	theirs, err := netns.Stat()
	if err != nil {
		return types.NewError(types.ErrInvalidNetNS, "the pod's network namespace", err.Error())
	}
	if own.Sys().(*syscall.Stat_t).Ino == theirs.Sys().(*syscall.Stat_t).Ino {
		return types.NewError(types.ErrInvalidNetNS, "CNI_NETNS is the host's own network namespace", "")
	}
	return nil
}
