// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

var (
	// ErrFrame means that the other side does not speak our protocol, or speaks a newer one.
	ErrFrame = errors.New("malformed frame")
	// ErrNoNetns means that the request came without the namespace that its command needs.
	ErrNoNetns = errors.New("no network namespace came with the request")
)

const (
	// Protocol is the version that both sides must speak.
	Protocol = 1
	// MaxFrame bounds a frame, in bytes. GC's list of attachments is the largest: about 130 bytes for each.
	MaxFrame = 1 << 20
)

// Command is one of the CNI specification's verbs.
type Command string

const (
	Add    Command = "ADD"
	Del    Command = "DEL"
	Check  Command = "CHECK"
	Status Command = "STATUS"
	GC     Command = "GC"
)

// Attachment names one interface of one container.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Pod is which pod the container belongs to, as the runtime says.
type Pod struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	// UID is empty with runtimes that do not give it.
	UID string `json:"uid,omitempty"`
}

// Request is what the plugin asks. For ADD and CHECK the namespace comes beside it as a file descriptor.
type Request struct {
	Protocol   int     `json:"protocol"`
	Command    Command `json:"command"`
	CNIVersion string  `json:"cniVersion"`
	Attachment
	// Netns is the namespace's path, for records and messages; the agent never opens it for this request.
	Netns string `json:"netns,omitempty"`
	Pod   Pod    `json:"pod,omitzero"`
	// Valid is GC's list: what is not in it is taken down.
	Valid []Attachment `json:"valid,omitempty"`
	// PrevResult is the result that the runtime remembers, for CHECK.
	PrevResult json.RawMessage `json:"prevResult,omitempty"`
}

// Response is the agent's answer. Error is nil on success.
type Response struct {
	Protocol int `json:"protocol"`
	// Result of ADD, in the form of CNI 1.1.0; the plugin converts it to the version asked for.
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// Error carries a code of the CNI specification.
type Error struct {
	Code    uint   `json:"code"`
	Message string `json:"message"`
	Details string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Message
	}
	return e.Message + ": " + e.Details
}

// SendRequest writes one frame, with the file descriptor of netns on its first byte unless netns is nil.
func SendRequest(c *net.UnixConn, r *Request, netns *os.File) error {
	r.Protocol = Protocol
	frame, err := encode(r)
	if err != nil {
		return err
	}
	var oob []byte
	if netns != nil {
		oob = unix.UnixRights(int(netns.Fd()))
	}
	n, _, err := c.WriteMsgUnix(frame, oob, nil)
	if err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	if n < len(frame) {
		if _, err := c.Write(frame[n:]); err != nil {
			return fmt.Errorf("send request: %w", err)
		}
	}
	return nil
}

// ReceiveRequest reads one frame and the file descriptor that may come with it; the caller closes it. Further
// descriptors are closed here. It returns ErrFrame for what is not a request.
func ReceiveRequest(c *net.UnixConn) (*Request, *os.File, error) {
	head := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(head, oob)
	fds, perr := descriptors(oob[:oobn])
	var netns *os.File
	if len(fds) > 0 {
		netns = os.NewFile(uintptr(fds[0]), "netns")
		for _, fd := range fds[1:] {
			_ = unix.Close(fd)
		}
	}
	req, err := func() (*Request, error) {
		switch {
		case err != nil:
			return nil, fmt.Errorf("receive request: %w", err)
		case perr != nil:
			return nil, fmt.Errorf("%w: %w", ErrFrame, perr)
		case flags&unix.MSG_CTRUNC != 0 || len(fds) > 1:
			return nil, fmt.Errorf("%w: more than one file descriptor", ErrFrame)
		}
		if _, err := io.ReadFull(c, head[n:]); err != nil {
			return nil, fmt.Errorf("%w: length: %w", ErrFrame, err)
		}
		r := new(Request)
		if err := decodeBody(c, head, r); err != nil {
			return nil, err
		}
		if r.Protocol != Protocol {
			return nil, fmt.Errorf("%w: protocol %d, this side speaks %d", ErrFrame, r.Protocol, Protocol)
		}
		return r, nil
	}()
	if err != nil {
		if netns != nil {
			_ = netns.Close()
		}
		return nil, nil, err
	}
	return req, netns, nil
}

// SendResponse writes one frame.
func SendResponse(w io.Writer, r *Response) error {
	r.Protocol = Protocol
	frame, err := encode(r)
	if err != nil {
		return err
	}
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("send response: %w", err)
	}
	return nil
}

// ReceiveResponse reads one frame. It returns ErrFrame for what is not a response.
func ReceiveResponse(r io.Reader) (*Response, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, fmt.Errorf("receive response: %w", err)
	}
	resp := new(Response)
	if err := decodeBody(r, head, resp); err != nil {
		return nil, err
	}
	if resp.Protocol != Protocol {
		return nil, fmt.Errorf("%w: protocol %d, this side speaks %d", ErrFrame, resp.Protocol, Protocol)
	}
	return resp, nil
}

func encode(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if len(body) > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrFrame, len(body), MaxFrame)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	return append(frame, body...), nil
}

// decodeBody reads in steps, so that a length alone makes nobody allocate.
func decodeBody(r io.Reader, head []byte, v any) error {
	n := binary.BigEndian.Uint32(head)
	if n == 0 || n > MaxFrame {
		return fmt.Errorf("%w: %d bytes, want 1 to %d", ErrFrame, n, MaxFrame)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	if len(body) != int(n) {
		return fmt.Errorf("%w: %d of %d bytes came", ErrFrame, len(body), n)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}

// descriptors takes the file descriptors out of control messages and makes them close-on-exec.
func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fds, err
		}
		for _, fd := range got {
			unix.CloseOnExec(fd)
			fds = append(fds, fd)
		}
	}
	return fds, nil
}
