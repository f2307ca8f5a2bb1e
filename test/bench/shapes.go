// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// ground is where the shapes that are not ours live: namespaces of this run, on this machine.
type ground struct {
	run    string // unique prefix of names
	cni    string // folder of the reference plugins
	dir    string // scratch
	spaces []string
	// like are the cgroup.procs files of the two pods of ours that a shape stands beside. Its workers get a cgroup2 as
	// deep as these and as far from each other, since with each switch from one to the other the kernel's pressure
	// accounting walks all levels that they do not share. None of our programs is attached there.
	like   [2]string
	groups []string // made, the innermost last
	links  []io.Closer
	// also are grounds of which each is closed with this one: names in one ground are given once.
	also []*ground
}

func (g *ground) space(name string) (place, error) {
	full := g.run + name
	if _, err := sh("ip netns add " + full); err != nil {
		return place{}, err
	}
	g.spaces = append(g.spaces, full)
	_, err := sh("ip -n " + full + " link set lo up")
	if err != nil {
		return place{}, err
	}
	p := netns(full)
	p.ips = map[string]string{}
	p.procs, err = g.group(name)
	return p, err
}

// another is a ground within this one, closed with it, for names are given once in each.
func (g *ground) another(name string) *ground {
	h := &ground{run: g.run + name + "-", dir: filepath.Join(g.dir, name), cni: g.cni, like: g.like}
	g.also = append(g.also, h)
	return h
}

// group makes a cgroup2 as deep as a pod's. Of its levels as many are its own as one pod does not share with the other.
func (g *ground) group(name string) (procs string, err error) {
	mount, path, err := cgroup2Of(g.like[0])
	if err != nil {
		return "", err
	}
	_, other, err := cgroup2Of(g.like[1])
	if err != nil {
		return "", err
	}
	levels, shared := pathLevels(path, other)
	dir := filepath.Join(mount, g.run+"bench")
	for i := range levels {
		if i > 0 {
			dir = filepath.Join(dir, fmt.Sprint("level", i))
		}
		if i >= shared {
			dir += "-" + name
		}
		if err := os.Mkdir(dir, 0o755); err == nil {
			g.groups = append(g.groups, dir)
		} else if !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("cgroup: %w", err)
		}
	}
	return filepath.Join(dir, "cgroup.procs"), nil
}

// pathLevels is how many names a path has, and with how many of them another begins.
func pathLevels(path, other string) (levels, shared int) {
	names, others := strings.Split(path, "/"), strings.Split(other, "/")
	for shared < min(len(names), len(others)) && names[shared] == others[shared] {
		shared++
	}
	return len(names), shared
}

func (g *ground) close() {
	for _, h := range slices.Backward(g.also) {
		h.close()
	}
	for _, l := range g.links {
		_ = l.Close()
	}
	for _, s := range g.spaces {
		_, _ = sh("ip netns del " + s)
	}
	for _, dir := range slices.Backward(g.groups) {
		_ = os.Remove(dir)
	}
	_ = os.RemoveAll(g.dir)
}

// straight is the limit: a veth pair between two namespaces and nothing else.
func (g *ground) straight() (shape, error) {
	a, err1 := g.space("va")
	b, err2 := g.space("vb")
	if err := errors.Join(err1, err2); err != nil {
		return shape{}, err
	}
	err := all(
		fmt.Sprintf("ip link add veth0 netns %sva type veth peer name veth0 netns %svb", g.run, g.run),
		fmt.Sprintf("ip -n %sva addr add 10.71.0.1/24 dev veth0", g.run), fmt.Sprintf("ip -n %svb addr add 10.71.0.2/24 dev veth0", g.run),
		fmt.Sprintf("ip -n %sva link set veth0 up", g.run), fmt.Sprintf("ip -n %svb link set veth0 up", g.run))
	return shape{name: "veth pair", client: a, server: b, dst: "10.71.0.2"}, err
}

// reference makes two pods on one node with a reference plugin.
func (g *ground) reference(plugin, subnet string) (shape, error) {
	host, err := g.space(plugin)
	if err != nil {
		return shape{}, err
	}
	if _, err := output(host.command("sysctl", "-qw", "net.ipv4.ip_forward=1")); err != nil {
		return shape{}, err
	}
	s := shape{name: plugin + " plugin"}
	for _, side := range []string{"a", "b"} {
		p, err := g.space(plugin + side)
		if err != nil {
			return shape{}, err
		}
		ip, err := g.add(host, plugin, subnet, g.run+plugin+side)
		if err != nil {
			return shape{}, err
		}
		if side == "a" {
			s.client = p
		} else {
			s.server, s.dst = p, ip
		}
	}
	return s, nil
}

// conf is a reference plugin's network configuration.
func (g *ground) conf(plugin, subnet string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"%s","type":"%s","bridge":"cnibench0","isGateway":true,"ipMasq":false,"mtu":1500,
"ipam":{"type":"host-local","dataDir":"%s","ranges":[[{"subnet":"%s"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`, g.run+plugin, plugin, g.dir, subnet)
}

// add runs a reference plugin's ADD from host for the namespace named pod and returns the pod's IPv4 address.
func (g *ground) add(host place, plugin, subnet, pod string) (string, error) {
	cmd := host.command(filepath.Join(g.cni, plugin))
	cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+pod, "CNI_NETNS=/run/netns/"+pod, "CNI_IFNAME=eth0", "CNI_PATH="+g.cni)
	cmd.Stdin = strings.NewReader(g.conf(plugin, subnet))
	return addressOf(cmd)
}

// addressOf runs a CNI ADD and reads the first IPv4 address of its result.
func addressOf(cmd *exec.Cmd) (string, error) {
	out, err := output(cmd)
	if err != nil {
		return "", err
	}
	var r struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return "", fmt.Errorf("result %q: %w", out, err)
	}
	for _, ip := range r.IPs {
		if a, _, _ := strings.Cut(ip.Address, "/"); !strings.Contains(a, ":") {
			return a, nil
		}
	}
	return "", fmt.Errorf("result %q has no IPv4 address", out)
}

// kernelVXLAN is two nodes that route between their pods and a VXLAN device of the kernel, with static neighbours; a
// wire joins them. cut: it carries segments.
func (g *ground) kernelVXLAN(cut bool) (shape, error) {
	s := shape{name: "kernel VXLAN", dst: "10.72.2.2"}
	sides := []string{"a", "b"}
	for _, side := range sides {
		if _, err := g.space("n" + side); err != nil {
			return shape{}, err
		}
	}
	if _, err := sh(fmt.Sprintf("ip link add eth0 netns %sna type veth peer name eth0 netns %snb", g.run, g.run)); err != nil {
		return shape{}, err
	}
	for i, side := range sides {
		me, other := i+1, 2-i
		p, err := g.space("p" + side)
		if err != nil {
			return shape{}, err
		}
		node, pod := g.run+"n"+side, g.run+"p"+side
		lines := []string{
			fmt.Sprintf("ip -n %s addr add 172.29.71.%d/24 dev eth0", node, me), "ip -n " + node + " link set eth0 up",
			fmt.Sprintf("ip -n %s link add fl type vxlan id 1 dstport 8472 local 172.29.71.%d dev eth0 nolearning", node, me),
			fmt.Sprintf("ip -n %s link set fl address 0e:00:00:00:00:0%d up", node, me),
			fmt.Sprintf("ip -n %s addr add 10.72.%d.0/32 dev fl", node, me),
			fmt.Sprintf("ip -n %s route add 10.72.%d.0/24 via 10.72.%d.0 dev fl onlink", node, other, other),
			fmt.Sprintf("ip -n %s neigh add 10.72.%d.0 lladdr 0e:00:00:00:00:0%d dev fl nud permanent", node, other, other),
			fmt.Sprintf("bridge -n %s fdb append 0e:00:00:00:00:0%d dev fl dst 172.29.71.%d", node, other, other),
			fmt.Sprintf("ip link add eth0 mtu 1450 netns %s type veth peer name p0 mtu 1450 netns %s", pod, node),
			"ip -n " + node + " addr add 169.254.1.1/32 dev p0", "ip -n " + node + " link set p0 up",
			fmt.Sprintf("ip -n %s route add 10.72.%d.2/32 dev p0", node, me),
			fmt.Sprintf("ip -n %s addr add 10.72.%d.2/32 dev eth0", pod, me), "ip -n " + pod + " link set eth0 up",
			"ip -n " + pod + " route add 169.254.1.1 dev eth0", "ip -n " + pod + " route add default via 169.254.1.1 dev eth0",
			"nsenter --net=/run/netns/" + node + " sysctl -qw net.ipv4.ip_forward=1",
		}
		if cut {
			lines = append(lines, "nsenter --net=/run/netns/"+node+" ethtool -K eth0 tso off gso off gro on")
		}
		if err := all(lines...); err != nil {
			return shape{}, err
		}
		if side == "a" {
			s.client = p
		} else {
			s.server = p
		}
	}
	return s, nil
}
