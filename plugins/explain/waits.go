// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// Selected are the pods that a policy is about, as namespace/name, sorted.
func (w *World) Selected(np *networkingv1.NetworkPolicy) []string {
	var all []string
	for _, p := range w.podsIn(np.Namespace, nil, &np.Spec.PodSelector) {
		all = append(all, p.Namespace+"/"+p.Name)
	}
	slices.Sort(all)
	return all
}

// Notes say what the writer of a policy should know: what it names that is not there yet, and what is not heard.
func (w *World) Notes(np *networkingv1.NetworkPolicy) []string {
	var all []string
	for _, n := range w.notes[policy.RefOf(np)] {
		all = append(all, n.String())
	}
	note := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	selected := w.podsIn(np.Namespace, nil, &np.Spec.PodSelector)
	if len(selected) == 0 {
		note("selects no pod yet: it waits for pods %sin namespace %s", with(&np.Spec.PodSelector), np.Namespace)
	}
	for i, rule := range np.Spec.Ingress {
		path := fmt.Sprintf("spec.ingress[%d]", i)
		w.peers(np.Namespace, path+".from", rule.From, note)
		named(path+".ports", rule.Ports, selected, "the selected pods", note)
	}
	for i, rule := range np.Spec.Egress {
		path := fmt.Sprintf("spec.egress[%d]", i)
		peers := w.peers(np.Namespace, path+".to", rule.To, note)
		if len(rule.To) == 0 {
			for j := range w.Pods {
				peers = append(peers, &w.Pods[j])
			}
		}
		named(path+".ports", rule.Ports, peers, "the pods that it allows", note)
	}
	return all
}

// peers notes those that match nobody and returns the pods of the others.
func (w *World) peers(namespace, path string, peers []networkingv1.NetworkPolicyPeer, note func(string, ...any)) []*corev1.Pod {
	var all []*corev1.Pod
	for i, p := range peers {
		if p.IPBlock != nil || p.PodSelector == nil && p.NamespaceSelector == nil {
			continue
		}
		found := w.podsIn(namespace, p.NamespaceSelector, p.PodSelector)
		all = append(all, found...)
		if len(found) > 0 {
			continue
		}
		where := "namespace " + namespace
		if p.NamespaceSelector != nil {
			where = "namespaces " + with(p.NamespaceSelector)
			if len(w.namespaces(p.NamespaceSelector)) == 0 {
				where += "(there is none)"
			}
		}
		note("%s[%d] waits for pods %sin %s", path, i, with(p.PodSelector), where)
	}
	return all
}

// named notes names of ports that no destination has.
func named(path string, ports []networkingv1.NetworkPolicyPort, destinations []*corev1.Pod, who string, note func(string, ...any)) {
	for i, p := range ports {
		if p.Port == nil || p.Port.Type != intstr.String {
			continue
		}
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		if len(destinations) > 0 && !slices.ContainsFunc(destinations, func(d *corev1.Pod) bool { return hasPort(d, p.Port.StrVal, protocol) }) {
			note("%s[%d] waits for a port named %s for %s: none of %s has it", path, i, p.Port.StrVal, protocol, who)
		}
	}
}

func hasPort(p *corev1.Pod, name string, protocol corev1.Protocol) bool {
	return slices.ContainsFunc(policy.NamedPorts(p), func(n policy.NamedPort) bool { return n.Name == name && n.Protocol == policy.ProtocolNumber(protocol) })
}

func (w *World) namespaces(s *metav1.LabelSelector) map[string]bool {
	all := map[string]bool{}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return all
	}
	for i := range w.Namespaces {
		if selector.Matches(labels.Set(w.Namespaces[i].Labels)) {
			all[w.Namespaces[i].Name] = true
		}
	}
	return all
}

// podsIn are the pods that a pair of selectors is about: without one for namespaces, of the policy's own.
func (w *World) podsIn(own string, namespaces, pods *metav1.LabelSelector) []*corev1.Pod {
	in := map[string]bool{own: true}
	if namespaces != nil {
		in = w.namespaces(namespaces)
	}
	selector := labels.Everything()
	if pods != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(pods); err != nil {
			return nil
		}
	}
	var all []*corev1.Pod
	for i := range w.Pods {
		if p := &w.Pods[i]; inNetwork(p) && in[p.Namespace] && selector.Matches(labels.Set(p.Labels)) {
			all = append(all, p)
		}
	}
	return all
}

// with is a selector in words, with a space behind; "" for one that selects all.
func with(s *metav1.LabelSelector) string {
	if text := metav1.FormatLabelSelector(s); s != nil && text != "<none>" {
		return "with " + text + " "
	}
	return ""
}
