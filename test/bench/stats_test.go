// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"testing"
)

func TestPercentile(t *testing.T) {
	for _, c := range []struct {
		values  []float64
		p, want float64
	}{
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{1, 2, 3, 4}, 0.5, 2.5},
		{[]float64{1, 2, 3, 4, 5}, 0.25, 2},
		{[]float64{7}, 0.99, 7},
	} {
		if got := percentile(c.values, c.p); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("percentile(%v, %v) = %v, want %v", c.values, c.p, got, c.want)
		}
	}
	if !math.IsNaN(percentile(nil, 0.5)) {
		t.Error("percentile of nothing is a number")
	}
}

func TestBarIsKeptOnTheRightSide(t *testing.T) {
	for _, c := range []struct {
		f    Figure
		want bool
	}{
		{Figure{Ratio: 0.95, Bar: 0.94}, true},
		{Figure{Ratio: 0.93, Bar: 0.94}, false},
		{Figure{Ratio: 90, Bar: 100, AtMost: true}, true},
		{Figure{Ratio: 110, Bar: 100, AtMost: true}, false},
		{Figure{Ratio: 0.1}, true},
	} {
		if got := c.f.judged().Met; got != c.want {
			t.Errorf("%+v: met = %v", c.f, got)
		}
	}
}

func TestPathLevels(t *testing.T) {
	const pod = "cluster/worker-1/kubepods/besteffort/pod1/a"
	for other, want := range map[string]int{
		"cluster/worker-1/kubepods/besteffort/pod2/b": 4,
		"cluster/worker-2/kubepods/besteffort/pod2/a": 1,
		"cluster/worker-1":                            2,
		pod:                                           6,
	} {
		if levels, shared := pathLevels(pod, other); levels != 6 || shared != want {
			t.Errorf("%s: %d levels, %d shared; want 6, %d", other, levels, shared, want)
		}
	}
}
