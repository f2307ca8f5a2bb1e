// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Where the host's stack forwards, a FORWARD policy of DROP (as Docker sets it) stops pods. One rule of ours lets
// what comes from or goes to our devices pass; the programs have judged it. It is in iptables because an accept in
// another nftables table would not count there.
var forwardRules = [][]string{
	{"FORWARD", "-i", podDevicePrefix + "+", "-m", "comment", "--comment", "kube-cilium", "-j", "ACCEPT"},
	{"FORWARD", "-o", podDevicePrefix + "+", "-m", "comment", "--comment", "kube-cilium", "-j", "ACCEPT"},
}

func forwardTools(ipv4, ipv6 bool) []string {
	var tools []string
	if ipv4 {
		tools = append(tools, "iptables")
	}
	if ipv6 {
		tools = append(tools, "ip6tables")
	}
	return tools
}

// ensureForwardRule says in a sentence what came of it.
func ensureForwardRule(ipv4, ipv6 bool) string {
	var notes []string
	for _, tool := range forwardTools(ipv4, ipv6) {
		if err := insertForwardRules(tool); errors.Is(err, exec.ErrNotFound) {
			notes = append(notes, fmt.Sprintf("no %s here: the host's FORWARD policy has to accept %s+", tool, podDevicePrefix))
		} else if err != nil {
			notes = append(notes, fmt.Sprintf("%s: %v", tool, err))
		} else {
			notes = append(notes, tool+" accepts forwarding for pods")
		}
	}
	return strings.Join(notes, "; ")
}

func insertForwardRules(tool string) error {
	path, err := exec.LookPath(tool)
	if err != nil {
		return exec.ErrNotFound
	}
	for _, rule := range forwardRules {
		if exec.Command(path, append([]string{"-w", "5", "-C"}, rule...)...).Run() == nil {
			continue
		}
		if out, err := exec.Command(path, append([]string{"-w", "5", "-I"}, rule...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("insert rule: %w: %s", err, firstLine(out))
		}
	}
	return nil
}

// removeForwardRule is for uninstall and for the end of the stack path; what is not there is no error.
func removeForwardRule() {
	for _, tool := range forwardTools(true, true) {
		path, err := exec.LookPath(tool)
		if err != nil {
			continue
		}
		for _, rule := range forwardRules {
			for range 8 { // an agent before us may have inserted it more than once
				if exec.Command(path, append([]string{"-w", "5", "-D"}, rule...)...).Run() != nil {
					break
				}
			}
		}
	}
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}
