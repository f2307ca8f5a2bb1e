// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// timeouts bound how long the plugin waits for the agent's answer; the runtime's own limit is longer.
const (
	dialTimeout = 5 * time.Second
	addTimeout  = 60 * time.Second
	delTimeout  = 20 * time.Second
)

// errAway means that the request did not get an answer; whether the agent acted on it is not known.
var errAway = errors.New("the agent of this node does not answer")

// Functions are the plugin's verbs.
func Functions() skel.CNIFuncs {
	return skel.CNIFuncs{Add: add, Del: del, Check: check, Status: status, GC: gc}
}

func add(args *skel.CmdArgs) error {
	conf, req, err := request(Add, args)
	if err != nil {
		return err
	}
	if conf.RawPrevResult != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult: "+PluginType+" must be the first plugin of its list", "")
	}
	netns, err := openNetns(args.Netns)
	if err != nil {
		return err
	}
	defer netns.Close() //nolint:errcheck // only read
	resp, err := ask(conf, req, netns, addTimeout)
	if err != nil {
		return tryLater(err)
	}
	result, err := types100.NewResult(resp.Result)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "the agent's result", err.Error())
	}
	return types.PrintResult(result, conf.CNIVersion)
}

// del succeeds without the agent: the runtime would keep the sandbox and try for ever, and with every address of a
// full node held by such sandboxes nothing could start, perhaps not even the agent. A namespace that is gone, or a
// configuration that has changed, is no error either.
func del(args *skel.CmdArgs) error {
	conf, req, err := request(Del, args)
	if err != nil {
		return err
	}
	_, err = ask(conf, req, nil, delTimeout)
	if !errors.Is(err, errAway) {
		return err
	}
	queue := NewQueue(conf.StateDir)
	if err := queue.Put(req.Attachment); err != nil {
		return types.NewError(types.ErrIOFailure, "the agent is away and the deletion could not be queued", err.Error())
	}
	// The agent may have read the queue and begun to serve between our two steps: then it answers now.
	if _, err := ask(conf, req, nil, dialTimeout); err == nil {
		_ = queue.Remove(req.Attachment)
	}
	return nil
}

func check(args *skel.CmdArgs) error {
	conf, req, err := request(Check, args)
	if err != nil {
		return err
	}
	if conf.RawPrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult: CHECK needs the result of ADD", "")
	}
	if req.PrevResult, err = json.Marshal(conf.RawPrevResult); err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult", err.Error())
	}
	netns, err := openNetns(args.Netns)
	if err != nil {
		return err
	}
	defer netns.Close() //nolint:errcheck // only read
	if _, err := ask(conf, req, netns, addTimeout); err != nil {
		return tryLater(err)
	}
	return nil
}

func status(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	_, err = ask(conf, &Request{Command: Status, CNIVersion: conf.CNIVersion}, nil, dialTimeout)
	if errors.Is(err, errAway) {
		if WasReady(conf.StateDir) {
			return nil // NotReady would evict pods whose network goes on
		}
		return types.NewError(types.ErrPluginNotAvailable, "the agent of this node has not made the datapath ready since the machine started", err.Error())
	}
	return err
}

func gc(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	req := &Request{Command: GC, CNIVersion: conf.CNIVersion, Valid: attachments(conf.ValidAttachments)}
	if _, err := ask(conf, req, nil, addTimeout); err != nil {
		return tryLater(err)
	}
	return nil
}

// request checks everything that the runtime said.
func request(cmd Command, args *skel.CmdArgs) (*NetConf, *Request, error) {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return nil, nil, err
	}
	a := Attachment{ContainerID: args.ContainerID, IfName: args.IfName}
	if err := CheckAttachment(a); err != nil {
		return nil, nil, err
	}
	if args.Netns != "" || cmd != Del {
		if err := CheckNetns(args.Netns); err != nil {
			return nil, nil, err
		}
	}
	pod, err := ParseArgs(args.Args)
	if err != nil {
		return nil, nil, err
	}
	return conf, &Request{Command: cmd, CNIVersion: conf.CNIVersion, Attachment: a, Netns: args.Netns, Pod: pod}, nil
}

// openNetns opens a network namespace and refuses the plugin's own, which is the host's.
func openNetns(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, "open the pod's network namespace", err.Error())
	}
	if err := notOurs(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func notOurs(f *os.File) error {
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return types.NewError(types.ErrIOFailure, "our network namespace", err.Error())
	}
	theirs, err := f.Stat()
	if err != nil {
		return types.NewError(types.ErrInvalidNetNS, "the pod's network namespace", err.Error())
	}
	o, ok1 := own.Sys().(*syscall.Stat_t)
	t, ok2 := theirs.Sys().(*syscall.Stat_t)
	if !ok1 || !ok2 || o.Dev != t.Dev {
		return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS: %q is not a network namespace", f.Name()), "")
	}
	if o.Ino == t.Ino {
		return types.NewError(types.ErrInvalidNetNS, "CNI_NETNS is the host's own network namespace", "")
	}
	return nil
}

// ask returns errAway when no answer came, and the agent's own error as *types.Error.
func ask(conf *NetConf, req *Request, netns *os.File, timeout time.Duration) (*Response, error) {
	c, err := net.DialTimeout("unix", filepath.Join(conf.SocketDir, SocketName), dialTimeout)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	defer c.Close() //nolint:errcheck // one request a connection
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	if err := SendRequest(c.(*net.UnixConn), req, netns); err != nil {
		if errors.Is(err, ErrFrame) {
			return nil, types.NewError(types.ErrDecodingFailure, err.Error(), "")
		}
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	resp, err := ReceiveResponse(c)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	if e := resp.Error; e != nil {
		return nil, types.NewError(e.Code, e.Message, e.Details)
	}
	return resp, nil
}

// tryLater turns errAway into the specification's code for it.
func tryLater(err error) error {
	if errors.Is(err, errAway) {
		return types.NewError(types.ErrTryAgainLater, "the agent of this node does not answer", err.Error())
	}
	return err
}
