// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/kube-cilium/kube-cilium/bpf"
)

// ErrPodDiffers means that the tables do not hold a pod as it was added.
var ErrPodDiffers = errors.New("datapath tables differ")

// CheckPod compares what the kernel holds of a pod with what AddPod writes and attaches; it asks the kernel, not the memory of what
// was written. It returns ErrPodDiffers.
func (d *Datapath) CheckPod(pod Pod) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	var entry bpf.PodInterface
	switch err := d.maps.open[bpf.MapsMapPodInterfaces].Lookup(uint32(pod.Ifindex), &entry); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		errs = append(errs, fmt.Errorf("%w: pod_interfaces has no entry for interface %d", ErrPodDiffers, pod.Ifindex))
	case err != nil:
		errs = append(errs, fmt.Errorf("look up interface %d: %w", pod.Ifindex, err))
	case entry != pod.entry():
		errs = append(errs, fmt.Errorf("%w: the entry of interface %d in pod_interfaces is not the pod's", ErrPodDiffers, pod.Ifindex))
	}
	for _, a := range pod.addrs() {
		var e bpf.Endpoint
		switch err := d.maps.open[bpf.MapsMapEndpoints].Lookup(bpf.AddrFrom(a), &e); {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			errs = append(errs, fmt.Errorf("%w: endpoints has no entry for %s", ErrPodDiffers, a))
		case err != nil:
			errs = append(errs, fmt.Errorf("look up %s: %w", a, err))
		case e != pod.endpoint():
			errs = append(errs, fmt.Errorf("%w: the entry of %s in endpoints is not the pod's", ErrPodDiffers, a))
		}
	}
	for _, hook := range podHooks {
		on, err := d.attach.isOn(hook, pod.device())
		switch {
		case err != nil:
			errs = append(errs, err)
		case !on:
			errs = append(errs, fmt.Errorf("%w: %s is not attached to %s", ErrPodDiffers, hookName(hook), pod.Interface))
		}
	}
	return errors.Join(errs...)
}
