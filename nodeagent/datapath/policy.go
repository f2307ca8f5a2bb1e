// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/kube-cilium/kube-cilium/bpf"
	"github.com/kube-cilium/kube-cilium/internal/delta"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// ErrPolicyFull says that a verdict table does not fit. Nothing of it was written: a pod that had a policy keeps it, a
// new one stays closed.
var ErrPolicyFull = errors.New("verdict tables are full")

// PodPolicy is what the policies that select a pod say in each direction. nil: none selects it there, everything is
// allowed. The tables are not changed afterwards: they are kept, and compared by content.
type PodPolicy struct {
	Ingress, Egress *policy.Table
}

func (p PodPolicy) of(direction policy.Direction) *policy.Table {
	if direction == policy.Ingress {
		return p.Ingress
	}
	return p.Egress
}

// SetPolicy brings the pods of the given ids to their policies and addresses to their classes. It is given all pods of
// this node: another id stays as it is while its pod is being wired (SetPodPolicy) or is known to SetPods, and is closed
// otherwise. failed names the pods for which a table did not fit (ErrPolicyFull): they keep what they had.
//
// A packet sees a pod's old policy or its new one, in each direction, and nothing between: a table is changed where it
// is only when no packet can ask for two of its changes; else it is written anew and the pods' slots are pointed at it.
// What established connections remember counts until the generation moves on, once, after the last change. A restart
// finds what is pinned by its content and writes nothing.
func (d *Datapath) SetPolicy(pods map[uint16]PodPolicy, classes map[netip.Prefix]policy.Peer) (failed map[uint16]error, err error) {
	d.mu.Lock()
	failed, err = d.setPolicy(pods, classes)
	retired := d.policy.unreferenced()
	d.mu.Unlock()
	if err != nil || len(retired) == 0 {
		return failed, err
	}
	// A program that runs may have read the slot before: its table stays until it has ended.
	if err := waitForPrograms(); err != nil {
		return failed, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return failed, nil
	}
	return failed, d.policy.drop(retired)
}

// Classes are those of the addresses in the kernel now, whoever wrote them.
func (d *Datapath) Classes() (map[netip.Prefix]policy.Peer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[netip.Prefix]policy.Peer{}
	err := eachEntry(d.maps.open[bpf.MapsMapClasses], d.maps.batch, func(k bpf.PrefixKey, class uint32) bool {
		if class != uint32(policy.Anyone) { // which only keeps IPv4 apart
			out[k.Prefix()] = policy.Peer(class)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read classes of addresses: %w", err)
	}
	return out, nil
}

// PolicyLimits is what the maps hold.
func (d *Datapath) PolicyLimits() policy.Limits {
	size := func(name string) int { return int(d.maps.open[name].MaxEntries()) }
	return policy.Limits{Prefixes: size(bpf.MapsMapClasses), Singles: size(bpf.MapsMapVerdicts), Ranges: size(bpf.MapsMapVerdictRanges)}
}

// SetPodPolicy gives a new pod its policy, before its interface is up. On an error (ErrPolicyFull) the pod is closed.
func (d *Datapath) SetPodPolicy(id uint16, p PodPolicy) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := &d.policy
	if err := w.load(); err != nil {
		return err
	}
	if id == 0 || uint32(id) >= w.slots.len() {
		return fmt.Errorf("policy of endpoint %d: the id is not between 1 and %d", id, w.slots.len()-1)
	}
	had, before := w.pods[id] != (bpf.Policy{}), w.writes
	if err := d.setPodPolicy(id, p); err != nil {
		w.put(id, bpf.Policy{})
		return fmt.Errorf("policy of endpoint %d: %w", id, err)
	}
	w.fresh[id] = true
	if had {
		return d.judgeAgain()
	}
	w.writes = before // nobody was judged by a pod's first policy
	return nil
}

func (d *Datapath) setPodPolicy(id uint16, p PodPolicy) error {
	w := &d.policy
	var slot bpf.Policy
	for _, side := range sides {
		if err := oneTier(p.of(side)); err != nil {
			return fmt.Errorf("%s: %w", side, err)
		}
		wanted := w.intern(p.of(side))
		err := w.write(wanted)
		if errors.Is(err, ErrPolicyFull) {
			// What nobody refers to any longer may make room.
			if err := w.makeRoom(); err != nil {
				return err
			}
			err = w.write(wanted)
		}
		if err != nil {
			return err
		}
		slot.Side[side] = slotOf(p.of(side), wanted)
	}
	w.put(id, slot)
	return nil
}

// DropPodPolicy closes the id of a pod that is gone.
func (d *Datapath) DropPodPolicy(id uint16) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.policy.load(); err != nil {
		return err
	}
	if uint32(id) < d.policy.slots.len() {
		d.policy.put(id, bpf.Policy{})
	}
	delete(d.policy.fresh, id)
	return nil
}

// oneTier refuses what programs cannot ask yet: tables in a row.
func oneTier(t *policy.Table) error {
	if t != nil && t.Next != nil {
		return errors.New("policies of several tiers are not supported")
	}
	return nil
}

var sides = []policy.Direction{policy.Egress, policy.Ingress}

func (d *Datapath) setPolicy(pods map[uint16]PodPolicy, classes map[netip.Prefix]policy.Peer) (map[uint16]error, error) {
	w := &d.policy
	if err := w.load(); err != nil {
		return nil, err
	}
	for id, p := range pods {
		if id == 0 || uint32(id) >= w.slots.len() {
			return nil, fmt.Errorf("set policy: endpoint id %d is not between 1 and %d", id, w.slots.len()-1)
		}
		if err := errors.Join(oneTier(p.Ingress), oneTier(p.Egress)); err != nil {
			return nil, fmt.Errorf("set policy: endpoint %d: %w", id, err)
		}
	}
	wantedClasses := make(map[bpf.PrefixKey]uint32, len(classes))
	for prefix, class := range classes {
		wantedClasses[bpf.PrefixKeyFrom(prefix)] = uint32(class)
	}
	keepIPv4Apart(wantedClasses, uint32(policy.Anyone))
	classChange, err := w.classes.Change(wantedClasses)
	if errors.Is(err, delta.ErrFull) {
		return nil, fmt.Errorf("set policy: classes of addresses: %w", errors.Join(ErrPolicyFull, err))
	} else if err != nil {
		return nil, fmt.Errorf("set policy: %w", err)
	}
	wanted := map[policySlot]*verdictTable{}
	for id, p := range pods {
		for _, side := range sides {
			wanted[policySlot{id, side}] = w.intern(p.of(side))
		}
	}
	failed := w.settle(pods, wanted)
	if len(failed) > 0 && len(w.unreferenced()) > 0 {
		if err := w.makeRoom(); err != nil {
			return failed, err
		}
		failed = w.settle(pods, wanted)
	}
	if d.podsKnown {
		for id := range w.pods {
			_, told := pods[id]
			if _, known := d.pods[id]; !told && !known && !w.fresh[id] {
				w.put(id, bpf.Policy{})
			}
		}
	}
	for id := range pods {
		delete(w.fresh, id)
	}
	w.forgetPointers(pods)
	// Tables name classes: a class that goes is no longer asked for by then, one that comes is in the tables already.
	if !classChange.Empty() {
		w.writes++
		if err := delta.Apply(classChange); err != nil {
			return failed, fmt.Errorf("set policy: classes of addresses: %w", err)
		}
	}
	return failed, d.judgeAgain()
}

// judgeAgain ends every change of what verdicts are made of, and of who has which address: if there was one, this time or
// before, when somebody died or failed between the change and this, programs are told. With the next generation, every
// connection is judged again with its next packet; with the next number of addresses, what they remember of these
// (bpf/lib/known.h) is void.
func (d *Datapath) judgeAgain() error {
	if d.policy.writes == 0 && !d.policy.moved {
		return nil
	}
	// Two writes: a program that sees the next generation must not judge by what it remembers of addresses from before.
	if d.policy.moved {
		if err := d.maps.writeSettings(func(s *bpf.Settings) { s.Addresses++ }); err != nil {
			return err
		}
		d.policy.moved = false
	}
	if d.policy.writes > 0 {
		if err := d.maps.writeSettings(func(s *bpf.Settings) { s.Generation++ }); err != nil {
			return err
		}
		d.policy.writes = 0
	}
	return nil
}

// policySlot is one direction of a pod.
type policySlot struct {
	id   uint16
	side policy.Direction
}

// settle writes tables that are not there yet and points slots at them. It returns the pods for which that failed.
func (w *policyWriter) settle(pods map[uint16]PodPolicy, wanted map[policySlot]*verdictTable) map[uint16]error {
	// Table in the kernel -> what those who refer to it, or will, want in its place: itself, another, or nil for none.
	successors := map[*verdictTable]map[*verdictTable]bool{}
	for _, next := range wanted {
		if next != nil && next.id != 0 {
			successors[next] = map[*verdictTable]bool{next: true}
		}
	}
	for id, slot := range w.pods {
		for _, side := range sides {
			now := w.tables[slot.Side[side].Table]
			if now == nil {
				continue
			}
			next, told := wanted[policySlot{id, side}]
			if !told {
				next = now
			}
			if successors[now] == nil {
				successors[now] = map[*verdictTable]bool{}
			}
			successors[now][next] = true
		}
	}
	order := slices.SortedFunc(maps.Keys(wanted), func(a, b policySlot) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.side, b.side))
	})
	refused := map[*verdictTable]error{}
	for _, at := range order {
		next := wanted[at]
		if next == nil || next.id != 0 || refused[next] != nil {
			continue
		}
		now := w.tables[w.pods[at.id].Side[at.side].Table]
		if now != nil && len(successors[now]) == 1 && w.change(now, next) {
			continue
		}
		if err := w.write(next); err != nil {
			refused[next] = err
		}
	}
	failed := map[uint16]error{}
	for _, at := range order {
		next := wanted[at]
		if err := refused[next]; next != nil && err != nil {
			failed[at.id] = fmt.Errorf("%s policy of endpoint %d: %w", at.side, at.id, err)
			continue
		}
		slot := w.pods[at.id]
		slot.Side[at.side] = slotOf(pods[at.id].of(at.side), next)
		w.put(at.id, slot)
	}
	return failed
}

// slotOf is what a slot says of a table that is in the kernel.
func slotOf(t *policy.Table, written *verdictTable) bpf.PolicySide {
	if t == nil {
		return bpf.PolicySide{Flags: uint16(bpf.MapsPolicyFlagsPOLICY_NONE)}
	}
	s := bpf.PolicySide{DefaultRule: uint32(t.Default), Flags: uint16(bpf.MapsPolicyFlagsPOLICY_ENFORCED)}
	if written != nil {
		s.Table, s.Flags = written.id, s.Flags|written.flags
	}
	return s
}
