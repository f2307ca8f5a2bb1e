// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
)

var (
	// errNoPrefix means that the operator has not given the node what its pods need; it heals by itself.
	errNoPrefix = errors.New("the operator has not given this node its prefixes")
	// errNoAddress means that kubelet has not said which addresses the node has; it heals by itself.
	errNoAddress = errors.New("the Node has no InternalIP yet")
	// errNoPolicies means that the first tables of policies are not in force; it heals by itself.
	errNoPolicies = errors.New("the policies are not in force yet")
)

// networkCheck is how often the whole is looked at although nothing seems to have changed.
const networkCheck = 30 * time.Second

// seenSafely is how old the cache's version must be to be sure that we have acted on it.
const seenSafely = 5 * time.Second

// networkDatapath is what Network needs of the datapath.
type networkDatapath interface {
	Configure(context.Context, datapath.Config) error
	SetHostAddresses([]netip.Addr) error
	SetPeers(map[netip.Addr]datapath.Peer) error
	SetPrefixes(map[netip.Prefix]datapath.Peer) error
	SetRoutes([]datapath.Route) error
}

// Network keeps the datapath's view of the cluster: settings, nodes, who is where.
type Network struct {
	node      string
	bootID    string
	stateDir  string
	cache     client.Reader
	writer    *Writer
	datapath  networkDatapath
	addresses *ipam.Allocator
	// nodesVersion is how far the cache has seen CiliumNodes, as a resourceVersion.
	nodesVersion func() string
	// policies says why the policies are not in force yet: pods come after their tables; nil: nothing to wait for.
	policies func() error
	// blocked says why the node must not be touched, such as another CNI; nil: nothing does.
	blocked func() error
	// ready is called after each success; whole: from the caches, not from disk.
	ready func(whole bool)
	log   logr.Logger

	mu     sync.Mutex
	inside inForce
	// routes are those of the last SetRoutes that succeeded.
	routes    []datapath.Route
	routesSet bool
	// seen and seenAt are a version of the nodes and when the cache had it.
	seen   string
	seenAt time.Time
}

// inForce is what the datapath was last given.
type inForce struct {
	config     datapath.Config
	configured bool
	// again is true when the same config has to be tried once more: there was no uplink.
	again      bool
	generation int64
	// observedNodes is the version of the nodes on which we have acted.
	observedNodes string
	spec          v1alpha1.CiliumConfigSpec
	err           error
}

// lastObjects is what is kept on disk, so that an agent that starts without an API server can serve.
type lastObjects struct {
	BootID     string                    `json:"bootID"`
	Generation int64                     `json:"generation"`
	Spec       v1alpha1.CiliumConfigSpec `json:"spec"`
	Node       v1alpha1.CiliumNode       `json:"node"`
}

const lastObjectsFile = "last-objects.json"

// Reconcile writes the whole desired state, references before referrers.
func (n *Network) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	err := n.reconcile(ctx)
	n.mu.Lock()
	news := err != nil && (n.inside.err == nil || n.inside.err.Error() != err.Error())
	n.inside.err = err
	n.mu.Unlock()
	switch {
	case errors.Is(err, errNoPrefix), errors.Is(err, errNoAddress):
		if news {
			n.log.Info("waiting", "for", err.Error())
		}
		return ctrl.Result{RequeueAfter: 2 * time.Second}, nil
	case errors.Is(err, errNoPolicies):
		return ctrl.Result{RequeueAfter: 20 * time.Millisecond}, nil
	case errors.Is(err, datapath.ErrNoUplink):
		if news {
			n.log.Error(err, "pods reach only this node")
		}
		return ctrl.Result{RequeueAfter: 10 * time.Second}, nil
	case errors.Is(err, errOtherCNI):
		if news {
			n.log.Error(err, "this node is left alone")
		}
		return ctrl.Result{RequeueAfter: 10 * time.Second}, nil
	case err != nil:
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: networkCheck}, nil
}

func (n *Network) reconcile(ctx context.Context) error {
	if err := n.blocked(); err != nil {
		return err
	}
	now, version := time.Now(), n.nodesVersion()
	var config v1alpha1.CiliumConfig
	if err := n.cache.Get(ctx, types.NamespacedName{Name: v1alpha1.ConfigName}, &config); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("CiliumConfig: %w", err)
	}
	w := world{self: n.node, spec: config.Spec}
	var nodes v1alpha1.CiliumNodeList
	var list v1alpha1.CiliumEndpointSliceList
	if err := n.cache.List(ctx, &nodes); err != nil {
		return fmt.Errorf("CiliumNodes: %w", err)
	}
	if err := n.cache.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("CiliumEndpointSlices: %w", err)
	}
	w.nodes, w.slices = nodes.Items, list.Items
	own, err := n.ownNode(ctx, w.nodes)
	if err != nil {
		return err
	}
	if err := n.tellAddresses(ctx, own); err != nil {
		return err
	}
	// Programs that ask for policies must not start before there are any.
	if n.policies != nil {
		if err := n.policies(); err != nil {
			return err
		}
	}
	err = n.write(ctx, w, *own, config.Generation, true)
	if err != nil && !errors.Is(err, datapath.ErrNoUplink) {
		return err
	}
	n.remember(lastObjects{BootID: n.bootID, Generation: config.Generation, Spec: config.Spec, Node: *own})
	n.mu.Lock()
	if now.Sub(n.seenAt) >= seenSafely {
		n.inside.observedNodes, n.seen, n.seenAt = n.seen, version, now
	}
	n.mu.Unlock()
	n.ready(true)
	return err
}

// FromDisk brings the datapath up from the last objects of this boot: addresses may be given and programs are in
// force. What the maps say of other nodes stays as it is.
func (n *Network) FromDisk(ctx context.Context) error {
	var last lastObjects
	if err := cni.ReadFileOfThisBoot(filepath.Join(n.stateDir, lastObjectsFile), &last); err != nil {
		return fmt.Errorf("last objects: %w", err)
	}
	if last.BootID != n.bootID {
		return errors.New("last objects: they are of another boot")
	}
	if err := n.blocked(); err != nil {
		return err
	}
	w := world{self: n.node, spec: last.Spec, nodes: []v1alpha1.CiliumNode{last.Node}}
	if err := n.write(ctx, w, last.Node, last.Generation, false); err != nil && !errors.Is(err, datapath.ErrNoUplink) {
		return err
	}
	n.ready(false)
	return nil
}

// write hands everything to the datapath. Without whole, tables of other nodes are left as they are. It returns
// datapath.ErrNoUplink after everything else was written.
func (n *Network) write(ctx context.Context, w world, own v1alpha1.CiliumNode, generation int64, whole bool) error {
	t := makeTables(w)
	if err := enough(w.spec, t.own); err != nil {
		return err
	}
	config := configFor(w.spec, own)
	hosts, err := hostAddresses()
	if err != nil {
		return err
	}
	n.addresses.SetPrefixes(t.own)
	if err := n.datapath.SetHostAddresses(hosts); err != nil {
		return fmt.Errorf("host addresses: %w", err)
	}
	if whole {
		if err := errors.Join(n.datapath.SetPeers(t.peers), n.datapath.SetPrefixes(t.prefixes)); err != nil {
			return fmt.Errorf("peers: %w", err)
		}
	}
	n.mu.Lock()
	same := n.inside.configured && !n.inside.again && reflect.DeepEqual(n.inside.config, config)
	n.mu.Unlock()
	var noUplink error
	if !same {
		err := n.datapath.Configure(ctx, config)
		if err != nil && !errors.Is(err, datapath.ErrNoUplink) {
			return fmt.Errorf("configure the datapath: %w", err)
		}
		n.log.Info("the datapath is configured", "generation", generation, "mode", config.Mode)
		noUplink = err
	}
	n.mu.Lock()
	if !same {
		n.inside.again, n.routesSet = noUplink != nil, false
	}
	n.inside.config, n.inside.configured = config, true
	routed := same && n.routesSet && slices.Equal(n.routes, t.routes)
	n.mu.Unlock()
	if whole && !routed { // the datapath itself repairs what somebody else takes away
		if err := n.datapath.SetRoutes(t.routes); err != nil {
			return fmt.Errorf("routes: %w", err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if whole {
		n.routes, n.routesSet = t.routes, true
	}
	// Last: who reads in the report that a generation is observed counts on all of it, the routes too.
	n.inside.generation, n.inside.spec = generation, w.spec
	return noUplink
}

// InForce is what the datapath was last given, and the error of the last attempt.
func (n *Network) InForce() inForce {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.inside
}

// ownNode is this node's CiliumNode with the addresses that its Node has now.
func (n *Network) ownNode(ctx context.Context, nodes []v1alpha1.CiliumNode) (*v1alpha1.CiliumNode, error) {
	i := slices.IndexFunc(nodes, func(o v1alpha1.CiliumNode) bool { return o.Name == n.node })
	if i < 0 {
		return nil, fmt.Errorf("%w: there is no CiliumNode %s", errNoPrefix, n.node)
	}
	var core corev1.Node
	if err := n.cache.Get(ctx, types.NamespacedName{Name: n.node}, &core); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("%w: there is no Node %s", errNoAddress, n.node)
		}
		return nil, fmt.Errorf("Node %s: %w", n.node, err) //nolint:staticcheck // the kind's name
	}
	own := &nodes[i]
	var addrs []v1alpha1.NodeAddress
	for _, a := range core.Status.Addresses {
		t := v1alpha1.NodeAddressType(a.Type)
		if ip, err := netip.ParseAddr(a.Address); err == nil && (t == v1alpha1.NodeInternalIP || t == v1alpha1.NodeExternalIP) {
			addrs = append(addrs, v1alpha1.NodeAddress{Type: t, Address: ip.Unmap().String()})
		}
	}
	own.Status.Addresses = addrs
	if ipv4, ipv6 := underlayOf(*own); !ipv4.IsValid() && !ipv6.IsValid() {
		return nil, fmt.Errorf("%w: Node %s", errNoAddress, n.node)
	}
	return own, nil
}

// tellAddresses writes the part of the CiliumNode that is this agent's. It changes rarely: every agent watches it.
func (n *Network) tellAddresses(ctx context.Context, own *v1alpha1.CiliumNode) error {
	var has v1alpha1.CiliumNode
	if err := n.cache.Get(ctx, types.NamespacedName{Name: n.node}, &has); err != nil {
		return fmt.Errorf("CiliumNode %s: %w", n.node, err)
	}
	want := &v1alpha1.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: n.node}}
	want.Status.Addresses, want.Status.BootID = own.Status.Addresses, n.bootID
	ready := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "PrefixesInUse",
		Message: "the agent gives addresses of these prefixes", ObservedGeneration: has.Generation,
	}
	if old := apimeta.FindStatusCondition(has.Status.Conditions, ready.Type); old != nil {
		want.Status.Conditions = []metav1.Condition{*old}
	}
	apimeta.SetStatusCondition(&want.Status.Conditions, ready)
	old := apimeta.FindStatusCondition(has.Status.Conditions, ready.Type)
	if old != nil && apiequality.Semantic.DeepEqual(*old, want.Status.Conditions[0]) && has.Status.BootID == n.bootID &&
		apiequality.Semantic.DeepEqual(has.Status.Addresses, want.Status.Addresses) {
		return nil
	}
	if err := n.writer.ApplyStatus(ctx, Shared, want); err != nil {
		return fmt.Errorf("status of CiliumNode %s: %w", n.node, err)
	}
	return nil
}

// remember keeps the objects on disk; errors only cost a start during an outage.
func (n *Network) remember(last lastObjects) {
	last.Node = v1alpha1.CiliumNode{
		ObjectMeta: metav1.ObjectMeta{Name: last.Node.Name}, Spec: last.Node.Spec,
		Status: v1alpha1.CiliumNodeStatus{Addresses: last.Node.Status.Addresses},
	}
	path := filepath.Join(n.stateDir, lastObjectsFile)
	data, err := json.Marshal(last)
	if err == nil {
		if old, rerr := os.ReadFile(path); rerr == nil && string(old) == string(data) {
			return
		}
		err = cni.WriteFile(path, data, 0o600)
	}
	if err != nil {
		n.log.Error(err, "the last objects are not kept")
	}
}

// enough tells whether the node has a prefix of each family that pods are to have.
func enough(spec v1alpha1.CiliumConfigSpec, own []netip.Prefix) error {
	ipv4, ipv6 := families(spec)
	has4 := slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Addr().Is4() })
	has6 := slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Addr().Is6() })
	switch {
	case ipv4 && !has4:
		return fmt.Errorf("%w: none of IPv4", errNoPrefix)
	case ipv6 && !has6:
		return fmt.Errorf("%w: none of IPv6", errNoPrefix)
	}
	return nil
}

// configFor is the settings as the datapath wants them, with the defaults for what is absent.
func configFor(spec v1alpha1.CiliumConfigSpec, own v1alpha1.CiliumNode) datapath.Config {
	c := datapath.Config{
		Mode: modeOf(spec), Encapsulation: cmp.Or(spec.Routing.Encapsulation, v1alpha1.EncapsulationAuto),
		TunnelPort:            uint16(cmp.Or(spec.Routing.TunnelPort, v1alpha1.DefaultTunnelPort)),
		MasqueradeIPv4:        spec.Masquerade.IPv4 == nil || *spec.Masquerade.IPv4,
		MasqueradeIPv6:        spec.Masquerade.IPv6 == nil || *spec.Masquerade.IPv6,
		Devices:               spec.Devices,
		MTU:                   int(spec.MTU),
		ConntrackMax:          uint32(cmp.Or(spec.Conntrack.MaxEntries, v1alpha1.DefaultConntrackMaxEntries)),
		UnansweredPerEndpoint: uint32(cmp.Or(spec.Conntrack.UnansweredPerEndpoint, v1alpha1.DefaultUnansweredPerEndpoint)),
		Forbidden:             spec.ForbiddenKernelFeatures,
		BigTCP:                cmp.Or(spec.BigTCP, v1alpha1.BigTCPOff),
		FlowReporting:         cmp.Or(spec.Flows.Reporting, v1alpha1.FlowReportingDefault),
	}
	c.NodeIPv4, c.NodeIPv6 = underlayOf(own)
	return c
}

// hostAddresses are all of this host's but loopback and IPv6 link-local ones, which no pod can reach.
func hostAddresses() ([]netip.Addr, error) {
	var all []netlink.Addr
	var err error
	for range 10 {
		if all, err = netlink.AddrList(nil, netlink.FAMILY_ALL); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		linkLocal := ip.Is6() && ip.IsLinkLocalUnicast() // of many interfaces at once: nobody's name
		if ok && !ip.IsLoopback() && !linkLocal && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, nil
}

// watchAddresses rings when an address of this host comes or goes, until ctx ends.
func watchAddresses(ctx context.Context, b bell, log logr.Logger) error {
	for ctx.Err() == nil {
		updates := make(chan netlink.AddrUpdate, 64)
		done := make(chan struct{})
		stop := context.AfterFunc(ctx, func() { close(done) })
		err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{
			ErrorCallback: func(err error) { log.V(1).Info("address events", "error", err.Error()) },
		})
		if err == nil {
			for u := range updates {
				if ip := net.IP(u.LinkAddress.IP); ip != nil && !ip.IsLinkLocalUnicast() {
					b.ring()
				}
			}
		}
		if stop() {
			close(done)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second): // the socket overflowed or could not be had; the regular check covers the gap
			b.ring()
		}
	}
	return nil
}
