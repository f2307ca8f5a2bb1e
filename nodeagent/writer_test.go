// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// In any window of a minute there are at most sixty writes, and a lease can always be renewed.
func TestBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(0, 0)
		b := &budget{clock: func() time.Time { return now }}
		var made []time.Time
		next := now
		for range rapid.IntRange(1, 600).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(2*time.Second)).Draw(t, "pass")))
			p := rapid.SampledFrom([]Priority{Background, Ordinary, Ordinary, Shared}).Draw(t, "priority")
			if !now.Before(next) {
				p, next = Urgent, now.Add(leaseRenew)
			}
			wait, ok := b.take(p)
			if p == Urgent && !ok {
				t.Fatal("the lease had to wait")
			}
			if ok == (wait > 0) || wait > budgetWindow {
				t.Fatalf("%v, wait %v", ok, wait)
			}
			if ok {
				made = append(made, now)
			}
			in := 0
			for _, m := range made {
				if now.Sub(m) < budgetWindow {
					in++
				}
			}
			if in > budgetWrites {
				t.Fatalf("%d writes in a minute", in)
			}
		}
	})
}

// What people read never takes what packets wait for, and what packets wait for never takes all of what people wait for.
func TestReportsLeaveRoomForIdentities(t *testing.T) {
	now := time.Unix(0, 0)
	b := &budget{clock: func() time.Time { return now }}
	for _, step := range []struct {
		name string
		then time.Duration
		of   Priority
		asks int
		want int
	}{
		{"counters while no pod comes", 0, Background, 60, 12},
		{"a storm of policies", 0, Ordinary, 60, 20},
		{"the first pods, just then", 0, Shared, 60, 22},
		{"the lease", 0, Urgent, 6, 6},
		{"a minute of pods", budgetWindow, Shared, 60, 42},
		{"which policies are in force", 0, Ordinary, 60, 12},
		{"counters", 0, Background, 60, 0},
		{"the lease", 0, Urgent, 6, 6},
		{"one pod", budgetWindow, Shared, 1, 1},
		{"counters", 0, Background, 60, 6},
		{"a storm of policies", 0, Ordinary, 60, 12},
		{"more pods", 0, Shared, 60, 35},
		{"the lease", 0, Urgent, 6, 6},
		{"one pod", budgetWindow, Shared, 1, 1},
		{"counters when no more come", calm, Background, 60, 12},
	} {
		now = now.Add(step.then)
		got := 0
		for range step.asks {
			if _, ok := b.take(step.of); ok {
				got++
			}
		}
		if got != step.want {
			t.Errorf("%s: %d writes, want %d", step.name, got, step.want)
		}
	}
}

// Who keeps the pace never finds the share used up, whatever else is written.
func TestPaceLastsForTheMinute(t *testing.T) {
	for _, pods := range []bool{false, true} {
		now := time.Unix(0, 0)
		b := &budget{clock: func() time.Time { return now }}
		last, most := now.Add(-time.Hour), time.Duration(0)
		for range 10 * 60 * 4 {
			now = now.Add(time.Second / 4)
			if pods {
				b.take(Shared)
				b.take(Background)
			}
			age := now.Sub(last)
			if age < max(b.pace(), 2*reportLook) {
				continue
			}
			if wait, ok := b.take(Ordinary); !ok {
				t.Fatalf("pods %v: after %v it has to wait for %v", pods, now.Sub(time.Unix(0, 0)), wait)
			}
			if last.After(time.Unix(0, 0)) {
				most = max(most, age)
			}
			last = now
		}
		if most > reportGap {
			t.Errorf("pods %v: news waited for %v", pods, most)
		}
	}
}
