// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
	"github.com/kube-cilium/kube-cilium/internal/policy"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

var (
	// ErrExists means that the container has this interface already.
	ErrExists = errors.New("interface exists already")
	// ErrUnknown means that no endpoint of this node has the attachment.
	ErrUnknown = errors.New("no such endpoint")
	// ErrNotAsAdded means that somebody changed what Add made.
	ErrNotAsAdded = errors.New("not as it was added")
	// ErrFull means that every endpoint ID is in use.
	ErrFull = errors.New("too many pods on this node")
	// ErrNotReady means that the agent cannot serve yet; it heals by itself.
	ErrNotReady = errors.New("the agent is not ready yet")
)

// Datapath is what a Set needs of the node's datapath; *datapath.Datapath is one. AddPod brings the host's end up, with
// its routes and neighbours, after everything else is in force.
type Datapath interface {
	PodMTU() int
	DeviceMTU() int
	MaxSegment() datapath.SegmentSize
	SetPods([]datapath.Pod) error
	ExpectPod(ifindex int) error
	AddPod(datapath.Pod) error
	RemovePod(id uint16) error
	CheckPod(datapath.Pod) error
}

// Policy gives endpoints what policies say of them.
type Policy interface {
	// Admit begins to gather what is needed; the function that it returns gives the endpoint its policy in the datapath.
	// That happens before the endpoint's interface is up, so an error refuses the pod.
	Admit(context.Context, *Endpoint) func() error
	// Dismiss closes the id of an endpoint that is gone. One that was never admitted is no error.
	Dismiss(*Endpoint) error
}

// Who is what somebody knows of a pod: labels nil and identity.Pending while nothing is known.
type Who struct {
	Labels   identity.Labels `json:"labels,omitempty"`
	Identity identity.Number `json:"identity"`
	// Subject is Labels with those that do not make an identity: policies select their own pods by all of them.
	Subject identity.Labels `json:"subject,omitempty"`
	// Ports are the pod's container ports that have a name, by name.
	Ports []policy.NamedPort `json:"ports,omitempty"`
}

// Equal tells whether nothing has changed.
func (w Who) Equal(o Who) bool {
	return w.Identity == o.Identity && w.Labels.Equal(o.Labels) && w.Subject.Equal(o.Subject) && slices.Equal(w.Ports, o.Ports)
}

// Options of a Set. All but Log are needed.
type Options struct {
	// StateDir holds the records, in a folder of their own.
	StateDir string
	// BootID is that of this boot.
	BootID string
	// ProcSysNet is the host's /proc/sys/net, writable.
	ProcSysNet string
	Datapath   Datapath
	Policy     Policy
	Addresses  *ipam.Allocator
	// Identify tells who a pod is. An error refuses the pod.
	Identify func(context.Context, cni.Pod) (Who, error)
	// Changed is called, without locks held, after the set has changed.
	Changed func()
	Log     logr.Logger
}

// Set is the endpoints of this node. Its methods may be called from several goroutines; those on one attachment wait
// for each other.
type Set struct {
	Options
	records records
	step    func(step) error

	mu     sync.Mutex
	byID   map[uint16]*Endpoint
	byName map[cni.Attachment]*Endpoint
	busy   map[cni.Attachment]chan struct{} // closed when the transaction ends
	lastID uint16
	// again tells FollowSegments to go round once more.
	again chan struct{}
}

// step is a point of a transaction at which a test lets the agent fail or die.
type step string

const (
	stepReserved  step = "reserved"  // addresses are held, nothing is on disk
	stepRecorded  step = "recorded"  // the record says creating
	stepLinked    step = "linked"    // the veth pair exists
	stepPodEnd    step = "pod end"   // the pod's end is configured
	stepPolicy    step = "policy"    // its policy is in force
	stepDatapath  step = "datapath"  // the datapath is complete, the host's end is up, packets flow
	stepCommitted step = "committed" // the record says ready
	stepUnlinked  step = "unlinked"  // Delete has removed the veth pair
	stepCleared   step = "cleared"   // Delete has cleared the datapath
)

// New makes a Set. Restore comes next.
func New(o Options) (*Set, error) { return newSet(o, func(step) error { return nil }) }

func newSet(o Options, hook func(step) error) (*Set, error) {
	s := &Set{
		Options: o,
		records: records{dir: filepath.Join(o.StateDir, "endpoints")},
		step:    hook,
		byID:    map[uint16]*Endpoint{},
		byName:  map[cni.Attachment]*Endpoint{},
		busy:    map[cni.Attachment]chan struct{}{},
		again:   make(chan struct{}, 1),
	}
	if err := os.MkdirAll(s.records.dir, 0o700); err != nil {
		return nil, fmt.Errorf("endpoint records: %w", err)
	}
	return s, nil
}

// Restore takes up what the last agent of this boot left: complete endpoints whose interface is there are adopted
// untouched, everything else is undone. It needs no API server. Call it once, before anything else.
func (s *Set) Restore() error {
	list, complaints, err := s.records.read(s.BootID)
	if err != nil {
		return err
	}
	for _, c := range complaints {
		if errors.Is(c, cni.ErrTorn) {
			s.Log.Info("a record of an earlier boot is removed", "reason", c.Error())
			continue
		}
		s.Log.Error(c, "a record is dropped")
	}
	var adopted []*Endpoint
	for _, e := range list {
		if e.State == Ready && interfaceIs(e) {
			adopted = append(adopted, e)
			continue
		}
		s.Log.Info("an unfinished endpoint is undone", "pod", e.Pod.Namespace+"/"+e.Pod.Name, "id", e.ID, "state", e.State)
		if err := errors.Join(removeLink(e.Interface), s.Datapath.RemovePod(e.ID), s.Policy.Dismiss(e), s.records.remove(e.ID)); err != nil {
			return fmt.Errorf("undo endpoint %d: %w", e.ID, err)
		}
	}
	for _, e := range adopted {
		for _, ip := range e.Addresses() {
			if err := s.Addresses.Reserve(ip, e.Owner()); err != nil {
				return fmt.Errorf("endpoint %d: %w", e.ID, err)
			}
		}
		s.put(e)
	}
	s.readResting()
	if err := s.Datapath.SetPods(s.Pods()); err != nil {
		return fmt.Errorf("restore pods: %w", err)
	}
	return nil
}

// Sweep removes interfaces with our names that no record knows. Only after every cache has synced: until then this
// agent does not know that it is the only one.
func (s *Set) Sweep() error {
	names, err := hostEnds()
	if err != nil {
		return err
	}
	s.mu.Lock()
	known := map[string]bool{}
	for _, e := range s.byID {
		known[e.Interface] = true
	}
	for a := range s.busy {
		known[InterfaceName(a)] = true
	}
	s.mu.Unlock()
	var errs []error
	for _, n := range names {
		if !known[n] {
			s.Log.Info("an interface without a record is removed", "interface", n)
			errs = append(errs, removeLink(n))
		}
	}
	return errors.Join(errs...)
}

// Add makes a pod's interface; when it returns the datapath is complete and packets flow. It returns ErrExists,
// ErrFull, or the errors of the allocator.
func (s *Set) Add(ctx context.Context, a cni.Attachment, pod cni.Pod, netnsPath string, netns *os.File) (_ *Endpoint, err error) {
	release, err := s.acquire(ctx, a)
	if err != nil {
		return nil, err
	}
	defer release()
	if _, ok := s.Get(a); ok {
		return nil, fmt.Errorf("%w: %s of container %s", ErrExists, a.IfName, a.ContainerID)
	}
	mtu := s.Datapath.PodMTU()
	if mtu == 0 {
		return nil, fmt.Errorf("%w: the MTU is not known", ErrNotReady)
	}
	e := &Endpoint{
		Attachment: a, Pod: pod, Netns: netnsPath, Interface: InterfaceName(a), MAC: newMAC(), HostMAC: newMAC(),
		MTU: mtu, DeviceMTU: s.Datapath.DeviceMTU(), Identity: identity.Pending, State: Creating, Created: time.Now().UTC(), BootID: s.BootID,
		segment: s.Datapath.MaxSegment(),
	}
	who, err := s.Identify(ctx, pod)
	if err != nil {
		return nil, fmt.Errorf("identity of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	e.is(who)

	var undo []func() error
	defer func() {
		if err == nil || errors.Is(err, errDied) {
			return
		}
		for _, u := range slices.Backward(undo) {
			if uerr := u(); uerr != nil {
				err = errors.Join(err, fmt.Errorf("undo: %w", uerr))
			}
		}
	}()
	if err := s.reserve(e); err != nil {
		return nil, err
	}
	undo = append(undo, func() error {
		s.forget(e)
		s.writeResting() // a crash after this must not give the addresses away too early
		return nil
	})
	if err := s.step(stepReserved); err != nil {
		return nil, err
	}
	undo = append(undo, func() error { return s.records.remove(e.ID) })
	if err := s.records.write(e); err != nil {
		return nil, err
	}
	if err := s.step(stepRecorded); err != nil {
		return nil, err
	}
	if err := s.build(e, netns, s.Policy.Admit(ctx, e), &undo); err != nil {
		return nil, err
	}
	done := *e
	done.State = Ready
	if err := s.records.write(&done); err != nil {
		return nil, err
	}
	s.put(&done)
	if s.Datapath.MaxSegment() != e.segment { // it turned meanwhile, and who goes round may have passed by
		s.ringResize()
	}
	if err := s.step(stepCommitted); err != nil {
		return nil, err
	}
	s.Changed()
	return &done, nil
}

// build makes the kernel's objects of e in the one order that never lets a packet past an unfinished datapath.
func (s *Set) build(e *Endpoint, netns *os.File, admit func() error, undo *[]func() error) (err error) {
	*undo = append(*undo, func() error { return removeLink(e.Interface) })
	e.Ifindex, err = makeVeth(e, netns)
	if errors.Is(err, unix.EEXIST) {
		// The name belongs to this attachment alone: what has it now is left over from an agent that lost its record.
		if err := removeLink(e.Interface); err != nil {
			return err
		}
		e.Ifindex, err = makeVeth(e, netns)
	}
	if err != nil {
		return err
	}
	if err := s.Datapath.ExpectPod(e.Ifindex); err != nil {
		return fmt.Errorf("datapath of endpoint %d: %w", e.ID, err)
	}
	if err := s.step(stepLinked); err != nil {
		return err
	}
	if err := podEndDo(e, s.ProcSysNet, netns, (*podEnd).configure); err != nil {
		return err
	}
	if err := s.step(stepPodEnd); err != nil {
		return err
	}
	// The link goes before the tables when this is undone: a packet never meets an interface without its pod.
	*undo = slices.Insert(*undo, len(*undo)-1, func() error { return errors.Join(s.Datapath.RemovePod(e.ID), s.Policy.Dismiss(e)) })
	if err := admit(); err != nil {
		return fmt.Errorf("policy of pod %s/%s: %w", e.Pod.Namespace, e.Pod.Name, err)
	}
	if err := s.step(stepPolicy); err != nil {
		return err
	}
	if err := s.Datapath.AddPod(e.DatapathPod()); err != nil {
		return fmt.Errorf("datapath of endpoint %d: %w", e.ID, err)
	}
	return s.step(stepDatapath)
}

// Delete takes an interface down and frees its addresses. One that is not there is no error.
func (s *Set) Delete(ctx context.Context, a cni.Attachment) error {
	release, err := s.acquire(ctx, a)
	if err != nil {
		return err
	}
	defer release()
	e, ok := s.Get(a)
	if !ok {
		return nil
	}
	if err := removeLink(e.Interface); err != nil {
		return err
	}
	if err := s.step(stepUnlinked); err != nil {
		return err
	}
	if err := s.Datapath.RemovePod(e.ID); err != nil {
		return fmt.Errorf("datapath of endpoint %d: %w", e.ID, err)
	}
	if err := s.step(stepCleared); err != nil {
		return err
	}
	if err := s.Policy.Dismiss(e); err != nil {
		return fmt.Errorf("policy of endpoint %d: %w", e.ID, err)
	}
	if err := s.records.remove(e.ID); err != nil {
		return err
	}
	s.forget(e)
	s.writeResting()
	s.Changed()
	return nil
}

// Check compares an interface with what Add made. It returns ErrUnknown, or ErrNotAsAdded with every difference.
func (s *Set) Check(ctx context.Context, a cni.Attachment, netns *os.File) error {
	release, err := s.acquire(ctx, a)
	if err != nil {
		return err
	}
	defer release()
	e, ok := s.Get(a)
	if !ok {
		return fmt.Errorf("%w: %s of container %s", ErrUnknown, a.IfName, a.ContainerID)
	}
	wrong := checkHostEnd(e)
	err = podEndDo(e, s.ProcSysNet, netns, func(p *podEnd) error {
		wrong = append(wrong, p.check()...)
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.Datapath.CheckPod(e.DatapathPod()); err != nil {
		wrong = append(wrong, err.Error())
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%w: %s", ErrNotAsAdded, strings.Join(wrong, "; "))
	}
	return nil
}

// Keep deletes every endpoint that is not in valid: their containers are gone and nobody sent a DEL.
func (s *Set) Keep(ctx context.Context, valid []cni.Attachment) error {
	keep := make(map[cni.Attachment]bool, len(valid))
	for _, a := range valid {
		keep[a] = true
	}
	var errs []error
	for _, e := range s.List() {
		if !keep[e.Attachment] {
			s.Log.Info("an endpoint whose container is gone is removed", "pod", e.Pod.Namespace+"/"+e.Pod.Name, "id", e.ID)
			errs = append(errs, s.Delete(ctx, e.Attachment))
		}
	}
	return errors.Join(errs...)
}

// SetIdentity changes who an endpoint is, in the datapath and on disk. One that is gone, or already so, is no error.
func (s *Set) SetIdentity(ctx context.Context, a cni.Attachment, who Who) error {
	release, err := s.acquire(ctx, a)
	if err != nil {
		return err
	}
	defer release()
	e, ok := s.Get(a)
	if !ok || e.Who().Equal(who) {
		return nil
	}
	now := *e
	now.is(who)
	if now.Identity != e.Identity {
		if err := s.Datapath.AddPod(now.DatapathPod()); err != nil {
			return fmt.Errorf("identity of endpoint %d: %w", e.ID, err)
		}
	}
	if err := s.records.write(&now); err != nil {
		return err
	}
	s.put(&now)
	s.Changed()
	return nil
}

// Get finds an endpoint. It must not be changed.
func (s *Set) Get(a cni.Attachment) (*Endpoint, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.byName[a]
	return e, ok
}

// List returns the ready endpoints by ID. They must not be changed.
func (s *Set) List() []*Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Endpoint, 0, len(s.byName))
	for _, e := range s.byName {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *Endpoint) int { return int(a.ID) - int(b.ID) })
	return out
}

// Pods is List as the datapath knows it.
func (s *Set) Pods() []datapath.Pod {
	list := s.List()
	out := make([]datapath.Pod, len(list))
	for i, e := range list {
		out[i] = e.DatapathPod()
	}
	return out
}

// acquire waits until nobody else works on a.
func (s *Set) acquire(ctx context.Context, a cni.Attachment) (release func(), err error) {
	for {
		s.mu.Lock()
		other, ok := s.busy[a]
		if !ok {
			mine := make(chan struct{})
			s.busy[a] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, a)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another request on container %s: %w", a.ContainerID, ctx.Err())
		}
	}
}

// reserve gives e an ID, and an address of each family of which the node has a prefix.
func (s *Set) reserve(e *Endpoint) (err error) {
	s.mu.Lock()
	e.ID = s.freeID()
	if e.ID != 0 {
		s.byID[e.ID] = e
	}
	s.mu.Unlock()
	if e.ID == 0 {
		return fmt.Errorf("%w: at most %d", ErrFull, MaxID)
	}
	defer func() {
		if err != nil {
			s.forget(e)
		}
	}()
	var has4, has6 bool
	for _, p := range s.Addresses.Prefixes() {
		has4 = has4 || p.Addr().Is4()
		has6 = has6 || p.Addr().Is6()
	}
	if !has4 && !has6 {
		return fmt.Errorf("%w: the operator has not given this node a prefix", ErrNotReady)
	}
	if has4 {
		if e.IPv4, err = s.Addresses.Allocate(ipam.IPv4, e.Owner()); err != nil {
			return err
		}
	}
	if has6 {
		if e.IPv6, err = s.Addresses.Allocate(ipam.IPv6, e.Owner()); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) freeID() uint16 {
	for range MaxID {
		s.lastID = s.lastID%MaxID + 1
		if _, used := s.byID[s.lastID]; !used {
			return s.lastID
		}
	}
	return 0
}

func (s *Set) put(e *Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[e.ID] = e
	s.byName[e.Attachment] = e
	s.lastID = max(s.lastID, e.ID)
}

// forget frees the ID and the addresses.
func (s *Set) forget(e *Endpoint) {
	for _, ip := range e.Addresses() {
		s.Addresses.Release(ip)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, e.ID)
	delete(s.byName, e.Attachment)
}

// interfaceIs tells whether the interface of a record is still the one that was made for it.
func interfaceIs(e *Endpoint) bool {
	link, err := netlink.LinkByIndex(e.Ifindex)
	return err == nil && link.Type() == "veth" && link.Attrs().Name == e.Interface &&
		bytes.Equal(link.Attrs().HardwareAddr, e.HostMAC[:])
}

const restingFile = "addresses-resting.json"

// writeResting keeps which addresses rest, so that a restarted agent does not hand one out too early. Losing it costs
// a rest, not a pod: errors are only logged.
func (s *Set) writeResting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := json.Marshal(s.Addresses.Resting())
	if err == nil {
		err = cni.WriteFileOfThisBoot(filepath.Join(s.StateDir, restingFile), data, 0o600)
	}
	if err != nil {
		s.Log.Error(err, "resting addresses are not kept")
	}
}

func (s *Set) readResting() {
	var resting map[netip.Addr]time.Time
	switch err := cni.TakeUpFileOfThisBoot(filepath.Join(s.StateDir, restingFile), &resting); {
	case errors.Is(err, fs.ErrNotExist):
		return
	case errors.Is(err, cni.ErrTorn): // and what rested before the machine stopped rests no more
		s.Log.Info("resting addresses of an earlier boot are forgotten", "reason", err.Error())
		return
	case err != nil:
		s.Log.Error(err, "resting addresses are not known")
		return
	}
	for ip, freed := range resting {
		s.Addresses.Rest(ip, freed)
	}
}

// errDied is what a test's hook returns for an agent that dies at a step: nothing is undone.
var errDied = errors.New("the agent died")
