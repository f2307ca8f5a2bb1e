// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// The images of other projects, under the names that Kubernetes and its
// end-to-end tests use.
const (
	PauseRef   = "registry.k8s.io/pause:3.10.2"
	CoreDNSRef = "registry.k8s.io/coredns/coredns:v1.14.3"
	agnhost    = "registry.k8s.io/e2e-test-images/agnhost:"
)

// ErrTool says that a program that goes into an image is not installed.
var ErrTool = errors.New("not installed")

// Pause builds the sandbox's process from Kubernetes' own source.
func Pause(ctx context.Context, kubernetes, scratch string) (Spec, error) {
	binary := filepath.Join(scratch, "pause")
	version := PauseRef[strings.LastIndex(PauseRef, ":")+1:]
	cmd := exec.CommandContext(ctx, "gcc", "-Os", "-Wall", "-static", "-DVERSION=v"+version, "-o", binary,
		filepath.Join(kubernetes, "build/pause/linux/pause.c"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return Spec{}, fmt.Errorf("build pause: %w\n%s", err, out)
	}
	return Spec{Ref: PauseRef, Entrypoint: []string{"/pause"}, User: "65535:65535", Files: []File{{Path: "/pause", Source: binary}}}, nil
}

// CoreDNS is cluster DNS.
func CoreDNS(binary string) Spec {
	return Spec{Ref: CoreDNSRef, Entrypoint: []string{"/coredns"}, Files: []File{{Path: "/coredns", Source: binary}}}
}

// tools are what agnhost's own image has beside agnhost, and where tests look
// for them. The shell is dash: busybox's would take its own nc before ours.
var tools = map[string][]string{
	"dash":       {"/bin/sh", "/bin/dash"},
	"bash":       {"/bin/bash"},
	"curl":       {"/usr/bin/curl"},
	"nc.openbsd": {"/usr/bin/nc", "/bin/nc"},
	"dig":        {"/usr/bin/dig"},
	"iperf":      {"/usr/bin/iperf", "/usr/local/bin/iperf"},
	"iperf3":     {"/usr/bin/iperf3"},
	"ip":         {"/usr/sbin/ip", "/sbin/ip"},
	"ss":         {"/usr/bin/ss"},
	"ipcs":       {"/usr/bin/ipcs"},
	"ping":       {"/usr/bin/ping", "/bin/ping"},
}

// Agnhost is the workload of Kubernetes' end-to-end tests with its tools.
func Agnhost(kubernetes, binary string) (Spec, error) {
	version, err := os.ReadFile(filepath.Join(kubernetes, "test/images/agnhost/VERSION"))
	if err != nil {
		return Spec{}, fmt.Errorf("agnhost: %w", err)
	}
	s := Spec{
		Ref: agnhost + strings.TrimSpace(string(version)), Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"},
		Files: []File{{Path: "/agnhost", Source: binary}, {Path: "/agnhost-2", Link: "agnhost"}},
	}
	for _, file := range []string{"localhost.crt", "localhost.key"} {
		s.Files = append(s.Files, File{Path: "/" + file, Mode: 0o644, Source: filepath.Join(kubernetes, "test/images/agnhost/porter", file)})
	}
	libraries := map[string]string{}
	taken := map[string]bool{}
	for _, name := range sortedKeys(tools) {
		source, err := find(name)
		if err != nil {
			return Spec{}, err
		}
		if err := closure(source, libraries); err != nil {
			return Spec{}, err
		}
		paths := tools[name]
		s.Files = append(s.Files, File{Path: paths[0], Source: source})
		taken[paths[0]] = true
		for _, link := range paths[1:] {
			s.Files = append(s.Files, File{Path: link, Link: paths[0]})
			taken[link] = true
		}
	}
	for _, inside := range sortedKeys(libraries) {
		s.Files = append(s.Files, File{Path: inside, Source: libraries[inside]})
	}
	applets, err := busybox(taken)
	if err != nil {
		return Spec{}, err
	}
	s.Files = append(s.Files, applets...)
	return s, nil
}

func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, ErrTool)
	}
	return filepath.EvalSymlinks(path)
}

var libraryPath = regexp.MustCompile(`/\S+`)

// closure adds the libraries of a program: the path at which it asks for each,
// and the file behind it.
func closure(program string, into map[string]string) error {
	out, err := exec.Command("ldd", program).CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("not a dynamic executable")) {
			return nil
		}
		return fmt.Errorf("libraries of %s: %w", program, err)
	}
	for line := range strings.Lines(string(out)) {
		asked := libraryPath.FindString(line)
		if asked == "" || strings.HasSuffix(asked, ":") {
			continue
		}
		file, err := filepath.EvalSymlinks(asked)
		if err != nil {
			return fmt.Errorf("libraries of %s: %w", program, err)
		}
		into[asked] = file
	}
	return nil
}

// busybox fills in the small commands that a shell script wants.
func busybox(taken map[string]bool) ([]File, error) {
	program, err := find("busybox")
	if err != nil {
		return nil, err
	}
	list, err := exec.Command(program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox: %w", err)
	}
	files := []File{{Path: "/bin/busybox", Source: program}}
	for applet := range strings.FieldsSeq(string(list)) {
		link := "/bin/" + applet
		if applet == "busybox" || applet == "ip" || taken[link] || taken["/usr"+link] {
			continue
		}
		files = append(files, File{Path: link, Link: "/bin/busybox"})
	}
	return files, nil
}
