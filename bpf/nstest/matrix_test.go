// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// party is an end of a connection.
type party struct {
	name   string
	at     *space
	v4, v6 netip.Addr
}

func (p party) addr(v6 bool) netip.Addr {
	if v6 {
		return p.v6
	}
	return p.v4
}

// row is one pair of the matrix; seen is whom the server must see.
type row struct {
	from, to, seen party
}

func (l *lab) rows() []row {
	n1, n2 := l.nodes[0], l.nodes[1]
	p := func(p *pod) party { return party{p.role, p.space, p.v4, p.v6} }
	h := func(n *node) party { return party{n.role, n.space, n.v4, n.v6} }
	a, b, c := p(n1.pods[0]), p(n1.pods[1]), p(n2.pods[0])
	out := party{l.outside.role, l.outside, outside4, outside6}
	masqueraded := h(n1)
	if l.opts.noMasquerade {
		masqueraded = a
	}
	rows := []row{
		{a, b, a}, {a, c, a}, {c, a, c}, {a, h(n1), a}, {h(n1), a, h(n1)}, {h(n1), c, h(n1)},
		{out, a, out},
	}
	if !l.opts.noMasquerade {
		rows = append(rows, row{a, h(n2), masqueraded}, row{a, out, masqueraded})
	}
	return rows
}

// check runs every kind of traffic over one row.
func (r row) check(t *testing.T, v6 bool) {
	to, want := r.to.addr(v6), r.seen.addr(v6)
	saw := func(what string, from netip.Addr, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if from != want {
			t.Errorf("%s: server saw %v, want %v", what, from, want)
		}
	}
	from, err := r.from.at.tcp(to, 1)
	saw("tcp", from, err)
	from, err = r.from.at.udp(to, 10)
	saw("udp", from, err)
	if err := r.from.at.ping(to); err != nil {
		t.Errorf("ping: %v", err)
	}
	from, err = r.from.at.tcp(to, 8<<20)
	saw("tcp bulk", from, err)
	from, err = r.from.at.udp(to, 5000)
	saw("udp fragments", from, err)
	if err := r.from.at.ping(to, "-s", "4000"); err != nil {
		t.Errorf("ping fragments: %v", err)
	}
	if err := r.from.at.refused(to, 9); err != nil {
		t.Errorf("port unreachable: %v", err)
	}
}

func matrix(t *testing.T, opts options) {
	t.Parallel()
	l := newLab(t, opts)
	for _, n := range l.nodes {
		n.listen()
		for _, p := range n.pods {
			p.listen()
		}
	}
	l.outside.listen()
	for _, r := range l.rows() {
		for _, v6 := range []bool{false, true} {
			family := map[bool]string{false: "v4", true: "v6"}[v6]
			t.Run(fmt.Sprintf("%s to %s %s", r.from.name, r.to.name, family), func(t *testing.T) {
				r.check(t, v6)
			})
		}
	}
	// That it works is not enough: the way must be the one that was asked for.
	unpacked := l.nodes[1].count(bpf.MapsHookHOOK_FROM_NETDEV, bpf.MapsReasonFORWARD_TO_POD)
	byDevice := l.nodes[1].count(bpf.MapsHookHOOK_FROM_OVERLAY, bpf.MapsReasonFORWARD_TO_POD)
	switch {
	case opts.native || opts.device || opts.underlay6:
		if wantDevice := !opts.native; (byDevice > 0) != wantDevice {
			t.Errorf("%d packets came to pods by the device", byDevice)
		}
	case unpacked == 0 || byDevice != 0:
		t.Errorf("%d packets unpacked by the program, %d by the device", unpacked, byDevice)
	}
	if opts.bigTCP {
		t.Run("BIG TCP", l.bigTCP)
	}
	if t.Failed() {
		l.dump()
	}
}

func TestTunnel(t *testing.T)          { matrix(t, options{onLink: true, bigTCP: true}) }
func TestTunnelByDevice(t *testing.T)  { matrix(t, options{device: true}) }
func TestTunnelOverIPv6(t *testing.T)  { matrix(t, options{underlay6: true}) }
func TestNative(t *testing.T)          { matrix(t, options{native: true, onLink: true, bigTCP: true}) }
func TestNoMasquerade(t *testing.T)    { matrix(t, options{noMasquerade: true}) }
func TestNoRedirectPeer(t *testing.T)  { matrix(t, options{noRedirectPeer: true}) }
func TestNoRedirectNeigh(t *testing.T) { matrix(t, options{noNeigh: true, device: true}) }
func TestNoNeighNative(t *testing.T) {
	matrix(t, options{noNeigh: true, native: true, noRedirectPeer: true, bigTCP: true})
}
func TestSeveralUplinks(t *testing.T) { matrix(t, options{severalUplinks: true}) }
