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
			p := rapid.SampledFrom([]Priority{Background, Ordinary, Ordinary, Shared, Early}).Draw(t, "priority")
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
		{"a storm of policies", 0, Ordinary, 60, 16},
		{"the first pods, just then", 0, Shared, 60, 26},
		{"the lease", 0, Urgent, 6, 6},
		{"a minute of pods", budgetWindow, Shared, 60, 38},
		{"which policies are in force", 0, Ordinary, 60, 16},
		{"counters", 0, Background, 60, 0},
		{"the lease", 0, Urgent, 6, 6},
		{"one pod", budgetWindow, Shared, 1, 1},
		{"counters", 0, Background, 60, 6},
		{"a storm of policies", 0, Ordinary, 60, 16},
		{"more pods", 0, Shared, 60, 31},
		{"the lease", 0, Urgent, 6, 6},
		{"one pod", budgetWindow, Shared, 1, 1},
		{"counters when no more come", calm, Background, 60, 12},
		{"pods that are bound and do not come", budgetWindow, Early, 60, 12},
		{"pods that do", 0, Shared, 60, 26},
		{"the lease", 0, Urgent, 6, 6},
		{"pods", budgetWindow, Shared, 20, 20},
		{"some that are bound", 0, Early, 60, 6},
		{"counters", 0, Background, 60, 6},
		{"pods whose ADD is there", 0, Shared, 60, 6},
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

// Who keeps the pace never finds the share used up, whatever else is written: where many pods came just after many policies,
// news of policies had to wait for half a minute, since what was written before counted against a share that had shrunk.
func TestPaceLasts(t *testing.T) {
	for name, pods := range map[string]func(time.Duration) bool{
		"never":        func(time.Duration) bool { return false },
		"always":       func(time.Duration) bool { return true },
		"soon after":   func(at time.Duration) bool { return at > 20*time.Second },
		"later":        func(at time.Duration) bool { return at > 3*budgetWindow },
		"now and then": func(at time.Duration) bool { return at%(2*calm) < calm/2 },
		"for a while":  func(at time.Duration) bool { return at%(3*budgetWindow) < budgetWindow },
	} {
		t.Run("pods come "+name, func(t *testing.T) {
			start := time.Unix(0, 0)
			now := start
			b := &budget{clock: func() time.Time { return now }}
			last, lease, longest := start, start, time.Duration(0)
			for range 10 * 60 * 4 {
				now = now.Add(time.Second / 4)
				b.take(Background)
				for pods(now.Sub(start)) {
					if _, ok := b.take(Shared); !ok {
						break
					}
				}
				if now.Sub(lease) >= leaseRenew {
					if _, ok := b.take(Urgent); !ok {
						t.Fatalf("the lease had to wait after %v", now.Sub(start))
					}
					lease = now
				}
				if age := now.Sub(last); age >= max(b.pace(), 2*reportLook) {
					if wait, ok := b.take(Ordinary); !ok {
						t.Fatalf("after %v news have to wait for %v more", now.Sub(start), wait)
					}
					longest, last = max(longest, age), now
				}
				if len(b.made) > budgetWrites {
					t.Fatalf("%d writes in a minute", len(b.made))
				}
			}
			if longest > ordinaryPace {
				t.Errorf("news waited for %v", longest)
			}
		})
	}
}
