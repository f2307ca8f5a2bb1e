// SPDX-License-Identifier: Apache-2.0

package cniserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/go-logr/logr/testr"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

// runtime is a container runtime with our plugin, and an agent that can be started and stopped.
type runtime struct {
	t                   *testing.T
	node                *nodetest.Node
	plugin              string
	socketDir, stateDir string
	set                 *endpoint.Set
	addresses           *ipam.Allocator
	stop                func()
}

func newRuntime(t *testing.T) *runtime {
	t.Helper()
	r := &runtime{t: t, node: nodetest.New(t), plugin: buildPlugin(t), socketDir: filepath.Join(t.TempDir(), "run"), stateDir: t.TempDir()}
	r.restore()
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

func buildPlugin(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), cni.PluginType)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/kube-cilium/kube-cilium/cmd/cilium-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	return path
}

// open is a policy that allows everything.
type open struct{ *datapath.Datapath }

func (o open) Admit(_ context.Context, e *endpoint.Endpoint) func() error {
	return func() error { return o.SetPodPolicy(e.ID, datapath.PodPolicy{}) }
}
func (o open) Dismiss(e *endpoint.Endpoint) error { return o.DropPodPolicy(e.ID) }

// restore is what an agent does before it serves.
func (r *runtime) restore() {
	r.t.Helper()
	boot, err := cni.BootID()
	nodetest.Must(r.t, err)
	r.addresses = ipam.NewAllocator(time.Now)
	r.addresses.SetPrefixes([]netip.Prefix{netip.MustParsePrefix("10.7.0.0/24"), netip.MustParsePrefix("fd00:7::/120")})
	r.set, err = endpoint.New(endpoint.Options{
		StateDir: r.stateDir, BootID: boot, ProcSysNet: "/proc/sys/net", Datapath: r.node.Datapath, Policy: open{r.node.Datapath}, Addresses: r.addresses,
		Identify: func(_ context.Context, p cni.Pod) (endpoint.Who, error) {
			if p.Name == "replaced" {
				return endpoint.Who{}, errors.New("the pod was deleted or replaced")
			}
			return endpoint.Who{Identity: identity.Pending}, nil
		},
		Changed: func() {}, Log: testr.New(r.t),
	})
	nodetest.Must(r.t, err)
	nodetest.Must(r.t, r.set.Restore())
}

func (r *runtime) start() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := &Server{Dir: r.socketDir, Queue: cni.NewQueue(r.stateDir), Endpoints: r.set, Log: testr.New(r.t)}
	go func() { done <- s.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		r.stop = func() {}
	}
	for range 100 {
		if c, err := net.Dial("unix", r.socket()); err == nil {
			_ = c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Fatal("the server does not listen")
}

func (r *runtime) socket() string { return filepath.Join(r.socketDir, cni.SocketName) }

// call is one run of the plugin, as libcni makes it.
type call struct {
	command, container, netns, ifname, args string
	conf                                    map[string]any
	uid                                     uint32
}

func (r *runtime) conf(cniVersion string) map[string]any {
	return map[string]any{
		"cniVersion": cniVersion, "name": cni.NetworkName, "type": cni.PluginType,
		"socketDir": r.socketDir, "stateDir": r.stateDir,
	}
}

// run returns the plugin's output, and its error if it failed.
func (r *runtime) run(c call) ([]byte, *types.Error) {
	r.t.Helper()
	stdin, err := json.Marshal(c.conf)
	nodetest.Must(r.t, err)
	cmd := exec.Command(r.plugin)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = []string{
		"CNI_COMMAND=" + c.command, "CNI_CONTAINERID=" + c.container, "CNI_NETNS=" + c.netns, "CNI_IFNAME=" + c.ifname,
		"CNI_ARGS=" + c.args, "CNI_PATH=" + filepath.Dir(r.plugin),
	}
	if c.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid}}
	}
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	failed := &types.Error{}
	if jerr := json.Unmarshal(out, failed); jerr != nil {
		r.t.Fatalf("%s: %v without a CNI error: %s", c.command, err, out)
	}
	if failed.Msg == "" {
		r.t.Errorf("%s: error %d without a sentence", c.command, failed.Code)
	}
	return nil, failed
}

func (r *runtime) must(c call) []byte {
	r.t.Helper()
	out, err := r.run(c)
	if err != nil {
		r.t.Fatalf("%s %s: %d: %v", c.command, c.container, err.Code, err)
	}
	return out
}

func (r *runtime) fails(c call, code uint) *types.Error {
	r.t.Helper()
	_, err := r.run(c)
	if err == nil {
		r.t.Errorf("%s succeeded, want %d", c.command, code)
		return nil
	}
	if err.Code != code {
		r.t.Errorf("%s: %d: %v, want %d", c.command, err.Code, err, code)
	}
	return err
}

func (r *runtime) expectNothing() {
	r.t.Helper()
	if list := r.set.List(); len(list) > 0 {
		r.t.Errorf("endpoints left: %d", len(list))
	}
	for _, u := range r.addresses.Usage() {
		if u.Used > 0 {
			r.t.Errorf("%d addresses of %s are held", u.Used, u.Prefix)
		}
	}
	if out := nodetest.Here(r.t, "ip", "-o", "link", "show", "type", "veth"); strings.Contains(out, ": kc") {
		r.t.Errorf("interfaces left: %s", out)
	}
}

const k8sArgs = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=0f-1"

func with(conf map[string]any, key string, value any) map[string]any {
	out := map[string]any{key: value}
	for k, v := range conf {
		if k != key {
			out[k] = v
		}
	}
	return out
}

func TestEveryVerbInEveryVersion(t *testing.T) {
	r := newRuntime(t)
	for _, v := range version.All.SupportedVersions() {
		t.Run(v, func(t *testing.T) {
			r.t = t
			id := "c-" + v
			p := r.node.NewPod(id)
			conf := r.conf(v)
			add := call{"ADD", id, p.Path, "eth0", k8sArgs, conf, 0}
			out := r.must(add)
			var result struct {
				CNIVersion string           `json:"cniVersion"`
				IPs        []map[string]any `json:"ips"`
				IP4        map[string]any   `json:"ip4"`
				IP6        map[string]any   `json:"ip6"`
			}
			nodetest.Must(t, json.Unmarshal(out, &result))
			if result.CNIVersion != v || (len(result.IPs) != 2 && (result.IP4 == nil || result.IP6 == nil)) {
				t.Errorf("result: %s", out)
			}
			r.fails(add, cni.CodeExists)
			check := call{"CHECK", id, p.Path, "eth0", k8sArgs, with(conf, "prevResult", json.RawMessage(out)), 0}
			if atLeast(v, "0.4.0") {
				r.must(check)
				if out, err := p.Run("ip", "route", "del", "default"); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				e := r.fails(check, cni.CodeNotAsAdded)
				if e != nil && !strings.Contains(e.Error(), "169.254.1.1") {
					t.Errorf("CHECK does not say what is wrong: %v", e)
				}
				r.fails(call{"CHECK", id, p.Path, "eth0", k8sArgs, conf, 0}, types.ErrInvalidNetworkConfig)
			} else {
				r.fails(check, types.ErrIncompatibleCNIVersion)
			}
			status, gc := call{command: "STATUS", conf: conf}, call{command: "GC", conf: with(conf, "cni.dev/valid-attachments", []any{})}
			if atLeast(v, "1.1.0") {
				r.must(status)
				gone := r.node.NewPod("gone")
				r.must(call{"ADD", "gone", gone.Path, "eth0", k8sArgs, conf, 0})
				r.must(call{command: "GC", conf: with(conf, "cni.dev/valid-attachments", []any{map[string]any{"containerID": id, "ifname": "eth0"}})})
				if list := r.set.List(); len(list) != 1 || list[0].ContainerID != id {
					t.Errorf("after GC: %v", list)
				}
			} else {
				r.fails(status, types.ErrIncompatibleCNIVersion)
				r.fails(gc, types.ErrIncompatibleCNIVersion)
			}
			for range 2 {
				r.must(call{"DEL", id, p.Path, "eth0", k8sArgs, conf, 0})
			}
			p.Remove()
			r.must(call{"DEL", id, p.Path, "eth0", "", conf, 0})
			r.must(call{"DEL", id, "", "eth0", "", conf, 0})
			r.expectNothing()
		})
	}
	out := r.must(call{command: "VERSION", conf: map[string]any{"cniVersion": "1.1.0"}})
	if !strings.Contains(string(out), `"1.1.0"`) {
		t.Errorf("VERSION: %s", out)
	}
}

func atLeast(v, other string) bool {
	ok, err := version.GreaterThanOrEqualTo(v, other)
	return ok && err == nil
}

// cilium #22067, #23486: a full node could not delete pods without its agent, so nothing made room
// for the agent. A DEL is queued, and STATUS goes on succeeding in a boot that was ready.
func TestAgentAway(t *testing.T) {
	r := newRuntime(t)
	conf := r.conf("1.1.0")
	p := r.node.NewPod("one")
	out := r.must(call{"ADD", "one", p.Path, "eth0", k8sArgs, conf, 0})
	r.stop()
	r.fails(call{"ADD", "two", r.node.NewPod("two").Path, "eth0", k8sArgs, conf, 0}, types.ErrTryAgainLater)
	r.fails(call{"CHECK", "one", p.Path, "eth0", k8sArgs, with(conf, "prevResult", json.RawMessage(out)), 0}, types.ErrTryAgainLater)
	r.fails(call{command: "GC", conf: conf}, types.ErrTryAgainLater)
	r.fails(call{command: "STATUS", conf: conf}, types.ErrPluginNotAvailable)
	nodetest.Must(t, cni.MarkReady(r.stateDir, "another boot"))
	r.fails(call{command: "STATUS", conf: conf}, types.ErrPluginNotAvailable)
	boot, err := cni.BootID()
	nodetest.Must(t, err)
	nodetest.Must(t, cni.MarkReady(r.stateDir, boot))
	r.must(call{command: "STATUS", conf: conf})
	for range 2 {
		r.must(call{"DEL", "one", p.Path, "eth0", k8sArgs, conf, 0})
	}
	queue := cni.NewQueue(r.stateDir)
	queued, err := queue.List()
	nodetest.Must(t, err)
	if len(queued) != 1 || queued[0] != (cni.Attachment{ContainerID: "one", IfName: "eth0"}) {
		t.Errorf("queued: %v", queued)
	}
	expectMode(t, filepath.Join(r.stateDir, cni.QueueName), fs.ModeDir|0o700)
	files, err := os.ReadDir(filepath.Join(r.stateDir, cni.QueueName))
	nodetest.Must(t, err)
	for _, f := range files {
		expectMode(t, filepath.Join(r.stateDir, cni.QueueName, f.Name()), 0o600)
	}
	if len(r.set.List()) != 1 {
		t.Fatal("nobody was there to delete it")
	}
	r.restore()
	r.start()
	r.must(call{"ADD", "three", r.node.NewPod("three").Path, "eth0", k8sArgs, conf, 0})
	if list := r.set.List(); len(list) != 1 || list[0].ContainerID != "three" {
		t.Errorf("after the queue was worked through: %v", list)
	}
	if queued, _ := queue.List(); len(queued) != 0 {
		t.Errorf("still queued: %v", queued)
	}
	// The folders are gone altogether, as after an uninstall: a pod still ends.
	r.stop()
	r.must(call{"DEL", "nobody", "", "eth0", "", with(with(conf, "socketDir", "/nowhere"), "stateDir", filepath.Join(t.TempDir(), "new")), 0})
}

// CVE-2022-29178: the agent's socket was open to users of the host.
func TestSocketIsRootsAlone(t *testing.T) {
	r := newRuntime(t)
	expectMode(t, r.socket(), fs.ModeSocket|0o600)
	expectMode(t, r.socketDir, fs.ModeDir|0o700)
	// Somebody opened the doors: the credentials still count.
	for dir := r.socketDir; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		nodetest.Must(t, os.Chmod(dir, 0o755))
	}
	for dir := filepath.Dir(r.plugin); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		nodetest.Must(t, os.Chmod(dir, 0o755))
	}
	nodetest.Must(t, os.Chmod(r.socket(), 0o666))
	_, err := r.run(call{command: "STATUS", conf: r.conf("1.1.0"), uid: 65534})
	if err == nil || err.Code != types.ErrPluginNotAvailable {
		t.Errorf("a user was served: %v", err)
	}
	r.must(call{command: "STATUS", conf: r.conf("1.1.0")})
}

func expectMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	nodetest.Must(t, err)
	if info.Mode() != want {
		t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
	}
}

// CVE-2021-20206: a type with a path in it made the runtime run another binary. And whatever else can be wrong.
func TestBadInputChangesNothing(t *testing.T) {
	r := newRuntime(t)
	p := r.node.NewPod("good")
	conf := r.conf("1.1.0")
	file := filepath.Join(t.TempDir(), "file")
	nodetest.Must(t, os.WriteFile(file, nil, 0o600))
	add := func(change func(*call)) call {
		c := call{"ADD", "good", p.Path, "eth0", k8sArgs, conf, 0}
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		call call
		code uint
	}{
		"type path":        {add(func(c *call) { c.conf = with(conf, "type", "../../tmp/x") }), types.ErrInvalidNetworkConfig},
		"other type":       {add(func(c *call) { c.conf = with(conf, "type", "bridge") }), types.ErrInvalidNetworkConfig},
		"no type":          {add(func(c *call) { c.conf = with(conf, "type", "") }), types.ErrInvalidNetworkConfig},
		"name path":        {add(func(c *call) { c.conf = with(conf, "name", "../x") }), types.ErrInvalidNetworkConfig},
		"name space":       {add(func(c *call) { c.conf = with(conf, "name", "a b") }), types.ErrInvalidNetworkConfig},
		"ipam":             {add(func(c *call) { c.conf = with(conf, "ipam", map[string]any{"type": "host-local"}) }), types.ErrInvalidNetworkConfig},
		"chained":          {add(func(c *call) { c.conf = with(conf, "prevResult", map[string]any{"cniVersion": "1.1.0"}) }), types.ErrInvalidNetworkConfig},
		"version":          {add(func(c *call) { c.conf = with(conf, "cniVersion", "9.9.9") }), types.ErrIncompatibleCNIVersion},
		"socket folder":    {add(func(c *call) { c.conf = with(conf, "socketDir", "../run") }), types.ErrInvalidNetworkConfig},
		"state folder":     {add(func(c *call) { c.conf = with(conf, "stateDir", "/a/../b") }), types.ErrInvalidNetworkConfig},
		"not our type":     {add(func(c *call) { c.conf = with(conf, "stateDir", 7) }), types.ErrDecodingFailure},
		"container path":   {add(func(c *call) { c.container = "../good" }), types.ErrInvalidEnvironmentVariables},
		"no container":     {add(func(c *call) { c.container = "" }), types.ErrInvalidEnvironmentVariables},
		"ifname path":      {add(func(c *call) { c.ifname = "../eth0" }), types.ErrInvalidEnvironmentVariables},
		"ifname long":      {add(func(c *call) { c.ifname = "abcdefghijklmnopq" }), types.ErrInvalidEnvironmentVariables},
		"loopback":         {add(func(c *call) { c.ifname = "lo" }), types.ErrInvalidEnvironmentVariables},
		"netns relative":   {add(func(c *call) { c.netns = "run/netns/good" }), types.ErrInvalidNetNS},
		"netns dots":       {add(func(c *call) { c.netns = "/run/netns/../netns/good" }), types.ErrInvalidNetNS},
		"netns missing":    {add(func(c *call) { c.netns = "/run/netns/missing" }), types.ErrInvalidNetNS},
		"netns a file":     {add(func(c *call) { c.netns = file }), types.ErrInvalidNetNS},
		"netns the host's": {add(func(c *call) { c.netns = "/proc/self/ns/net" }), types.ErrInvalidNetNS},
		"netns another":    {add(func(c *call) { c.netns = "/proc/self/ns/mnt" }), types.ErrInvalidNetNS},
		"pod name":         {add(func(c *call) { c.args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=../x" }), types.ErrInvalidEnvironmentVariables},
		"pod uid":          {add(func(c *call) { c.args = "K8S_POD_UID=a b" }), types.ErrInvalidEnvironmentVariables},
		"replaced pod":     {add(func(c *call) { c.args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=replaced" }), types.ErrInternal},
		"unknown verb":     {add(func(c *call) { c.command = "EXPLODE" }), types.ErrInvalidEnvironmentVariables},
		"check unknown":    {call{"CHECK", "unknown", p.Path, "eth0", "", with(conf, "prevResult", map[string]any{"cniVersion": "1.1.0"}), 0}, types.ErrUnknownContainer},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			r.t = t
			r.fails(c.call, c.code)
			r.expectNothing()
		})
	}
	if out, _ := p.Run("ip", "-o", "link"); strings.Contains(out, "eth0") {
		t.Errorf("the pod got an interface: %s", out)
	}
}

// A client that is not our plugin gets an answer or nothing, and the next one is served.
func TestMalformedFrames(t *testing.T) {
	r := newRuntime(t)
	for _, frame := range [][]byte{
		nil, {0}, {0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 2, '{', '}'}, {0, 0, 0, 4, 'n', 'u', 'l', 'l'},
		{0, 0, 0, 9, '{'}, append([]byte{0, 0, 0, 31}, `{"protocol":1,"command":"ADDD"}`...), append([]byte{0, 0, 0, 30}, `{"protocol":1,"command":"ADD"}`...),
	} {
		c, err := net.Dial("unix", r.socket())
		nodetest.Must(t, err)
		_, err = c.Write(frame)
		nodetest.Must(t, err)
		_ = c.(*net.UnixConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		resp, err := cni.ReceiveResponse(c)
		if err == nil && resp.Error == nil {
			t.Errorf("% x was accepted", frame)
		}
		_ = c.Close()
	}
	r.must(call{command: "STATUS", conf: r.conf("1.1.0")})
	r.expectNothing()
}

func TestNamespaceMustComeWithTheRequest(t *testing.T) {
	r := newRuntime(t)
	c, err := net.Dial("unix", r.socket())
	nodetest.Must(t, err)
	defer c.Close() //nolint:errcheck // a test
	req := &cni.Request{Command: cni.Add, CNIVersion: "1.1.0", Attachment: cni.Attachment{ContainerID: "c", IfName: "eth0"}, Netns: "/proc/1/ns/net"}
	nodetest.Must(t, cni.SendRequest(c.(*net.UnixConn), req, nil))
	resp, err := cni.ReceiveResponse(c)
	nodetest.Must(t, err)
	if resp.Error == nil || resp.Error.Code != types.ErrInvalidNetNS {
		t.Errorf("%+v", resp.Error)
	}
	r.expectNothing()
}

func TestPluginIsSmallAndQuick(t *testing.T) {
	r := newRuntime(t)
	info, err := os.Stat(r.plugin)
	nodetest.Must(t, err)
	if info.Size() >= 8<<20 {
		t.Errorf("the plugin has %d bytes, less than 8 MiB is asked", info.Size())
	}
	const calls = 20
	var cpu time.Duration
	stdin, err := json.Marshal(r.conf("1.1.0"))
	nodetest.Must(t, err)
	for range calls {
		cmd := exec.Command(r.plugin)
		cmd.Stdin = bytes.NewReader(stdin)
		cmd.Env = []string{"CNI_COMMAND=STATUS", "CNI_PATH=/"}
		nodetest.Must(t, cmd.Run())
		cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	t.Logf("%d bytes, %v of processor time a call", info.Size(), cpu/calls)
	if cpu/calls >= 10*time.Millisecond {
		t.Errorf("%v of its own a call, less than 10 ms is asked", cpu/calls)
	}
}

func TestDamagedQueue(t *testing.T) {
	r := newRuntime(t)
	dir := filepath.Join(r.stateDir, cni.QueueName)
	nodetest.Must(t, os.MkdirAll(dir, 0o700))
	for name, content := range map[string]string{"a.json": "", "b.json": `{"containerID":"../x","ifname":"eth0"}`, "c.json": strings.Repeat("x", 1<<16)} {
		nodetest.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	nodetest.Must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "d.json")))
	r.must(call{"ADD", "one", r.node.NewPod("one").Path, "eth0", k8sArgs, r.conf("1.1.0"), 0})
	r.must(call{"DEL", "one", "", "eth0", "", r.conf("1.1.0"), 0})
	r.expectNothing()
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "[abc].json"))
	if err != nil || len(left) > 0 {
		t.Error(fmt.Sprint(left, err))
	}
}
