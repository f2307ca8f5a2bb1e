// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TestPinsCannotBeOpenedForWriting is what keeps the inspect container from changing the network: root that may not
// override a file's mode gets no writable descriptor of a map.
func TestPinsCannotBeOpenedForWriting(t *testing.T) {
	f := newFixture(t)
	f.open()
	// An agent that died while it opened a pin left it writable; nobody of the next one opens this.
	left := filepath.Join(f.opts.folder(), PinName("left", 7))
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(t, err)
	defer m.Close()
	must(t, m.Pin(left))
	// Programs are opened by an agent that may not override modes either.
	program := filepath.Join(f.opts.folder(), "programs", "some_0123456789abcdef")
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	must(t, err)
	defer p.Close()
	must(t, p.Pin(program))
	f.open()
	if info, err := os.Stat(program); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the pin of a program: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(left); err != nil || info.Mode().Perm() != pinMode {
		t.Errorf("a pin that was left writable: %v, %v", info.Mode(), err)
	}
	for _, l := range layouts() {
		info, err := os.Stat(filepath.Join(f.opts.folder(), PinName(l.name, l.version)))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != pinMode {
			t.Errorf("pin of %s has mode %#o, want %#o", l.name, info.Mode().Perm(), pinMode)
		}
	}
}
