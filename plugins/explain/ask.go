// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-cilium/kube-cilium/internal/identity"
	"github.com/kube-cilium/kube-cilium/internal/policy"
)

// Question is what the command line asks.
type Question struct {
	// From and To are [NAMESPACE/]POD, pod/..., a workload such as deploy/[NAMESPACE/]NAME, an address, and To also
	// svc/[NAMESPACE/]SERVICE.
	From, To string
	Port     Port
	// Namespace of names that say none.
	Namespace string
}

// Answer is the verdict on one pair.
type Answer struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Via is the service that stands between, with the backend chosen.
	Via string `json:"via,omitempty"`
	// Port at the destination, such as 8080/TCP.
	Port string `json:"port"`
	// Families that this is about, 4 and 6.
	Families []int  `json:"families"`
	Verdict  string `json:"verdict"`
	Egress   Side   `json:"egress"`
	Ingress  Side   `json:"ingress"`
	// Nearest miss, where it is denied.
	Nearest string `json:"nearestMiss,omitempty"`
	// Remarks on what is not policy.
	Remarks []string `json:"remarks,omitempty"`
}

// Side is what one end's policies say.
type Side struct {
	Verdict string `json:"verdict"`
	// Why in a sentence.
	Why string `json:"why"`
	// Rules that were tried, each with what it said.
	Rules []Rule `json:"rules,omitempty"`
}

// Rule is one that was tried.
type Rule struct {
	Policy  string `json:"policy"`
	Path    string `json:"path,omitempty"`
	Matched bool   `json:"matched"`
	Text    string `json:"text"`
}

// Allowed says that nothing denies it.
func (a *Answer) Allowed() bool { return a.Verdict == "allowed" }

// Ask answers for each backend where a service is asked, else once; families that differ are answered apart.
func (w *World) Ask(q Question) ([]Answer, error) {
	from, err := w.find(q.From, q.Namespace, "--from")
	if err != nil {
		return nil, err
	}
	if svc, err := w.service(q.To, q.Namespace); err != nil {
		return nil, err
	} else if svc != nil {
		return w.askService(from, svc, q.Port)
	}
	to, err := w.find(q.To, q.Namespace, "--to")
	if err != nil {
		return nil, err
	}
	port := q.Port
	if port.Name != "" {
		if port, err = resolveName(to, port); err != nil {
			return nil, err
		}
	}
	return w.answers(from, to, port, "")
}

// resolveName is the number that the destination has for a port's name.
func resolveName(to *party, port Port) (Port, error) {
	if to.pod != nil {
		for _, p := range policy.NamedPorts(to.pod) {
			if p.Name == port.Name && p.Protocol == port.Protocol {
				return Port{Number: p.Port, Protocol: p.Protocol}, nil
			}
		}
	}
	return port, fmt.Errorf("%w: %s has no port named %s for %s", ErrQuestion, to.name, port.Name, protocolName(port.Protocol))
}

// find reads a pod's name or an address.
func (w *World) find(text, namespace, flag string) (*party, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return w.party(a), nil
	}
	rest, _ := strings.CutPrefix(text, "pod/")
	rest, _ = strings.CutPrefix(rest, "pods/")
	within, name := namespace, rest
	if ns, n, found := strings.Cut(rest, "/"); found {
		within, name = ns, n
	}
	for i := range w.Pods {
		if p := &w.Pods[i]; p.Namespace == within && p.Name == name {
			if !p.Spec.HostNetwork && len(p.Status.PodIPs) == 0 {
				return nil, fmt.Errorf("%w: pod %s/%s has no address yet", ErrQuestion, within, name)
			}
			return w.partyOf(p), nil
		}
	}
	if kind, name := workload(text); kind != "" {
		if ns, n, found := strings.Cut(name, "/"); found {
			namespace, name = ns, n
		}
		return w.podOf(kind, namespace, name, fmt.Sprintf("%s %q", flag, text))
	}
	return nil, fmt.Errorf("%w: %s %q: there is no pod %s in namespace %s, and it is no address", ErrQuestion, flag, text, name, within)
}

// service is the Service that a text names, nil where it names none.
func (w *World) service(text, namespace string) (*corev1.Service, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		for i := range w.Services {
			if slices.ContainsFunc(w.Services[i].Spec.ClusterIPs, func(ip string) bool { return same(ip, a.Unmap()) }) {
				return &w.Services[i], nil
			}
		}
		return nil, nil
	}
	rest, named := strings.CutPrefix(text, "svc/")
	if !named {
		rest, named = strings.CutPrefix(text, "service/")
	}
	if !named {
		return nil, nil
	}
	name := rest
	if ns, n, found := strings.Cut(rest, "/"); found {
		namespace, name = ns, n
	}
	for i := range w.Services {
		if s := &w.Services[i]; s.Namespace == namespace && s.Name == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("%w: there is no service %s in namespace %s", ErrQuestion, name, namespace)
}

// askService answers for each ready backend: a socket chooses one of them, and policies judge that.
func (w *World) askService(from *party, svc *corev1.Service, port Port) ([]Answer, error) {
	name := svc.Namespace + "/" + svc.Name
	i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool {
		return protocols[string(p.Protocol)] == port.Protocol && (port.Number != 0 && p.Port == int32(port.Number) || port.Name != "" && p.Name == port.Name)
	})
	if i < 0 {
		var have []string
		for _, p := range svc.Spec.Ports {
			have = append(have, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
		return nil, fmt.Errorf("%w: service %s has no port %s: it has %s", ErrQuestion, name, port, strings.Join(have, ", "))
	}
	portName := svc.Spec.Ports[i].Name
	var all []Answer
	for s := range w.Slices {
		slice := &w.Slices[s]
		if slice.Namespace != svc.Namespace || slice.Labels["kubernetes.io/service-name"] != svc.Name {
			continue
		}
		for _, p := range slice.Ports {
			if p.Port == nil || (p.Name != nil && *p.Name != portName) || p.Protocol != nil && protocols[string(*p.Protocol)] != port.Protocol {
				continue
			}
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
					continue
				}
				a, err := netip.ParseAddr(e.Addresses[0])
				if err != nil {
					continue
				}
				answers, err := w.answers(from, w.party(a), Port{Number: uint16(*p.Port), Protocol: port.Protocol}, fmt.Sprintf("service %s port %d", name, svc.Spec.Ports[i].Port))
				if err != nil {
					continue // the asker has no address of this family
				}
				all = append(all, answers...)
			}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: service %s has no ready backend for port %s that can be reached from %s (kubectl -n %s get endpointslices)", ErrQuestion, name, port, from.name, svc.Namespace)
	}
	slices.SortFunc(all, func(a, b Answer) int { return strings.Compare(a.To, b.To) })
	return all, nil
}

// answers are one for both families where they agree, else one for each.
func (w *World) answers(from, to *party, port Port, via string) ([]Answer, error) {
	var all []Answer
	for _, family := range []int{4, 6} {
		source, ok := from.address(family == 4)
		destination, ok2 := to.address(family == 4)
		if !ok || !ok2 {
			continue
		}
		flow := policy.Flow{
			Source: w.end(from, to, source), Destination: w.end(to, from, destination), Protocol: port.Protocol, Port: port.Number,
		}
		if family == 6 && port.Protocol == protocols["ICMP"] {
			flow.Protocol = protocols["ICMPV6"]
		}
		walk := w.engine.Explain(flow)
		a := answer(walk)
		a.From, a.To, a.Via, a.Port, a.Families = from.name, to.name, via, port.String(), []int{family}
		a.Remarks = remarks(flow, from, to)
		for _, p := range []*party{from, to} {
			if p.standsFor != "" {
				a.Remarks = append(a.Remarks, p.standsFor)
			}
		}
		for _, r := range slices.Concat(w.leftOut(from, walk.EgressSteps), w.leftOut(to, walk.IngressSteps)) {
			if !slices.Contains(a.Remarks, r) { // one policy, both ends on one node
				a.Remarks = append(a.Remarks, r)
			}
		}
		if n := len(all); n > 0 && all[n-1].Verdict == a.Verdict && all[n-1].Nearest == a.Nearest &&
			all[n-1].Egress.Why == a.Egress.Why && all[n-1].Ingress.Why == a.Ingress.Why {
			all[n-1].Families = append(all[n-1].Families, family)
			continue
		}
		all = append(all, a)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: %s and %s have no address of the same family", ErrQuestion, from.name, to.name)
	}
	return all, nil
}

func remarks(f policy.Flow, from, to *party) []string {
	var all []string
	if f.Source.Pod == nil && f.Destination.Pod == nil {
		all = append(all, "neither end is a pod: no NetworkPolicy judges this")
	}
	for _, e := range []struct {
		end policy.End
		who *party
	}{{f.Source, from}, {f.Destination, to}} {
		if e.end.Identity == identity.Pending {
			all = append(all, e.who.name+" lies in the cluster's prefixes and no pod has it")
		}
	}
	return all
}

// leftOut says which of the policies that were asked about a pod its node reports not to have in force: there the answer
// may be another one.
func (w *World) leftOut(p *party, steps []policy.Step) []string {
	if p.pod == nil {
		return nil
	}
	var all []string
	for i := range w.Reports {
		if w.Reports[i].Name != p.pod.Spec.NodeName {
			continue
		}
		for _, kind := range w.Reports[i].Status.Policies {
			for _, x := range kind.Exceptions {
				ref := policy.Ref{Kind: kind.Kind, Namespace: x.Namespace, Name: x.Name}
				if slices.ContainsFunc(steps, func(s policy.Step) bool { return s.Ref == ref }) {
					all = append(all, fmt.Sprintf("node %s may judge otherwise: there %s is not in force as it is written (%s: %s)", w.Reports[i].Name, ref, x.Reason, x.Message))
				}
			}
		}
	}
	return all
}

func answer(w policy.Walk) Answer {
	a := Answer{Verdict: verdict(w.Verdict), Egress: side(w.Egress, w.EgressSteps, "egress"), Ingress: side(w.Ingress, w.IngressSteps, "ingress")}
	if w.Nearest != nil && w.Verdict == policy.Deny {
		a.Nearest = w.Nearest.String()
	}
	return a
}

func verdict(v policy.Verdict) string {
	if v == policy.Deny {
		return "denied"
	}
	return "allowed"
}

func side(s policy.Side, steps []policy.Step, direction string) Side {
	out := Side{Verdict: verdict(s.Verdict)}
	var origins []string
	for _, o := range s.Provenance.Origins {
		origins = append(origins, strings.TrimSpace(o.Ref.String()+" "+o.Path))
	}
	who := strings.Join(origins, ", ")
	switch {
	case s.OwnNode:
		out.Why = "sockets of a pod's own node reach it whatever the policies say"
	case !s.Judged:
		out.Why = "no policy selects a pod here for " + direction
	case s.Pending:
		out.Why = "it is not known who the other end is, and a deny could be about it"
	case s.Provenance.Default:
		out.Why = "the default deny of " + who
	default:
		out.Why = who
	}
	for _, step := range steps {
		if step.Path == "" {
			continue // it only isolates: the default deny says so
		}
		r := Rule{Policy: step.Ref.String(), Path: step.Path, Matched: step.Matched, Text: "matches: " + step.Verdict.String()}
		if !step.Matched {
			var why []string
			for _, m := range step.Why {
				why = append(why, m.Text)
			}
			r.Text = strings.Join(why, "; ")
		}
		out.Rules = append(out.Rules, r)
	}
	return out
}
