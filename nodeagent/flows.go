// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"time"

	"github.com/kube-cilium/kube-cilium/internal/flow"
	"github.com/kube-cilium/kube-cilium/nodeagent/datapath"
	"github.com/kube-cilium/kube-cilium/nodeagent/events"
)

// FlowServer gets this node's events and shows them to people. It is of another room: cmd brings it.
type FlowServer interface {
	events.Sink
	// Serve answers until ctx is done, or says why it cannot. It calls serving once it can. It may be called again.
	Serve(ctx context.Context, names flow.Names, serving func()) error
	// KernelLost says how many events the kernel had no room for since the maps were made.
	KernelLost(uint64)
}

const (
	// flowsAgain is how long after a failure flows are served again.
	flowsAgain = 10 * time.Second
	// lostLook is how often the kernel is asked for events that it has lost.
	lostLook = 5 * time.Second
)

// serveFlows keeps flows served. The network does not depend on it: a failure is a condition of the report.
func (a *Agent) serveFlows(ctx context.Context, d *datapath.Datapath) error {
	go a.watchLost(ctx, d)
	for {
		err := a.Flows.Serve(ctx, a.names, func() { a.flowsServed(nil) })
		if ctx.Err() != nil {
			return nil
		}
		if a.flowsServed(err) {
			a.Log.Error(err, "flows are not served; trying again", "every", flowsAgain)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(flowsAgain):
		}
	}
}

// flowsServed keeps how serving went, and tells whether that is news.
func (a *Agent) flowsServed(err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	news := err == nil || a.flowsErr == nil || a.flowsErr.Error() != err.Error()
	a.flowsErr = err
	return news
}

func (a *Agent) watchLost(ctx context.Context, d *datapath.Datapath) {
	tick := time.NewTicker(lostLook)
	defer tick.Stop()
	for {
		if lost, err := d.EventsLost(); err == nil {
			a.Flows.KernelLost(lost)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
