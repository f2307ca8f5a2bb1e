// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A line of the archive is a message of the flows API still, with names and policies, and without what looks like a key.
func TestFlowLine(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC))
	m := &observerpb.GetFlowsResponse{NodeName: "worker-1", Time: at, ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{
		Time: at, Uuid: "b5c8f2b8-7d4c-8d7c-9c56-000000000007", Verdict: flowpb.Verdict_DROPPED, DropReasonDesc: flowpb.DropReason_POLICY_DENIED,
		EventType:       &flowpb.CiliumEventType{Type: 1, SubType: 133},
		Source:          &flowpb.Endpoint{Identity: 16777215, Namespace: "demo", PodName: "client-6676db9455-nq48h", Labels: []string{"k8s:app=client"}},
		IngressDeniedBy: []*flowpb.Policy{{Kind: "NetworkPolicy", Namespace: "demo", Name: "only-the-client"}},
	}}}
	line, err := flowLine(m)
	if err != nil {
		t.Fatal(err)
	}
	var back observerpb.GetFlowsResponse
	if err := protojson.Unmarshal(line, &back); err != nil || !proto.Equal(m, &back) {
		t.Errorf("%v: %s", err, line)
	}
	m.GetFlow().Source.Labels = []string{"k8s:token=eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.e30.c2ln"}
	if line, err = flowLine(m); err != nil || strings.Contains(string(line), "eyJ") || strings.Count(string(line), "\n") != 1 {
		t.Errorf("%v: %s", err, line)
	}
}
