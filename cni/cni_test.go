// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// pair is two ends of a unix socket.
func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	return conns[0], conns[1]
}

func TestRequestCarriesItsNamespace(t *testing.T) {
	a, b := pair(t)
	file, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // only read
	sent := &Request{Command: Add, CNIVersion: "1.1.0", Attachment: Attachment{ContainerID: "c", IfName: "eth0"}, Pod: Pod{Name: "p"}}
	if err := SendRequest(a, sent, file); err != nil {
		t.Fatal(err)
	}
	got, netns, err := ReceiveRequest(b)
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close() //nolint:errcheck // only read
	want, _ := os.Stat("/proc/self/ns/net")
	if is, err := netns.Stat(); err != nil || !os.SameFile(is, want) {
		t.Errorf("another namespace came: %v", err)
	}
	if got.Attachment != sent.Attachment || got.Pod != sent.Pod || got.Command != Add {
		t.Errorf("%+v", got)
	}
	// The largest list that GC may send.
	big := &Request{Command: GC}
	for range 7000 {
		big.Valid = append(big.Valid, Attachment{ContainerID: strings.Repeat("c", 64), IfName: "eth0"})
	}
	go func() { _ = SendRequest(a, big, nil) }()
	if got, netns, err := ReceiveRequest(b); err != nil || netns != nil || len(got.Valid) != 7000 {
		t.Errorf("%v", err)
	}
	if err := SendRequest(a, &Request{Netns: strings.Repeat("x", MaxFrame)}, nil); !errors.Is(err, ErrFrame) {
		t.Errorf("a frame that is too large: %v", err)
	}
}

func TestMoreDescriptorsAreRefused(t *testing.T) {
	a, b := pair(t)
	frame, err := encode(&Request{Protocol: Protocol})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.WriteMsgUnix(frame, syscall.UnixRights(0, 1, 2), nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReceiveRequest(b); !errors.Is(err, ErrFrame) {
		t.Error(err)
	}
}

// FuzzRequest: whatever another process writes, the agent gets a request within bounds or ErrFrame.
func FuzzRequest(f *testing.F) {
	good, err := encode(&Request{Protocol: Protocol, Command: Del, Attachment: Attachment{ContainerID: "c", IfName: "eth0"}})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{nil, good, good[:7], {0xff, 0xff, 0xff, 0xff, '{'}, {0, 0, 0, 1, 'x'}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := pair(t)
		go func() {
			_, _ = a.Write(data)
			_ = a.CloseWrite()
		}()
		req, netns, err := ReceiveRequest(b)
		if netns != nil {
			t.Error("a namespace from nowhere")
		}
		if err == nil && req.Protocol != Protocol {
			t.Errorf("%+v", req)
		}
	})
}

func FuzzResponse(f *testing.F) {
	good, err := encode(&Response{Protocol: Protocol, Error: &Error{Code: 11, Message: "later"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		if resp, err := ReceiveResponse(bytes.NewReader(data)); err == nil && resp.Protocol != Protocol {
			t.Errorf("%+v", resp)
		}
	})
}

// FuzzConf: what is accepted can neither leave its folder nor name another plugin (CVE-2021-20206).
func FuzzConf(f *testing.F) {
	for _, seed := range []string{
		`{"cniVersion":"1.1.0","name":"kube-cilium","type":"cilium-cni"}`,
		`{"name":"../x","type":"cilium-cni"}`, `{"name":"x","type":"../../bin/sh"}`,
		`{"name":"x","type":"cilium-cni","socketDir":"/a/../b","stateDir":"x"}`, `[]`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		conf, err := ParseConf(data)
		if err != nil {
			if e := (*types.Error)(nil); !errors.As(err, &e) || e.Code == 0 {
				t.Errorf("no CNI error: %v", err)
			}
			return
		}
		if conf.Type != PluginType || strings.ContainsAny(conf.Name, "/\x00 ") || conf.Name == ".." ||
			filepath.Clean(conf.SocketDir) != conf.SocketDir || !filepath.IsAbs(conf.StateDir) {
			t.Errorf("accepted %+v", conf)
		}
	})
}

func FuzzArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=1-2")
	f.Add("K8S_POD_NAME=../..;;=;K8S_POD_UID")
	f.Fuzz(func(t *testing.T, args string) {
		if p, err := ParseArgs(args); err == nil && strings.ContainsAny(p.Namespace+p.Name+p.UID, "/\\ \x00\n") {
			t.Errorf("accepted %+v", p)
		}
	})
}

func TestQueue(t *testing.T) {
	dir := t.TempDir()
	q := NewQueue(dir)
	if list, err := q.List(); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	a, b := Attachment{"c1", "eth0"}, Attachment{"c1", "eth1"}
	for _, x := range []Attachment{a, b, a} {
		if err := q.Put(x); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := q.List(); err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	for range 2 {
		if err := q.Remove(a); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := q.List(); err != nil || len(list) != 1 || list[0] != b {
		t.Fatal(list, err)
	}
}

// A plugin that was killed while it queued left its file for good; one that is at it must not lose it.
func TestQueueTakesAwayWhatPluginsLeft(t *testing.T) {
	state := t.TempDir()
	q := NewQueue(state)
	if err := q.Put(Attachment{ContainerID: "one", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	young, old := filepath.Join(q.dir, ".one.json.1"), filepath.Join(q.dir, ".one.json.2")
	for _, path := range []string{young, old} {
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now().Add(-2 * writtenBy)
	if err := os.Chtimes(old, before, before); err != nil {
		t.Fatal(err)
	}
	if list, err := q.List(); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if left, _ := filepath.Glob(filepath.Join(q.dir, ".*")); len(left) != 1 || left[0] != young {
		t.Errorf("%v", left)
	}
}

func TestWriteFileIsWholeAndHasItsMode(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "f")
	for _, content := range []string{"one", "the other"} {
		if err := WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o644 {
			t.Fatal(info.Mode(), err)
		}
		if data, _ := os.ReadFile(path); string(data) != content {
			t.Errorf("%q", data)
		}
	}
	if err := WriteFile(filepath.Join(path, "x"), nil, 0o600); err == nil {
		t.Error("wrote below a file")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// What a killed agent had not finished to write stayed for ever, since each has a name of its own.
func TestUnfinishedFilesAreTakenAway(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "last.json")
	for name, stays := range map[string]bool{
		"last.json": true, ".last.json.": true, ".last.json.12a": true, ".last.jsonx.12": true, "last.json.12": true, ".other.json.12": true, "last.json.new": true,
		".last.json.12": false, ".last.json.3456789012": false,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		RemoveUnfinished(path)
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
	RemoveUnfinished(filepath.Join(dir, "nowhere", "f"))
}

func TestTornFileIsToldOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var got map[string]int
	if err := WriteFileOfThisBoot(path, []byte(`{"a":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadFileOfThisBoot(path, &got); err != nil || got["a"] != 1 {
		t.Fatal(got, err)
	}
	for _, torn := range []string{"", "{", `{"a":`, "\x00\x00\x00\x00", `{"a":1}` + "\x00"} {
		if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ReadFileOfThisBoot(path, &got); !errors.Is(err, ErrTorn) {
			t.Errorf("%q: %v", torn, err)
		}
		if err := ReadFileOfThisBoot(path, &got); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q, the second time: %v", torn, err)
		}
	}
	if err := os.WriteFile(path, []byte(`{"a":"one"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadFileOfThisBoot(path, &got); err == nil || errors.Is(err, ErrTorn) {
		t.Errorf("another form: %v", err)
	}
}

func TestWasReady(t *testing.T) {
	dir := t.TempDir()
	if WasReady(dir) {
		t.Error("never marked")
	}
	boot, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{boot: true, "another": false, "": false} {
		if err := MarkReady(dir, id); err != nil {
			t.Fatal(err)
		}
		if WasReady(dir) != want {
			t.Errorf("boot %q", id)
		}
	}
}

func TestErrorText(t *testing.T) {
	data, err := json.Marshal(&Response{Error: &Error{Code: 7, Message: "m", Details: "d"}})
	if err != nil || !strings.Contains(string(data), `"code":7`) {
		t.Error(string(data), err)
	}
	if (&Error{Message: "m"}).Error() != "m" || (&Error{Message: "m", Details: "d"}).Error() != "m: d" {
		t.Error("texts")
	}
}
