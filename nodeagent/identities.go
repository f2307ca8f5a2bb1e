// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/identity"
)

const (
	// tombstoneRest is how long a number that was deleted is given to no other label set.
	tombstoneRest = time.Hour
	// seenSoon is how long our own write may take to come back through the cache.
	seenSoon = 10 * time.Second
	// askedFor is how long a pod may be on its way to its interface after its number was asked for.
	askedFor = 30 * time.Second
	// maxProbes bounds the search for a free number. With 2^24 numbers the second is hardly ever needed.
	maxProbes = 64

	indexLabels   = "spec.labels"             // of CiliumIdentity: hash of the label set
	indexIdentity = "spec.endpoints.identity" // of CiliumEndpointSlice: each number in it
)

// errNoNumber means that every number that a label set may have is held by another.
var errNoNumber = errors.New("no free identity number")

// held is a number that the API server has confirmed for a label set.
type held struct {
	labels identity.Labels
	number identity.Number
	since  time.Time
}

// Identities gives the label sets of this node's pods their numbers. A number is used only after the API server has
// confirmed it, and stays in use until no pod of this node needs it: it is created again if somebody deletes it.
// Methods may be called from several goroutines.
type Identities struct {
	cache   client.Reader
	live    client.Reader
	writer  *Writer
	clock   func() time.Time
	changed func() // a label set has got another number

	mu      sync.Mutex
	wanted  map[string]identity.Labels // canonical -> set
	coming  map[string]identity.Labels // canonical -> set of pods whose ADD may be on its way
	held    map[string]held            // canonical -> confirmed
	asked   map[string]time.Time       // canonical -> when a pod that is not there yet asked last
	deleted map[identity.Number]time.Time
}

// NewIdentities reads the cache, makes sure with live reads, and calls changed, without locks, when Lookup would
// answer otherwise than before.
func NewIdentities(cache, live client.Reader, w *Writer, changed func()) *Identities {
	return &Identities{
		cache: cache, live: live, writer: w, clock: time.Now, changed: changed,
		wanted: map[string]identity.Labels{}, held: map[string]held{}, asked: map[string]time.Time{},
		deleted: map[identity.Number]time.Time{},
	}
}

// Lookup returns the confirmed number of a set, or identity.Pending. A set that is not wanted yet becomes so.
func (i *Identities) Lookup(l identity.Labels) identity.Number {
	c := l.Canonical()
	i.mu.Lock()
	h, ok := i.held[c]
	_, known := i.wanted[c]
	if !known {
		i.wanted[c] = l
	}
	i.mu.Unlock()
	if ok {
		return h.number
	}
	return identity.Pending
}

// Ask is Lookup for a pod that gets its interface now: nobody counts it among those that are there yet, and what it was
// told must hold when they do.
func (i *Identities) Ask(l identity.Labels) identity.Number {
	i.mu.Lock()
	i.asked[l.Canonical()] = i.clock()
	i.mu.Unlock()
	return i.Lookup(l)
}

// Restore takes up a number that an earlier agent of this boot had confirmed.
func (i *Identities) Restore(l identity.Labels, n identity.Number) {
	if !n.Allocated() || l == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.wanted[l.Canonical()] = l
	i.held[l.Canonical()] = held{labels: l, number: n, since: i.clock()}
}

// Want makes the given sets, and those that were asked for just now, the only ones that are wanted, and after them those
// of pods that are coming; numbers of others are let go. It is to be called again after the time that it returns; 0: need
// not. Missing tells that one has no number yet.
func (i *Identities) Want(sets, coming []identity.Labels) (again time.Duration, missing bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	before := i.wanted
	i.wanted = make(map[string]identity.Labels, len(sets))
	for _, l := range sets {
		i.wanted[l.Canonical()] = l
	}
	now := i.clock()
	maps.DeleteFunc(i.asked, func(_ string, at time.Time) bool { return now.Sub(at) >= askedFor })
	for c := range i.asked {
		l, ok := before[c]
		if _, wanted := i.wanted[c]; ok && !wanted {
			i.wanted[c], again = l, askedFor
		}
	}
	i.coming = make(map[string]identity.Labels, len(coming))
	for _, l := range coming {
		i.coming[l.Canonical()], again = l, askedFor // those that never come are let go
	}
	needed := func(c string) bool {
		_, wanted := i.wanted[c]
		_, coming := i.coming[c]
		return wanted || coming
	}
	maps.DeleteFunc(i.held, func(c string, _ held) bool { return !needed(c) })
	for _, all := range []map[string]identity.Labels{i.wanted, i.coming} {
		for c := range all {
			_, has := i.held[c]
			missing = missing || !has
		}
	}
	return again, missing
}

// Deleted notes that a number was deleted; it rests before another set may have it.
func (i *Identities) Deleted(n identity.Number) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.clock()
	maps.DeleteFunc(i.deleted, func(_ identity.Number, at time.Time) bool { return now.Sub(at) >= tombstoneRest })
	i.deleted[n] = now
}

func (i *Identities) rests(n identity.Number) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	at, ok := i.deleted[n]
	return ok && i.clock().Sub(at) < tombstoneRest
}

// Reconcile brings every wanted set to a confirmed number, and then, as far as there is room, those of pods that are
// coming. Whoever is wanted meanwhile goes before these.
func (i *Identities) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	done := map[string]bool{}
	errs := i.ensureWanted(ctx, done)
	i.mu.Lock()
	coming := maps.Clone(i.coming)
	i.mu.Unlock()
	var again time.Duration
	for _, c := range slices.Sorted(maps.Keys(coming)) {
		err := i.ensure(ctx, Early, c, coming[c])
		if full := (*noRoom)(nil); errors.As(err, &full) {
			again, err = full.wait, nil
		}
		errs = append(errs, err)
		errs = append(errs, i.ensureWanted(ctx, done)...)
	}
	return ctrl.Result{RequeueAfter: again}, errors.Join(errs...)
}

// ensureWanted goes through the wanted sets that are not done, also those that come while others wait for room, and not
// those that are let go meanwhile.
func (i *Identities) ensureWanted(ctx context.Context, done map[string]bool) (errs []error) {
	for {
		i.mu.Lock()
		open := slices.DeleteFunc(slices.Collect(maps.Keys(i.wanted)), func(c string) bool { return done[c] })
		if len(open) == 0 {
			i.mu.Unlock()
			return errs
		}
		c := slices.Min(open)
		l := i.wanted[c]
		i.mu.Unlock()
		done[c] = true
		errs = append(errs, i.ensure(ctx, Shared, c, l))
	}
}

// ensure makes one set's number confirmed, or checks that it still is.
func (i *Identities) ensure(ctx context.Context, p Priority, canonical string, l identity.Labels) error {
	i.mu.Lock()
	h, ok := i.held[canonical]
	i.mu.Unlock()
	if ok {
		if i.clock().Sub(h.since) < seenSoon {
			return nil
		}
		var got v1alpha1.CiliumIdentity
		err := i.cache.Get(ctx, client.ObjectKey{Name: h.number.String()}, &got)
		switch {
		case err == nil && l.Equal(got.Spec.Labels) && got.Annotations[v1alpha1.AnnotationTombstone] == "":
			return nil
		case err == nil && l.Equal(got.Spec.Labels):
			return i.adopt(ctx, p, canonical, l, &got)
		case client.IgnoreNotFound(err) != nil:
			return fmt.Errorf("identity %d: %w", h.number, err)
		}
		// Somebody deleted a number that is on the wire: it comes back, with the same labels.
		switch confirmed, err := i.create(ctx, p, canonical, l, h.number); {
		case err != nil:
			return err
		case confirmed:
			return nil
		}
		i.release(canonical) // and another set was quicker: ours gets a new number
	}
	return i.find(ctx, p, canonical, l)
}

// find takes up a number that exists for the set, or makes one.
func (i *Identities) find(ctx context.Context, p Priority, canonical string, l identity.Labels) error {
	var same v1alpha1.CiliumIdentityList
	if err := i.cache.List(ctx, &same, client.MatchingFields{indexLabels: hashLabels(l)}); err != nil {
		return fmt.Errorf("identities: %w", err)
	}
	slices.SortFunc(same.Items, func(a, b v1alpha1.CiliumIdentity) int {
		na, _ := strconv.Atoi(a.Name)
		nb, _ := strconv.Atoi(b.Name)
		return na - nb
	})
	for n := range same.Items {
		if o := &same.Items[n]; l.Equal(o.Spec.Labels) && o.DeletionTimestamp == nil {
			if i.inUse(ctx, o) {
				return i.confirm(canonical, l, o.Name)
			}
			return i.adopt(ctx, p, canonical, l, o)
		}
	}
	key, err := i.key(ctx)
	if err != nil {
		return err
	}
	for attempt := range maxProbes {
		n := key.Candidate(l, attempt)
		if i.rests(n) {
			continue
		}
		var taken v1alpha1.CiliumIdentity
		if err := i.cache.Get(ctx, client.ObjectKey{Name: n.String()}, &taken); err == nil {
			continue // with other labels: those with ours were found above
		}
		if confirmed, err := i.create(ctx, p, canonical, l, n); confirmed || err != nil {
			return err
		}
	}
	return fmt.Errorf("%w for %v", errNoNumber, l.Strings())
}

// inUse tells whether a slice names the identity: then nothing is about to delete it, and no write is needed to use
// it too. The operator deletes only what no slice has named for far longer than a cache is behind.
func (i *Identities) inUse(ctx context.Context, o *v1alpha1.CiliumIdentity) bool {
	if o.Annotations[v1alpha1.AnnotationTombstone] != "" {
		return false
	}
	var users v1alpha1.CiliumEndpointSliceList
	err := i.cache.List(ctx, &users, client.MatchingFields{indexIdentity: o.Name}, client.Limit(1))
	return err == nil && len(users.Items) > 0
}

// create asks for a number. It tells false, without an error, when another set has it.
func (i *Identities) create(ctx context.Context, p Priority, canonical string, l identity.Labels, n identity.Number) (confirmed bool, err error) {
	o := &v1alpha1.CiliumIdentity{
		ObjectMeta: metav1.ObjectMeta{
			Name:        n.String(),
			Annotations: map[string]string{v1alpha1.AnnotationAdopted: i.clock().UTC().Format(time.RFC3339)},
		},
		Spec: v1alpha1.CiliumIdentitySpec{Labels: l},
	}
	err = i.writer.Create(ctx, p, o)
	if apierrors.IsAlreadyExists(err) {
		var got v1alpha1.CiliumIdentity
		if err := i.live.Get(ctx, client.ObjectKey{Name: n.String()}, &got); err != nil {
			return false, fmt.Errorf("identity %d: %w", n, err)
		}
		if !l.Equal(got.Spec.Labels) {
			return false, nil
		}
		return true, i.adopt(ctx, p, canonical, l, &got)
	}
	if err != nil {
		return false, fmt.Errorf("create identity %d: %w", n, err)
	}
	return true, i.confirm(canonical, l, o.Name)
}

// adopt writes to an existing identity at the version that was read: a deletion that was decided on an older version
// then fails, and one that came first makes this fail.
func (i *Identities) adopt(ctx context.Context, p Priority, canonical string, l identity.Labels, o *v1alpha1.CiliumIdentity) error {
	now := o.DeepCopy()
	if now.Annotations == nil {
		now.Annotations = map[string]string{}
	}
	now.Annotations[v1alpha1.AnnotationAdopted] = i.clock().UTC().Format(time.RFC3339Nano)
	delete(now.Annotations, v1alpha1.AnnotationTombstone)
	patch := client.MergeFromWithOptions(o, client.MergeFromWithOptimisticLock{})
	if err := i.writer.Patch(ctx, p, now, patch); err != nil {
		return fmt.Errorf("adopt identity %s: %w", o.Name, err)
	}
	return i.confirm(canonical, l, o.Name)
}

func (i *Identities) confirm(canonical string, l identity.Labels, name string) error {
	n, err := identity.ParseNumber(name)
	if err != nil {
		return err
	}
	i.mu.Lock()
	before := i.held[canonical]
	i.held[canonical] = held{labels: l, number: n, since: i.clock()}
	i.mu.Unlock()
	if before.number != n {
		i.changed()
	}
	return nil
}

func (i *Identities) release(canonical string) {
	i.mu.Lock()
	delete(i.held, canonical)
	i.mu.Unlock()
	i.changed()
}

// key is the cluster's: the UID of kube-system.
func (i *Identities) key(ctx context.Context) (identity.Key, error) {
	var ns corev1.Namespace
	if err := i.cache.Get(ctx, types.NamespacedName{Name: metav1.NamespaceSystem}, &ns); err != nil {
		return identity.Key{}, fmt.Errorf("the cluster's identity key: %w", err)
	}
	return identity.KeyFromCluster(string(ns.UID)), nil
}

func hashLabels(l identity.Labels) string {
	sum := sha256.Sum256([]byte(l.Canonical()))
	return hex.EncodeToString(sum[:16])
}
