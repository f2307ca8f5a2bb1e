// SPDX-License-Identifier: Apache-2.0

package conformance

import "testing"

func TestSummaryCounts(t *testing.T) {
	var s Summary
	for _, row := range []struct{ line, want string }{
		{`{"total":4}`, "4 specs"},
		{`{"spec":"Netpol a","state":"passed","seconds":12.4}`, " 1/4 passed  12s Netpol a"},
		{`{"spec":"Netpol b","state":"failed","seconds":3,"message":"had wrong results\nin 2 cases"}`, " 2/4 failed   3s Netpol b: had wrong results"},
		{`{"spec":"Netpol c","state":"timedout","seconds":99}`, " 3/4 timedout  99s Netpol c"},
		{`{"spec":"Netpol d","state":"skipped","seconds":0,"message":"not here"}`, " 4/4 skipped   0s Netpol d: not here"},
	} {
		got, err := s.add([]byte(row.line))
		if err != nil || got != row.want {
			t.Errorf("%s: %q, %v; want %q", row.line, got, err, row.want)
		}
	}
	if got, want := s.String(), "FAILED Netpol b\nFAILED Netpol c\n1 passed, 2 failed, 1 skipped"; got != want {
		t.Errorf("%s", got)
	}
	if _, err := s.add([]byte("not JSON")); err == nil {
		t.Error("a line that is not JSON is taken")
	}
}
