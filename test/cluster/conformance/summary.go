// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Summary is what became of the specs.
type Summary struct {
	// Total is how many were chosen.
	Total, Passed, Failed, Skipped int
	// Failures are the full names of specs that failed.
	Failures []string
}

// line is one line of the progress file: the number of specs that were chosen, or one spec that is over.
type line struct {
	Total   int     `json:"total"`
	Spec    string  `json:"spec"`
	State   string  `json:"state"`
	Seconds float64 `json:"seconds"`
	Message string  `json:"message"`
}

// add counts one line and returns what to say of it.
func (s *Summary) add(raw []byte) (string, error) {
	var l line
	if err := json.Unmarshal(raw, &l); err != nil {
		return "", fmt.Errorf("progress %q: %w", raw, err)
	}
	if l.Spec == "" {
		s.Total = l.Total
		return fmt.Sprintf("%d specs", l.Total), nil
	}
	switch l.State {
	case "passed":
		s.Passed++
	case "skipped", "pending":
		s.Skipped++
	default: // failed, panicked, timed out, interrupted, aborted
		s.Failed++
		s.Failures = append(s.Failures, l.Spec)
	}
	said := fmt.Sprintf("%2d/%d %s %3.0fs %s", s.Passed+s.Failed+s.Skipped, s.Total, l.State, l.Seconds, l.Spec)
	if l.State != "passed" && l.Message != "" {
		first, _, _ := strings.Cut(l.Message, "\n")
		said += ": " + first
	}
	return said, nil
}

// String ends in a line with the counts alone.
func (s Summary) String() string {
	var b strings.Builder
	for _, f := range s.Failures {
		fmt.Fprintf(&b, "FAILED %s\n", f)
	}
	fmt.Fprintf(&b, "%d passed, %d failed, %d skipped", s.Passed, s.Failed, s.Skipped)
	return b.String()
}
