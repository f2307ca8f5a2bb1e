// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

// ledgerKey is the ConfigMap in which the operator remembers who holds which prefix, and which ones rest. It is written
// before the CiliumNodes, at the version that was read, so that two operators cannot decide at once. A ConfigMap, not a
// finalizer on CiliumNodes: those would keep our kinds from being deleted when the operator is gone.
var ledgerKey = client.ObjectKey{Namespace: v1alpha1.AgentLeaseNamespace, Name: "cilium-prefixes"}

// ledger is node -> its prefixes.
type ledger map[string]entry

// entry is the prefixes of one node. They rest from freed on, the zero time for a node that is there; after is the
// version of CiliumNodes at which the node's was gone.
type entry struct {
	prefixes []netip.Prefix
	freed    time.Time
	after    string
}

func (e entry) equal(o entry) bool {
	return slices.Equal(e.prefixes, o.prefixes) && e.freed.Equal(o.freed) && e.after == o.after
}

func (l ledger) equal(o ledger) bool { return maps.EqualFunc(l, o, entry.equal) }

// String is how an entry stands in the ConfigMap: words, the prefixes first.
func (e entry) String() string {
	var words []string
	for _, p := range e.prefixes {
		words = append(words, p.String())
	}
	if !e.freed.IsZero() {
		words = append(words, "freed="+e.freed.UTC().Format(time.RFC3339Nano), "after="+e.after)
	}
	return strings.Join(words, " ")
}

// readLedger leaves out what it cannot read: a CiliumNode then tells what its node has.
func readLedger(data map[string]string) ledger {
	out := ledger{}
	for node, text := range data {
		var e entry
		for _, word := range strings.Fields(text) {
			if at, ok := strings.CutPrefix(word, "freed="); ok {
				e.freed, _ = time.Parse(time.RFC3339Nano, at)
			} else if version, ok := strings.CutPrefix(word, "after="); ok {
				e.after = version
			} else if p, err := netip.ParsePrefix(word); err == nil {
				e.prefixes = append(e.prefixes, p.Masked())
			}
		}
		if len(e.prefixes) > 0 {
			out[node] = e
		}
	}
	return out
}

// writeLedger fails when somebody has written since the ledger was read.
func (r *CiliumNodes) writeLedger(ctx context.Context, w nodeWorld, l ledger) error {
	if l.equal(w.ledger) {
		return nil
	}
	book := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ledgerKey.Namespace, Name: ledgerKey.Name}}
	if w.ledgerObject != nil {
		book = w.ledgerObject.DeepCopy()
	}
	book.Data = make(map[string]string, len(l))
	for node, e := range l {
		book.Data[node] = e.String()
	}
	var err error
	if w.ledgerObject == nil {
		err = r.Create(ctx, book, client.FieldOwner(v1alpha1.OperatorFieldManager))
	} else {
		err = r.Update(ctx, book, client.FieldOwner(v1alpha1.OperatorFieldManager))
	}
	if err != nil {
		return fmt.Errorf("write ConfigMap %s: %w", ledgerKey, err)
	}
	return nil
}
