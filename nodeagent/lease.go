// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kube-cilium/kube-cilium/api/v1alpha1"
)

const (
	leaseRenew    = 10 * time.Second
	leaseDuration = 40 * time.Second
)

// Lease says that the agent lives: the operator takes a node whose lease is stale for one without an agent.
type Lease struct {
	node    string
	holder  string
	client  client.Reader // live: one object is not worth a watch
	writer  *Writer
	log     logr.Logger
	current *coordinationv1.Lease
}

// Run renews until ctx ends. The lease is then left to run out: the datapath goes on, and so may the next agent.
func (l *Lease) Run(ctx context.Context) error {
	failing := false
	for {
		rctx, cancel := context.WithTimeout(ctx, leaseRenew)
		err := l.renew(rctx)
		cancel()
		if err != nil && !failing && ctx.Err() == nil {
			l.log.Error(err, "the lease is not renewed; trying on")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(leaseRenew):
		}
	}
}

func (l *Lease) renew(ctx context.Context) error {
	now := metav1.NowMicro()
	seconds := int32(leaseDuration / time.Second)
	name := v1alpha1.AgentLeasePrefix + l.node // as the admission policy and the operator spell it
	if l.current == nil {
		got := &coordinationv1.Lease{}
		err := l.client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.AgentLeaseNamespace, Name: name}, got)
		if apierrors.IsNotFound(err) {
			made := &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.AgentLeaseNamespace, Name: name},
				Spec: coordinationv1.LeaseSpec{
					HolderIdentity: &l.holder, LeaseDurationSeconds: &seconds, AcquireTime: &now, RenewTime: &now,
				},
			}
			if err := l.writer.Create(ctx, Urgent, made); err != nil {
				return fmt.Errorf("create lease: %w", err)
			}
			l.current = made
			return nil
		}
		if err != nil {
			return fmt.Errorf("lease: %w", err)
		}
		l.current = got
	}
	next := l.current.DeepCopy()
	if next.Spec.HolderIdentity == nil || *next.Spec.HolderIdentity != l.holder {
		next.Spec.HolderIdentity, next.Spec.AcquireTime = &l.holder, &now
	}
	next.Spec.LeaseDurationSeconds, next.Spec.RenewTime = &seconds, &now
	if err := l.writer.Update(ctx, Urgent, next); err != nil {
		l.current = nil // somebody else wrote it, or deleted it: read it again
		return fmt.Errorf("renew lease: %w", err)
	}
	l.current = next
	return nil
}
