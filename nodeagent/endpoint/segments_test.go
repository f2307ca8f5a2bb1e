// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/nodetest"
)

// sized is a datapath with a segment size of the test's.
type sized struct {
	*datapath.Datapath
	size atomic.Pointer[datapath.SegmentSize]
	// refused is how many more times it is one that no device takes.
	refused atomic.Int32
}

func (s *sized) MaxSegment() datapath.SegmentSize {
	if s.refused.Add(-1) >= 0 {
		return datapath.SegmentSize{IPv4: 1 << 30, IPv6: 1 << 30}
	}
	return *s.size.Load()
}

// TestSegmentSizes: a pod is made with the size of the moment, and those that are there follow, also where they refused at
// first: that was never tried again.
func TestSegmentSizes(t *testing.T) {
	a := newAgent(t, nodetest.New(t), t.TempDir(), nil)
	d := &sized{Datapath: a.node.Datapath}
	a.Datapath = d
	big, half := datapath.SegmentSize{IPv4: 196608, IPv6: 196608}, datapath.SegmentSize{IPv4: 131072, IPv6: 65536}
	ordinary := datapath.OrdinarySegments()
	add := func(name string, size datapath.SegmentSize) (*Endpoint, *nodetest.Pod) {
		d.size.Store(&size)
		p := a.node.NewPod(name)
		e, err := a.add(name, p)
		nodetest.Must(t, err)
		return e, p
	}
	e1, p1 := add("one", ordinary)
	e2, p2 := add("two", big)
	size := func(l netlink.Link) datapath.SegmentSize {
		a := l.Attrs()
		if a.GSOMaxSize != a.GROMaxSize || a.GSOIPv4MaxSize != a.GROIPv4MaxSize {
			t.Errorf("%s: %+v", a.Name, a)
		}
		return datapath.SegmentSize{IPv4: int(a.GSOIPv4MaxSize), IPv6: int(a.GSOMaxSize)}
	}
	has := func(e *Endpoint, p *nodetest.Pod) (inner, outer datapath.SegmentSize) {
		t.Helper()
		host, err := netlink.LinkByName(e.Interface)
		nodetest.Must(t, err)
		nodetest.Must(t, podEndDo(e, "/proc/sys/net", p.File, func(end *podEnd) error {
			l, err := end.h.LinkByName(e.IfName)
			if err == nil {
				inner = size(l)
			}
			return err
		}))
		return inner, size(host)
	}
	for _, c := range []struct {
		e    *Endpoint
		p    *nodetest.Pod
		want datapath.SegmentSize
	}{{e1, p1, ordinary}, {e2, p2, big}} {
		if inner, outer := has(c.e, c.p); inner != c.want || outer != c.want {
			t.Errorf("%s is made with %v and %v, want %v", c.e.Pod.Name, inner, outer, c.want)
		}
	}
	turned := make(chan struct{})
	go func() { _ = a.FollowSegments(t.Context(), turned) }()
	p2.Remove() // its DEL is yet to come
	for _, want := range []datapath.SegmentSize{big, half, ordinary} {
		d.size.Store(&want)
		if want == half {
			d.refused.Store(2) // once for each
		}
		turned <- struct{}{}
		deadline := time.Now().Add(10 * time.Second)
		for {
			inner, outer := has(e1, p1)
			if inner == want && outer == want {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v and %v, want %v", inner, outer, want)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	nodetest.Must(t, a.Check(t.Context(), attachment("one"), p1.File))
}
