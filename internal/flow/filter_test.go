// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"net/netip"
	"strings"
	"testing"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// filterFlow is what the table's filters look at.
func filterFlow() *flowpb.Flow {
	e := denied()
	e.Translated = netip.MustParseAddrPort("192.0.2.1:3000")
	f := Hubble(&e, names)
	f.Uuid = "u-1"
	f.DestinationService = &flowpb.Service{Namespace: "demo", Name: "web"}
	f.SourceNames = []string{"a.example"}
	return f
}

func TestFilterFields(t *testing.T) {
	f := filterFlow()
	for _, tt := range []struct {
		filter string
		want   bool
	}{
		{`{}`, true},
		{`{"source_ip": ["fd00::1"]}`, true},
		{`{"source_ip": ["fd00::/64"]}`, true},
		{`{"source_ip": ["10.0.0.0/8"]}`, false},
		{`{"source_ip": ["10.0.0.0/8", "fd00::1"]}`, true},
		{`{"destination_ip": ["fd00::1"]}`, false},
		{`{"source_ip_xlated": ["192.0.2.0/24"]}`, true},
		{`{"source_pod": ["demo/client"]}`, true},
		{`{"source_pod": ["demo/"]}`, true},
		{`{"source_pod": ["/client-7"]}`, true},
		{`{"source_pod": ["client"]}`, false}, // of the namespace default
		{`{"source_pod": ["dem/client"]}`, false},
		{`{"source_pod": ["demo/web"]}`, false},
		{`{"source_pod": ["demo/web"], "destination_pod": ["demo/web"]}`, false},
		{`{"source_pod": ["demo/client"], "destination_pod": ["demo/web"]}`, true},
		{`{"source_fqdn": ["*.example"]}`, true},
		{`{"source_fqdn": ["b.example"]}`, false},
		{`{"source_label": ["app=client"]}`, true},
		{`{"source_label": ["k8s:app in (client, web)"]}`, true},
		{`{"source_label": ["reserved:host"]}`, false},
		{`{"source_label": ["!app"]}`, false},
		{`{"destination_label": ["app=web,io.kubernetes.pod.namespace=demo"]}`, true},
		{`{"source_service": ["demo/"]}`, false},
		{`{"destination_service": ["demo/we"]}`, true},
		{`{"source_workload": [{"name": "client"}]}`, true},
		{`{"source_workload": [{"kind": "StatefulSet", "name": "client"}]}`, false},
		{`{"source_workload": [{"kind": "deployment", "name": "client"}]}`, true},
		{`{"source_cluster_name": ["default"]}`, true},
		{`{"traffic_direction": ["INGRESS"]}`, true},
		{`{"traffic_direction": ["EGRESS"]}`, false},
		{`{"verdict": ["FORWARDED"]}`, false},
		{`{"verdict": ["FORWARDED", "DROPPED"]}`, true},
		{`{"drop_reason_desc": ["POLICY_DENIED"]}`, true},
		{`{"drop_reason_desc": ["POLICY_DENY"]}`, false},
		{`{"event_type": [{"type": 1}]}`, true},
		{`{"event_type": [{"type": 1, "match_sub_type": true, "sub_type": 181}]}`, false},
		{`{"event_type": [{"type": 4}]}`, false},
		{`{"protocol": ["TCP"]}`, true},
		{`{"protocol": ["icmp"]}`, false},
		{`{"source_port": ["40312"]}`, true},
		{`{"destination_port": ["1-79"]}`, false},
		{`{"destination_port": ["79-81"]}`, true},
		{`{"reply": [false]}`, true},
		{`{"reply": [true]}`, false},
		{`{"source_identity": [300]}`, true},
		{`{"destination_identity": [300]}`, false},
		{`{"tcp_flags": [{"SYN": true}]}`, true},
		{`{"tcp_flags": [{"SYN": true, "ACK": true}]}`, false},
		{`{"node_name": ["worker-*"]}`, true},
		{`{"node_name": ["default/worker-1"]}`, true},
		{`{"node_name": ["default/"]}`, true},
		{`{"node_name": ["other/"]}`, false},
		{`{"node_name": ["worker"]}`, false},
		{`{"ip_version": ["IPv4"]}`, false},
		{`{"ip_version": ["IPv6"]}`, true},
		{`{"interface": [{"name": "kc1"}]}`, true},
		{`{"interface": [{"index": 13}]}`, false},
		{`{"uuid": ["u-2"]}`, false},
		{`{"uuid": ["u-1"]}`, true},
		{`{"encrypted": [true]}`, false},
		{`{"trace_id": ["x"]}`, false},
	} {
		in := filterOf(t, tt.filter)
		white, err := NewFilter([]*flowpb.FlowFilter{in}, nil)
		if err != nil {
			t.Errorf("%s: %v", tt.filter, err)
			continue
		}
		black, _ := NewFilter(nil, []*flowpb.FlowFilter{in})
		if white.Match(f) != tt.want || black.Match(f) == tt.want {
			t.Errorf("%s: matches %t, want %t", tt.filter, white.Match(f), tt.want)
		}
	}
}

func filterOf(t testing.TB, text string) *flowpb.FlowFilter {
	t.Helper()
	f := &flowpb.FlowFilter{}
	if err := protojson.Unmarshal([]byte(text), f); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return f
}

func TestFiltersThatMakeNoSense(t *testing.T) {
	many := &flowpb.FlowFilter{Uuid: make([]string, maxFilters+1)}
	for want, f := range map[string]*flowpb.FlowFilter{
		"source_ip":        filterOf(t, `{"source_ip": ["x"]}`),
		"destination_pod":  filterOf(t, `{"destination_pod": [""]}`),
		"source_label":     filterOf(t, `{"source_label": ["a in"]}`),
		"protocol":         filterOf(t, `{"protocol": ["http"]}`),
		"source_port":      filterOf(t, `{"source_port": ["9-1"]}`),
		"node_name":        filterOf(t, `{"node_name": ["a/b/c"]}`),
		"tcp_flags":        filterOf(t, `{"tcp_flags": [{}]}`),
		"http_path":        filterOf(t, `{"http_path": ["/"]}`),
		"experimental":     filterOf(t, `{"experimental": {"cel_expression": ["true"]}}`),
		"source_workload":  filterOf(t, `{"source_workload": [{}]}`),
		"uuid has":         many,
		"1025 filters are": nil,
	} {
		list := []*flowpb.FlowFilter{f}
		if f == nil {
			list = make([]*flowpb.FlowFilter, maxFilters+1)
		}
		_, err := NewFilter(list, nil)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestWhitelistLessBlacklist(t *testing.T) {
	f := filterFlow()
	yes, no := filterOf(t, `{"uuid": ["u-1"]}`), filterOf(t, `{"uuid": ["u-2"]}`)
	list := func(all ...*flowpb.FlowFilter) []*flowpb.FlowFilter { return all }
	for _, tt := range []struct {
		name         string
		white, black []*flowpb.FlowFilter
		want         bool
	}{
		{"none", nil, nil, true},
		{"one of two", list(no, yes), nil, true},
		{"black wins", list(yes), list(yes), false},
		{"black of others", list(yes), list(no), true},
		{"black alone", nil, list(no, yes), false},
		{"nil matches all", list(nil), nil, true},
	} {
		got, err := NewFilter(tt.white, tt.black)
		if err != nil || got.Match(f) != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// Whatever a client sends is refused or answered.
func FuzzFilter(f *testing.F) {
	for _, text := range []string{`{"source_pod": ["a/b"]}`, `{"node_name": ["[a-"]}`, `{"source_label": ["k8s:a in (b)"]}`, `{"destination_port": ["1-2"]}`} {
		b, _ := proto.Marshal(filterOf(f, text))
		f.Add(b)
	}
	one, none := filterFlow(), &flowpb.Flow{}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := &flowpb.FlowFilter{}
		if proto.Unmarshal(b, in) != nil {
			return
		}
		got, err := NewFilter([]*flowpb.FlowFilter{in}, []*flowpb.FlowFilter{in})
		if err != nil {
			return
		}
		if got.Match(one) || got.Match(none) {
			t.Error("white and black at once")
		}
	})
}
