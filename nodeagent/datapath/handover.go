// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// Between a link and a filter on one side of a device each packet is to be judged once: seen by nobody it would have
// slipped through, and seen twice it would be another packet than it was, for some programs change it. The link sees
// it first. So while both are there the link leaves word in the packet, and the filter goes by it:
//
//	          link    filter     judged by
//	                  stub       the filter
//	          clear   stub       the filter
//	          clear   guard      the filter: no word
//	          mark    guard      the link, and it leaves word
//	          mark               the link
//	          stub               the link
//
// Each step is a write of one pointer, but attaching and detaching the link, which does nothing then. Before a step
// that would be wrong for a packet between the two, waitForPrograms. The way back is the same from below. An agent that
// dies in between leaves one of these rows, and the next one goes on from it.

// wordOffset is that of cb[4] in struct __sk_buff, which nothing of ours uses and no program inherits: clear or mark
// writes it before guard reads it.
const wordOffset = 64

const (
	actionNext = -1 // TC_ACT_UNSPEC, TCX_NEXT
	actionDrop = 2  // TC_ACT_SHOT
)

// handover are a hook's programs between two ways.
type handover struct {
	clear, mark, guard *ebpf.Program
}

func (h handover) close() {
	for _, prog := range []*ebpf.Program{h.clear, h.mark, h.guard} {
		if prog != nil {
			prog.Close()
		}
	}
}

const (
	clearName = "kc_clear"
	markName  = "kc_mark"
	guardName = "kc_guard"
	// passName is what earlier releases put in the place of clear.
	passName = "kc_pass"
)

func leaveWord(word int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R2, word), asm.StoreMem(asm.R1, wordOffset, asm.R2, asm.Word)}
}

func goOn() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, actionNext), asm.Return()}
}

// judge is what the stub does, without its counters: the slots are full when it runs.
func (p *programs) judge(hook bpf.Hook) asm.Instructions {
	otherwise := int32(actionNext)
	if hook == bpf.MapsHookHOOK_FROM_POD || hook == bpf.MapsHookHOOK_TO_POD {
		otherwise = actionDrop
	}
	return asm.Instructions{
		asm.LoadMapPtr(asm.R2, p.maps.open[bpf.MapsMapHooks].FD()),
		asm.Mov.Imm(asm.R3, int32(hook)),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, otherwise),
		asm.Return(),
	}
}

func classifier(name string, parts ...asm.Instructions) (*ebpf.Program, error) {
	var all asm.Instructions
	for _, part := range parts {
		all = append(all, part...)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: all})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", name, err)
	}
	return prog, nil
}

// handoverOf gives the programs that the hook needs to go from one way to the other. What is attached holds them.
func (p *programs) handoverOf(hook bpf.Hook) (handover, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h, ok := p.handovers[hook]; ok {
		return h, nil
	}
	unseen := p.judge(hook)
	unseen[0] = unseen[0].WithSymbol("unseen")
	var h handover
	for _, one := range []struct {
		to    **ebpf.Program
		name  string
		parts []asm.Instructions
	}{
		{&h.clear, clearName, []asm.Instructions{leaveWord(0), goOn()}},
		{&h.mark, markName, []asm.Instructions{leaveWord(1), p.judge(hook)}},
		{&h.guard, guardName, []asm.Instructions{
			{asm.LoadMem(asm.R2, asm.R1, wordOffset, asm.Word), asm.JEq.Imm(asm.R2, 0, "unseen")}, goOn(), unseen,
		}},
	} {
		var err error
		if *one.to, err = classifier(one.name, one.parts...); err != nil {
			h.close()
			return handover{}, err
		}
	}
	if p.handovers == nil {
		p.handovers = map[bpf.Hook]handover{}
	}
	p.handovers[hook] = h
	return h, nil
}

// toLink makes the hook's stub be on the device by a link alone, whatever is there.
func (a *attacher) toLink(hook bpf.Hook, dev device) error {
	filters, err := ourFilters(hook, dev)
	if err != nil {
		return err
	}
	if len(filters) == 0 {
		return a.putLink(hook, dev, a.progs.stubs[hook])
	}
	if err := a.beginLink(hook, dev); err != nil {
		return err
	}
	if err := waitForPrograms(); err != nil {
		return err
	}
	return a.finishLink(hook, dev)
}

// beginLink has a link judge on a device that has a filter: at its end link and filter are mark and guard. That may
// stay so. It holds the lock of all devices for a grace period when the link is not there yet.
func (a *attacher) beginLink(hook bpf.Hook, dev device) error {
	h, err := a.progs.handoverOf(hook)
	if err != nil {
		return err
	}
	first, on := h.clear, a.linkIsOn(hook, dev)
	if on {
		judges, err := a.linkJudges(hook, dev)
		if err != nil {
			return err
		}
		if judges {
			first = h.mark
		}
	}
	if err := a.putLink(hook, dev, first); err != nil {
		return err
	}
	if on { // to attach waits for the same
		if err := waitForPrograms(); err != nil {
			return err
		}
	}
	if err := a.putFilter(hook, dev, h.guard); err != nil {
		return err
	}
	return a.putLink(hook, dev, h.mark)
}

// finishLink follows beginLink, when every program that ran then has ended.
func (a *attacher) finishLink(hook bpf.Hook, dev device) error {
	if err := a.detachFilter(hook, dev); err != nil {
		return err
	}
	return a.putLink(hook, dev, a.progs.stubs[hook])
}

// toFilter makes the hook's stub be on the device by a filter alone, whatever is there.
func (a *attacher) toFilter(hook bpf.Hook, dev device) error {
	stub := a.progs.stubs[hook]
	if !a.linkIsOn(hook, dev) {
		if err := a.putFilter(hook, dev, stub); err != nil {
			return err
		}
		return a.detachTCX(hook, dev) // a pin may be left of a device that is gone
	}
	judges, err := a.linkJudges(hook, dev)
	if err != nil {
		return err
	}
	if judges {
		if err := a.beginFilter(hook, dev); err != nil {
			return err
		}
	}
	if err := waitForPrograms(); err != nil {
		return err
	}
	if err := a.putFilter(hook, dev, stub); err != nil {
		return err
	}
	return a.detachTCX(hook, dev)
}

// beginFilter has a filter judge on a device that has a link: at its end link and filter are clear and guard.
func (a *attacher) beginFilter(hook bpf.Hook, dev device) error {
	h, err := a.progs.handoverOf(hook)
	if err != nil {
		return err
	}
	if err := a.putLink(hook, dev, h.mark); err != nil {
		return err
	}
	if err := waitForPrograms(); err != nil {
		return err
	}
	if err := a.putFilter(hook, dev, h.guard); err != nil {
		return err
	}
	return a.putLink(hook, dev, h.clear)
}

// linkJudges is false of a link that an agent, perhaps an earlier one, left there to do nothing.
func (a *attacher) linkJudges(hook bpf.Hook, dev device) (bool, error) {
	l, info, err := openLink(a.pin(hook, dev.name))
	if err != nil {
		return false, err
	}
	defer l.Close()
	about, err := programInfo(info.Program)
	if err != nil {
		return false, fmt.Errorf("program of pinned link: %w", err)
	}
	return about.Name != clearName && about.Name != passName, nil
}
