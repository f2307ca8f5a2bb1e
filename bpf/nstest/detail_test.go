// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kube-cilium/kube-cilium/bpf"
)

func (l *lab) listenAll() {
	for _, n := range l.nodes {
		n.listen()
		for _, p := range n.pods {
			p.listen()
		}
	}
	l.outside.listen()
}

// TestTooLargeDevice: pods whose device takes more than the tunnel does are told, and everything arrives all the same.
func TestTooLargeDevice(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{deviceMTU: 1500})
	l.listenAll()
	a, far := l.nodes[0].pods[0], l.nodes[1].pods[0]
	for _, to := range []netip.Addr{far.v4, far.v6} {
		if _, err := a.tcp(to, 4<<20); err != nil {
			t.Errorf("tcp to %v: %v", to, err)
		}
		if _, err := a.udp(to, 1472); err != nil && to.Is4() {
			t.Errorf("udp to %v: %v", to, err)
		}
		if _, err := a.udp(to, 5000); err != nil {
			t.Errorf("udp in fragments to %v: %v", to, err)
		}
	}
	if n := l.nodes[0].count(bpf.MapsHookHOOK_FROM_POD, bpf.MapsReasonFORWARD_ANSWERED); n == 0 {
		t.Error("nobody was told")
	}
	if t.Failed() {
		l.dump()
	}
}

// TestNextHop: what goes to a node on our link goes straight there, whatever the routes say; what is not on it, or of
// which it is not known, goes where they lead.
func TestNextHop(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]options{"tunnel": {}, "native": {native: true}} {
		for _, onLink := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, on the link %v", name, onLink), func(t *testing.T) {
				opts.onLink = onLink
				l := newLab(t, opts)
				l.listenAll()
				a, far := l.nodes[0].pods[0], l.nodes[1].pods[0]
				for _, to := range []netip.Addr{far.v4, far.v6} {
					if err := a.ping(to); err != nil {
						t.Fatalf("before: %v", err)
					}
				}
				// Nobody is there to forward it.
				l.nodes[0].ip("route add 172.31.0.2/32 via 172.31.0.77")
				l.nodes[0].ip("-6 route add fd31::2/128 via fd31::77")
				if opts.native {
					l.nodes[0].ip("route replace 10.231.2.0/24 via 172.31.0.77")
					l.nodes[0].ip("-6 route replace fd32:2::/64 via fd31::77")
				}
				for _, to := range []netip.Addr{far.v4, far.v6} {
					if err := a.ping(to); (err == nil) != onLink {
						t.Errorf("to %v: %v", to, err)
					}
				}
				if t.Failed() {
					l.dump()
				}
			})
		}
	}
}

// TestCutSegments: with segments cut on the wire, as a real NIC has them.
func TestCutSegments(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]options{"tunnel": {}, "native": {native: true}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, opts)
			l.listenAll()
			for _, n := range l.nodes {
				run(t, "nsenter", "--net=/var/run/netns/"+n.name, "ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "on")
			}
			a, far := l.nodes[0].pods[0], l.nodes[1].pods[0]
			for _, to := range []netip.Addr{far.v4, far.v6, outside4, outside6} {
				if _, err := a.tcp(to, 16<<20); err != nil {
					t.Errorf("tcp to %v: %v", to, err)
				}
			}
			if t.Failed() {
				l.dump()
			}
		})
	}
}

// TestTraceroute: the pod hears where its packet ended.
func TestTraceroute(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	a := l.nodes[0].pods[0]
	for to, want := range map[netip.Addr]string{
		outside4: "From 172.31.0.1 icmp_seq=1 Time to live exceeded",
		outside6: "From fd31::1 icmp_seq=1 Time exceeded: Hop limit",
	} {
		out, _ := exec.Command("nsenter", "--net=/var/run/netns/"+a.name, "ping", "-n", "-c1", "-W2", "-t1", to.String()).CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("%s", out)
		}
	}
}

// TestOnePortForTwo: host and pod speak from one port to one server, in either order, and both are answered.
func TestOnePortForTwo(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	l.outside.listen()
	n := l.nodes[0]
	a := n.pods[0]
	ask := func(s *space, from, to netip.Addr, port uint16) (*net.UDPConn, func() error) {
		var c *net.UDPConn
		s.do(func() (err error) {
			c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, port)),
				net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, echoPort)))
			return err
		})
		t.Cleanup(func() { c.Close() })
		return c, func() error {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			if _, err := c.Write([]byte("who am I")); err != nil {
				return err
			}
			_, err := c.Read(make([]byte, 100))
			return err
		}
	}
	port := uint16(45000)
	for _, to := range []netip.Addr{outside4, outside6} {
		host, pod := n.v4, a.v4
		if to.Is6() {
			host, pod = n.v6, a.v6
		}
		for _, podFirst := range []bool{true, false} {
			port++
			var asks []func() error
			_, askPod := ask(a.space, pod, to, port)
			if podFirst {
				if err := askPod(); err != nil {
					t.Fatal(err)
				}
			}
			_, askHost := ask(n.space, host, to, port)
			asks = append(asks, askHost, askPod, askHost, askPod)
			for i, f := range asks {
				if err := f(); err != nil {
					t.Errorf("to %v, pod first %v, question %d: %v", to, podFirst, i, err)
				}
			}
		}
	}
	if t.Failed() {
		l.dump()
	}
}

// TestForgedSource: what a pod forges reaches nobody.
func TestForgedSource(t *testing.T) {
	t.Parallel()
	l := newLab(t, options{})
	l.listenAll()
	n := l.nodes[0]
	a, b := n.pods[0], n.pods[1]
	if _, err := a.tcp(l.nodes[1].pods[0].v4, 1); err != nil { // also learns the gateway's MAC, by its own name
		t.Fatal(err)
	}
	// a takes b's address and speaks with it.
	a.ip("addr add " + b.v4.String() + "/32 dev eth0")
	a.ip("route replace default via 169.254.1.1 dev eth0 src " + b.v4.String())
	if _, err := a.tcp(l.nodes[1].pods[0].v4, 1); err == nil {
		t.Error("spoke with another pod's address")
	}
	if n.count(bpf.MapsHookHOOK_FROM_POD, bpf.MapsReasonDROP_INVALID_SOURCE) == 0 {
		t.Error("no drop was counted")
	}
}
