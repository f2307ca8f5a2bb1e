// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// forwardComment marks our rules.
const forwardComment = "kube-cilium"

// Where the host's stack forwards, a chain that drops by policy (Docker sets iptables' FORWARD so, which is such a
// chain) stops pods. At its head two rules of ours let what comes from or goes to pods' interfaces pass; the programs
// have judged it. They have to be in the chain itself: an accept in another table does not count there.
func ensureForwardRule(ipv4, ipv6 bool) (note string, err error) {
	chains, err := droppingChains(ipv4, ipv6)
	if err != nil {
		return "", err
	}
	var done []string
	var errs []error
	for _, c := range chains {
		if err := acceptPods(c); err != nil {
			errs = append(errs, fmt.Errorf("let pods pass %s: %w (the chain drops what the host forwards; accept %s* in it)", chainName(c), err, podDevicePrefix))
			continue
		}
		done = append(done, chainName(c))
	}
	note = "no chain of nftables drops by policy what the host forwards"
	if len(done) > 0 {
		note = "rules of ours let pods pass " + strings.Join(done, ", ")
	}
	if legacy := legacyFilters(ipv4, ipv6); len(legacy) > 0 {
		note += fmt.Sprintf("; %s is in use besides, where FORWARD has to accept %s+", strings.Join(legacy, " and "), podDevicePrefix)
	}
	return note, errors.Join(errs...)
}

// removeForwardRule is for uninstall and for the end of the stack path; what is not there is no error.
func removeForwardRule() error {
	var errs []error
	chains, err := forwardChains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		errs = append(errs, removeFrom(c))
	}
	return errors.Join(errs...)
}

func removeFrom(c *nftables.Chain) error {
	conn := &nftables.Conn{}
	ours, err := ourRules(conn, c)
	if err != nil || len(ours) == 0 {
		return err
	}
	for _, r := range ours {
		if err := conn.DelRule(r); err != nil {
			return fmt.Errorf("take our rules out of %s: %w", chainName(c), err)
		}
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("take our rules out of %s: %w", chainName(c), err)
	}
	return nil
}

// forwardChains are those that see what the host forwards. A kernel without nftables has none.
func forwardChains() ([]*nftables.Chain, error) {
	all, err := again(func() ([]*nftables.Chain, error) { return (&nftables.Conn{}).ListChains() })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the host's chains: %w", err)
	}
	families := []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet}
	return slices.DeleteFunc(all, func(c *nftables.Chain) bool {
		return c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || !slices.Contains(families, c.Table.Family)
	}), nil
}

func droppingChains(ipv4, ipv6 bool) ([]*nftables.Chain, error) {
	chains, err := forwardChains()
	return slices.DeleteFunc(chains, func(c *nftables.Chain) bool {
		other := c.Table.Family == nftables.TableFamilyIPv4 && !ipv4 || c.Table.Family == nftables.TableFamilyIPv6 && !ipv6
		return other || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop
	}), err
}

// acceptPods puts our two rules at the head of a chain, both or none, unless they are there.
func acceptPods(c *nftables.Chain) error {
	conn := &nftables.Conn{}
	has, err := ourRules(conn, c)
	if err != nil || len(has) == 2 {
		return err
	}
	for _, r := range has { // half of what an agent before us made
		if err := conn.DelRule(r); err != nil {
			return err
		}
	}
	for _, key := range []expr.MetaKey{expr.MetaKeyOIFNAME, expr.MetaKeyIIFNAME} {
		conn.InsertRule(&nftables.Rule{
			Table: c.Table, Chain: c, UserData: userdata.AppendString(nil, userdata.TypeComment, forwardComment),
			// The name's beginning is compared, as iptables does for a name that ends in a plus.
			Exprs: []expr.Any{
				&expr.Meta{Key: key, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(podDevicePrefix)},
				&expr.Counter{},
				&expr.Verdict{Kind: expr.VerdictAccept},
			},
		})
	}
	return conn.Flush()
}

// ourRules are known by their comment.
func ourRules(conn *nftables.Conn, c *nftables.Chain) ([]*nftables.Rule, error) {
	rules, err := again(func() ([]*nftables.Rule, error) { return conn.GetRules(c.Table, c) })
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("rules of %s: %w", chainName(c), err)
	}
	return slices.DeleteFunc(rules, func(r *nftables.Rule) bool {
		comment, ok := userdata.GetString(r.UserData, userdata.TypeComment)
		return !ok || strings.TrimRight(comment, "\x00") != forwardComment
	}), nil
}

func chainName(c *nftables.Chain) string {
	family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}
	return family[c.Table.Family] + " " + c.Table.Name + " " + c.Name
}

// legacyFilters names the old iptables of which the kernel has a filter table. Netlink says nothing of those.
func legacyFilters(ipv4, ipv6 bool) []string {
	var out []string
	for _, l := range []struct {
		want       bool
		path, name string
	}{{ipv4, "/proc/net/ip_tables_names", "iptables-legacy"}, {ipv6, "/proc/net/ip6_tables_names", "ip6tables-legacy"}} {
		names, err := os.ReadFile(l.path)
		if l.want && err == nil && slices.ContainsFunc(bytes.Fields(names), func(n []byte) bool { return string(n) == "filter" }) {
			out = append(out, l.name)
		}
	}
	return out
}
