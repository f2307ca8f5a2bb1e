// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
	"github.com/kube-cilium/kube-cilium/cni"
	"github.com/kube-cilium/kube-cilium/internal/apiserver"
	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/ipam"
	"github.com/kube-cilium/kube-cilium/nodeagent/cniserver"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
	"github.com/kube-cilium/kube-cilium/nodeagent/events"
	"github.com/kube-cilium/kube-cilium/nodeagent/reach"
)

const (
	// apiPatience is how long a start waits for the API server before it serves from disk.
	apiPatience = 10 * time.Second
	// endpointsRest gathers endpoints that come or go, for those who compute the whole of them anew. Who added them has done
	// what they need; with every single one, this would take the processor from those that come behind it.
	endpointsRest = 250 * time.Millisecond
	// openAgain is how often a start that the node does not allow is tried.
	openAgain = 10 * time.Second
)

// Options of an Agent.
type Options struct {
	// Node is this node's name.
	Node string
	// Holder names this process in the lease.
	Holder string
	// BPFFS, CgroupRoot and ProcSysNet are the kernel's file systems, as the process sees them. CgroupRoot may be the
	// folder that holds the cgroup2 mount as "unified".
	BPFFS, CgroupRoot, ProcSysNet string
	// BinDir and ConfDir are the container runtime's; Plugin is the binary to install there.
	BinDir, ConfDir, Plugin string
	StateDir, SocketDir     string
	// HealthAddress and MetricsAddress are host:port; "0" for none.
	HealthAddress, MetricsAddress string
	// NodeHealthPort is where other nodes ask this node's addresses, on all nodes the same; 0: nobody is asked.
	NodeHealthPort uint16
	// Flows get every event of this node; nil: nobody does.
	Flows FlowServer
	Log   logr.Logger
}

// Agent is the agent of one node.
type Agent struct {
	Options
	bootID    string
	servers   *apiserver.Servers // nil in tests
	manager   ctrl.Manager
	writer    *Writer
	addresses *ipam.Allocator
	install   *Install
	network   *Network
	pods      *Pods
	ids       *Identities
	policies  *Policies
	drops     *recentDrops
	metrics   *metrics
	others    *reach.Prober
	names     *FlowNames

	endpointsChanged []bell
	policiesChanged  []bell
	dropsSeen        bell
	networkBell      bell
	identityBell     bell
	podsBell         bell
	// policyNews rings when something else is in force than before.
	policyNews bell
	// ready is closed when the datapath is complete for the first time.
	ready     chan struct{}
	readyOnce sync.Once
	// adopted: this boot's datapath was ready before this process, and is in force.
	adopted   bool
	sweepOnce sync.Once

	mu          sync.Mutex
	datapath    *datapath.Datapath
	datapathErr error
	endpoints   *endpoint.Set
	serving     bool
	flowsErr    error
	reader      *events.Reader
	// nodeCache and reportCache hold CiliumNodes and this node's report; nil before there is a datapath.
	nodeCache, reportCache cache.Informer
}

// scheme knows the kinds that the agent reads and writes.
func scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	return s, errors.Join(clientgoscheme.AddToScheme(s), v1alpha1.AddToScheme(s))
}

// mapper knows where these kinds are, so that nobody has to be asked: a start must not need the API server.
func mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper([]schema.GroupVersion{v1alpha1.GroupVersion})
	ours := v1alpha1.GroupVersion
	for kind, plural := range map[string]string{
		"CiliumConfig": "ciliumconfigs", "CiliumNode": "ciliumnodes", "CiliumNodeReport": "ciliumnodereports",
		"CiliumEndpointSlice": "ciliumendpointslices", "CiliumIdentity": "ciliumidentities",
	} {
		m.AddSpecific(ours.WithKind(kind), ours.WithResource(plural), ours.WithResource(plural), meta.RESTScopeRoot)
	}
	m.Add(ours.WithKind("CiliumEndpoint"), meta.RESTScopeNamespace)
	core := corev1.SchemeGroupVersion
	m.Add(core.WithKind("Node"), meta.RESTScopeRoot)
	m.Add(core.WithKind("Namespace"), meta.RESTScopeRoot)
	m.Add(core.WithKind("Pod"), meta.RESTScopeNamespace)
	m.Add(core.WithKind("Service"), meta.RESTScopeNamespace)
	m.Add(discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), meta.RESTScopeNamespace)
	m.AddSpecific(networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"), networkingv1.SchemeGroupVersion.WithResource("networkpolicies"),
		networkingv1.SchemeGroupVersion.WithResource("networkpolicy"), meta.RESTScopeNamespace)
	m.Add(schema.GroupVersionKind{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"}, meta.RESTScopeNamespace)
	return m
}

// New makes an Agent that talks to the API server at config. Servers may be nil where that never moves.
func New(o Options, config *rest.Config, servers *apiserver.Servers) (*Agent, error) {
	if o.Node == "" {
		return nil, errors.New("no node name (set NODE_NAME)")
	}
	for _, dir := range []string{o.StateDir, o.SocketDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("state folder: %w", err)
		}
	}
	bootID, err := cni.BootID()
	if err != nil {
		return nil, err
	}
	s, err := scheme()
	if err != nil {
		return nil, err
	}
	a := &Agent{
		Options: o, bootID: bootID, servers: servers, ready: make(chan struct{}),
		addresses: ipam.NewAllocator(time.Now), networkBell: newBell(), identityBell: newBell(), podsBell: newBell(), policyNews: newBell(),
		install: &Install{
			Plugin: o.Plugin, BinDir: o.BinDir, ConfDir: o.ConfDir, SocketDir: o.SocketDir, StateDir: o.StateDir,
			Log: o.Log.WithName("install"),
		},
	}
	a.names = newFlowNames(a.set)
	a.manager, err = ctrl.NewManager(config, ctrl.Options{
		Scheme: s, Logger: o.Log.V(1), // what starts when is for debugging; errors are logged all the same
		MapperProvider: func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return mapper(), nil },
		Cache: cache.Options{
			DefaultTransform: strip,
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Pod{}:              {Field: fields.OneTermEqualSelector("spec.nodeName", o.Node), Transform: stripPod},
				&corev1.Node{}:             {Field: fields.OneTermEqualSelector("metadata.name", o.Node), Transform: stripNode},
				&v1alpha1.CiliumEndpoint{}: {Label: labels.SelectorFromSet(labels.Set{v1alpha1.LabelNode: o.Node})},
				// Our own, to see when it goes; what is in it we know.
				&v1alpha1.CiliumNodeReport{}: {Field: fields.OneTermEqualSelector("metadata.name", o.Node), Transform: stripReport},
			},
		},
		Client:                 client.Options{Cache: &client.CacheOptions{}},
		Metrics:                metricsserver.Options{BindAddress: o.MetricsAddress},
		HealthProbeBindAddress: "0", // ours answers before the manager starts
		// An API server that is away for hours is no reason to end.
		Controller:              ctrlconfig.Controller{CacheSyncTimeout: 365 * 24 * time.Hour, SkipNameValidation: ptr.To(true)},
		GracefulShutdownTimeout: ptr.To(500 * time.Millisecond),
	})
	if err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	a.writer = NewWriter(a.manager.GetClient())
	a.ids = NewIdentities(a.manager.GetCache(), a.manager.GetAPIReader(), a.writer, a.podsBell.ring)
	a.policies = NewPolicies(a.manager.GetCache(), a.manager.GetAPIReader(), a.set,
		policyMemory{stateDir: o.StateDir, bootID: bootID, log: o.Log.WithName("policy")}, a.ringPolicies, o.Log.WithName("policy"))
	a.drops = newRecentDrops(a.policies.Rule, a.ringDrops)
	a.policies.dismissed = a.drops.forget
	a.names.Rules(a.policies.Rule)
	a.metrics = newMetrics(a.observe, a.policies.InForce)
	a.policies.took = a.metrics.policyApply.Observe
	a.others = &reach.Prober{Targets: a.otherNodes, Port: o.NodeHealthPort, Observe: a.metrics.observeProbe}
	a.pods = &Pods{
		cache: a.manager.GetCache(), live: a.manager.GetAPIReader(), identities: a.ids, endpoints: a.set,
		filter: identity.DefaultFilter(), wake: a.identityBell, memory: podMemory{stateDir: o.StateDir, bootID: bootID, log: o.Log.WithName("pods")},
		learn: a.policies.Learn, relabelled: a.policies.wake.ring, expected: a.policies.expected,
	}
	return a, nil
}

// Run starts everything and returns when ctx ends, or with an error when going on makes no sense.
func (a *Agent) Run(ctx context.Context) error {
	debug.SetGCPercent(50) // the agent's memory is every pod's loss, its processor time is not
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.adopted = cni.WasReady(a.StateDir) && datapath.InForce(a.BPFFS)
	if err := ctrlmetrics.Registry.Register(a.metrics); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	defer ctrlmetrics.Registry.Unregister(a.metrics)

	failed := make(chan error, 16)
	var work sync.WaitGroup
	defer work.Wait()
	run := func(name string, f func(context.Context) error) {
		work.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("%s: %w", name, err)
				cancel()
			}
		})
	}
	lease := &Lease{
		node: a.Node, holder: a.Holder, client: a.manager.GetAPIReader(), writer: a.writer,
		log: a.Log.WithName("lease"),
	}
	report := &Report{
		node: a.Node, live: a.manager.GetAPIReader(), writer: a.writer, observe: a.observe, standing: a.standing,
		news: a.policyNews, log: a.Log.WithName("report"),
	}
	run("health", a.serveHealth)
	if checkName(a.Node) == nil {
		run("lease", lease.Run)
	}
	run("report", report.Run)
	run("start", func(ctx context.Context) error { return a.start(ctx, run) })
	<-ctx.Done()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// start goes through the steps of a start. What keeps a node from being served for a person to repair is reported and
// tried again, without end.
func (a *Agent) start(ctx context.Context, run func(string, func(context.Context) error)) error {
	if err := a.insist(ctx, func() error { return checkName(a.Node) }); err != nil {
		return err
	}
	// Another CNI's node is not touched at all, not even by our maps.
	if err := a.insist(ctx, a.blocked); err != nil {
		return err
	}
	var d *datapath.Datapath
	err := a.insist(ctx, func() (err error) {
		d, err = datapath.Open(datapath.Options{
			BPFFS: a.BPFFS, CgroupRoot: findCgroup2(a.CgroupRoot), ProcSysNet: a.ProcSysNet, Log: a.Log.WithName("datapath"),
		})
		return err
	})
	if err != nil {
		return err
	}
	cni.RemoveUnfinished(filepath.Join(a.StateDir, lastObjectsFile)) // the others are their readers'
	a.policies.writeTo(d)
	set, err := endpoint.New(endpoint.Options{
		StateDir: a.StateDir, BootID: a.bootID, ProcSysNet: a.ProcSysNet, Datapath: d, Addresses: a.addresses, Policy: a.policies,
		Identify: a.pods.Identify, Changed: a.ringEndpoints, Log: a.Log.WithName("endpoint"),
	})
	if err != nil {
		return err
	}
	if err := set.Restore(); err != nil {
		return fmt.Errorf("restore endpoints: %w", err)
	}
	for _, who := range a.pods.memory.load() {
		a.ids.Restore(who.Labels, who.Identity)
	}
	for _, e := range set.List() {
		a.ids.Restore(e.Labels, e.Identity)
	}
	if err := a.policies.Restore(set.List()); err != nil {
		return err
	}
	a.mu.Lock()
	a.datapath, a.endpoints = d, set
	a.mu.Unlock()

	if err := a.controllers(ctx, d); err != nil {
		return err
	}
	run("controllers", a.manager.Start)
	run("addresses of this host", func(ctx context.Context) error {
		return watchAddresses(ctx, a.networkBell, a.Log.WithName("addresses"))
	})
	run("datapath", d.Run)
	run("segment sizes", func(ctx context.Context) error { return set.FollowSegments(ctx, d.Resized()) })
	run("conntrack", d.RunConntrackGC)
	run("policies", a.policies.Remember)
	a.events(d, run)
	if a.NodeHealthPort != 0 {
		answers := &reach.Server{Addresses: a.ownAddresses, Port: a.NodeHealthPort, Log: a.Log.WithName("reach")}
		run("answers to other nodes", answers.Run)
		run("probes of other nodes", a.others.Run)
	}

	if err := a.wait(ctx); err != nil {
		return err
	}
	if err := cni.MarkReady(a.StateDir, a.bootID); err != nil {
		return err
	}
	server := &cniserver.Server{
		Dir: a.SocketDir, Queue: cni.NewQueue(a.StateDir), Endpoints: set, Observe: a.metrics.observeCNI, Log: a.Log.WithName("cni"),
	}
	run("cni", server.Run)
	a.mu.Lock()
	a.serving = true
	a.mu.Unlock()
	run("install", a.install.Run)
	a.Log.Info("ready", "endpoints", len(set.List()))
	return nil
}

// blocked says why this node is not ours to serve. Once it was ours in this boot it stays so: whatever another CNI's
// files say, our pods run here.
func (a *Agent) blocked() error {
	if cni.WasReady(a.StateDir) {
		return nil
	}
	return a.install.Blocked()
}

// insist tries until it succeeds, and reports why it does not.
func (a *Agent) insist(ctx context.Context, try func() error) error {
	for {
		err := try()
		a.mu.Lock()
		again := a.datapathErr != nil && err != nil && a.datapathErr.Error() == err.Error()
		a.datapathErr = err
		a.mu.Unlock()
		if err == nil {
			return nil
		}
		if !again {
			a.Log.Error(err, "this node cannot be served; trying again", "every", openAgain)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(openAgain):
		}
	}
}

// wait returns when the datapath is complete: from the caches, or after a while from the last objects on disk.
func (a *Agent) wait(ctx context.Context) error {
	patience := time.NewTimer(apiPatience)
	defer patience.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.ready:
			return nil
		case <-patience.C:
		}
		synced, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		there := a.manager.GetCache().WaitForCacheSync(synced)
		cancel()
		if there {
			continue // the API server answers: what is missing is coming from there
		}
		err := a.policies.FromDisk()
		if err == nil {
			err = a.network.FromDisk(ctx)
		}
		if err == nil {
			a.Log.Info("the API server is away: serving from the last objects")
			return nil
		}
		a.Log.Error(err, "the API server is away, and there is nothing to serve from")
		patience.Reset(apiPatience)
	}
}

// controllers wires the reconcilers. Each works on the whole of its kind; events only say when.
func (a *Agent) controllers(ctx context.Context, d *datapath.Datapath) error {
	m, reader := a.manager, a.manager.GetCache()
	if err := indexFields(ctx, m.GetFieldIndexer()); err != nil {
		return err
	}
	nodes, err := reader.GetInformer(ctx, &v1alpha1.CiliumNode{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch CiliumNodes: %w", err)
	}
	if err := a.policies.foreseePods(ctx, reader); err != nil {
		return err
	}
	if err := a.names.watch(ctx, reader); err != nil {
		return err
	}
	reports, err := reader.GetInformer(ctx, &v1alpha1.CiliumNodeReport{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch CiliumNodeReports: %w", err)
	}
	network := &Network{
		node: a.Node, bootID: a.bootID, stateDir: a.StateDir, cache: reader, writer: a.writer, datapath: d,
		addresses: a.addresses, nodesVersion: lastVersion(nodes), blocked: a.blocked,
		ready: a.networkReady, policies: a.policies.Ready, log: a.Log.WithName("network"),
	}
	a.mu.Lock()
	a.network, a.nodeCache, a.reportCache = network, nodes, reports
	a.mu.Unlock()
	removed, err := reader.GetInformer(ctx, &networkingv1.NetworkPolicy{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch NetworkPolicies: %w", err)
	}
	if _, err := removed.AddEventHandler(a.policies.deletions()); err != nil {
		return fmt.Errorf("watch NetworkPolicies: %w", err)
	}
	policiesLater, podsLater, slicesBell, shownBell := newBell(), newBell(), newBell(), newBell()
	a.mu.Lock()
	a.endpointsChanged, a.policiesChanged = []bell{policiesLater, podsLater, slicesBell, shownBell}, []bell{shownBell, a.policyNews}
	a.dropsSeen = shownBell
	a.mu.Unlock()
	setup := []struct {
		name  string
		after time.Duration
		kinds []client.Object
		bell  bell
		// later rings when endpoints have come or gone; nil: the bell does, where they are of interest.
		later bell
		do    reconcile.Reconciler
	}{
		{"network", 20 * time.Millisecond, []client.Object{
			&v1alpha1.CiliumConfig{}, &v1alpha1.CiliumNode{}, &v1alpha1.CiliumEndpointSlice{}, &corev1.Node{},
		}, a.networkBell, nil, a.network},
		{"policies", 10 * time.Millisecond, []client.Object{
			&networkingv1.NetworkPolicy{}, &corev1.Namespace{}, &v1alpha1.CiliumIdentity{}, &v1alpha1.CiliumEndpointSlice{},
		}, a.policies.wake, policiesLater, a.policies},
		{"pods", 10 * time.Millisecond, []client.Object{&corev1.Pod{}, &corev1.Namespace{}, &v1alpha1.CiliumConfig{}}, a.podsBell, podsLater, a.pods},
		{"identities", 10 * time.Millisecond, []client.Object{&v1alpha1.CiliumIdentity{}}, a.identityBell, nil, a.ids},
		{"slices", 50 * time.Millisecond, []client.Object{&v1alpha1.CiliumNode{}, &v1alpha1.CiliumEndpointSlice{}}, slicesBell, nil, &Slices{
			node: a.Node, cache: reader, writer: a.writer, endpoints: a.set, written: map[string][]v1alpha1.SliceEndpoint{},
		}},
		{"ciliumendpoints", time.Second, []client.Object{&corev1.Pod{}, &v1alpha1.CiliumEndpoint{}}, shownBell, nil, &CiliumEndpoints{
			node: a.Node, cache: reader, writer: a.writer, endpoints: a.set, policy: a.policies.Shown, drops: a.drops,
		}},
	}
	for _, s := range setup {
		c := ctrl.NewControllerManagedBy(m).Named(s.name).WatchesRawSource(s.bell.source(s.name, s.after))
		if s.later != nil {
			c = c.WatchesRawSource(s.later.source(s.name, endpointsRest))
		}
		for _, kind := range s.kinds {
			c = c.Watches(kind, a.handlerFor(s.name, s.after, kind))
		}
		if err := c.Complete(s.do); err != nil {
			return fmt.Errorf("controller %s: %w", s.name, err)
		}
	}
	if err := NewServiceReconciler(m.GetClient(), d).SetupWithManager(m); err != nil {
		return fmt.Errorf("controller services: %w", err)
	}
	if a.servers != nil {
		if err := (&apiserver.Follower{Client: m.GetClient(), Servers: a.servers}).SetupWithManager(m); err != nil {
			return fmt.Errorf("controller api-servers: %w", err)
		}
	}
	return nil
}

// indexFields prepares the questions that Identities asks.
func indexFields(ctx context.Context, x client.FieldIndexer) error {
	err := errors.Join(
		x.IndexField(ctx, &v1alpha1.CiliumIdentity{}, indexLabels, func(o client.Object) []string {
			return []string{hashLabels(o.(*v1alpha1.CiliumIdentity).Spec.Labels)}
		}),
		x.IndexField(ctx, &v1alpha1.CiliumEndpointSlice{}, indexIdentity, func(o client.Object) []string {
			var out []string
			for _, e := range o.(*v1alpha1.CiliumEndpointSlice).Spec.Endpoints {
				out = append(out, strconv.FormatInt(e.Identity, 10))
			}
			return out
		}),
	)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return nil
}

// handlerFor also lets the identities know which numbers were deleted.
func (a *Agent) handlerFor(name string, after time.Duration, kind client.Object) handler.EventHandler {
	h := whole(name, after).(handler.Funcs)
	if _, ok := kind.(*v1alpha1.CiliumIdentity); ok {
		next := h.DeleteFunc
		h.DeleteFunc = func(ctx context.Context, e event.DeleteEvent, q queue) {
			if n, err := identity.ParseNumber(e.Object.GetName()); err == nil {
				a.ids.Deleted(n)
			}
			next(ctx, e, q)
		}
	}
	return h
}

// networkReady is called after the network's tables are written; whole tells that every cache had synced. Then, once,
// leftovers may go.
func (a *Agent) networkReady(whole bool) {
	a.readyOnce.Do(func() {
		close(a.ready)
		a.podsBell.ring() // numbers that pods have got meanwhile can be written now
	})
	if !whole {
		return
	}
	a.sweepOnce.Do(func() {
		if err := a.set().Sweep(); err != nil {
			a.Log.Error(err, "leftover interfaces stay")
		}
	})
}

// events reads the ring buffer and hands events to local processes. The network does not depend on it.
func (a *Agent) events(d *datapath.Datapath, run func(string, func(context.Context) error)) {
	reader, err := events.NewReader(d.EventsMap(), a.Log.WithName("events"))
	if err != nil {
		a.Log.Error(err, "events are not read")
		return
	}
	server := &events.Server{Reader: reader, Path: filepath.Join(a.SocketDir, "inspect", "events.sock"), Log: a.Log.WithName("events")}
	reader.Attach(a.names, a.drops)
	a.mu.Lock()
	a.reader = reader
	a.mu.Unlock()
	if a.Flows != nil {
		reader.Attach(a.names, a.Flows)
		run("flows", func(ctx context.Context) error { return a.serveFlows(ctx, d) })
	}
	run("events", reader.Run)
	run("events socket", server.Run)
}

// set is nil until the endpoints are restored.
func (a *Agent) set() *endpoint.Set {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.endpoints
}

func (a *Agent) ringEndpoints() {
	a.mu.Lock()
	bells := a.endpointsChanged
	a.mu.Unlock()
	for _, b := range bells {
		b.ring()
	}
	set := a.set()
	if set == nil {
		return
	}
	all := set.List()
	a.names.forgetOwn(all)
	for _, e := range all {
		// Its number may have been confirmed during its ADD, when nobody counted it among those that wait for one.
		if who := e.Who(); who.Labels != nil && who.Identity == identity.Pending {
			a.podsBell.ring()
			return
		}
	}
}

// ringPolicies tells those who show what is in force.
func (a *Agent) ringPolicies() {
	a.mu.Lock()
	bells := a.policiesChanged
	a.mu.Unlock()
	for _, b := range bells {
		b.ring()
	}
}

// ringDrops has endpoints look whether there is something to show.
func (a *Agent) ringDrops() {
	a.mu.Lock()
	b := a.dropsSeen
	a.mu.Unlock()
	if b != nil {
		b.ring()
	}
}

// notReady says what is missing for the readiness probe.
func (a *Agent) notReady() error {
	a.mu.Lock()
	serving, err := a.serving, a.datapathErr
	a.mu.Unlock()
	if err != nil {
		return err
	}
	if !serving {
		return errors.New("the datapath is not ready yet")
	}
	if ok, err := a.install.Installed(); !ok {
		return errors.Join(errors.New("the CNI configuration is not written"), err)
	}
	return nil
}

// observe gathers what reports and metrics are made of.
func (a *Agent) observe() observed {
	a.mu.Lock()
	o := observed{bootID: a.bootID, datapath: a.datapath, datapathErr: a.datapathErr, adopted: a.adopted, serving: a.serving, flows: a.Flows != nil, flowsErr: a.flowsErr}
	if a.reader != nil {
		o.events = a.reader.Stats()
	}
	set, network := a.endpoints, a.network
	a.mu.Unlock()
	if set != nil {
		o.endpoints = len(set.List())
	}
	if network != nil {
		o.network = network.InForce()
	}
	o.policies, o.policyErr = a.policies.Progress(), a.policies.InForce().err
	if o.datapath != nil {
		o.health = o.datapath.Health()
	}
	o.others, o.othersKnown = a.others.Results()
	o.installed, o.installErr = a.install.Installed()
	if errors.Is(o.datapathErr, errOtherCNI) {
		o.network.err, o.installErr, o.datapathErr = o.datapathErr, o.datapathErr, nil
	}
	for _, u := range a.addresses.Usage() {
		o.ipam = append(o.ipam, v1alpha1.IPAMReport{Prefix: u.Prefix.String(), Used: u.Used, Resting: u.Resting, Total: u.Total})
	}
	return o
}

// standing looks into the cache.
func (a *Agent) standing() standing {
	a.mu.Lock()
	nodes, reports := a.nodeCache, a.reportCache
	a.mu.Unlock()
	if nodes == nil || !nodes.HasSynced() || !reports.HasSynced() {
		return standing{}
	}
	s := standing{known: true}
	if n := cached(nodes, a.Node); n != nil && n.GetDeletionTimestamp() == nil {
		s.node = n.GetUID()
	}
	if r := cached(reports, a.Node); r != nil {
		s.report = true
		for _, o := range r.GetOwnerReferences() {
			s.owner = o.UID
		}
	}
	return s
}

// cached is the object of a name that an informer of a kind without namespaces holds, or nil.
func cached(i cache.Informer, name string) metav1.Object {
	shared, ok := i.(toolscache.SharedIndexInformer)
	if !ok {
		return nil
	}
	o, there, err := shared.GetStore().GetByKey(name)
	if err != nil || !there {
		return nil
	}
	m, err := meta.Accessor(o)
	if err != nil {
		return nil
	}
	return m
}

// lastVersion asks an informer how far it has read.
func lastVersion(i cache.Informer) func() string {
	versioned, ok := i.(toolscache.SharedIndexInformer)
	return func() string {
		if !ok {
			return ""
		}
		return versioned.LastSyncResourceVersion()
	}
}

// strip leaves out what no agent reads and what fills caches.
func strip(o any) (any, error) {
	if m, err := meta.Accessor(o); err == nil {
		m.SetManagedFields(nil)
	}
	return o, nil
}

// stripPod keeps who the pod is: that is all that this node's agent asks of it.
func stripPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return strip(o)
	}
	var notes map[string]string
	if mirror, ok := p.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		notes = map[string]string{corev1.MirrorPodAnnotationKey: mirror}
	}
	out := &corev1.Pod{}
	out.Name, out.Namespace, out.UID, out.ResourceVersion = p.Name, p.Namespace, p.UID, p.ResourceVersion
	out.Labels, out.Annotations, out.DeletionTimestamp = p.Labels, notes, p.DeletionTimestamp
	if owner := metav1.GetControllerOf(p); owner != nil { // the workload, in flows
		out.OwnerReferences = []metav1.OwnerReference{{Kind: owner.Kind, Name: owner.Name, Controller: owner.Controller}}
	}
	out.Spec.NodeName, out.Spec.ServiceAccountName, out.Spec.HostNetwork = p.Spec.NodeName, p.Spec.ServiceAccountName, p.Spec.HostNetwork
	out.Spec.Containers, out.Spec.InitContainers = onlyPorts(p.Spec.Containers), onlyPorts(p.Spec.InitContainers)
	out.Status.Phase, out.Status.PodIPs = p.Status.Phase, p.Status.PodIPs
	return out, nil
}

// onlyPorts keeps the containers that have ports with names, and nothing else of them: policies speak of these.
func onlyPorts(list []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for _, c := range list {
		var ports []corev1.ContainerPort
		for _, p := range c.Ports {
			if p.Name != "" {
				ports = append(ports, corev1.ContainerPort{Name: p.Name, Protocol: p.Protocol, ContainerPort: p.ContainerPort})
			}
		}
		if len(ports) > 0 {
			out = append(out, corev1.Container{Name: c.Name, Ports: ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return out
}

// stripReport keeps that it is there and whose it is.
func stripReport(o any) (any, error) {
	r, ok := o.(*v1alpha1.CiliumNodeReport)
	if !ok {
		return strip(o)
	}
	out := &v1alpha1.CiliumNodeReport{}
	out.Name, out.UID, out.ResourceVersion, out.OwnerReferences = r.Name, r.UID, r.ResourceVersion, r.OwnerReferences
	return out, nil
}

// stripNode keeps the addresses: images and conditions change all the time.
func stripNode(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return strip(o)
	}
	out := &corev1.Node{}
	out.Name, out.UID, out.ResourceVersion, out.Labels = n.Name, n.UID, n.ResourceVersion, n.Labels
	out.Status.Addresses = n.Status.Addresses
	return out, nil
}
