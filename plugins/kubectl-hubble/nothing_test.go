// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/cli-runtime/pkg/genericclioptions"
)

// mindful remembers one flow of a time.
type mindful struct{ at time.Time }

func (m *mindful) GetFlows(_ context.Context, req *observerpb.GetFlowsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[observerpb.GetFlowsResponse], error) {
	if !req.First || req.Number != 1 {
		return nil, errors.New("more than the first was asked for")
	}
	return &answers{left: []time.Time{m.at}}, nil
}

type answers struct {
	grpc.ServerStreamingClient[observerpb.GetFlowsResponse]
	left []time.Time
}

func (a *answers) Recv() (*observerpb.GetFlowsResponse, error) {
	if len(a.left) == 0 {
		return nil, io.EOF
	}
	at := timestamppb.New(a.left[0])
	a.left = a.left[1:]
	return &observerpb.GetFlowsResponse{Time: at, ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{Time: at, Uuid: at.String()}}}, nil
}

// A question about all namespaces that found nothing was answered with nothing at all.
func TestNothingFoundSaysWhatWasLookedAt(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var targets []target
	for i, node := range []string{"worker-1", "worker-2"} {
		server := &mindful{at: at.Add(time.Duration(i) * time.Minute)}
		targets = append(targets, target{node: node, connect: func(context.Context) (observer, func(), error) { return server, func() {}, nil }})
	}
	held := lookedAt(t.Context(), targets, func(_ context.Context, node string) nodeState {
		return nodeState{Name: node, State: connected, Flows: 20}
	})
	namespace := "shop"
	flags := genericclioptions.NewConfigFlags(true)
	flags.Namespace = &namespace
	o := &flowsOptions{plugin: &plugin{flags: flags}, now: at, allNamespaces: true, output: "compact"}
	if got, want := o.nothing(held), "nothing was found: 2 nodes asked, 40 flows remembered, the oldest of 2026-01-02 03:04:05"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	o.allNamespaces = false
	if got := o.nothing(held); !strings.HasSuffix(got, "; -A looks beyond namespace shop") {
		t.Error(got)
	}
	if got, want := o.nothing(remembered{nodes: 1, flows: 1}), "nothing was found: 1 node asked, 1 flow remembered; -A looks beyond namespace shop"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for line, want := range map[string]string{
		"--type l7,capture":           "; no node tells of --type l7,capture",
		"--verdict audit --pod web":   "; no node tells of --verdict audit",
		"--type l7 --type trace":      "; -A looks beyond namespace shop",
		"--type l7,Drop":              "; -A looks beyond namespace shop",
		"--not --type l7":             "; -A looks beyond namespace shop",
		"--type trace:to-endpoint":    "; -A looks beyond namespace shop",
		"--verdict forwarded,dropped": "; -A looks beyond namespace shop",
	} {
		o := &flowsOptions{plugin: o.plugin, now: at}
		set := pflag.NewFlagSet("flows", pflag.ContinueOnError)
		o.filters.register(set)
		if err := set.Parse(strings.Fields(line)); err != nil {
			t.Fatal(err)
		}
		if got := o.nothing(held); !strings.HasSuffix(got, want) {
			t.Errorf("%s: %s", line, got)
		}
	}
	for _, tt := range []struct {
		output string
		follow bool
		shown  int
		want   bool
	}{{"compact", false, 0, true}, {"dict", false, 0, true}, {"json", false, 0, false}, {"jsonpb", false, 0, false}, {"table", true, 0, false}, {"table", false, 1, false}} {
		o.output, o.follow, o.shown = tt.output, tt.follow, tt.shown
		if got := o.foundNothing(t.Context()); got != tt.want {
			t.Errorf("%+v: %t", tt, got)
		}
	}
}
