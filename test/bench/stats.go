// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"
)

// Figure is one row of the results.
type Figure struct {
	// Figure is what was measured: rr, crr, stream, udp, cni-add-p50, ...
	Figure string `json:"figure"`
	// Shape is what it was measured on, Peer what it is compared with.
	Shape string `json:"shape"`
	Peer  string `json:"peer"`
	// Ratio is the median of shape / peer, P25 and P75 its quartiles. For a figure that has no peer it is the value itself, in Unit.
	Ratio float64 `json:"ratio"`
	P25   float64 `json:"p25,omitempty"`
	P75   float64 `json:"p75,omitempty"`
	// Best is the ratio of the rates that a tenth of the slices reach: what the least disturbed say.
	Best float64 `json:"best,omitempty"`
	Unit string  `json:"unit,omitempty"`
	// Bar is the value to keep; 0: none. A bar on cost (AtMost) is kept by staying below.
	Bar    float64 `json:"bar"`
	AtMost bool    `json:"atMost,omitempty"`
	// Met says whether the bar is kept.
	Met bool `json:"met"`
}

func (f Figure) judged() Figure {
	f.Met = f.Bar == 0 || (f.AtMost && f.Ratio <= f.Bar) || (!f.AtMost && f.Ratio >= f.Bar)
	return f
}

// quartiles gives the 25th, 50th and 75th percentile; NaN for no values.
func quartiles(v []float64) (p25, p50, p75 float64) {
	return percentile(v, 0.25), percentile(v, 0.5), percentile(v, 0.75)
}

// percentile interpolates between neighbours, as R's type 7 does.
func percentile(v []float64, p float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	at := p * float64(len(s)-1)
	lo := int(at)
	hi := min(lo+1, len(s)-1)
	return s[lo] + (at-float64(lo))*(s[hi]-s[lo])
}
