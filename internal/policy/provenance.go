// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

const (
	// maxOrigins bounds how many rules that say the same are listed as what decided: the first by name.
	maxOrigins = 16
	// rememberedRules is how many rules that no table holds any more can still be named: records in the ring and lines
	// in people's terminals are older than tables.
	rememberedRules = 8192
)

// registry names rules. The number is a hash of the content; where two contents collide, the later one takes the next
// hash of its own.
type registry struct {
	byID map[RuleID]*registered
	// ids: content -> number
	ids  map[string]RuleID
	tick uint64
	// enough rules to sweep.
	enough int
}

type registered struct {
	Provenance
	content string
	used    uint64 // tick of the last use
}

func newRegistry() registry {
	return registry{byID: map[RuleID]*registered{}, ids: map[string]RuleID{}, enough: 2 * rememberedRules}
}

// name returns the number of what decided.
func (g *registry) name(p Provenance) RuleID {
	slices.SortFunc(p.Origins, compareOrigins)
	p.Origins = slices.Compact(p.Origins)
	if len(p.Origins) > maxOrigins && !p.Default {
		p.Origins = p.Origins[:maxOrigins:maxOrigins]
	}
	content := fmt.Sprintf("%d %d %t", p.Verdict, p.Direction, p.Default)
	for _, o := range p.Origins {
		content += fmt.Sprintf(" %q %q %q %q", o.Kind, o.Namespace, o.Name, o.Path)
	}
	g.tick++
	if id, ok := g.ids[content]; ok {
		g.byID[id].used = g.tick
		return id
	}
	for attempt := range uint32(1 << 16) {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", attempt, content))
		id := RuleID(binary.BigEndian.Uint32(sum[:]))
		if _, taken := g.byID[id]; id == 0 || taken {
			continue
		}
		g.byID[id] = &registered{Provenance: p, content: content, used: g.tick}
		g.ids[content] = id
		return id
	}
	return 0
}

// sweep forgets what was not used for long; live tells what tables still hold. False: there was no need.
func (g *registry) sweep(live func(mark func(RuleID))) bool {
	if len(g.byID) < g.enough {
		return false
	}
	held := map[RuleID]bool{}
	live(func(id RuleID) { held[id] = true })
	var gone []RuleID
	for id := range g.byID {
		if !held[id] {
			gone = append(gone, id)
		}
	}
	slices.SortFunc(gone, func(a, b RuleID) int { return cmp.Compare(g.byID[a].used, g.byID[b].used) })
	for _, id := range gone[:max(0, len(gone)-rememberedRules)] {
		delete(g.ids, g.byID[id].content)
		delete(g.byID, id)
	}
	g.enough = len(g.byID) + rememberedRules
	return true
}

func compareRefs(a, b Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func compareOrigins(a, b Origin) int {
	return cmp.Or(compareRefs(a.Ref, b.Ref), cmp.Compare(a.Path, b.Path))
}

func compareRules(a, b *rule) int { return compareOrigins(a.origin(), b.origin()) }
