// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// ruleCounts is how many rules select one pod.
var ruleCounts = []int{10, 1000, 10000}

// rulesInPolicy is how many rules one NetworkPolicy holds; more rules are more policies.
const rulesInPolicy = 1000

// policyFigures gives what a packet costs with rules, ours beside iptables and ipset, and how long a policy takes.
func policyFigures(ctx context.Context, log io.Writer, c *ours, g *ground, rounds, millis int) (figures []Figure, err error) {
	kinds := []string{"rr", "crr"}
	theirs, err := g.ruled()
	if err != nil {
		return nil, err
	}
	if figures, err = measure(ctx, log, "iptables and ipset", theirs, theirs[0].name, kinds, rounds, millis, nil); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.dropRules(context.WithoutCancel(ctx))) }()
	mine, err := c.ruledPods(ctx, log)
	if err != nil {
		return nil, err
	}
	f, err := measure(ctx, log, "policy", mine, mine[0].name, kinds, rounds, millis, nil)
	if err != nil {
		return nil, err
	}
	figures = append(figures, f...)
	// The bar is that rules cost nothing: ten thousand beside ten.
	few, many := mine[1], mine[len(mine)-1]
	f, err = measure(ctx, log, "policy, many rules", []shape{few, many}, few.name, kinds, rounds, millis,
		map[string]bars{many.name: {"rr": 0.95, "crr": 0.95}})
	return append(figures, f...), err
}

// strangersAddress is the i-th address that rules name and nobody has (RFC 2544's test network).
func strangersAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})
}

// ruledPods makes one server for each number of rules, all on the client's node: none first.
func (o *ours) ruledPods(ctx context.Context, log io.Writer) ([]shape, error) {
	node := o.Nodes[0].Name
	counts := append([]int{0}, ruleCounts...)
	var yaml strings.Builder
	for _, n := range counts {
		yaml.WriteString(podYAML(ruledName(n), node))
		for from := 0; from < n; from += rulesInPolicy {
			yaml.WriteString(ruledPolicy(n, from, min(from+rulesInPolicy, n)))
		}
	}
	fmt.Fprintln(log, "policy: applying rules")
	if _, err := o.Kubectl(ctx, []byte(yaml.String()), "apply", "--server-side", "-f", "-"); err != nil {
		return nil, err
	}
	if err := o.policiesInForce(ctx); err != nil {
		return nil, err
	}
	var shapes []shape
	var names []string
	for _, n := range counts {
		pod := ruledName(n)
		names = append(names, pod)
		if _, err := o.Kubectl(ctx, nil, "-n", benchNamespace, "wait", "--for=condition=Ready", "--timeout=90s", "pod/"+pod); err != nil {
			return nil, err
		}
		ips, err := o.Kubectl(ctx, nil, "-n", benchNamespace, "get", "pod", pod, "-o", "jsonpath={.status.podIP}")
		if err != nil {
			return nil, err
		}
		p := place{}
		if p.enter, p.procs, err = o.insidePod(ctx, pod); err != nil {
			return nil, err
		}
		shapes = append(shapes, shape{name: fmt.Sprintf("same node, %d rules", n), client: o.pods["client"], server: p, dst: strings.TrimSpace(ips)})
	}
	return shapes, o.moved(ctx, names...)
}

// dropRules takes away what ruledPods made.
func (o *ours) dropRules(ctx context.Context) error {
	_, err := o.Kubectl(ctx, nil, "-n", benchNamespace, "delete", "networkpolicies", "--all")
	for _, n := range append([]int{0}, ruleCounts...) {
		_, gone := o.Kubectl(ctx, nil, "-n", benchNamespace, "delete", "pod", ruledName(n), "--ignore-not-found")
		err = errors.Join(err, gone)
	}
	return err
}

func ruledName(n int) string { return "rules-" + strconv.Itoa(n) }

// ruledPolicy holds rules from to to of n; the last of all lets the client in.
func ruledPolicy(n, from, to int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: %s, name: rules-%d-%d}
spec:
  podSelector: {matchLabels: {pod: rules-%d}}
  policyTypes: [Ingress]
  ingress:
`, benchNamespace, n, from, n)
	for i := from; i < to; i++ {
		if i == n-1 {
			b.WriteString("  - from: [{podSelector: {matchLabels: {pod: client}}}]\n")
			continue
		}
		fmt.Fprintf(&b, "  - from: [{ipBlock: {cidr: %s/32}}]\n", strangersAddress(i))
	}
	b.WriteString("---\n")
	return b.String()
}

// policiesInForce waits until every node reports all NetworkPolicies that there are now.
func (o *ours) policiesInForce(ctx context.Context) error {
	out, err := o.Kubectl(ctx, nil, "get", "networkpolicies", "-A", "-o", `jsonpath={range .items[*]}{.metadata.resourceVersion}{"\n"}{end}`)
	if err != nil {
		return err
	}
	var want uint64
	for _, v := range strings.Fields(out) {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return fmt.Errorf("resourceVersion %q: %w", v, err)
		}
		want = max(want, n)
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		out, err := o.Kubectl(ctx, nil, "get", "ciliumnodereports", "-o", `jsonpath={range .items[*]}{.status.policies[?(@.kind=="NetworkPolicy")].inForce}{"\n"}{end}`)
		behind := len(o.Nodes)
		for _, v := range strings.Fields(out) {
			if n, parse := strconv.ParseUint(v, 10, 64); parse == nil && n >= want {
				behind--
			}
		}
		if err == nil && behind == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("policies up to %d are not in force after two minutes: %s", want, out), err)
		}
	}
}

// ruled is the ptp plugin with rules in the kernel's own filter, as other networks put them there: what is established
// passes first, then the rules, then nothing. No rules at all first.
func (g *ground) ruled() ([]shape, error) {
	shapes := []shape{}
	// Names are given once in a ground, and this one may have a ptp already.
	plain, err := g.another("none").reference("ptp", "10.75.0.0/24")
	if err != nil {
		return nil, err
	}
	plain.name = "ptp plugin, no rules"
	shapes = append(shapes, plain)
	subnet := 76
	for _, how := range []string{"iptables", "ipset"} {
		for _, n := range ruleCounts {
			h := g.another(how + strconv.Itoa(n))
			s, err := h.reference("ptp", fmt.Sprintf("10.%d.0.0/24", subnet))
			if err != nil {
				return nil, err
			}
			subnet++
			s.name = fmt.Sprintf("%s, %d rules", how, n)
			if err := filter(netns(h.run+"ptp"), how, n, s); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			shapes = append(shapes, s)
		}
	}
	return shapes, nil
}

// filter puts n rules into host's FORWARD chain; the last lets the shape's client in.
func filter(host place, how string, n int, s shape) error {
	client, err := clientAddress(s)
	if err != nil {
		return err
	}
	var rules, members strings.Builder
	rules.WriteString("*filter\n:FORWARD DROP\n-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n")
	fmt.Fprintf(&members, "create peers hash:ip maxelem %d\n", n+1)
	for i := range n {
		addr := strangersAddress(i).String()
		if i == n-1 {
			addr = client
		}
		fmt.Fprintf(&members, "add peers %s\n", addr)
		if how == "iptables" {
			fmt.Fprintf(&rules, "-A FORWARD -s %s/32 -d %s/32 -j ACCEPT\n", addr, s.dst)
		}
	}
	if how == "ipset" {
		fmt.Fprintf(&rules, "-A FORWARD -d %s/32 -m set --match-set peers src -j ACCEPT\n", s.dst)
		if err := feed(host.command("ipset", "restore"), members.String()); err != nil {
			return err
		}
	}
	rules.WriteString("COMMIT\n")
	return feed(host.command("iptables-restore"), rules.String())
}

// clientAddress is the address that the shape's client speaks from.
func clientAddress(s shape) (string, error) {
	out, err := output(s.client.command("ip", "-4", "-o", "route", "get", s.dst))
	if err != nil {
		return "", err
	}
	f := strings.Fields(out)
	for i := range f {
		if f[i] == "src" && i+1 < len(f) {
			return f[i+1], nil
		}
	}
	return "", fmt.Errorf("no source in %q", out)
}

func feed(cmd *exec.Cmd, stdin string) error {
	cmd.Stdin = strings.NewReader(stdin)
	_, err := output(cmd)
	return err
}
