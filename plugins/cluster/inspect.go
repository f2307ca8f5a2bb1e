// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/maptable"
)

const (
	// maxAnswer bounds what one node may make us hold, in bytes: a full conntrack table takes about a fifth.
	maxAnswer = 512 << 20
	maxLine   = 64 << 10
	maxRemark = 8 << 10
)

// Inspect runs `cilium-agent inspect ARGS` on a node and decodes the JSON that it answers into out.
func (c *Cluster) Inspect(ctx context.Context, node string, out any, args ...string) error {
	pod, err := c.AgentPod(ctx, node)
	if err != nil {
		return err
	}
	stdout := &bounded{limit: maxAnswer}
	stderr := &bounded{limit: maxRemark}
	err = c.Exec(ctx, pod.Name, InspectContainer, inspectCommand(args), stdout, stderr)
	if err != nil {
		return inspectError(node, args, stderr.String(), err)
	}
	dec := json.NewDecoder(&stdout.Buffer)
	dec.UseNumber()
	if err := dec.Decode(out); err != nil {
		return fmt.Errorf("node/%s: inspect %s: %w", node, strings.Join(args, " "), err)
	}
	return nil
}

// Maps are the maps pinned on a node.
func (c *Cluster) Maps(ctx context.Context, node string) ([]maptable.Info, error) {
	var all []maptable.Info
	if err := c.Inspect(ctx, node, &all, "maps"); err != nil {
		return nil, err
	}
	for i := range all {
		all[i].Name, all[i].Type, all[i].Error = flow.Safe(all[i].Name), flow.Safe(all[i].Type), flow.Safe(all[i].Error)
	}
	return all, nil
}

// Map is what one map of a node holds. Every string in it is safe to print.
func (c *Cluster) Map(ctx context.Context, node, name string) (*maptable.Table, error) {
	var t maptable.Table
	if err := c.Inspect(ctx, node, &t, "map", "--", name); err != nil {
		return nil, err
	}
	if err := t.Check(); err != nil {
		return nil, fmt.Errorf("node/%s: %w", node, err)
	}
	t.Map, t.Remark = flow.Safe(t.Map), flow.Safe(t.Remark)
	for i := range t.Columns {
		t.Columns[i].Name = flow.Safe(t.Columns[i].Name)
	}
	for _, row := range t.Rows {
		for i, field := range row {
			if s, ok := field.(string); ok {
				row[i] = flow.Safe(s)
			}
		}
	}
	return &t, nil
}

// EventRequest says which events of a node are wanted.
type EventRequest struct {
	Last   int
	Follow bool
	Types  []string
}

func (r EventRequest) args() []string {
	args := []string{"monitor", fmt.Sprintf("--follow=%t", r.Follow), fmt.Sprintf("--last=%d", r.Last)}
	for _, t := range r.Types {
		args = append(args, "--type="+t)
	}
	return args
}

// Events calls each for every message of a node's agent, with the node's name in it, until the stream ends, ctx is
// done (no error) or each returns an error.
func (c *Cluster) Events(ctx context.Context, node string, req EventRequest, each func(flow.Message) error) error {
	pod, err := c.AgentPod(ctx, node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	stderr := &bounded{limit: maxRemark}
	done := make(chan error, 1)
	go func() {
		err := c.Exec(ctx, pod.Name, InspectContainer, inspectCommand(req.args()), pw, stderr)
		_ = pw.Close()
		done <- err
	}()
	readErr := readMessages(pr, node, each)
	if readErr != nil {
		cancel()
		_ = pr.CloseWithError(readErr)
	}
	execErr := <-done
	if readErr != nil {
		return readErr
	}
	if execErr != nil && ctx.Err() == nil {
		return inspectError(node, req.args(), stderr.String(), execErr)
	}
	return nil
}

func readMessages(r io.Reader, node string, each func(flow.Message) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var m flow.Message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return fmt.Errorf("node/%s: monitor: %w", node, err)
		}
		if m.Event != nil {
			m.Event.Node = node
			m.Event.Clean()
		}
		if err := each(m); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("node/%s: monitor: %w", node, err)
	}
	return nil
}

func inspectCommand(args []string) []string {
	return append([]string{"cilium-agent", "inspect"}, args...)
}

// inspectError prefers what the command said to its exit code.
func inspectError(node string, args []string, said string, err error) error {
	said = strings.TrimSpace(said)
	said = strings.TrimPrefix(strings.TrimPrefix(said, "Error: "), "cilium-agent: ")
	if said != "" {
		said, _, _ = strings.Cut(said, "\n")
		return fmt.Errorf("node/%s: inspect %s: %s", node, args[0], flow.Safe(said))
	}
	return fmt.Errorf("node/%s: inspect %s: %w", node, args[0], err)
}

// bounded refuses to hold more than limit bytes.
type bounded struct {
	bytes.Buffer
	limit int
}

var errTooLarge = errors.New("the answer is larger than anything a node should say")

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.limit {
		return 0, errTooLarge
	}
	return b.Buffer.Write(p)
}
