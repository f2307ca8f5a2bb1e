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

// What people read never takes what packets wait for.
func TestReportsLeaveRoomForIdentities(t *testing.T) {
	b := &budget{clock: func() time.Time { return time.Unix(0, 0) }}
	for _, p := range []Priority{Background, Ordinary} {
		for range 2 * budgetWrites {
			b.take(p)
		}
	}
	for i := range 22 {
		if _, ok := b.take(Shared); !ok {
			t.Fatalf("identity %d had to wait for reports", i)
		}
	}
}
