// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/internal/version"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/events"
	"github.com/kube-cilium/kube-cilium/nodeagent/reach"
)

const (
	// reportLook is how often the agent looks whether a condition has turned.
	reportLook = time.Second
	// reportGap is the least time between two reports of counters alone.
	reportGap = 10 * time.Second
	// reportStill is the most time between two reports: their age says that the agent writes.
	reportStill = 5 * time.Minute
	// maxDrops bounds status.drops, as the CRD does.
	maxDrops = 512
)

// observed is everything that a report is made of. datapathErr is why there is no datapath.
type observed struct {
	bootID      string
	datapath    *datapath.Datapath
	datapathErr error
	// adopted: what the agent before this one left in the kernel, in this boot, is in force.
	adopted bool
	// health is what the datapath's last repair said.
	health     error
	network    inForce
	ipam       []v1alpha1.IPAMReport
	endpoints  int
	serving    bool
	installed  bool
	installErr error
	// others is how other nodes' addresses are reached; othersKnown: each was asked.
	others      []reach.Result
	othersKnown bool
	policies    v1alpha1.PolicyProgress
	// policyErr is why nothing at all could be brought up to date.
	policyErr error
	// flows tells that flows are to be served; flowsErr why they are not.
	flows    bool
	flowsErr error
	events   events.Stats
}

// standing is what the cache holds of this node's own objects.
type standing struct {
	// known is false until the cache has them.
	known bool
	// node is the UID of the CiliumNode, "" where there is none.
	node types.UID
	// report is true when the CiliumNodeReport is there; owner is the UID that it names as its owner.
	report bool
	owner  types.UID
}

// gone tells that the report has to be made again: it went, or will go with a CiliumNode that another has replaced.
func (s standing) gone() bool { return s.known && (!s.report || s.node != "" && s.owner != s.node) }

// Report writes this node's CiliumNodeReport.
type Report struct {
	node    string
	live    client.Reader
	writer  *Writer
	observe func() observed
	// standing asks nobody but memory.
	standing func() standing
	// news rings when it is worth looking at once: policies are in force.
	news bell
	log  logr.Logger

	made    bool // the object exists, as far as we know
	last    v1alpha1.CiliumNodeReportStatus
	written time.Time
	// gap is the least time between two reports of policies: while they go on changing it grows.
	gap time.Duration
}

// Run reports until ctx ends: at once when a condition or a setting has turned, else counters now and then.
func (r *Report) Run(ctx context.Context) error {
	failing := false
	for {
		wait := reportLook
		err := r.look(ctx)
		if err != nil {
			wait = reportGap // an attempt that fails costs the budget too
			if !failing && ctx.Err() == nil {
				r.log.Error(err, "the report is not written; trying on")
			}
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-r.news:
			if failing {
				r.sleep(ctx, wait)
			}
		case <-time.After(wait):
		}
	}
}

func (r *Report) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (r *Report) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if !r.made || r.standing().gone() {
		r.made = false
		anew, err := r.make(ctx)
		if err != nil {
			return err
		}
		r.made = true
		if anew {
			r.written = time.Time{}
		}
	}
	status := makeReport(r.observe(), r.last)
	age := time.Since(r.written)
	if age := time.Since(r.written); age < reportStill {
		keepLatencies(status.Health, r.last.Health) // they change with every probe, and would be a write each
	}
	turned := r.written.IsZero() || !apiequality.Semantic.DeepEqual(cold(status), cold(r.last))
	enforced := !apiequality.Semantic.DeepEqual(status.Policies, r.last.Policies)
	if age > reportGap {
		r.gap = 0
	}
	soon := turned || enforced && age >= r.gap
	if age < reportGap && (!soon || age < r.writer.budget.pace()) {
		return nil
	}
	priority := Background
	if turned || enforced || age >= reportStill {
		priority = Ordinary
	}
	if !r.writer.budget.room(priority) {
		return nil // who waited here would be deaf to news meanwhile, and then write what is no longer so
	}
	if !turned && age < reportGap {
		status.Maps, status.Drops, status.Flows = r.last.Maps, r.last.Drops, r.last.Flows // for news of policies alone nobody walks through maps
		r.gap = min(2*max(r.gap, reportLook/2), 2*reportLook)
	} else {
		r.count(&status)
	}
	if priority == Background && apiequality.Semantic.DeepEqual(status, r.last) {
		return nil
	}
	o := &v1alpha1.CiliumNodeReport{ObjectMeta: metav1.ObjectMeta{Name: r.node}, Status: status}
	if err := r.writer.ApplyStatus(ctx, priority, o); err != nil {
		r.made = false // it may have been deleted
		return fmt.Errorf("write status of CiliumNodeReport %s: %w", r.node, err)
	}
	r.last, r.written = status, time.Now()
	return nil
}

// make creates the object, owned by the CiliumNode where there is one, and takes up the conditions of the last agent
// so that their times stay. It looks at the API server before it writes: the cache may be behind. Anew tells that the
// object had no status.
func (r *Report) make(ctx context.Context) (anew bool, err error) {
	o := &v1alpha1.CiliumNodeReport{ObjectMeta: metav1.ObjectMeta{Name: r.node}}
	var owner v1alpha1.CiliumNode
	if err := r.live.Get(ctx, client.ObjectKey{Name: r.node}, &owner); client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("CiliumNode %s: %w", r.node, err)
	} else if err == nil && owner.DeletionTimestamp == nil {
		o.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: "CiliumNode", Name: owner.Name, UID: owner.UID,
		}}
	}
	var has v1alpha1.CiliumNodeReport
	err = r.live.Get(ctx, client.ObjectKey{Name: r.node}, &has)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return false, fmt.Errorf("CiliumNodeReport %s: %w", r.node, err)
	case err == nil && r.last.Conditions == nil:
		r.last.Conditions = has.Status.Conditions
	}
	anew = err != nil
	if anew || !apiequality.Semantic.DeepEqual(has.OwnerReferences, o.OwnerReferences) {
		if err := r.writer.Apply(ctx, Ordinary, o); err != nil {
			return false, fmt.Errorf("write CiliumNodeReport %s: %w", r.node, err)
		}
	}
	return anew, nil
}

// count adds what takes a walk through maps, so it is done only for a report that is about to be written.
func (r *Report) count(s *v1alpha1.CiliumNodeReportStatus) {
	o := r.observe()
	if d := o.datapath; d != nil {
		s.Maps, s.Drops = mapReports(d), drops(d)
		s.Flows = v1alpha1.FlowCounters{Seen: int64(o.events.Received), Lost: int64(o.events.Short + o.events.OutOfRange)}
		if lost, err := d.EventsLost(); err == nil {
			s.Flows.Lost += int64(lost)
		}
	}
}

// cold is the part of a report that is written at once when it turns.
func cold(s v1alpha1.CiliumNodeReportStatus) v1alpha1.CiliumNodeReportStatus {
	s.Maps, s.IPAM, s.Drops, s.Endpoints, s.ObservedNodes = nil, nil, nil, 0, ""
	s.Flows, s.Policies = v1alpha1.FlowCounters{}, nil
	s.Programs = slices.Clone(s.Programs)
	for i := range s.Programs {
		s.Programs[i].Devices = 0 // counts pods
	}
	return s
}

// makeReport folds what was observed, all but the counters. Conditions that have not turned keep the times of last.
func makeReport(o observed, last v1alpha1.CiliumNodeReportStatus) v1alpha1.CiliumNodeReportStatus {
	s := v1alpha1.CiliumNodeReportStatus{
		ObservedConfigGeneration: o.network.generation, ObservedNodes: o.network.observedNodes,
		AgentVersion: version.Version, BootID: o.bootID, Endpoints: int32(o.endpoints), IPAM: o.ipam,
		Kernel: v1alpha1.KernelReport{Release: kernelRelease()},
	}
	if o.datapath != nil {
		for _, f := range o.datapath.Features() {
			fr := v1alpha1.FeatureReport{Name: f.Name, Outcome: v1alpha1.FeatureOutcome(f.Outcome), Using: f.Using}
			if f.Err != nil {
				fr.Message = f.Err.Error()
			}
			s.Kernel.Features = append(s.Kernel.Features, fr)
		}
		for _, p := range o.datapath.Programs() {
			s.Programs = append(s.Programs, v1alpha1.ProgramReport{Name: p.Name, Attach: p.Attach, Devices: int32(p.Devices), Tag: p.Tag})
		}
		s.PodMTU, s.Devices = int32(o.datapath.PodMTU()), o.datapath.Uplinks()
	}
	if o.network.configured {
		s.FlowReporting = o.network.config.FlowReporting
		s.Routing, s.Masquerade = routingText(o.network.config, s.Kernel.Features), masqueradeText(o.network.config)
	}
	s.Health = last.Health // until each was asked: a round of many nodes would be many writes
	if o.othersKnown {
		s.Health = healthProbes(o.others)
	}
	if o.policies.Kind != "" {
		s.Policies = []v1alpha1.PolicyProgress{o.policies}
	}
	for _, c := range last.Conditions {
		s.Conditions = append(s.Conditions, *c.DeepCopy())
	}
	for _, c := range makeConditions(o) {
		c.ObservedGeneration = o.network.generation
		apimeta.SetStatusCondition(&s.Conditions, c)
	}
	return s
}

// makeConditions says how far the node has come, in the order of a start. Ready has the reason of the first that is
// not True.
func makeConditions(o observed) []metav1.Condition {
	kernel := metav1.Condition{Type: v1alpha1.ConditionKernelSupported, Status: metav1.ConditionTrue, Reason: "Supported", Message: "the kernel has what the datapath needs, or a fallback for it"}
	path := metav1.Condition{Type: v1alpha1.ConditionDatapathReady, Status: metav1.ConditionTrue, Reason: "InForce", Message: "programs and maps are in force"}
	conf := metav1.Condition{Type: v1alpha1.ConditionCNIConfigured, Status: metav1.ConditionTrue, Reason: "Installed", Message: "kubelet can call the plugin"}
	fail := func(c *metav1.Condition, status metav1.ConditionStatus, reason string, message string) {
		c.Status, c.Reason, c.Message = status, reason, message
	}
	switch err := o.datapathErr; {
	case errors.Is(err, datapath.ErrKernelTooOld), errors.Is(err, datapath.ErrNotSupported):
		fail(&kernel, metav1.ConditionFalse, "FeatureMissing", err.Error())
	case errors.Is(err, errLongName): // before anything else is tried
		fail(&kernel, metav1.ConditionUnknown, datapathReason(err), err.Error())
	case err != nil:
		fail(&kernel, metav1.ConditionUnknown, "NotProbed", "the kernel could not be probed")
	case o.datapath == nil:
		fail(&kernel, metav1.ConditionUnknown, "Probing", "the kernel is being probed")
	}
	switch err := o.network.err; {
	case o.datapathErr != nil:
		fail(&path, metav1.ConditionFalse, datapathReason(o.datapathErr), o.datapathErr.Error())
	case !o.network.configured && o.adopted:
		// Not False: an agent that ends now leaves a node whose pods have their network, and whose boot was ready.
		path.Reason, path.Message = "Adopted", "what the agent before this one put in force goes on; the tables are being brought up to date"
	case !o.network.configured && err != nil:
		fail(&path, metav1.ConditionFalse, networkReason(err), err.Error())
	case !o.network.configured:
		fail(&path, metav1.ConditionFalse, "Starting", "the first tables are not written yet")
	case o.health != nil:
		path.Reason, path.Message = v1alpha1.ReasonRepairFailing, "programs and maps are in force, but: "+oneLine(o.health)
	}
	switch {
	case o.installErr != nil:
		reason := "InstallFailed"
		if errors.Is(o.installErr, errOtherCNI) {
			reason = v1alpha1.ReasonOtherCNI
		}
		fail(&conf, metav1.ConditionFalse, reason, o.installErr.Error())
	case !o.installed || !o.serving:
		fail(&conf, metav1.ConditionFalse, "Waiting", "the plugin is installed when the datapath is ready")
	}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: "pods of this node have their network"}
	network := metav1.Condition{Status: metav1.ConditionTrue} // the last attempt to bring the tables up to date
	if err := o.network.err; err != nil {
		fail(&network, metav1.ConditionFalse, networkReason(err), err.Error())
	}
	order := []metav1.Condition{kernel, path, network, conf}
	if conf.Reason == v1alpha1.ReasonOtherCNI {
		order = []metav1.Condition{conf, kernel, path, network} // nothing else is even tried before
	}
	for _, c := range order {
		if c.Status != metav1.ConditionTrue {
			fail(&ready, metav1.ConditionFalse, c.Reason, c.Message)
			break
		}
	}
	all := []metav1.Condition{ready, kernel, path, conf, othersCondition(o), policyCondition(o.policies, o.policyErr)}
	if o.flows {
		served := metav1.Condition{Type: v1alpha1.ConditionFlowsServed, Status: metav1.ConditionTrue, Reason: "Serving", Message: "kubectl hubble can read this node's flows"}
		switch {
		case o.flowsErr != nil:
			fail(&served, metav1.ConditionFalse, "ServeFailed", oneLine(o.flowsErr))
		case o.datapath == nil:
			fail(&served, metav1.ConditionFalse, "Starting", "there is no datapath yet")
		}
		all = append(all, served)
	}
	return all
}

// policyCondition says whether every policy is in force as it stands. A node where one is not goes on: what is in force
// instead is no wider.
func policyCondition(p v1alpha1.PolicyProgress, err error) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionPolicyEnforced, Status: metav1.ConditionTrue, Reason: "InForce", Message: "every policy is in force"}
	switch {
	case errors.Is(err, datapath.ErrPolicyFull):
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, reasonTableFull, "what was in force before goes on: "+oneLine(err)
	case err != nil:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, reasonWrite, "what was in force before goes on: "+oneLine(err)
	case p.InForce == "":
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, "Starting", "the policies are being read"
	case len(p.Exceptions) == 1:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, p.Exceptions[0].Reason, p.Exceptions[0].Message
	case len(p.Exceptions) > 1:
		c.Status, c.Reason = metav1.ConditionFalse, p.Exceptions[0].Reason
		c.Message = fmt.Sprintf("%d policies are not in force as they stand, see status.policies; the first: %s", len(p.Exceptions), p.Exceptions[0].Message)
	}
	return c
}

// maxMessage bounds what a condition quotes, in bytes: it is written whenever it changes.
const maxMessage = 1024

// oneLine is joined errors in a stable order, so that the same ones make the same message.
func oneLine(err error) string {
	lines := strings.Split(err.Error(), "\n")
	slices.Sort(lines)
	text := strings.Join(slices.Compact(lines), "; ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + " ..."
	}
	return text
}

func datapathReason(err error) string {
	for reason, is := range map[string]error{
		v1alpha1.ReasonNoBPFFS: datapath.ErrNoBPFFS, v1alpha1.ReasonNoCgroup2: datapath.ErrNoCgroup2,
		v1alpha1.ReasonMissingCapability: datapath.ErrMissingCapability, v1alpha1.ReasonKernelTooOld: datapath.ErrKernelTooOld,
		v1alpha1.ReasonNewerLayout: datapath.ErrNewerLayout, v1alpha1.ReasonNodeNameTooLong: errLongName,
	} {
		if errors.Is(err, is) {
			return reason
		}
	}
	return "OpenFailed"
}

func networkReason(err error) string {
	for reason, is := range map[string]error{
		v1alpha1.ReasonOtherCNI: errOtherCNI, "NoPrefix": errNoPrefix, "NoNodeAddress": errNoAddress, "NoPolicies": errNoPolicies,
		"NoUplink": datapath.ErrNoUplink, "TunnelPortTaken": datapath.ErrTunnelPortTaken,
		"FeatureMissing": datapath.ErrNotSupported, "NoIPv6": datapath.ErrNoIPv6,
	} {
		if errors.Is(err, is) {
			return reason
		}
	}
	return "WriteFailed"
}

func mapReports(d *datapath.Datapath) []v1alpha1.MapReport {
	var out []v1alpha1.MapReport
	for _, m := range d.Maps() {
		out = append(out, v1alpha1.MapReport{Name: m.Name, Entries: m.Entries, MaxEntries: m.MaxEntries, Bytes: m.Bytes})
	}
	return out
}

// drops are the counters of what went nowhere, the largest first where there are more than fit.
func drops(d *datapath.Datapath) []v1alpha1.PacketCounter {
	counters, err := d.Counters()
	if err != nil {
		return nil
	}
	var out []v1alpha1.PacketCounter
	for _, c := range counters {
		if reason := flow.Reason(c.Reason); reason.Dropped() {
			out = append(out, v1alpha1.PacketCounter{
				Hook: flow.Hook(c.Hook).String(), Reason: reason.String(), Dropped: true,
				Packets: int64(c.Packets), Bytes: int64(c.Bytes),
			})
		}
	}
	if len(out) > maxDrops {
		slices.SortFunc(out, func(a, b v1alpha1.PacketCounter) int { return cmp.Compare(b.Packets, a.Packets) })
		out = out[:maxDrops]
	}
	slices.SortFunc(out, func(a, b v1alpha1.PacketCounter) int {
		return cmp.Or(cmp.Compare(a.Hook, b.Hook), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}

func routingText(c datapath.Config, features []v1alpha1.FeatureReport) string {
	if c.Mode == v1alpha1.RoutingNative {
		return "Native"
	}
	for _, f := range features {
		if f.Name == string(v1alpha1.FeatureAdjustRoomEncap) && f.Using != "" {
			return "VXLAN (" + strings.TrimPrefix(f.Using, "VXLAN ") + ")"
		}
	}
	return "VXLAN"
}

func masqueradeText(c datapath.Config) string {
	var on []string
	if c.MasqueradeIPv4 {
		on = append(on, "IPv4")
	}
	if c.MasqueradeIPv6 {
		on = append(on, "IPv6")
	}
	if len(on) == 0 {
		return "off"
	}
	return strings.Join(on, ", ")
}

// kernelRelease is what uname -r prints.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
